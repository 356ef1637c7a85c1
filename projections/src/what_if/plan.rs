//! What would have come of it under another plan: everything that people demanded of their quotas in a
//! time is demanded again, at the moments at which they did, of quotas with other terms. It is the
//! aggregate itself that decides, from where each quota stood at the beginning of the time.

use std::collections::BTreeMap;

use botledger_domain::{
    Decide, PlanName, Position, RecordedEvent, ReservationId, SubjectId, WorkspaceId,
    account::{Amounts, PlanTerms, Unit, shortage},
    quota::{Quota, QuotaCommand, QuotaEvent},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Saved, WhatIfError, shown, snapshot};
use crate::{ProjectionError, log::LogRow};

/// People in one question of [`plan_what_if`] that has to be answered at once, at most.
pub const MOST_PEOPLE: u64 = 10_000;
/// Events of quotas in one such question, at most.
pub(super) const MOST_EVENTS: i64 = 1_000_000;
/// Quotas whose streams are read together.
const TOGETHER: i64 = 200;

/// A question about a plan.
#[derive(Clone, Debug)]
pub struct PlanWhatIf {
    pub workspace: WorkspaceId,
    /// Demanded at or after.
    pub from: DateTime<Utc>,
    /// Demanded before.
    pub until: DateTime<Utc>,
    /// What the plan would have granted, all the time, whatever plans were assigned in it.
    pub terms: PlanTerms,
    /// Only people who were on this plan at the beginning, or got it as their first; all when absent.
    pub of_plan: Option<PlanName>,
}

/// What became of a demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    /// It was held.
    Held,
    /// A limit of this unit did not cover it.
    Refused(Unit),
}

/// A demand that fares differently: another outcome, or another charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemandDifference {
    /// The turn's.
    pub reservation: ReservationId,
    pub subject: SubjectId,
    /// Of the event that held or refused it; unique.
    pub position: i64,
    pub demanded_at: DateTime<Utc>,
    pub before: Demand,
    pub after: Demand,
    pub charged_before: Amounts,
    pub charged_after: Amounts,
}

/// Sums of one side, of one person or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSums {
    /// Demands that were held.
    pub held: u64,
    /// Demands that were refused.
    pub refused: u64,
    /// Warnings that were given.
    pub warnings: u64,
    /// What was charged.
    pub charged: Amounts,
}

impl PlanSums {
    fn plus(&mut self, other: Self) {
        self.held += other.held;
        self.refused += other.refused;
        self.warnings += other.warnings;
        self.charged = self.charged.plus(other.charged);
    }

    fn count(&mut self, demand: Demand) {
        match demand {
            Demand::Held => self.held += 1,
            Demand::Refused(_) => self.refused += 1,
        }
    }
}

/// A person who fares differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaDifference {
    pub subject: SubjectId,
    /// Of their first demand in the time; unique.
    pub position: i64,
    pub before: PlanSums,
    pub after: PlanSums,
}

/// An answer about a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// The ledger as it stood.
    pub position: Position,
    /// People who demanded something.
    pub people: u64,
    /// Demands that were refused and would not have been: nobody knows what they would have used. They
    /// count as their person's demands before them on average, or as was asked where there are none.
    pub estimated: u64,
    /// Demands that were refused, whatever limits the plan has on units of which nobody knows how much
    /// they asked for: of a refused demand the ledger tells the unit that was short, and nothing that the
    /// person demanded before tells the others. They count as refused again.
    pub unknown: u64,
    pub before: PlanSums,
    pub after: PlanSums,
    /// Oldest first.
    pub demands: Vec<DemandDifference>,
    /// By their first demand, oldest first.
    pub people_changed: Vec<QuotaDifference>,
}

/// Answers a question about a plan, or goes on answering it; of so many people at most, where there is a
/// most. `keep` is told how far it has come, now and then, and how many people there are.
///
/// # Errors
/// When the time or the terms make no sense, there are too many people, or the database fails.
pub async fn plan_what_if(
    pool: &PgPool,
    question: &PlanWhatIf,
    most: Option<u64>,
    saved: Option<Saved<PlanReport>>,
    mut keep: impl FnMut(&Saved<PlanReport>, u64) + Send,
) -> Result<PlanReport, WhatIfError> {
    if question.until <= question.from {
        return Err(WhatIfError::Backwards);
    }
    let terms = question.terms.clone().checked().map_err(WhatIfError::Terms)?;
    let mut tx = snapshot(pool).await?;
    let position = shown(&mut tx, "quotas").await?;
    let begin = |position| PlanReport { position, ..PlanReport::default() };
    let mut saved = Saved::begin(&mut tx, saved, position, begin, |report| report.position).await?;
    let upto = saved.report.position;
    let mut may_read = most.map(|_| MOST_EVENTS);
    let all: i64 =
        sqlx::query_scalar("SELECT count(*) FROM quotas WHERE workspace = $1 AND created_position <= $2")
            .bind(question.workspace.uuid())
            .bind(upto.0)
            .fetch_one(&mut *tx)
            .await?;
    tx.rollback().await?;
    let all = u64::try_from(all).unwrap_or(0);
    if most.is_some_and(|most| all > most) {
        return Err(WhatIfError::TooManyPeople { people: all });
    }
    loop {
        let mut tx = snapshot(pool).await?;
        let quotas: Vec<Uuid> = sqlx::query_scalar(
            "SELECT quota_id FROM quotas WHERE workspace = $1 AND created_position <= $2
             AND ($3::uuid IS NULL OR quota_id > $3) ORDER BY quota_id LIMIT $4",
        )
        .bind(question.workspace.uuid())
        .bind(upto.0)
        .bind(saved.after)
        .bind(TOGETHER)
        .fetch_all(&mut *tx)
        .await?;
        let Some(last) = quotas.last().copied() else { break };
        let facts = facts_of(&mut tx, &quotas, upto, &mut may_read).await?;
        tx.rollback().await?;
        for facts in facts {
            replay(question, &terms, facts, &mut saved.report);
            tokio::task::yield_now().await;
        }
        saved.done += quotas.len() as u64;
        saved.after = Some(last);
        keep(&saved, all);
    }
    let mut report = saved.report;
    report.demands.sort_by_key(|demand| demand.position);
    report.people_changed.sort_by_key(|person| person.position);
    Ok(report)
}

type Facts = Vec<(Position, QuotaEvent)>;

/// What happened to these quotas; takes it from what may still be read, where that has an end.
async fn facts_of(
    tx: &mut PgConnection,
    quotas: &[Uuid],
    upto: Position,
    may_read: &mut Option<i64>,
) -> Result<Vec<Facts>, WhatIfError> {
    let streams: Vec<String> = quotas.iter().map(Uuid::to_string).collect();
    let rows: Vec<LogRow> = sqlx::query_as(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
             payload::text AS payload, metadata::text AS metadata
         FROM events WHERE aggregate_type = 'quota' AND aggregate_id = ANY($1) AND position <= $2
         ORDER BY aggregate_id, sequence LIMIT $3",
    )
    .bind(streams)
    .bind(upto.0)
    .bind(may_read.map(|left| left + 1))
    .fetch_all(tx)
    .await?;
    if let Some(left) = may_read {
        *left -= i64::try_from(rows.len()).unwrap_or(i64::MAX);
        if *left < 0 {
            return Err(WhatIfError::TooManyEvents);
        }
    }
    let mut facts: BTreeMap<String, Facts> = BTreeMap::new();
    for recorded in rows.into_iter().map(RecordedEvent::from) {
        let fact = recorded.decode::<Quota>().map_err(ProjectionError::from)?;
        if let Some(fact) = fact {
            facts.entry(recorded.aggregate_id).or_default().push((recorded.position, fact));
        }
    }
    Ok(facts.into_values().collect())
}

fn moment(fact: &QuotaEvent) -> DateTime<Utc> {
    match fact {
        QuotaEvent::PlanAssigned { assigned_at: at, .. }
        | QuotaEvent::PeriodRolled { rolled_at: at, .. }
        | QuotaEvent::TokensReserved { reserved_at: at, .. }
        | QuotaEvent::TokensSettled { settled_at: at, .. }
        | QuotaEvent::TokensReleased { released_at: at, .. }
        | QuotaEvent::QuotaExceeded { exceeded_at: at, .. }
        | QuotaEvent::QuotaWarned { warned_at: at, .. }
        | QuotaEvent::OverrideGranted { granted_at: at, .. } => *at,
    }
}

fn apply<A: Decide>(state: &mut A, fact: A::Event) {
    state.apply(fact);
}

/// A quota under the terms that are tried.
struct Tried {
    quota: Quota,
    warnings: u64,
}

impl Tried {
    /// Lets the aggregate decide; what it refuses comes to nothing.
    fn decide(&mut self, command: QuotaCommand, now: DateTime<Utc>) -> Vec<QuotaEvent> {
        let events = self.quota.decide(command, now).unwrap_or_default();
        for event in &events {
            apply(&mut self.quota, event.clone());
            self.warnings += u64::from(matches!(event, QuotaEvent::QuotaWarned { .. }));
        }
        events
    }

    fn demand(&mut self, reservation: ReservationId, asked: Amounts, now: DateTime<Utc>) -> Demand {
        let events = self.decide(QuotaCommand::Reserve { reservation, asked }, now);
        let short = events.iter().find_map(|event| match event {
            QuotaEvent::QuotaExceeded { unit, .. } => Some(Demand::Refused(*unit)),
            _ => None,
        });
        short.unwrap_or(Demand::Held)
    }

    fn settle(&mut self, reservation: ReservationId, actual: Amounts, now: DateTime<Utc>) -> Amounts {
        let events = self.decide(QuotaCommand::Settle { reservation, actual, estimated: false }, now);
        let charged = events.iter().find_map(|event| match event {
            QuotaEvent::TokensSettled { charged, .. } => Some(*charged),
            _ => None,
        });
        charged.unwrap_or_default()
    }
}

/// What is known of a person's demands before one.
#[derive(Default)]
struct Habits {
    /// Of the last that was held.
    asked: Option<Amounts>,
    taken: Amounts,
    answers: u64,
}

impl Habits {
    fn learn(&mut self, fact: &QuotaEvent) {
        match fact {
            QuotaEvent::TokensReserved { held, .. } => self.asked = Some(*held),
            QuotaEvent::TokensSettled { charged, overrun, .. } => {
                self.taken = self.taken.plus(charged.plus(*overrun));
                self.answers += 1;
            }
            _ => {}
        }
    }

    /// What a demand asked for that was short of one unit, as far as is known: every one is one message.
    fn asked(&self, unit: Unit, requested: u64) -> Amounts {
        let certain = Amounts::only(unit, requested).with(Amounts::only(Unit::Messages, 1), u64::max);
        certain
            .with(self.asked.unwrap_or_default(), |certain, usual| if certain > 0 { certain } else { usual })
    }

    /// Whether terms limit nothing that is unknown about such a demand.
    fn tell(&self, unit: Unit, terms: &PlanTerms) -> bool {
        let told = |limited: Unit| limited == unit || limited == Unit::Messages;
        self.asked.is_some() || terms.limits.iter().all(|limit| told(limit.unit))
    }

    /// What an answer takes: what theirs took on average, what was asked where there were none.
    fn usual(&self, asked: Amounts) -> Amounts {
        match self.answers {
            0 => asked,
            answers => self.taken.with(asked, |sum, _| sum / answers),
        }
    }
}

/// Lets the meters of limits that the quota did not have count what was charged in their windows before.
fn make_up_for(tried: &mut Quota, was: &Quota, before: &[(Position, QuotaEvent)]) {
    let had = &was.account.terms.limits;
    for meter in &mut tried.account.meters {
        if had.iter().any(|limit| (limit.unit, limit.period) == (meter.unit, meter.period)) {
            continue;
        }
        let charged = before.iter().filter_map(|(_, fact)| match fact {
            QuotaEvent::TokensSettled { charged, settled_at, .. } if *settled_at >= meter.window.start => {
                Some(charged)
            }
            _ => None,
        });
        meter.used = Amounts::sum(charged).of(meter.unit);
    }
}

fn replay(question: &PlanWhatIf, terms: &PlanTerms, facts: Facts, report: &mut PlanReport) {
    let mut was = Quota::default();
    let mut tried: Option<Tried> = None;
    let mut whose = None;
    let (mut before, mut after) = (PlanSums::default(), PlanSums::default());
    let mut demands: BTreeMap<ReservationId, DemandDifference> = BTreeMap::new();
    let mut habits = Habits::default();
    let (mut estimated, mut unknown) = (0, 0);
    let asked_for =
        |was: &Quota| question.of_plan.is_none() || was.plan.is_some() && was.plan == question.of_plan;
    for (index, (position, fact)) in facts.iter().enumerate() {
        let now = moment(fact);
        if now >= question.until {
            break;
        }
        if let QuotaEvent::PlanAssigned { workspace, subject, .. } = fact {
            whose = Some((*workspace, *subject));
        }
        let Some((workspace, subject)) = whose else { break };
        let assign = |plan: &Option<PlanName>| {
            plan.clone().map(|plan| QuotaCommand::AssignPlan {
                workspace,
                subject,
                plan,
                terms: terms.clone(),
                by: None,
            })
        };
        // The time begins: from here on the other terms count, from where the quota stood.
        if tried.is_none() && now >= question.from && was.plan.is_some() {
            if !asked_for(&was) {
                return;
            }
            let mut begun = Tried { quota: was.clone(), warnings: 0 };
            if let Some(command) = assign(&was.plan) {
                begun.decide(command, question.from);
            }
            make_up_for(&mut begun.quota, &was, &facts[..index]);
            tried = Some(begun);
        }
        apply(&mut was, fact.clone());
        habits.learn(fact);
        if now < question.from {
            continue;
        }
        let Some(other) = &mut tried else {
            // Their first plan, within the time.
            if !asked_for(&was) {
                return;
            }
            let mut begun = Tried { quota: Quota::default(), warnings: 0 };
            if let Some(command) = assign(&was.plan) {
                begun.decide(command, now);
            }
            tried = Some(begun);
            continue;
        };
        let mut demanded = |reservation: ReservationId, outcome: Demand, then: Demand| {
            before.count(outcome);
            after.count(then);
            demands.insert(
                reservation,
                DemandDifference {
                    reservation,
                    subject,
                    position: position.0,
                    demanded_at: now,
                    before: outcome,
                    after: then,
                    charged_before: Amounts::default(),
                    charged_after: Amounts::default(),
                },
            );
        };
        match fact {
            QuotaEvent::PlanAssigned { .. } | QuotaEvent::PeriodRolled { .. } => {}
            QuotaEvent::TokensReserved { reservation, held, .. } => {
                let then = other.demand(*reservation, *held, now);
                demanded(*reservation, Demand::Held, then);
            }
            QuotaEvent::QuotaExceeded { reservation, unit, requested, .. } => {
                let asked = habits.asked(*unit, *requested);
                // A turn takes a token at least, whatever else is unknown.
                let least = Amounts { tokens: asked.tokens.max(1), ..asked };
                if !habits.tell(*unit, &other.quota.account.terms)
                    && shortage(&other.quota.left_at(now), least).is_none()
                {
                    unknown += 1;
                    demanded(*reservation, Demand::Refused(*unit), Demand::Refused(*unit));
                    continue;
                }
                let then = other.demand(*reservation, asked, now);
                demanded(*reservation, Demand::Refused(*unit), then);
                if then == Demand::Held {
                    estimated += 1;
                    let charged = other.settle(*reservation, habits.usual(asked), now);
                    if let Some(demand) = demands.get_mut(reservation) {
                        demand.charged_after = charged;
                    }
                    after.charged = after.charged.plus(charged);
                }
            }
            QuotaEvent::TokensSettled { reservation, charged, overrun, .. } => {
                let charged_before = *charged;
                let charged_after = other.settle(*reservation, charged.plus(*overrun), now);
                before.charged = before.charged.plus(charged_before);
                after.charged = after.charged.plus(charged_after);
                if let Some(demand) = demands.get_mut(reservation) {
                    (demand.charged_before, demand.charged_after) = (charged_before, charged_after);
                }
            }
            QuotaEvent::TokensReleased { reservation, cause, .. } => {
                other.decide(QuotaCommand::Release { reservation: *reservation, cause: *cause }, now);
            }
            QuotaEvent::QuotaWarned { .. } => before.warnings += 1,
            QuotaEvent::OverrideGranted { unit, amount, expires_at, reason, by, .. } => {
                let (unit, amount, expires_at) = (*unit, *amount, *expires_at);
                let grant =
                    QuotaCommand::GrantOverride { unit, amount, expires_at, reason: reason.clone(), by: *by };
                other.decide(grant, now);
            }
        }
    }
    let (Some(tried), Some((_, subject))) = (tried, whose) else { return };
    let Some(first) = demands.values().map(|demand| demand.position).min() else { return };
    after.warnings = tried.warnings;
    report.people += 1;
    report.estimated += estimated;
    report.unknown += unknown;
    report.before.plus(before);
    report.after.plus(after);
    if before != after {
        report.people_changed.push(QuotaDifference { subject, position: first, before, after });
    }
    let differs = |demand: &DemandDifference| {
        demand.before != demand.after || demand.charged_before != demand.charged_after
    };
    report.demands.extend(demands.into_values().filter(differs));
}

#[cfg(test)]
mod tests;
