use std::sync::Arc;

use botledger_domain::{
    BodyId, BotId, OperatorId, Reason, SubjectId, TurnId,
    operator::Permission,
    standing::{DecisionKind, Explanation, Standing, StandingCommand, StandingError},
    standing_stream,
};
use botledger_journal::{AppendError, AppendSet};
use chrono::{DateTime, Utc};
use metrics::{Unit, counter, describe_counter};

use crate::{
    BodyContent, Bots, Caller, CommandError, Core,
    execute::{ATTEMPTS, Executed, execute, known_receipt},
};

/// What people earned, and what moderators make of it.
#[derive(Clone)]
pub struct Standings {
    core: Arc<Core>,
}

/// What a moderator decides about one person or many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeratorDecision {
    /// Refuse their messages, until a moment or until lifted.
    Block { reason: Reason, until: Option<DateTime<Utc>> },
    /// Take their messages again.
    Unblock { reason: Reason },
    /// They are right: everything held against them goes.
    GrantAppeal { reason: Option<Reason> },
    /// Everything stays as it is.
    DenyAppeal { reason: Reason },
    /// Take the last decision about them back.
    Undo { reason: Reason },
}

impl ModeratorDecision {
    fn command(self, bot: BotId, subject: SubjectId, by: OperatorId) -> StandingCommand {
        match self {
            Self::Block { reason, until } => StandingCommand::Block { bot, subject, by, reason, until },
            Self::Unblock { reason } => StandingCommand::Unblock { by, reason },
            Self::GrantAppeal { reason } => StandingCommand::GrantAppeal { by, reason },
            Self::DenyAppeal { reason } => StandingCommand::DenyAppeal { by, reason },
            Self::Undo { reason } => StandingCommand::Undo { by, reason },
        }
    }
}

/// What became of one of many decisions.
#[derive(Debug)]
pub struct Decided {
    /// With which bot.
    pub bot: BotId,
    /// About whom.
    pub subject: SubjectId,
    /// Each stands or falls by itself.
    pub outcome: Outcome,
}

type Outcome = Result<Executed<Standing>, CommandError<StandingError>>;

/// Longest grounds of an appeal, in code points: what a message of Telegram holds.
const LONGEST_APPEAL: usize = 4_096;

impl Standings {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Refuses a person's messages to a bot, until a moment or until lifted.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when the end lies in the past.
    pub async fn block(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        reason: Reason,
        until: Option<DateTime<Utc>>,
    ) -> Outcome {
        self.decide(caller, bot, subject, ModeratorDecision::Block { reason, until }).await
    }

    /// Takes a person's messages again, whoever blocked them. A block of the score goes with its points.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's.
    pub async fn unblock(&self, caller: &Caller, bot: BotId, subject: SubjectId, reason: Reason) -> Outcome {
        self.decide(caller, bot, subject, ModeratorDecision::Unblock { reason }).await
    }

    /// Grants the appeal that waits: score, ladder and block are gone.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when no appeal waits.
    pub async fn grant_appeal(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        reason: Option<Reason>,
    ) -> Outcome {
        self.decide(caller, bot, subject, ModeratorDecision::GrantAppeal { reason }).await
    }

    /// Denies the appeal that waits; the next one may be filed after seven days.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when no appeal waits.
    pub async fn deny_appeal(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        reason: Reason,
    ) -> Outcome {
        self.decide(caller, bot, subject, ModeratorDecision::DenyAppeal { reason }).await
    }

    /// Takes the last decision of a moderator about a person back: what stood before it stands again,
    /// with what they earned since.
    ///
    /// # Errors
    /// Without the permission; when the bot is not the caller's; when there is none.
    pub async fn undo(&self, caller: &Caller, bot: BotId, subject: SubjectId, reason: Reason) -> Outcome {
        self.decide(caller, bot, subject, ModeratorDecision::Undo { reason }).await
    }

    /// Any of a moderator's decisions.
    ///
    /// # Errors
    /// As of the one it is.
    pub async fn decide(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        decision: ModeratorDecision,
    ) -> Outcome {
        let by = self.moderator(caller, bot).await?;
        let command = decision.command(bot, subject, by);
        let stream = standing_stream(bot, subject).to_string();
        let undone = match command {
            StandingCommand::Undo { .. } => self.last_decision(&stream).await?,
            _ => None,
        };
        let executed = execute::<Standing>(&self.core, caller, &stream, command.clone(), |_| Ok(())).await?;
        if !executed.receipt.event_positions.is_empty() && !executed.receipt.duplicate {
            count_decision(&command, undone);
        }
        Ok(executed)
    }

    /// The same decision about many people, each in a set of its own: one that is refused keeps none
    /// of the others back. With the same idempotency key each is carried out once.
    ///
    /// # Errors
    /// Without the permission. What becomes of each is in its outcome.
    pub async fn decide_in_bulk(
        &self,
        caller: &Caller,
        targets: &[(BotId, SubjectId)],
        decision: &ModeratorDecision,
    ) -> Result<Vec<Decided>, CommandError<StandingError>> {
        caller.require(Permission::Moderate)?;
        let mut decided = Vec::with_capacity(targets.len());
        for &(bot, subject) in targets {
            let idempotency_key = caller
                .idempotency_key
                .as_ref()
                .map(|key| format!("{key}/{}", standing_stream(bot, subject).as_hyphenated()));
            // A version is one stream's; a condition on it means nothing for many.
            let caller = Caller { idempotency_key, expected_version: None, ..caller.clone() };
            let outcome = self.decide(&caller, bot, subject, decision.clone()).await;
            decided.push(Decided { bot, subject, outcome });
        }
        Ok(decided)
    }

    /// A person asks for a human decision about what restricts them. What they write is sealed with
    /// their own key.
    ///
    /// # Errors
    /// When nothing restricts them, one waits already, or one was denied less than seven days ago; when
    /// the grounds are too long; when ledger or keys cannot be used.
    pub async fn file_appeal(
        &self,
        caller: &Caller,
        bot: BotId,
        subject: SubjectId,
        turn: TurnId,
        grounds: &str,
    ) -> Outcome {
        let grounds = grounds.trim();
        if grounds.chars().count() > LONGEST_APPEAL {
            return Err(CommandError::Invalid {
                code: "STANDING_APPEAL_TOO_LONG",
                message: format!("an appeal has at most {LONGEST_APPEAL} characters"),
            });
        }
        let body = if grounds.is_empty() {
            None
        } else {
            let content = BodyContent::Appeal { text: grounds.to_owned() };
            let body_id = BodyId(self.core.ids.next());
            Some(self.core.vault.seal_body(body_id, subject.uuid(), turn, &content, None).await?)
        };
        let stream = standing_stream(bot, subject).to_string();
        let mut attempt = 1;
        loop {
            let mut after = self.core.journal.load::<Standing>(&stream).await?;
            let mut set = AppendSet::new(caller.at(turn).metadata(self.core.instance));
            let command = StandingCommand::FileAppeal {
                turn,
                body: body.as_ref().map(|(_, reference)| reference.clone()),
            };
            let filed = set.decide(&mut after, command, self.core.clock.now());
            let events = match filed {
                Ok(events) => events,
                Err(refusal) => match known_receipt(&self.core, caller).await? {
                    // What was done once may be refused the second time.
                    Some(receipt) => return Ok(Executed { after, receipt }),
                    None => return Err(CommandError::Refused(refusal)),
                },
            };
            if let (false, Some((row, _))) = (events.is_empty(), &body) {
                set.body(row.clone());
            }
            match self.core.journal.append(set).await {
                Ok(receipt) => {
                    if !events.is_empty() && !receipt.duplicate {
                        counter!("botledger_appeals_total", "outcome" => "filed").increment(1);
                    }
                    return Ok(Executed { after, receipt });
                }
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Why a person stands where they stand now, from the ledger itself.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn explain(
        &self,
        bot: BotId,
        subject: SubjectId,
    ) -> Result<Explanation, CommandError<StandingError>> {
        let standing = self.core.journal.load::<Standing>(&standing_stream(bot, subject).to_string()).await?;
        Ok(standing.state.explain(self.core.clock.now()))
    }

    async fn last_decision(&self, stream: &str) -> Result<Option<DecisionKind>, CommandError<StandingError>> {
        let standing = self.core.journal.load::<Standing>(stream).await?;
        Ok(standing.state.last_decision.map(|decision| decision.kind))
    }

    async fn moderator(
        &self,
        caller: &Caller,
        bot: BotId,
    ) -> Result<OperatorId, CommandError<StandingError>> {
        caller.require(Permission::Moderate)?;
        if !Bots::exists_for(&self.core, caller, bot).await? {
            return Err(CommandError::NotFound { what: "bot" });
        }
        Ok(caller.operator_id().unwrap_or(OperatorId(uuid::Uuid::nil())))
    }
}

fn count_decision(command: &StandingCommand, undone: Option<DecisionKind>) {
    let outcome = match command {
        StandingCommand::GrantAppeal { .. } => "granted",
        StandingCommand::DenyAppeal { .. } => "denied",
        StandingCommand::Undo { .. }
            if matches!(undone, Some(DecisionKind::GrantAppeal | DecisionKind::DenyAppeal)) =>
        {
            "undone"
        }
        _ => return,
    };
    counter!("botledger_appeals_total", "outcome" => outcome).increment(1);
}

pub(crate) fn describe_metrics() {
    describe_counter!(
        "botledger_appeals_total",
        Unit::Count,
        "Appeals by what happened to them: filed, granted, denied, or their decision undone"
    );
}
