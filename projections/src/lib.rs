//! The readers' side of the ledger: the log by position, the tail, projections and their read models.
//!
//! Here live the read tables' writers and typed readers, checkpoints, rebuilds and the comparison of
//! a rebuild with what is live. Here never live commands, decisions or anything that writes events.
//! To add a read model: its tables in a migration, a file that implements [`Projection`] and reads
//! its rows, a line in [`all`].

mod access_lists;
mod as_of;
mod audit;
mod blue_green;
mod bots;
mod budgets;
mod conversations;
mod directory;
mod fold;
mod history;
mod lease;
mod log;
mod moderation;
mod past;
mod people;
mod policies;
mod quotas;
mod rate_overrides;
mod rebuild;
mod runner;
mod select;
mod standings;
mod tail;
mod turns;
mod usage;
mod what_if;

use std::sync::Arc;

pub use access_lists::{
    AccessEntryFilter, AccessEntryRow, AccessListRow, AccessListsProjection, access_entries_page, access_list,
};
pub use as_of::{
    access_list_as_of, bot_as_of, operator_as_of, policy_as_of, policy_in_force_as_of, quota_as_of,
    rate_override_as_of, standing_as_of, standing_state_as_of, turn_as_of, workspace_as_of,
};
pub use audit::{AdminAct, AuditFilter, AuditRow, acts_of, admin_acts, audit_between, audit_page};
pub use blue_green::{
    Change, ChangeError, Comparison, Rebuild, RecordedChange, cancel_rebuild, changes, forget_previous,
    rebuilds, roll_back, start_rebuild, swap, work_on_rebuilds,
};
pub use bots::{BotRow, BotsProjection, bot, bot_ids, bots_by_ids, bots_page, running_bots};
pub use budgets::{
    BudgetHead, BudgetRow, BudgetShareRow, BudgetsProjection, Exhausted, budget, budgets_page,
};
pub use conversations::{
    ConversationFilter, ConversationRow, ConversationsProjection, SessionRow, conversation,
    conversations_page, sessions,
};
pub use directory::{
    DirectoryProjection, OperatorRow, WorkspaceRow, operator, operators_page, workspace, workspaces_page,
};
pub use history::{Between, Step, Story, ValueChange, changes_between, history};
pub use lease::{Fence, LeaseConfig, Leases};
pub use log::{EventFilter, LogReader};
pub use moderation::{
    CaseFilter, CaseRow, ModerationProjection, ScoringFilter, ScoringRow, case, cases_page, scorings_page,
};
pub use past::{Past, PastConfig, PastError};
pub use people::{PeopleProjection, PersonRow, people_by_ids, people_page, person};
pub use policies::{
    PoliciesProjection, PolicyRow, PolicyTermsRow, PolicyVersionFilter, PolicyVersionRow, policy,
    policy_by_id, policy_terms, policy_versions_by_ids, policy_versions_page,
};
pub use quotas::{QuotaRow, QuotasProjection, quota_of, quotas_of, quotas_page};
pub use rate_overrides::{RateOverrideRow, RateOverridesProjection, rate_override, rate_overrides_page};
pub use rebuild::{Difference, Progress, RebuildError, RebuildReport, replay, verify};
pub use runner::{
    CheckpointStatus, Decision, Projection, ProjectionError, RunnerConfig, Runners, STALLED_AFTER_S, decide,
    describe_metrics, statuses, wait_for,
};
pub use select::Page;
pub use standings::{
    StandingFilter, StandingRow, StandingsProjection, standing, standing_by_id, standings_page,
};
pub use tail::{Tail, TailError};
pub use turns::{
    OpenTurn, StrandedTurn, TurnFilter, TurnRow, TurnsProjection, open_turns, stranded_turns, turn,
    turns_by_ids, turns_count, turns_page,
};
pub use usage::{Grain, UsageRow, usage};
pub use what_if::{
    Demand, DemandDifference, Limit, MOST_MESSAGES, MOST_PEOPLE, Outcome, PersonDifference, PlanReport,
    PlanSums, PlanWhatIf, QuotaDifference, Rungs, Saved, Sums, TurnDifference, WhatIf, WhatIfError,
    WhatIfReport, plan_what_if, policy_what_if, what_if,
};

/// What readers fail with.
pub use sqlx::Error as ReadError;
/// The pool that readers read from, for crates that hold no SQL.
pub use sqlx::PgPool as ReadPool;

/// Every projection of the product, by name.
#[must_use]
pub fn all() -> Vec<Arc<dyn Projection>> {
    vec![
        Arc::new(AccessListsProjection),
        Arc::new(BotsProjection),
        Arc::new(BudgetsProjection),
        Arc::new(ConversationsProjection),
        Arc::new(DirectoryProjection),
        Arc::new(ModerationProjection),
        Arc::new(PeopleProjection),
        Arc::new(PoliciesProjection),
        Arc::new(QuotasProjection),
        Arc::new(RateOverridesProjection),
        Arc::new(StandingsProjection),
        Arc::new(TurnsProjection),
    ]
}
