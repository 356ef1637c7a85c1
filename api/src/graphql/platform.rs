//! The platform itself: where the ledger stands, how read models keep up, what is simulated.

use async_graphql::{Context, Enum, InputObject, Object, SimpleObject};
use botledger_domain::{Actor, operator::Permission};
use botledger_projections::{
    Change, CheckpointStatus, Decision, ReadError, Rebuild, all, cancel_rebuild, changes, decide,
    forget_previous, rebuilds, roll_back, start_rebuild, statuses, swap,
};
use chrono::{DateTime, Utc};

use super::{
    Acts, Needs, Scope,
    error::{ApiError, ApiResult, UserError, note, reason},
    scalars::{At, BigInt},
};

pub(crate) struct Projection(CheckpointStatus, Option<Rebuild>);

pub(crate) struct ProjectionRebuild(Rebuild);

/// A rebuild of a read model beside the live rows, which are served until it is swapped.
#[Object]
impl ProjectionRebuild {
    /// Of the projection that fills it.
    async fn version(&self) -> i32 {
        self.0.version
    }

    /// `filling`, `stopped` at an event, `ready` to be swapped, `swapped` with the rows before kept, `done`,
    /// `rolled_back`, `cancelled`.
    async fn state(&self) -> &str {
        &self.0.state
    }

    /// Events done.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    /// Events there are to do; moves on with the ledger.
    async fn target(&self) -> At {
        self.0.target.into()
    }

    /// Events a second over its last page.
    async fn rate(&self) -> Option<i64> {
        self.0.rate
    }

    /// Seconds until it has caught up at that rate.
    async fn seconds_left(&self) -> Option<i64> {
        self.0.left_s()
    }

    /// The event it stopped at.
    async fn failed_position(&self) -> Option<At> {
        self.0.failed_position.map(At::from)
    }

    /// Why it stopped.
    async fn error(&self) -> Option<&str> {
        self.0.error.as_deref()
    }

    /// How it differs from the live rows; null until it has caught up with them once.
    async fn comparison(&self) -> Option<ProjectionComparison> {
        self.0.comparison.as_ref().map(|found| ProjectionComparison {
            position: found.position.into(),
            rows: BigInt(found.rows),
            live_rows: BigInt(found.live_rows),
            different: BigInt(found.different),
        })
    }

    async fn started_at(&self) -> DateTime<Utc> {
        self.0.started_at
    }
}

/// Two sets of rows of a read model, compared at one position.
#[derive(SimpleObject)]
pub(crate) struct ProjectionComparison {
    position: At,
    /// Rows of the rebuild.
    rows: BigInt,
    /// Rows that were live.
    live_rows: BigInt,
    /// Rows that are not byte for byte the same in both. `botledger projections rebuild` shows some of them.
    different: BigInt,
}

/// Something an operator did to a read model.
#[derive(SimpleObject)]
pub(crate) struct ProjectionChange {
    /// Of the read model.
    name: String,
    /// `started`, `resumed`, `swapped`, `rolled_back`, `cancelled`, `forgotten`.
    change: String,
    /// Where its rows stood.
    position: At,
    /// Who, as events name actors, for example `operator:<id>` or `system:cli`.
    actor: String,
    reason: String,
    changed_at: DateTime<Utc>,
}

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

    /// How long the next event has been waiting, or how long nothing was applied if that is shorter, in
    /// seconds. Null when there is no next event.
    async fn waiting_seconds(&self) -> Option<i64> {
        self.0.waiting_s
    }

    /// Whether it should be moving and has not been for 30 seconds.
    async fn stalled(&self) -> bool {
        self.0.is_stalled()
    }

    /// Name of the process that runs it; null when none does.
    async fn holder(&self) -> Option<&str> {
        self.0.holder_name.as_deref()
    }

    /// The event it stopped at.
    async fn failed_position(&self) -> Option<At> {
        self.0.failed_position.map(At::from)
    }

    /// Type of that event.
    async fn failed_type(&self) -> Option<&str> {
        self.0.failed_type.as_deref()
    }

    /// Stream of that event, as `type/id`.
    async fn failed_stream(&self) -> Option<&str> {
        self.0.failed_stream.as_deref()
    }

    /// When it stopped.
    async fn stopped_at(&self) -> Option<DateTime<Utc>> {
        self.0.stopped_at
    }

    /// Its last rebuild.
    async fn rebuild(&self) -> Option<ProjectionRebuild> {
        self.1.clone().map(ProjectionRebuild)
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

async fn projections(scope: &Scope<'_>) -> Result<Vec<Projection>, ReadError> {
    let read = &scope.services.read;
    let (rows, mut rebuilds) = (statuses(read).await?, rebuilds(read).await?);
    let told = rows.into_iter().map(|row| {
        let rebuild = rebuilds.iter().position(|one| one.name == row.name);
        Projection(row, rebuild.map(|at| rebuilds.swap_remove(at)))
    });
    Ok(told.collect())
}

async fn projection(scope: &Scope<'_>, name: &str) -> ApiResult<Projection> {
    let found = projections(scope).await?.into_iter().find(|one| one.0.name == name);
    found.ok_or_else(|| ApiError::not_found("projection"))
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
        Ok(projections(&Scope::of(ctx)?).await?)
    }

    /// What operators did to read models, oldest first; of one of them, or of all.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "10 * child_complexity")]
    async fn projection_changes(
        &self,
        ctx: &Context<'_>,
        name: Option<String>,
    ) -> ApiResult<Vec<ProjectionChange>> {
        let rows = changes(&Scope::of(ctx)?.services.read, name.as_deref()).await?;
        let told = rows.into_iter().map(|row| ProjectionChange {
            name: row.name,
            change: row.change,
            position: row.position.into(),
            actor: row.actor,
            reason: row.reason,
            changed_at: row.changed_at,
        });
        Ok(told.collect())
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

/// A change to a read model.
#[derive(InputObject)]
struct ProjectionChangeInput {
    /// Name of the read model.
    name: String,
    /// 1 to 500 characters, kept.
    reason: String,
}

/// A swap of a read model.
#[derive(InputObject)]
struct ProjectionSwapInput {
    /// Name of the read model.
    name: String,
    /// Swap although rows differ from the live ones.
    #[graphql(default)]
    accept_differences: bool,
    /// 1 to 500 characters, kept.
    reason: String,
}

/// Answer of a change.
#[derive(SimpleObject)]
pub(crate) struct ProjectionChangePayload {
    /// As it is now.
    projection: Option<Projection>,
    /// Why nothing was done.
    user_errors: Vec<UserError>,
}

/// What is done to a read model.
enum Act {
    Rebuild,
    Swap { accept: bool },
    RollBack,
    Cancel,
    Forget,
}

impl ProjectionChangeInput {
    async fn carry_out(
        self,
        ctx: &Context<'_>,
        action: &'static str,
        act: Act,
    ) -> ApiResult<ProjectionChangePayload> {
        let scope = Scope::of(ctx)?;
        let refused = |error| Ok(ProjectionChangePayload { projection: None, user_errors: vec![error] });
        let reason = match reason(&self.reason) {
            Ok(reason) => reason,
            Err(error) => return refused(error),
        };
        let found = all().into_iter().find(|one| one.name() == self.name);
        let model = found.ok_or_else(|| ApiError::not_found("projection"))?;
        let actor = Actor::Operator(scope.identity()?.operator.uuid());
        let change = Change { actor: &actor, reason: reason.as_str() };
        let read = &scope.services.read;
        let done = match act {
            Act::Rebuild => start_rebuild(read, &model, change).await,
            Act::Swap { accept } => swap(read, &model, accept, change).await,
            Act::RollBack => roll_back(read, model.name(), change).await,
            Act::Cancel => cancel_rebuild(read, model.name(), change).await,
            Act::Forget => forget_previous(read, model.name(), change).await,
        };
        match done {
            Ok(_) => {
                note(&scope, action, "ok", serde_json::json!({ "name": self.name })).await;
                let projection = projection(&scope, &self.name).await?;
                Ok(ProjectionChangePayload { projection: Some(projection), user_errors: Vec::new() })
            }
            Err(error) => match error.code() {
                Some(code) => {
                    note(&scope, action, "refused", serde_json::json!({ "name": self.name, "code": code }))
                        .await;
                    refused(UserError::new(code, error.to_string()))
                }
                None => Err(ApiError::unavailable(error)),
            },
        }
    }
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
        let projection = projection(&scope, &input.name).await?;
        Ok(ProjectionDecidePayload { projection: Some(projection), user_errors: Vec::new() })
    }

    /// Begins to make a read model anew beside the live rows, which are served meanwhile; goes on with one
    /// that stopped at an event. Processes that run read models do the work.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_rebuild(
        &self,
        ctx: &Context<'_>,
        input: ProjectionChangeInput,
    ) -> ApiResult<ProjectionChangePayload> {
        input.carry_out(ctx, "projection.rebuild", Act::Rebuild).await
    }

    /// Serves a ready rebuild instead of the live rows, in one transaction. The rows before are kept.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_swap(
        &self,
        ctx: &Context<'_>,
        input: ProjectionSwapInput,
    ) -> ApiResult<ProjectionChangePayload> {
        let accept = input.accept_differences;
        let input = ProjectionChangeInput { name: input.name, reason: input.reason };
        input.carry_out(ctx, "projection.swap", Act::Swap { accept }).await
    }

    /// Serves the rows from before the last swap again. They stand where they stood then, and catch up.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_roll_back(
        &self,
        ctx: &Context<'_>,
        input: ProjectionChangeInput,
    ) -> ApiResult<ProjectionChangePayload> {
        input.carry_out(ctx, "projection.roll_back", Act::RollBack).await
    }

    /// Gives an open rebuild up. The live rows are not touched.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_cancel_rebuild(
        &self,
        ctx: &Context<'_>,
        input: ProjectionChangeInput,
    ) -> ApiResult<ProjectionChangePayload> {
        input.carry_out(ctx, "projection.cancel_rebuild", Act::Cancel).await
    }

    /// Lets go of the rows from before the last swap, which can then not be taken back.
    #[graphql(guard = "Acts(Permission::ManageBots)")]
    async fn projection_forget_previous(
        &self,
        ctx: &Context<'_>,
        input: ProjectionChangeInput,
    ) -> ApiResult<ProjectionChangePayload> {
        input.carry_out(ctx, "projection.forget_previous", Act::Forget).await
    }
}
