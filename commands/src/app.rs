use std::{sync::Arc, time::Duration};

use botledger_domain::{InstanceId, SharedClock};
use botledger_journal::{Journal, JournalConfig, audit::LogTree};
use redis::aio::ConnectionManager;
use sqlx::PgPool;

use crate::{
    AccessLists, Audit, Bots, Budgets, DetectorServices, Gate, GateDefaults, Histories, KeyRing, Operators,
    Policies, Quotas, RateDefaults, RateLimiter, RateLimits, Sessions, SharedIds, Standings, Subjects,
    TelegramProbe, Turns, Vault, Workspaces, holds::Holds, rate_limit::Overrides, scorer::Scorer,
};

/// What every use case stands on.
#[derive(Clone)]
pub struct Core {
    pub journal: Journal,
    pub vault: Vault,
    pub clock: SharedClock,
    pub ids: SharedIds,
    /// This process.
    pub instance: InstanceId,
    pub(crate) pool: PgPool,
}

/// What an [`App`] is opened with.
pub struct AppConfig {
    pub journal: JournalConfig,
    pub keys: KeyRing,
    pub gate: GateDefaults,
    /// What policies may name beside the detectors of this process.
    pub detectors: DetectorServices,
    pub rates: RateDefaults,
    /// How long Redis may take before it counts as away.
    pub redis_patience: Duration,
    pub instance: InstanceId,
}

/// All use cases of a process.
#[derive(Clone)]
pub struct App {
    pub core: Arc<Core>,
    pub bots: Bots,
    pub turns: Turns,
    pub histories: Histories,
    pub gate: Gate,
    pub quotas: Quotas,
    pub budgets: Budgets,
    pub rate_limits: RateLimits,
    pub access_lists: AccessLists,
    pub standings: Standings,
    pub policies: Policies,
    pub workspaces: Workspaces,
    pub operators: Operators,
    pub sessions: Sessions,
    pub subjects: Subjects,
    pub audit: Audit,
    /// Signed heads of the ledger, and proofs under them.
    pub tree: LogTree,
}

impl App {
    /// Starts the journal's writer and wires the use cases.
    #[must_use]
    pub fn open(
        config: AppConfig,
        pool: PgPool,
        redis: Option<ConnectionManager>,
        probe: Arc<dyn TelegramProbe>,
        clock: SharedClock,
        ids: SharedIds,
    ) -> Self {
        let core = Arc::new(Core {
            journal: Journal::open(pool.clone(), config.journal),
            vault: Vault::new(pool.clone(), Arc::clone(&clock), config.keys),
            clock: Arc::clone(&clock),
            ids,
            instance: config.instance,
            pool: pool.clone(),
        });
        let tree = LogTree::new(pool.clone());
        let audit = Audit::new(pool.clone(), Arc::clone(&clock), config.instance);
        let subjects = Subjects::new(Arc::clone(&core));
        let workspaces = Workspaces::new(Arc::clone(&core));
        let overrides = Overrides::new(pool);
        let messages = config.gate.rate_limits;
        let holds = Holds::new(Arc::clone(&core));
        let limiter = RateLimiter::new(redis, clock, config.redis_patience)
            .with_defaults(config.rates)
            .with_overrides(overrides.clone());
        let access_lists = AccessLists::new(Arc::clone(&core));
        let services = config.detectors.moderation.keys().cloned().collect();
        let policies = Policies::new(Arc::clone(&core), services);
        Self {
            bots: Bots::new(Arc::clone(&core), probe),
            turns: Turns::new(Arc::clone(&core), subjects.clone(), holds.clone()),
            histories: Histories::new(Arc::clone(&core)),
            gate: Gate::new(
                Arc::clone(&core),
                access_lists.clone(),
                limiter.clone(),
                holds.clone(),
                policies.clone(),
                Scorer::new(config.detectors),
                config.gate,
            ),
            budgets: Budgets::new(Arc::clone(&core), holds),
            quotas: Quotas::new(Arc::clone(&core)),
            rate_limits: RateLimits::new(Arc::clone(&core), limiter, overrides, config.rates, messages),
            access_lists,
            standings: Standings::new(Arc::clone(&core)),
            policies,
            operators: Operators::new(Arc::clone(&core), workspaces.clone(), audit.clone()),
            workspaces,
            sessions: Sessions::new(Arc::clone(&core)),
            subjects,
            audit,
            tree,
            core,
        }
    }
}

/// Tells the metrics recorder what the use cases' metrics mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("botledger_gate_decisions_total", Unit::Count, "Decisions of the gate by outcome");
    describe_counter!(
        "botledger_audit_rows_total",
        Unit::Count,
        "Rows for the audit table by outcome: ok, refused, forbidden, failed; unwritten when the row was lost"
    );
    describe_counter!(
        "botledger_policy_changes_total",
        Unit::Count,
        "Policies published and withdrawn, by change"
    );
    describe_counter!(
        "botledger_rate_limited_total",
        Unit::Count,
        "Calls refused by a rate limit, by scope and by what there was too little of"
    );
    describe_counter!(
        "botledger_rate_decisions_total",
        Unit::Count,
        "Rate decisions by outcome: admitted, repeated, refused"
    );
    describe_histogram!(
        "botledger_rate_limit_script_seconds",
        Unit::Seconds,
        "Scripts in Redis, with the way there"
    );
    describe_counter!(
        "botledger_rate_limit_fallbacks_total",
        Unit::Count,
        "Rate decisions taken without Redis, in this process, by why"
    );
    describe_counter!(
        "botledger_holds_total",
        Unit::Count,
        "Reservations: one for the person's quota and one for each budget over an admitted turn"
    );
    describe_counter!(
        "botledger_limit_refusals_total",
        Unit::Count,
        "Turns refused by a quota or budget, by holder and unit"
    );
    describe_counter!(
        "botledger_limit_warnings_total",
        Unit::Count,
        "Quotas and budgets used as far as somebody wanted to be warned, by holder and unit"
    );
    describe_gauge!(
        "botledger_budget_remaining",
        "What is left of a budget, as it was last looked at whole, by holder, unit and period"
    );
    describe_counter!(
        "botledger_quota_overruns_total",
        Unit::Count,
        "Calls for which the provider counted more tokens than were held: the excess is charged to nobody"
    );
    crate::standing::describe_metrics();
    crate::scorer::describe_metrics();
    botledger_journal::describe_metrics();
    botledger_llm::describe_metrics();
}
