//! Things that lists point to, fetched together: a page of turns asks for its bots once.

use std::{collections::HashMap, sync::Arc};

use async_graphql::dataloader::{DataLoader, Loader};
use botledger_domain::{BotId, SubjectId};
use botledger_projections::{
    BotRow, PersonRow, PolicyVersionRow, QuotaRow, ReadError, ReadPool, bots_by_ids, people_by_ids,
    policy_versions_by_ids, quotas_of,
};
use uuid::Uuid;

use super::error::{ApiError, ApiResult};

/// Key of a bot.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct OfBot(Uuid);

/// Key of a person.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct OfPerson(Uuid);

/// Key of a person's quota.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct QuotaOf(Uuid);

/// Key of a version of a policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct VersionOf(Uuid, i64);

struct Rows(ReadPool);

type Fetched<K, R> = Result<HashMap<K, R>, Arc<ReadError>>;

impl Loader<OfBot> for Rows {
    type Value = BotRow;
    type Error = Arc<ReadError>;

    async fn load(&self, keys: &[OfBot]) -> Fetched<OfBot, BotRow> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.0).collect();
        let rows = bots_by_ids(&self.0, &ids).await?;
        Ok(rows.into_iter().map(|row| (OfBot(row.bot_id), row)).collect())
    }
}

impl Loader<OfPerson> for Rows {
    type Value = PersonRow;
    type Error = Arc<ReadError>;

    async fn load(&self, keys: &[OfPerson]) -> Fetched<OfPerson, PersonRow> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.0).collect();
        let rows = people_by_ids(&self.0, &ids).await?;
        Ok(rows.into_iter().map(|row| (OfPerson(row.subject), row)).collect())
    }
}

impl Loader<QuotaOf> for Rows {
    type Value = QuotaRow;
    type Error = Arc<ReadError>;

    async fn load(&self, keys: &[QuotaOf]) -> Fetched<QuotaOf, QuotaRow> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.0).collect();
        let rows = quotas_of(&self.0, &ids).await?;
        Ok(rows.into_iter().map(|row| (QuotaOf(row.subject), row)).collect())
    }
}

impl Loader<VersionOf> for Rows {
    type Value = PolicyVersionRow;
    type Error = Arc<ReadError>;

    async fn load(&self, keys: &[VersionOf]) -> Fetched<VersionOf, PolicyVersionRow> {
        let ids: Vec<(Uuid, i64)> = keys.iter().map(|key| (key.0, key.1)).collect();
        let rows = policy_versions_by_ids(&self.0, &ids).await?;
        Ok(rows.into_iter().map(|row| (VersionOf(row.policy_id, row.version), row)).collect())
    }
}

/// Gathers what is asked for in the same moment. Remembers nothing.
pub(crate) struct Edges(DataLoader<Rows>);

impl Edges {
    pub(crate) fn new(pool: ReadPool) -> Self {
        Self(DataLoader::new(Rows(pool), tokio::spawn))
    }

    pub(super) async fn bot(&self, bot: BotId) -> ApiResult<Option<BotRow>> {
        self.0.load_one(OfBot(bot.uuid())).await.map_err(ApiError::unavailable)
    }

    pub(super) async fn person(&self, subject: SubjectId) -> ApiResult<Option<PersonRow>> {
        self.0.load_one(OfPerson(subject.uuid())).await.map_err(ApiError::unavailable)
    }

    pub(super) async fn quota(&self, subject: SubjectId) -> ApiResult<Option<QuotaRow>> {
        self.0.load_one(QuotaOf(subject.uuid())).await.map_err(ApiError::unavailable)
    }

    pub(super) async fn policy_version(
        &self,
        policy: Uuid,
        version: i64,
    ) -> ApiResult<Option<PolicyVersionRow>> {
        self.0.load_one(VersionOf(policy, version)).await.map_err(ApiError::unavailable)
    }
}
