//! What would have come of the recorded messages under other terms.

use async_graphql::{Context, ID, InputObject, Object, SimpleObject, connection::EmptyFields};
use botledger_domain::{
    BotId, SubjectId, TurnId,
    operator::Permission,
    policy::PolicyTerms as Terms,
    policy_stream,
    standing::ladder::{self, LadderState},
};
use botledger_projections::{
    Limit, Outcome, PersonDifference, Rungs, Sums, TurnDifference, WhatIf, WhatIfError, WhatIfReport, policy,
    policy_terms, what_if,
};
use chrono::{DateTime, TimeDelta, Utc};

use super::{terms::PolicyTermsInput, whose};
use crate::graphql::{
    Needs, Scope,
    error::{ApiError, ApiResult},
    page::{List, Slice, cut},
    page_cost,
    scalars::{At, NodeKind, wire_enum},
    standing::{OffenceKind, StandingState},
};

/// The time that is looked at when nobody says which.
const USUAL: TimeDelta = TimeDelta::days(7);

wire_enum! {
    /// What became of a message, as far as policies go.
    WhatIfOutcome {
        /// It went on to the model; a pace or a quota may have refused it.
        Passed = "passed",
        /// Refused for what was found in it.
        Content = "content",
        /// Refused because it fits no intent.
        OffTopic = "off_topic",
        /// Refused because a detector gave no answer.
        Unscored = "unscored",
        /// Refused because a throttled person wrote too soon.
        Throttled = "throttled",
        /// Refused because the person is blocked, or was by this very message.
        Blocked = "blocked",
        /// It would have been looked at, and nobody knows what would have been found.
        Unknown = "unknown",
    }
}

wire_enum! {
    /// What recorded facts cannot tell.
    WhatIfLimitKind {
        /// Other intents or examples: how far a message is off topic was measured against those of the
        /// version that judged.
        Intents = "intents",
        /// More blocked words: texts are not searched again.
        BlockedWords = "blocked_words",
        /// Other moderation services than those that were asked.
        Moderation = "moderation",
    }
}

fn count(of: u64) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

fn outcome(outcome: Outcome) -> ApiResult<WhatIfOutcome> {
    WhatIfOutcome::read(outcome.as_ref())
}

fn state(state: LadderState) -> ApiResult<StandingState> {
    StandingState::read(state.as_ref())
}

fn kinds(kinds: &[ladder::OffenceKind]) -> ApiResult<Vec<OffenceKind>> {
    kinds.iter().map(|kind| OffenceKind::read(kind.as_ref())).collect()
}

/// For how many messages something cannot be told.
#[derive(SimpleObject)]
struct WhatIfLimit {
    kind: WhatIfLimitKind,
    messages: i32,
}

impl WhatIfLimit {
    fn read((limit, messages): (&Limit, &u64)) -> ApiResult<Self> {
        Ok(Self { kind: WhatIfLimitKind::read(limit.as_ref())?, messages: count(*messages) })
    }
}

/// Messages with an outcome.
#[derive(SimpleObject)]
struct WhatIfMessages {
    outcome: WhatIfOutcome,
    count: i32,
}

/// Offences of a kind that were charged, those of dry runs included.
#[derive(SimpleObject)]
struct WhatIfOffences {
    kind: OffenceKind,
    count: i32,
}

/// People by the highest rung of the ladder they stood on.
#[derive(SimpleObject)]
struct WhatIfPeople {
    state: StandingState,
    count: i32,
}

/// Sums of one side of the comparison.
#[derive(SimpleObject)]
struct WhatIfSums {
    messages: Vec<WhatIfMessages>,
    offences: Vec<WhatIfOffences>,
    people: Vec<WhatIfPeople>,
    /// The same on the ladder of dry runs, which restricts nobody.
    people_on_trial: Vec<WhatIfPeople>,
}

impl WhatIfSums {
    fn read(sums: &Sums) -> ApiResult<Self> {
        let people = |of: &std::collections::BTreeMap<LadderState, u64>| {
            of.iter()
                .map(|(rung, people)| Ok(WhatIfPeople { state: state(*rung)?, count: count(*people) }))
                .collect::<ApiResult<Vec<_>>>()
        };
        let messages = sums
            .messages
            .iter()
            .map(|(one, messages)| Ok(WhatIfMessages { outcome: outcome(*one)?, count: count(*messages) }));
        let offences = sums.offences.iter().map(|(kind, offences)| {
            Ok(WhatIfOffences { kind: OffenceKind::read(kind.as_ref())?, count: count(*offences) })
        });
        Ok(Self {
            messages: messages.collect::<ApiResult<_>>()?,
            offences: offences.collect::<ApiResult<_>>()?,
            people: people(&sums.people)?,
            people_on_trial: people(&sums.people_on_trial)?,
        })
    }
}

pub(crate) struct WhatIfTurn(TurnDifference);

/// A message that fares differently.
#[Object]
impl WhatIfTurn {
    async fn turn_id(&self) -> ID {
        NodeKind::Turn.id(TurnId::uuid(self.0.turn))
    }

    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(BotId::uuid(self.0.bot))
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(SubjectId::uuid(self.0.subject))
    }

    /// Of the message.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    async fn received_at(&self) -> DateTime<Utc> {
        self.0.received_at
    }

    async fn before(&self) -> ApiResult<WhatIfOutcome> {
        outcome(self.0.before)
    }

    async fn after(&self) -> ApiResult<WhatIfOutcome> {
        outcome(self.0.after)
    }

    /// What it was charged with.
    async fn offences_before(&self) -> ApiResult<Vec<OffenceKind>> {
        kinds(&self.0.offences_before)
    }

    /// What it would have been charged with.
    async fn offences_after(&self) -> ApiResult<Vec<OffenceKind>> {
        kinds(&self.0.offences_after)
    }
}

/// Rungs of the ladder somebody stood on.
#[derive(SimpleObject)]
struct WhatIfRungs {
    highest: StandingState,
    /// Of the ladder of dry runs.
    highest_on_trial: StandingState,
    /// At the end of the time.
    last: StandingState,
}

impl WhatIfRungs {
    fn read(rungs: Rungs) -> ApiResult<Self> {
        Ok(Self {
            highest: state(rungs.highest)?,
            highest_on_trial: state(rungs.highest_on_trial)?,
            last: state(rungs.last)?,
        })
    }
}

pub(crate) struct WhatIfPerson(PersonDifference);

/// A person who fares differently with a bot.
#[Object]
impl WhatIfPerson {
    async fn bot_id(&self) -> ID {
        NodeKind::Bot.id(BotId::uuid(self.0.bot))
    }

    async fn person_id(&self) -> ID {
        NodeKind::Person.id(SubjectId::uuid(self.0.subject))
    }

    /// Of their first message in the time.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    async fn before(&self) -> ApiResult<WhatIfRungs> {
        WhatIfRungs::read(self.0.before)
    }

    async fn after(&self) -> ApiResult<WhatIfRungs> {
        WhatIfRungs::read(self.0.after)
    }
}

pub(crate) struct PolicyWhatIf(WhatIfReport);

/// What would have come of the messages of a time. Nothing was written to tell it.
#[Object]
impl PolicyWhatIf {
    /// The ledger as it stood.
    async fn position(&self) -> At {
        self.0.position.into()
    }

    /// Texts that were judged again.
    async fn judged(&self) -> i32 {
        count(self.0.judged)
    }

    /// Texts that a bot's own policy judged; the workspace's is not for them.
    async fn of_other_policies(&self) -> i32 {
        count(self.0.of_other_policies)
    }

    /// Texts that nothing looked at: refused before, or from before anything looked.
    async fn not_looked_at(&self) -> i32 {
        count(self.0.not_looked_at)
    }

    /// What cannot be told, and for how many of the judged.
    async fn limits(&self) -> ApiResult<Vec<WhatIfLimit>> {
        self.0.limits.iter().map(WhatIfLimit::read).collect()
    }

    /// As it was.
    async fn before(&self) -> ApiResult<WhatIfSums> {
        WhatIfSums::read(&self.0.before)
    }

    /// As it would have been.
    async fn after(&self) -> ApiResult<WhatIfSums> {
        WhatIfSums::read(&self.0.after)
    }

    /// How many messages fare differently.
    async fn turns_changed(&self) -> i32 {
        count(self.0.turns.len() as u64)
    }

    /// How many people fare differently.
    async fn people_changed(&self) -> i32 {
        count(self.0.people.len() as u64)
    }

    /// Messages that fare differently, newest first.
    #[graphql(complexity = "page_cost(first, last) * child_complexity")]
    async fn turns(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> ApiResult<List<WhatIfTurn>> {
        let paging = Slice { first, after, last, before }.of("what_if_turns")?;
        let rows = cut(&self.0.turns, paging.page, |row| row.position);
        Ok(paging.connect(rows, EmptyFields, |row| row.position, WhatIfTurn))
    }

    /// People who fare differently, those who came last first.
    #[graphql(complexity = "page_cost(first, last) * child_complexity")]
    async fn people(
        &self,
        first: Option<i32>,
        after: Option<String>,
        last: Option<i32>,
        before: Option<String>,
    ) -> ApiResult<List<WhatIfPerson>> {
        let paging = Slice { first, after, last, before }.of("what_if_people")?;
        let rows = cut(&self.0.people, paging.page, |row| row.position);
        Ok(paging.connect(rows, EmptyFields, |row| row.position, WhatIfPerson))
    }
}

/// What to try, on which messages. Neither terms nor a version mean those in force.
#[derive(InputObject)]
struct PolicyWhatIfInput {
    /// Messages to this bot; to all bots without a policy of their own when null.
    bot_id: Option<ID>,
    /// Terms to try.
    terms: Option<PolicyTermsInput>,
    /// Or the terms of this version of the bot's policy, or of the workspace's.
    version: Option<i32>,
    /// Messages received at or after; a week before `until` when null.
    from: Option<DateTime<Utc>>,
    /// Messages received before; now when null.
    until: Option<DateTime<Utc>>,
    /// Whether the terms act wherever the version before them only watched.
    #[graphql(default)]
    acts: bool,
}

async fn tried(scope: &Scope<'_>, bot: Option<BotId>, input: &mut PolicyWhatIfInput) -> ApiResult<Terms> {
    let (read, workspace) = (&scope.services.read, scope.identity()?.workspace);
    match (input.terms.take(), input.version) {
        (Some(_), Some(_)) => Err(ApiError::bad_input("give terms or a version, not both")),
        (Some(terms), None) => {
            let terms = terms.read()??;
            terms.check().map_err(|error| ApiError::bad_input(error.to_string()))?;
            Ok(terms)
        }
        (None, Some(version)) => {
            let terms = policy_terms(read, policy_stream(workspace, bot), version.into()).await?;
            terms.ok_or_else(|| ApiError::not_found("version of the policy"))
        }
        (None, None) => {
            let effective = match bot {
                Some(bot) => scope.services.app.policies.effective(workspace, bot).await,
                None => {
                    let row = policy(read, workspace, None).await?;
                    return match row.and_then(|row| Some((row.policy_id, row.version?))) {
                        Some((policy, version)) => {
                            policy_terms(read, policy, version).await?.ok_or_else(ApiError::away)
                        }
                        None => Ok(Terms::default()),
                    };
                }
            };
            Ok(Terms::clone(&effective.map_err(ApiError::unavailable)?.terms))
        }
    }
}

#[derive(Default)]
pub(crate) struct PolicyWhatIfQuery;

#[Object]
impl PolicyWhatIfQuery {
    /// What would have come of recorded messages under other terms: everything that was found is judged
    /// again, and everybody's standing is folded again, appeals and decisions included.
    #[graphql(guard = "Needs(Permission::ReadOperations)", complexity = "500 + child_complexity")]
    async fn policy_what_if(
        &self,
        ctx: &Context<'_>,
        mut input: PolicyWhatIfInput,
    ) -> ApiResult<PolicyWhatIf> {
        let scope = Scope::of(ctx)?;
        let bot = whose(&scope, input.bot_id.as_ref()).await?.ok_or_else(|| ApiError::not_found("bot"))?;
        let terms = tried(&scope, bot, &mut input).await?;
        let until = input.until.unwrap_or_else(|| scope.services.app.core.clock.now());
        let from = input.from.or_else(|| until.checked_sub_signed(USUAL));
        let question = WhatIf {
            workspace: scope.identity()?.workspace,
            bot,
            from: from.unwrap_or(until),
            until,
            terms,
            acts: input.acts,
        };
        match what_if(&scope.services.read, &question).await {
            Ok(report) => Ok(PolicyWhatIf(report)),
            Err(error @ (WhatIfError::Backwards | WhatIfError::TooMany { .. })) => {
                Err(ApiError::bad_input(error.to_string()))
            }
            Err(WhatIfError::Late) => Err(ApiError::away()),
            Err(error) => Err(ApiError::unavailable(error)),
        }
    }
}
