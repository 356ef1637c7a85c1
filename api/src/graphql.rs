//! The schema, one file a noun.

mod access_list;
mod audit;
mod bot;
mod budget;
mod conversation;
pub(crate) mod edges;
pub(crate) mod error;
mod event;
mod history;
mod limit;
mod moderation;
pub(crate) mod moment;
mod node;
mod operator;
mod page;
mod person;
mod platform;
mod policy;
mod proof;
mod quota;
mod rate_limit;
pub(crate) mod scalars;
mod session;
mod standing;
mod turn;
mod usage;
mod workspace;

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_graphql::{
    Context, Guard, ID, InputObject, MergedObject, MergedSubscription, Schema, SchemaBuilder,
};
use botledger_commands::{Caller, Origin};
use botledger_domain::{Position, operator::Permission};
use botledger_projections::wait_for;
use uuid::Uuid;

use crate::{
    Services,
    auth::{self, AuthFailure, Identity},
};
use error::{ApiError, ApiResult, note, row};
pub(crate) use moment::AsOf;
use moment::{Moment, Moments};
use scalars::At;

/// How long a reader waits for its own writes.
const OWN_WRITES: Duration = Duration::from_secs(5);
/// A page of 200 turns with all their plain fields, and some more.
const MAX_COMPLEXITY: usize = 10_000;

#[derive(MergedObject, Default)]
pub(crate) struct Query(
    access_list::AccessListQuery,
    audit::AuditQuery,
    bot::BotQuery,
    budget::BudgetQuery,
    conversation::ConversationQuery,
    event::EventQuery,
    history::HistoryQuery,
    moderation::ModerationQuery,
    node::NodeQuery,
    operator::OperatorQuery,
    person::PersonQuery,
    platform::PlatformQuery,
    policy::PolicyQuery,
    policy::PolicyWhatIfQuery,
    proof::ProofQuery,
    quota::QuotaQuery,
    quota::PlanWhatIfQuery,
    rate_limit::RateLimitQuery,
    standing::StandingQuery,
    turn::TurnQuery,
    usage::UsageQuery,
    workspace::WorkspaceQuery,
);

#[derive(MergedObject, Default)]
pub(crate) struct Mutation(
    session::SessionMutation,
    access_list::AccessListMutation,
    bot::BotMutation,
    budget::BudgetMutation,
    conversation::ConversationMutation,
    moderation::ModerationMutation,
    operator::OperatorMutation,
    person::PersonMutation,
    platform::PlatformMutation,
    policy::PolicyMutation,
    quota::QuotaMutation,
    rate_limit::RateLimitMutation,
    standing::StandingMutation,
    turn::TurnMutation,
    workspace::WorkspaceMutation,
);

#[derive(MergedSubscription, Default)]
pub(crate) struct Subscription(
    event::EventSubscription,
    policy::PolicySubscription,
    standing::StandingSubscription,
    turn::TurnSubscription,
);

pub(crate) type ApiSchema = Schema<Query, Mutation, Subscription>;

fn builder() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query::default(), Mutation::default(), Subscription::default())
        .limit_complexity(MAX_COMPLEXITY)
        .disable_suggestions()
}

pub(crate) fn schema(services: Arc<Services>) -> ApiSchema {
    builder().data(services).finish()
}

/// The schema in the schema language, sorted.
pub(crate) fn sdl() -> String {
    let options =
        async_graphql::SDLExportOptions::new().sorted_fields().sorted_arguments().sorted_enum_items();
    builder().finish().sdl_with_options(options)
}

/// All words of the schema language's text: names that an error may repeat.
pub(crate) fn names() -> &'static HashSet<String> {
    static NAMES: LazyLock<HashSet<String>> = LazyLock::new(|| {
        let sdl = sdl();
        sdl.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned).collect()
    });
    &NAMES
}

/// What is known of a request before it is executed.
pub(crate) struct RequestContext {
    /// In every error and in every event that follows.
    pub(crate) id: Uuid,
    /// Who asks.
    pub(crate) identity: Option<Identity>,
    /// From where.
    pub(crate) ip: Option<IpAddr>,
    /// Which of its fields ask about the past.
    pub(crate) moments: Moments,
    /// The same, as the audit table keeps it.
    pub(crate) origin: Origin,
    /// What it has left there.
    pub(crate) noted: Arc<Noted>,
}

/// What a request has left in the audit table so far.
#[derive(Default)]
pub(crate) struct Noted {
    /// Rows.
    pub(crate) rows: AtomicUsize,
    /// Whether one of them tells that it asked to read what it may not: one is enough, however many fields ask.
    turned_away: AtomicBool,
}

/// Everything a resolver works with.
pub(crate) struct Scope<'a> {
    pub(crate) services: &'a Services,
    pub(crate) request: &'a RequestContext,
    /// The moment that is answered from; the present when absent.
    pub(crate) moment: Option<Moment>,
}

impl<'a> Scope<'a> {
    pub(crate) fn of(ctx: &Context<'a>) -> ApiResult<Self> {
        let services = ctx.data_opt::<Arc<Services>>().ok_or_else(ApiError::internal)?;
        let request = ctx.data_opt::<RequestContext>().ok_or_else(ApiError::internal)?;
        Ok(Self { services, request, moment: request.moments.of(ctx) })
    }

    pub(crate) fn identity(&self) -> ApiResult<&'a Identity> {
        self.request.identity.as_ref().ok_or_else(ApiError::unauthenticated)
    }

    fn require(&self, permission: Permission) -> ApiResult<()> {
        let identity = self.identity()?;
        let granted = permission == Permission::ReadPersonal
            && identity.reads_personal_until.is_some_and(|until| self.services.app.core.clock.now() < until);
        match granted || identity.role.may(permission) {
            true => Ok(()),
            false => Err(ApiError::forbidden(format!("this needs the permission {}", permission.as_ref()))),
        }
    }

    /// Notes that somebody reads personal text who was let do so for a time. What cannot be noted is not shown,
    /// and whoever was let in at the beginning of a subscription is asked about anew.
    pub(crate) async fn reads_personal(&self, field: &str, about: ID) -> ApiResult<()> {
        let identity = self.identity()?;
        if identity.role.may(Permission::ReadPersonal) {
            return Ok(());
        }
        let now = auth::again(self.services, identity).await.map_err(|failure| match failure {
            AuthFailure::Refused => ApiError::unauthenticated(),
            AuthFailure::Unavailable => ApiError::away(),
        })?;
        let request = RequestContext {
            id: self.request.id,
            identity: Some(now),
            ip: self.request.ip,
            origin: self.request.origin.clone(),
            noted: Arc::clone(&self.request.noted),
            moments: Moments::default(),
        };
        let scope = Scope { services: self.services, request: &request, moment: None };
        scope.require(Permission::ReadPersonal)?;
        let detail = serde_json::json!({ "field": field, "about": about.as_str() });
        let noted = self.services.app.audit.try_record(row(self, "personal.read", "ok", detail)).await;
        noted.map_err(ApiError::unavailable)
    }

    /// The caller of a use case.
    pub(crate) fn caller(&self, conditions: Option<Conditions>) -> ApiResult<Caller> {
        let identity = self.identity()?;
        let conditions = conditions.unwrap_or_default();
        let unfit = |key: &String| key.is_empty() || key.len() > 200 || key.contains(char::is_control);
        if conditions.idempotency_key.as_ref().is_some_and(unfit) {
            return Err(ApiError::bad_input("an idempotencyKey has 1 to 200 bytes, no control characters"));
        }
        Ok(Caller {
            idempotency_key: conditions.idempotency_key,
            expected_version: conditions.expected_version.map(|version| version.0),
            ..Caller::operator(identity.operator, identity.role, identity.workspace, self.request.id)
        })
    }

    /// Waits until a read model shows a position.
    pub(crate) async fn at_least(&self, read_model: &str, position: Option<At>) -> ApiResult<()> {
        let Some(At(position)) = position else { return Ok(()) };
        // The answer has to be made in time as well.
        let patience = OWN_WRITES.min(self.services.config.request_timeout / 2);
        match wait_for(&self.services.read, read_model, position, patience).await? {
            true => Ok(()),
            false => Err(ApiError::away()),
        }
    }

    /// A thing as the caller's own write left it. Nothing when the read model is late or away: what
    /// was carried out is answered as carried out, and its position tells where.
    pub(crate) async fn written<T>(
        &self,
        read_model: &str,
        position: Position,
        find: impl Future<Output = ApiResult<Option<T>>>,
    ) -> Option<T> {
        self.at_least(read_model, Some(At(position))).await.ok()?;
        find.await.ok().flatten()
    }
}

/// Conditions under which a mutation is carried out.
#[derive(Clone, Debug, Default, InputObject)]
pub(crate) struct Conditions {
    /// The same key in the same workspace: the same answer, nothing done twice.
    pub(crate) idempotency_key: Option<String>,
    /// Only if the aggregate stands at this version (its number of events).
    pub(crate) expected_version: Option<scalars::BigInt>,
}

/// Lets through who is logged in and may. Who asks for personal text or the ledger and may not is noted in the audit
/// table.
pub(crate) struct Needs(pub(crate) Permission);

impl Guard for Needs {
    async fn check(&self, ctx: &Context<'_>) -> async_graphql::Result<()> {
        let scope = Scope::of(ctx)?;
        let allowed = scope.require(self.0);
        let noted = matches!(self.0, Permission::ReadPersonal | Permission::ReadLedger)
            && scope.request.identity.is_some();
        if allowed.is_err() && noted && !scope.request.noted.turned_away.swap(true, Ordering::Relaxed) {
            note(&scope, ctx.field().name(), "forbidden", serde_json::json!({ "code": "FORBIDDEN" })).await;
        }
        Ok(allowed?)
    }
}

/// The same for what changes something: who may not is noted in the audit table.
pub(crate) struct Acts(pub(crate) Permission);

impl Guard for Acts {
    async fn check(&self, ctx: &Context<'_>) -> async_graphql::Result<()> {
        let scope = Scope::of(ctx)?;
        let allowed = scope.require(self.0);
        if allowed.is_err() && scope.request.identity.is_some() {
            note(&scope, ctx.field().name(), "forbidden", serde_json::json!({ "code": "FORBIDDEN" })).await;
        }
        Ok(allowed?)
    }
}

/// A mutation's answer: the thing as it is now (null when its read model is late), where the change
/// stands in the ledger, or why not.
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident { $(#[$fdoc:meta])* $field:ident: $type:ty }) => {
        $(#[$doc])*
        #[derive(async_graphql::SimpleObject)]
        pub(crate) struct $name {
            $(#[$fdoc])*
            $field: Option<$type>,
            /// Of the last event; 0 when it was so already. Give it to queries as `minPosition`.
            position: Option<$crate::graphql::scalars::At>,
            /// Why it was not done, or not all of it; empty when it was.
            user_errors: Vec<$crate::graphql::error::UserError>,
        }

        impl $name {
            fn done(thing: Option<$type>, position: botledger_domain::Position) -> Self {
                Self { $field: thing, position: Some(position.into()), user_errors: Vec::new() }
            }

            fn refused(error: $crate::graphql::error::UserError) -> Self {
                Self { $field: None, position: None, user_errors: vec![error] }
            }
        }
    };
}

pub(crate) use payload;

/// Gives the value, or ends the mutation with the refusal.
macro_rules! or_refused {
    ($payload:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok($payload::refused(error)),
        }
    };
}

pub(crate) use or_refused;

/// What a list of the past costs on top: a whole read model may have to be made for it.
pub(crate) fn past_cost(is_past: bool) -> usize {
    if is_past { 500 } else { 0 }
}

/// What a page costs: its size.
pub(crate) fn page_cost(first: Option<i32>, last: Option<i32>) -> usize {
    usize::try_from(first.or(last).unwrap_or(page::DEFAULT)).unwrap_or(0).max(1)
}
