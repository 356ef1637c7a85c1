//! The platform itself: where the ledger stands, how read models keep up, what is simulated.

use async_graphql::{Context, Enum, InputObject, Object, SimpleObject};
use botledger_domain::operator::Permission;
use botledger_projections::{CheckpointStatus, Decision, decide, statuses};

use super::{
    Acts, Needs, Scope,
    error::{ApiError, ApiResult, UserError, note, reason},
    scalars::At,
};

pub(crate) struct Projection(CheckpointStatus);

/// How a read model keeps up with the ledger.
#[Object]
impl Projection {
    /// Stable, for example `turns`.
    async fn name(&self) -> &str {
        &self.0.name
    }

    async fn version(&self) -> i32 {
        self.0.version
    }

    /// Everything up to here is applied.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    /// Events behind the head of the ledger.
    async fn lag(&self) -> i64 {
        self.0.lag
    }

    /// `running` or `stopped`.
    async fn status(&self) -> &str {
        &self.0.status
    }

    /// The event it stopped at.
    async fn failed_position(&self) -> Option<At> {
        self.0.failed_position.map(At::from)
    }

    /// Why it stopped.
    async fn error(&self) -> Option<&str> {
        self.0.error.as_deref()
    }
}

/// The installation.
#[derive(SimpleObject)]
pub(crate) struct Platform {
    /// Of the product.
    version: &'static str,
    /// The ledger's last position.
    head: At,
    /// Stand-ins in use, for example `telegram` and `model`.
    simulated: Vec<String>,
}

#[derive(Default)]
pub(crate) struct PlatformQuery;

#[Object]
impl PlatformQuery {
    /// The installation.
    #[graphql(guard = "Needs(Permission::ReadSelf)")]
    async fn platform(&self, ctx: &Context<'_>) -> ApiResult<Platform> {
        let services = Scope::of(ctx)?.services;
        let head = services.log.head().await?;
        services.log.flushed().await?;
        Ok(Platform {
            version: env!("CARGO_PKG_VERSION"),
            head: head.into(),
            simulated: services.config.simulated.clone(),
        })
    }

    /// How the read models keep up.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "10 * child_complexity")]
    async fn projections(&self, ctx: &Context<'_>) -> ApiResult<Vec<Projection>> {
        let rows = statuses(&Scope::of(ctx)?.services.read).await?;
        Ok(rows.into_iter().map(Projection).collect())
    }
}

/// What to do with an event that stopped a read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
enum ProjectionDecision {
    /// Try it again, for example after an update.
    Retry,
    /// Leave it out for ever, also when rebuilding.
    Skip,
}

/// A decision about an event that stopped a read model.
#[derive(InputObject)]
struct ProjectionDecideInput {
    /// Name of the read model.
    name: String,
    /// The event it stopped at.
    position: At,
    decision: ProjectionDecision,
    /// 1 to 500 characters, kept.
    reason: String,
}

/// Answer of a decision.
#[derive(SimpleObject)]
pub(crate) struct ProjectionDecidePayload {
    /// As it is now; the runner obeys within a moment.
    projection: Option<Projection>,
    /// Why nothing was done.
    user_errors: Vec<UserError>,
}

#[derive(Default)]
pub(crate) struct PlatformMutation;

#[Object]
impl PlatformMutation {
    /// Decides about an event that stopped a read model.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_decide(
        &self,
        ctx: &Context<'_>,
        input: ProjectionDecideInput,
    ) -> ApiResult<ProjectionDecidePayload> {
        let scope = Scope::of(ctx)?;
        let refused = |error| Ok(ProjectionDecidePayload { projection: None, user_errors: vec![error] });
        let reason = match reason(&input.reason) {
            Ok(reason) => reason,
            Err(error) => return refused(error),
        };
        let decision = match input.decision {
            ProjectionDecision::Retry => Decision::Retry,
            ProjectionDecision::Skip => Decision::Skip,
        };
        let operator = scope.identity()?.operator.uuid();
        let read = &scope.services.read;
        let taken =
            decide(read, &input.name, input.position.0, decision, reason.as_str(), Some(operator)).await?;
        let detail = serde_json::json!({ "code": decision.as_ref() });
        note(&scope, "projection.decide", if taken { "ok" } else { "refused" }, detail).await;
        if !taken {
            let message = "this read model is not stopped at that event";
            return refused(UserError::new("PROJECTION_NOT_STOPPED", message));
        }
        let rows = statuses(read).await?;
        let projection = rows.into_iter().find(|row| row.name == input.name).map(Projection);
        let projection = projection.ok_or_else(|| ApiError::not_found("projection"))?;
        Ok(ProjectionDecidePayload { projection: Some(projection), user_errors: Vec::new() })
    }
}
