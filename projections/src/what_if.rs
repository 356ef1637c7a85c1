//! What would have come of it under another policy: what was found in every message of a time is judged
//! again, and everybody's standing is folded again with the same machine, appeals and moderators'
//! decisions included. Nothing is written, and the same ledger gives the same answer.

mod plan;
mod replay;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use botledger_domain::{
    BotId, Position, RecordedEvent, SubjectId, TurnId, WorkspaceId,
    account::TermsError,
    policy::{PolicyOwner, PolicyRef, PolicyTerms},
    policy_stream,
    signal::Findings,
    standing::{
        Standing, StandingEvent,
        ladder::{LadderState, OffenceKind},
    },
    standing_stream,
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, PgTransaction};
use strum::{AsRefStr, EnumString, IntoStaticStr};
use uuid::Uuid;

use self::plan::MOST_EVENTS;
pub use self::plan::{
    Demand, DemandDifference, MOST_PEOPLE, PlanReport, PlanSums, PlanWhatIf, QuotaDifference, plan_what_if,
};
use self::replay::{Candidate, Heard, Judged, PersonReplay};
use crate::{PolicyTermsRow, ProjectionError, TurnRow, as_of::turns_as_of, fold::Rows, log::LogRow};

/// Messages looked at in one question, at most.
pub const MOST_MESSAGES: i64 = 100_000;
/// People whose streams are read together.
const TOGETHER: usize = 200;

/// A question.
#[derive(Clone, Debug)]
pub struct WhatIf {
    pub workspace: WorkspaceId,
    /// Messages to this bot; to all of the workspace's bots when absent, where only those are judged
    /// again that no bot's own policy judged.
    pub bot: Option<BotId>,
    /// Received at or after.
    pub from: DateTime<Utc>,
    /// Received before.
    pub until: DateTime<Utc>,
    /// What the policy would have said.
    pub terms: PolicyTerms,
    /// Whether it would have acted all the time; otherwise it watches wherever the one before it only
    /// watched.
    pub acts: bool,
}

/// An answer as far as it has come: enough to go on from, also in another process. The ledger is looked at
/// as it stood when the answer was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved<R> {
    /// Leaf hash of the event at the report's position, in hexadecimal: of which ledger this tells.
    leaf: Option<String>,
    /// Everybody up to this one is in the report.
    after: Option<Uuid>,
    /// How many that are.
    pub done: u64,
    /// Of them.
    pub report: R,
}

impl<R> Saved<R> {
    /// The beginning of an answer, or what is there of it when this is the ledger that it tells of.
    async fn begin(
        tx: &mut PgConnection,
        saved: Option<Self>,
        position: Position,
        new: impl FnOnce(Position) -> R,
        of: impl FnOnce(&R) -> Position,
    ) -> Result<Self, WhatIfError> {
        let begun = saved.as_ref().map_or(position, |saved| of(&saved.report));
        let leaf: Option<String> =
            sqlx::query_scalar("SELECT encode(leaf_hash, 'hex') FROM events WHERE position = $1")
                .bind(begun.0)
                .fetch_optional(tx)
                .await?;
        match saved {
            Some(saved) if saved.leaf == leaf => Ok(saved),
            Some(_) => Err(WhatIfError::OtherLedger { position: begun }),
            None => Ok(Self { leaf, after: None, done: 0, report: new(begun) }),
        }
    }
}

/// A transaction that sees one moment. An answer takes one for each of its steps: nothing that is long
/// holds back what the database may tidy up, and the answer's position keeps the steps together.
async fn snapshot(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await?;
    Ok(tx)
}

/// How far a read model is.
async fn shown(tx: &mut PgConnection, read_model: &str) -> Result<Position, sqlx::Error> {
    let position: Option<i64> =
        sqlx::query_scalar("SELECT position FROM projection_checkpoints WHERE name = $1")
            .bind(read_model)
            .fetch_optional(tx)
            .await?;
    Ok(Position(position.unwrap_or(0)))
}

/// What became of a message, as far as the policy goes: a message that passed may have been refused for
/// its pace or a quota.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    AsRefStr,
    EnumString,
    IntoStaticStr,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// It went on to the model.
    Passed,
    /// Refused for what was found in it.
    Content,
    /// Refused because it fits no intent.
    OffTopic,
    /// Refused because a detector gave no answer.
    Unscored,
    /// Refused because a throttled person wrote too soon.
    Throttled,
    /// Refused because the person is blocked, or was by this very message.
    Blocked,
    /// It would have been looked at, and nobody knows what would have been found: nothing looked at it.
    Unknown,
}

/// What the recorded facts cannot tell.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    AsRefStr,
    EnumString,
    IntoStaticStr,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Limit {
    /// The terms name other intents or examples than the version that judged: how far a message is off
    /// topic was measured against that version's.
    Intents,
    /// The terms block words that the version that judged did not: texts are not searched again.
    BlockedWords,
    /// The terms ask other moderation services than those that were asked.
    Moderation,
}

/// Sums of one side of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Messages by what became of them.
    pub messages: BTreeMap<Outcome, u64>,
    /// Offences that were charged, by kind, those of dry runs included.
    pub offences: BTreeMap<OffenceKind, u64>,
    /// People by the highest rung of the ladder they stood on.
    pub people: BTreeMap<LadderState, u64>,
    /// The same on the ladder of dry runs.
    pub people_on_trial: BTreeMap<LadderState, u64>,
}

/// A message that fares differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnDifference {
    pub turn: TurnId,
    pub bot: BotId,
    pub subject: SubjectId,
    /// Of the message; unique.
    pub position: i64,
    pub received_at: DateTime<Utc>,
    pub before: Outcome,
    pub after: Outcome,
    /// What it was charged with.
    pub offences_before: Vec<OffenceKind>,
    /// What it would have been charged with.
    pub offences_after: Vec<OffenceKind>,
}

/// Rungs somebody stood on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rungs {
    /// The highest, of the ladder in force.
    pub highest: LadderState,
    /// The highest, of the ladder of dry runs.
    pub highest_on_trial: LadderState,
    /// The last, of the ladder in force: at the end of the time that was asked about.
    pub last: LadderState,
}

/// A person who fares differently with a bot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonDifference {
    pub bot: BotId,
    pub subject: SubjectId,
    /// Of their first message in the time; unique.
    pub position: i64,
    pub before: Rungs,
    pub after: Rungs,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhatIfReport {
    /// The ledger as it stood.
    pub position: Position,
    /// Texts that were judged again.
    pub judged: u64,
    /// Texts that a bot's own policy judged: they are in the sums as they were, unless their writer
    /// fares differently.
    pub of_other_policies: u64,
    /// Texts that nothing looked at: refused before, or from before there was a policy. Those of people
    /// who were blocked or throttled are in the sums.
    pub not_looked_at: u64,
    /// What cannot be told, and for how many of the judged.
    pub limits: BTreeMap<Limit, u64>,
    pub before: Sums,
    pub after: Sums,
    /// Oldest first.
    pub turns: Vec<TurnDifference>,
    /// By their first message, oldest first.
    pub people: Vec<PersonDifference>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WhatIfError {
    /// The end lies before the beginning.
    #[error("the time ends before it begins")]
    Backwards,
    /// More than can be looked at in one go.
    #[error(
        "{messages} messages were written in that time, at most {MOST_MESSAGES} can be judged again: ask about less"
    )]
    TooMany {
        /// How many.
        messages: i64,
    },
    /// More people than can be looked at in one go.
    #[error(
        "{people} people have a quota, at most {MOST_PEOPLE} can be looked at in one request: `botledger what-if` looks at any number"
    )]
    TooManyPeople {
        /// How many.
        people: u64,
    },
    /// More events of quotas than can be read in one go.
    #[error(
        "more than {MOST_EVENTS} events of quotas lie before that end: `botledger what-if` looks at any number"
    )]
    TooManyEvents,
    /// Terms that make no sense.
    #[error("the plan makes no sense")]
    Terms(#[source] TermsError),
    /// What was kept of the answer tells of another ledger.
    #[error("what was kept of the answer was told by another ledger: its event {position} is not this one's")]
    OtherLedger {
        /// Where they differ at the latest.
        position: Position,
    },
    /// The read model of policies is behind that of turns.
    #[error("the read models are catching up; try again shortly")]
    Late,
    /// The database failed.
    #[error("the messages cannot be read")]
    Read(#[from] sqlx::Error),
    /// An event does not decode.
    #[error("the standings cannot be read")]
    Standings(#[from] ProjectionError),
}

#[derive(sqlx::FromRow)]
struct WriterRow {
    bot_id: Uuid,
    subject: Uuid,
    messages: i64,
}

#[derive(sqlx::FromRow)]
struct HeardRow {
    turn_id: Uuid,
    bot_id: Uuid,
    subject: Uuid,
    refusal_kind: Option<String>,
    policy_owner: Option<String>,
    policy_version: Option<i64>,
    policy_dry_run: Option<bool>,
    findings: Option<serde_json::Value>,
    scored_at: Option<DateTime<Utc>>,
    received_at: DateTime<Utc>,
    decided_at: Option<DateTime<Utc>>,
    created_position: i64,
    updated_position: i64,
}

impl From<TurnRow> for HeardRow {
    fn from(row: TurnRow) -> Self {
        Self {
            turn_id: row.turn_id,
            bot_id: row.bot_id,
            subject: row.subject,
            refusal_kind: row.refusal_kind,
            policy_owner: row.policy_owner,
            policy_version: row.policy_version,
            policy_dry_run: row.policy_dry_run,
            findings: row.findings,
            scored_at: row.scored_at,
            received_at: row.received_at,
            decided_at: row.decided_at,
            created_position: row.created_position,
            updated_position: row.updated_position,
        }
    }
}

/// Which texts a question is about.
const ASKED: &str = "workspace = $1 AND ($2::uuid IS NULL OR bot_id = $2)
    AND received_at >= $3 AND received_at < $4 AND ask = 'text' AND created_position <= $5";

/// Answers a question about at most [`MOST_MESSAGES`].
///
/// # Errors
/// When the time makes no sense or holds too many messages, or the database fails.
pub async fn what_if(pool: &PgPool, question: &WhatIf) -> Result<WhatIfReport, WhatIfError> {
    answer(pool, question, Some(MOST_MESSAGES), None, |_, _| {}).await
}

/// Answers a question about any number of messages, or goes on answering it. `keep` is told how far it has
/// come, now and then, and of how many people.
///
/// # Errors
/// When the time makes no sense or the database fails.
pub async fn policy_what_if(
    pool: &PgPool,
    question: &WhatIf,
    saved: Option<Saved<WhatIfReport>>,
    keep: impl FnMut(&Saved<WhatIfReport>, u64) + Send,
) -> Result<WhatIfReport, WhatIfError> {
    answer(pool, question, None, saved, keep).await
}

async fn answer(
    pool: &PgPool,
    question: &WhatIf,
    most: Option<i64>,
    saved: Option<Saved<WhatIfReport>>,
    mut keep: impl FnMut(&Saved<WhatIfReport>, u64) + Send,
) -> Result<WhatIfReport, WhatIfError> {
    if question.until <= question.from {
        return Err(WhatIfError::Backwards);
    }
    let mut tx = snapshot(pool).await?;
    let position = shown(&mut tx, "turns").await?;
    let begin = |position| WhatIfReport { position, ..WhatIfReport::default() };
    let saved = Saved::begin(&mut tx, saved, position, begin, |report| report.position).await?;
    let mut report = Reporter::new(question, saved);
    let position = report.saved.report.position;
    let writers: Vec<WriterRow> = sqlx::query_as(&format!(
        "SELECT bot_id, subject, count(*) AS messages FROM turns WHERE {ASKED} GROUP BY 1, 2 ORDER BY 2, 1"
    ))
    .bind(question.workspace.uuid())
    .bind(question.bot.map(BotId::uuid))
    .bind(question.from)
    .bind(question.until)
    .bind(position.0)
    .fetch_all(&mut *tx)
    .await?;
    let messages = writers.iter().map(|writer| writer.messages).sum();
    if most.is_some_and(|most| messages > most) {
        return Err(WhatIfError::TooMany { messages });
    }
    tx.rollback().await?;
    let people = writers.chunk_by(|one, other| one.subject == other.subject).count() as u64;
    let mut terms = TermsOf::new(question.workspace);
    let left = writers.partition_point(|writer| Some(writer.subject) <= report.saved.after);
    let mut left = &writers[left..];
    while let Some(last) = left.get(TOGETHER.min(left.len()).wrapping_sub(1)).map(|writer| writer.subject) {
        // Nobody is cut in two.
        let (together, rest) = left.split_at(left.partition_point(|writer| writer.subject <= last));
        left = rest;
        // Turns and standings are seen as of one moment.
        let mut tx = snapshot(pool).await?;
        let mut heard = heard_from(&mut tx, question, together, position, &mut terms).await?;
        let mut facts = standings_of(&mut tx, together, position).await?;
        tx.rollback().await?;
        for WriterRow { bot_id, subject, .. } in together {
            let who = (BotId(*bot_id), SubjectId(*subject));
            let heard = heard.remove(&who).unwrap_or_default();
            let facts = facts.remove(&standing_stream(who.0, who.1)).unwrap_or_default();
            report.person(who, heard, facts);
            // Somebody else may want this thread between two people.
            tokio::task::yield_now().await;
        }
        report.saved.after = Some(last);
        report.saved.done += together.chunk_by(|one, other| one.subject == other.subject).count() as u64;
        keep(&report.saved, people);
    }
    Ok(report.done())
}

type Who = (BotId, SubjectId);

async fn heard_from(
    tx: &mut PgConnection,
    question: &WhatIf,
    writers: &[WriterRow],
    upto: Position,
    terms: &mut TermsOf,
) -> Result<BTreeMap<Who, Vec<Heard>>, WhatIfError> {
    let together: BTreeSet<Who> =
        writers.iter().map(|writer| (BotId(writer.bot_id), SubjectId(writer.subject))).collect();
    let people: Vec<Uuid> = writers.iter().map(|writer| writer.subject).collect();
    let rows: Vec<HeardRow> = sqlx::query_as(&format!(
        "SELECT turn_id, bot_id, subject, refusal_kind, policy_owner, policy_version, policy_dry_run, findings,
             scored_at, received_at, decided_at, created_position, updated_position
         FROM turns WHERE {ASKED} AND subject = ANY($6) ORDER BY created_position"
    ))
    .bind(question.workspace.uuid())
    .bind(question.bot.map(BotId::uuid))
    .bind(question.from)
    .bind(question.until)
    .bind(upto.0)
    .bind(people)
    .fetch_all(&mut *tx)
    .await?;
    // They went on since the answer was begun.
    let late = rows.iter().filter(|row| row.updated_position > upto.0).map(|row| TurnId(row.turn_id));
    let mut late = turns_as_of(tx, &late.collect::<Vec<_>>(), upto).await?;
    let mut heard: BTreeMap<Who, Vec<Heard>> = BTreeMap::new();
    for row in rows {
        let bot = BotId(row.bot_id);
        let who = (bot, SubjectId(row.subject));
        if !together.contains(&who) {
            // The same person with another bot has another standing, and a turn of its own.
            continue;
        }
        let row = late.remove(&row.turn_id).map_or(row, HeardRow::from);
        let policy = row.policy_owner.as_deref().and_then(|owner| {
            Some(PolicyRef {
                owner: owner.parse().ok()?,
                version: u32::try_from(row.policy_version?).ok()?,
                dry_run: row.policy_dry_run?,
            })
        });
        let judged = match (policy, row.findings) {
            (Some(policy), Some(findings)) => {
                let findings: Findings = serde_json::from_value(findings)
                    .map_err(|error| WhatIfError::Read(sqlx::Error::Decode(error.into())))?;
                let terms = terms.of(tx, policy, bot).await?;
                // A bot's own policy stands before the workspace's, whatever that says.
                let fixed = question.bot.is_none() && policy.owner == PolicyOwner::Bot;
                Some(Judged { findings, terms, policy, fixed })
            }
            _ => None,
        };
        heard.entry(who).or_default().push(Heard {
            turn: TurnId(row.turn_id),
            position: row.created_position,
            received_at: row.received_at,
            at: row.scored_at.or(row.decided_at).unwrap_or(row.received_at),
            judged,
            outcome: recorded(row.refusal_kind.as_deref()),
            hasty: matches!(row.refusal_kind.as_deref(), Some("rate_limited" | "throttled")),
        });
    }
    Ok(heard)
}

/// What a refusal of the ledger means here.
fn recorded(refusal: Option<&str>) -> Outcome {
    match refusal {
        Some("content") => Outcome::Content,
        Some("off_topic") => Outcome::OffTopic,
        Some("unscored") => Outcome::Unscored,
        Some("throttled") => Outcome::Throttled,
        Some("blocked" | "temporarily_blocked" | "blocked_until_appeal") => Outcome::Blocked,
        _ => Outcome::Passed,
    }
}

async fn standings_of(
    tx: &mut PgConnection,
    writers: &[WriterRow],
    upto: Position,
) -> Result<BTreeMap<Uuid, Vec<StandingEvent>>, WhatIfError> {
    let streams: Vec<String> = writers
        .iter()
        .map(|writer| standing_stream(BotId(writer.bot_id), SubjectId(writer.subject)).to_string())
        .collect();
    let rows: Vec<LogRow> = sqlx::query_as(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
             payload::text AS payload, metadata::text AS metadata
         FROM events WHERE aggregate_type = 'standing' AND aggregate_id = ANY($1) AND position <= $2
         ORDER BY aggregate_id, sequence",
    )
    .bind(streams)
    .bind(upto.0)
    .fetch_all(&mut *tx)
    .await?;
    let mut facts: BTreeMap<Uuid, Vec<StandingEvent>> = BTreeMap::new();
    for recorded in rows.into_iter().map(RecordedEvent::from) {
        let stream = Uuid::try_parse(&recorded.aggregate_id);
        let fact = recorded.decode::<Standing>().map_err(ProjectionError::from)?;
        if let (Ok(stream), Some(fact)) = (stream, fact) {
            facts.entry(stream).or_default().push(fact);
        }
    }
    Ok(facts)
}

/// What the versions say that judged, each read once.
struct TermsOf {
    workspace: WorkspaceId,
    built_in: Arc<PolicyTerms>,
    known: BTreeMap<(Uuid, u32), Arc<PolicyTerms>>,
}

impl TermsOf {
    fn new(workspace: WorkspaceId) -> Self {
        Self { workspace, built_in: Arc::default(), known: BTreeMap::new() }
    }

    async fn of(
        &mut self,
        tx: &mut PgConnection,
        policy: PolicyRef,
        bot: BotId,
    ) -> Result<Arc<PolicyTerms>, WhatIfError> {
        let stream = match policy.owner {
            PolicyOwner::BuiltIn => return Ok(Arc::clone(&self.built_in)),
            PolicyOwner::Workspace => policy_stream(self.workspace, None),
            PolicyOwner::Bot => policy_stream(self.workspace, Some(bot)),
        };
        let known = match self.known.entry((stream, policy.version)) {
            Entry::Occupied(known) => return Ok(Arc::clone(known.get())),
            Entry::Vacant(unknown) => unknown,
        };
        let key = (stream, i64::from(policy.version));
        let mut rows = Rows::<PolicyTermsRow>::fetch(tx, [key]).await?;
        let row = rows.get_mut(&key).ok_or(WhatIfError::Late)?;
        let terms: PolicyTerms = serde_json::from_value(row.terms.take())
            .map_err(|error| WhatIfError::Read(sqlx::Error::Decode(error.into())))?;
        Ok(Arc::clone(known.insert(Arc::new(terms))))
    }
}

/// Adds people up.
struct Reporter<'a> {
    question: &'a WhatIf,
    candidate: Candidate<'a>,
    saved: Saved<WhatIfReport>,
}

impl<'a> Reporter<'a> {
    fn new(question: &'a WhatIf, saved: Saved<WhatIfReport>) -> Self {
        Self { question, candidate: Candidate::new(&question.terms, question.acts), saved }
    }

    fn person(&mut self, (bot, subject): Who, heard: Vec<Heard>, facts: Vec<StandingEvent>) {
        let report = &mut self.saved.report;
        for one in &heard {
            match &one.judged {
                None => report.not_looked_at += 1,
                Some(Judged { fixed: true, .. }) => report.of_other_policies += 1,
                Some(judged) => {
                    report.judged += 1;
                    for limit in self.candidate.limits(&judged.terms) {
                        *report.limits.entry(limit).or_default() += 1;
                    }
                }
            }
        }
        let Some(position) = heard.first().map(|first| first.position) else { return };
        let person = PersonReplay::new(&self.candidate, (bot, subject), self.question.from);
        let fate = person.run(heard, facts, self.question.until);
        for (sums, rungs) in [(&mut report.before, fate.before), (&mut report.after, fate.after)] {
            *sums.people.entry(rungs.highest).or_default() += 1;
            *sums.people_on_trial.entry(rungs.highest_on_trial).or_default() += 1;
        }
        if fate.before != fate.after {
            let (before, after) = (fate.before, fate.after);
            report.people.push(PersonDifference { bot, subject, position, before, after });
        }
        for turn in fate.turns {
            let sides = [
                (&mut report.before, turn.before, &turn.offences_before),
                (&mut report.after, turn.after, &turn.offences_after),
            ];
            for (sums, outcome, offences) in sides {
                *sums.messages.entry(outcome).or_default() += 1;
                for kind in offences {
                    *sums.offences.entry(*kind).or_default() += 1;
                }
            }
            if turn.before != turn.after || turn.offences_before != turn.offences_after {
                report.turns.push(turn);
            }
        }
    }

    fn done(mut self) -> WhatIfReport {
        self.saved.report.turns.sort_by_key(|turn| turn.position);
        self.saved.report.people.sort_by_key(|person| person.position);
        self.saved.report
    }
}
