//! Every aggregate and the wire names of its events.

use schemars::Schema;

use crate::{
    access_list, bot, budget, budget_share, chat_session, operator, policy, quota, rate_limit, standing,
    subject, turn, workspace,
};

/// One aggregate as the outside sees it.
#[derive(Clone, Debug)]
pub struct AggregateKind {
    /// `Aggregate::TYPE`, for example `bot`.
    pub aggregate_type: &'static str,
    /// JSON Schema of its event enum.
    pub event_schema: fn() -> Schema,
}

/// All aggregates, in alphabetical order.
#[must_use]
pub fn aggregates() -> Vec<AggregateKind> {
    fn kind(aggregate_type: &'static str, event_schema: fn() -> Schema) -> AggregateKind {
        AggregateKind { aggregate_type, event_schema }
    }
    vec![
        kind("access_list", || schemars::schema_for!(access_list::AccessListEvent)),
        kind("bot", || schemars::schema_for!(bot::BotEvent)),
        kind("budget", || schemars::schema_for!(budget::BudgetEvent)),
        kind("budget_share", || schemars::schema_for!(budget_share::BudgetShareEvent)),
        kind("chat_session", || schemars::schema_for!(chat_session::ChatSessionEvent)),
        kind("operator", || schemars::schema_for!(operator::OperatorEvent)),
        kind("policy", || schemars::schema_for!(policy::PolicyEvent)),
        kind("quota", || schemars::schema_for!(quota::QuotaEvent)),
        kind("rate_override", || schemars::schema_for!(rate_limit::RateOverrideEvent)),
        kind("standing", || schemars::schema_for!(standing::StandingEvent)),
        kind("subject", || schemars::schema_for!(subject::SubjectEvent)),
        kind("turn", || schemars::schema_for!(turn::TurnEvent)),
        kind("workspace", || schemars::schema_for!(workspace::WorkspaceEvent)),
    ]
}
