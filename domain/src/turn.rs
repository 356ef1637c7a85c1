//! One update and everything that follows from it: received, decided, answered, delivered.
//!
//! ```text
//!            ┌─ recorded (nothing to answer)                                  ┌─ delivered
//! update ────┤             ┌─ refused ──(notice)──────────────────────┐       ├─ undeliverable
//!            └─ received ──┤                                          ├─ out ─┤
//!                          └─ admitted ─┬─ generated ─(started)───────┘       └─ outcome unknown
//!                             (model)   └─ failed ────(notice)─┘
//!               commands and notices go from received to generated without admission
//! ```

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{AsRefStr, EnumString, IntoStaticStr};
use uuid::Uuid;

use crate::{
    BodyRef, BotId, ConversationId, Decide, DomainError, Language, ModelName, Reason, ReservationId,
    SubjectId, WorkspaceId,
    account::{Holder, Period, Unit, is_zero},
    aggregate::aggregate,
    policy::PolicyRef,
    price::Price,
    signal::{Detector, Findings},
    standing::ladder::OffenceKind,
};

/// Which queue a turn waits in.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Lane {
    /// Commands and buttons: cheap, the person waits for an acknowledgement.
    High,
    /// Messages to the model.
    #[default]
    Normal,
}

/// The kind of chat, as Telegram names it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, AsRefStr, EnumString, IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ChatKind {
    /// One person.
    Private,
    /// A small group.
    Group,
    /// A large group.
    Supergroup,
    /// A channel.
    Channel,
}

/// What a turn asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ask {
    /// Text for the model.
    Text,
    /// A command such as `start`, by its name without slash; only known ones are named, others are `unknown`.
    Command {
        /// Its name.
        name: String,
    },
    /// A message without text that a bot answers with a hint, for example a photo.
    Unsupported {
        /// The message's kind as the Bot API names the field, for example `photo`.
        content: String,
    },
    /// A pressed button; its data is in the sealed body.
    Callback,
}

/// The facts of an accepted message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    pub workspace: WorkspaceId,
    pub bot: BotId,
    pub subject: SubjectId,
    pub conversation: ConversationId,
    pub update_id: i64,
    pub chat_kind: ChatKind,
    pub ask: Ask,
    pub lane: Lane,
    /// The sealed raw update.
    pub body: BodyRef,
    /// Language to speak, as known at intake.
    pub language: Language,
    /// The update's own date.
    pub sent_at: DateTime<Utc>,
}

/// A hold on tokens, a place in a session and a model: what admission granted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Admission {
    /// The hold in the person's quota.
    pub reservation: ReservationId,
    /// Tokens held.
    pub reserved_tokens: u64,
    /// What the model costs: the truth is settled at this price.
    #[serde(default, skip_serializing_if = "Price::is_unlisted")]
    pub price: Price,
    /// Money held at that price, in millionths of the currency.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reserved_money: u64,
    /// The holds in budgets: shares that the turn has to end in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetHold>,
    /// Session number in the conversation.
    pub session: u32,
    /// Context epoch of that session.
    pub context_epoch: u32,
    /// Provider that will be asked.
    pub provider: String,
    /// Model that will be asked.
    pub model: ModelName,
    /// What the person is told with the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<Notice>,
}

/// A hold in a share of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetHold {
    /// The budget's stream.
    pub budget: Uuid,
    /// Number of the share.
    pub share: u32,
}

/// Something a person is told with an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Notice {
    /// Their messages have added up to a warning; this was the last straw.
    Warned { offence: OffenceKind },
    /// They are throttled from now on, to so many messages a minute.
    Throttled { per_minute: u32 },
    /// A limit is used up to this part; `holder` is `person`, `bot` or `workspace`.
    LimitNear { holder: String, unit: String, percent: u8, resets_at: DateTime<Utc> },
}

/// Why a person was refused, with what they need to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RefusalReason {
    /// Blocked by a moderator.
    Blocked { reason: Reason, until: Option<DateTime<Utc>> },
    /// Blocked for a while by what the person's messages added up to.
    TemporarilyBlocked { until: DateTime<Utc> },
    /// Blocked by the same until an appeal is granted; `severe` when one message was enough.
    BlockedUntilAppeal { severe: bool },
    /// Throttled by the same: slower than others.
    Throttled { retry_at: DateTime<Utc> },
    /// A deny list names person or chat; what it says of them is not theirs to read.
    Denied { until: Option<DateTime<Utc>> },
    /// What was found in the message is not answered: the detector and its rule.
    Content { detector: Detector, rule: String },
    /// The message is not what the bot is for.
    OffTopic,
    /// A detector that has to be asked first gave no answer.
    Unscored,
    /// A token bucket is empty: `user`, `chat` or `bot`.
    RateLimited { scope: String, retry_at: DateTime<Utc> },
    /// A limit of the person's plan does not cover it; of several the one that resets last.
    QuotaExceeded {
        requested: u64,
        remaining: u64,
        resets_at: DateTime<Utc>,
        #[serde(default, skip_serializing_if = "Unit::is_usual")]
        unit: Unit,
        /// Absent where the plan had one limit, of tokens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        period: Option<Period>,
    },
    /// A limit of a budget does not cover it, which is not for the person to mend.
    BudgetExhausted {
        holder: Holder,
        unit: Unit,
        period: Period,
        requested: u64,
        remaining: u64,
        resets_at: DateTime<Utc>,
    },
    /// A limit of money stands over the turn and the model has no price: which money it takes is not known.
    Unpriced { model: ModelName },
    /// The message alone does not fit the model's window.
    TooLong { tokens: u64, limit: u64 },
    /// The bot has no capacity to answer: too many turns wait.
    Overloaded { retry_at: DateTime<Utc> },
}

/// Where an answer came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReplySource {
    /// A model.
    Model {
        /// Provider's name.
        provider: String,
        /// Model's name.
        model: ModelName,
        /// Tokens of prompt and context.
        prompt_tokens: u64,
        /// Tokens of the answer.
        completion_tokens: u64,
        /// Whether the counts are estimates because the provider gave none.
        estimated: bool,
        /// `stop`, `length` or `cancelled`.
        finish: String,
        /// Calls made, at least 1.
        attempts: u32,
    },
    /// The platform itself: a command's answer or a hint.
    Platform,
}

/// What a turn came to.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    AsRefStr,
    EnumString,
    IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TurnPhase {
    /// Not seen.
    #[default]
    Unknown,
    /// Kept, nothing to answer. Final.
    Recorded,
    /// Waits for a decision.
    Received,
    /// Waits for the model.
    Admitted,
    /// An answer waits for delivery.
    Answered,
    /// Refused; a notice waits for delivery.
    RefusalPending,
    /// Failed; a notice waits for delivery.
    FailurePending,
    /// The person has the answer. Final.
    Delivered,
    /// Refused, and the person knows or was told often enough. Final.
    Refused,
    /// Failed, and the person knows. Final.
    Failed,
    /// Telegram will not take it. Final.
    Undeliverable,
    /// Sent, and nobody knows whether it arrived. Final.
    OutcomeUnknown,
}

impl TurnPhase {
    /// Whether something is still to be done.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::Received | Self::Admitted | Self::Answered | Self::RefusalPending | Self::FailurePending
        )
    }
}

/// One update's life. Invariants: decided once, answered once, ended once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// See [`TurnPhase`].
    pub phase: TurnPhase,
    /// The message, unless only recorded.
    pub message: Option<Message>,
    /// When it was received.
    pub received_at: Option<DateTime<Utc>>,
    /// The policy that judged it.
    pub scored: Option<PolicyRef>,
    /// What admission granted.
    pub admission: Option<Admission>,
    /// Why it was refused.
    pub refusal: Option<RefusalReason>,
    /// What the person is told with the refusal.
    pub refusal_notices: Vec<Notice>,
    /// Code of the failure.
    pub failure: Option<String>,
    /// The sealed answer.
    pub reply: Option<BodyRef>,
    /// The Telegram message that shows the answer while it is written, if one was sent.
    pub started_message: Option<i64>,
}

/// What can be asked.
#[derive(Clone, Debug)]
pub enum TurnCommand {
    /// Accept a message.
    Receive(Message),
    /// Keep an update that needs no answer.
    Record { bot: BotId, subject: Option<SubjectId>, update_id: i64, update_kind: String, body: BodyRef },
    /// Keep an update nobody can read.
    RecordUnreadable { bot: BotId, update_id: Option<i64>, body: BodyRef, problem: String },
    /// Keep what the detectors saw; once, before it is decided.
    Score { policy: PolicyRef, findings: Findings },
    /// Let it through to the model.
    Admit(Admission),
    /// Refuse it; `notify` says whether the person is told this time.
    Refuse { reason: RefusalReason, notify: bool, notices: Vec<Notice> },
    /// An answer exists.
    Answer { source: ReplySource, body: BodyRef, latency_ms: u64 },
    /// No answer will exist.
    Fail { code: String, detail: String },
    /// A message that shows the answer while it is written was sent.
    StartDelivery { message_id: i64 },
    /// The person has it.
    Deliver { message_ids: Vec<i64> },
    /// Telegram will not take it.
    GiveUp { class: String, code: i32, description: String },
    /// Sent, answer lost, and repeating is not allowed.
    LoseOutcome { detail: String },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, IntoStaticStr)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TurnEvent {
    /// A message was accepted; stored before Telegram was told so.
    MessageReceived {
        #[serde(flatten)]
        message: Message,
        received_at: DateTime<Utc>,
    },
    /// An update without need for an answer was kept.
    UpdateRecorded {
        bot: BotId,
        subject: Option<SubjectId>,
        update_id: i64,
        update_kind: String,
        body: BodyRef,
        received_at: DateTime<Utc>,
    },
    /// An update that does not decode was kept raw.
    UpdateUnreadable {
        bot: BotId,
        update_id: Option<i64>,
        body: BodyRef,
        problem: String,
        received_at: DateTime<Utc>,
    },
    /// The detectors looked at it, and this policy judged what they saw.
    MessageScored { policy: PolicyRef, findings: Findings, scored_at: DateTime<Utc> },
    /// The gate let it through.
    TurnAdmitted {
        #[serde(flatten)]
        admission: Admission,
        admitted_at: DateTime<Utc>,
    },
    /// The gate refused it.
    MessageRefused {
        reason: RefusalReason,
        notify: bool,
        /// What the person is told beside it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notices: Vec<Notice>,
        refused_at: DateTime<Utc>,
    },
    /// An answer exists, sealed. `latency_ms` counts from the request to the last text; `cost` is what the
    /// model took, in millionths of the currency, at the price of the admission.
    ReplyGenerated {
        source: ReplySource,
        body: BodyRef,
        latency_ms: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        cost: u64,
        generated_at: DateTime<Utc>,
    },
    /// No answer will exist; the person is told so.
    ReplyFailed { code: String, detail: String, failed_at: DateTime<Utc> },
    /// The message that will hold the answer exists; later deliveries edit it instead of sending again.
    ReplyStarted { message_id: i64, started_at: DateTime<Utc> },
    /// Telegram took everything.
    ReplyDelivered { message_ids: Vec<i64>, delivered_at: DateTime<Utc> },
    /// Telegram will not take it.
    ReplyUndeliverable { class: String, code: i32, description: String, given_up_at: DateTime<Utc> },
    /// The outcome of a send is not known and it is not repeated.
    ReplyOutcomeUnknown { detail: String, lost_at: DateTime<Utc> },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    /// The same update again.
    #[error("the update was received before")]
    AlreadyReceived,
    /// The step does not follow from where the turn stands.
    #[error("a turn that is {phase} cannot {step}")]
    OutOfOrder {
        /// Where it stands.
        phase: &'static str,
        /// What was asked.
        step: &'static str,
    },
}

impl DomainError for TurnError {
    fn code(&self) -> &'static str {
        match self {
            Self::AlreadyReceived => "TURN_ALREADY_RECEIVED",
            Self::OutOfOrder { .. } => "TURN_OUT_OF_ORDER",
        }
    }
}

impl Turn {
    fn out_of_order(&self, step: &'static str) -> TurnError {
        TurnError::OutOfOrder { phase: self.phase.into(), step }
    }

    /// What an answer costs at the price of the admission.
    fn cost_of(&self, source: &ReplySource) -> u64 {
        match (source, &self.admission) {
            (ReplySource::Model { prompt_tokens, completion_tokens, .. }, Some(admission)) => {
                admission.price.cost(*prompt_tokens, *completion_tokens)
            }
            _ => 0,
        }
    }

    fn record(&mut self, event: TurnEvent) {
        match event {
            TurnEvent::MessageReceived { message, received_at } => {
                self.message = Some(message);
                self.received_at = Some(received_at);
                self.phase = TurnPhase::Received;
            }
            TurnEvent::UpdateRecorded { received_at, .. }
            | TurnEvent::UpdateUnreadable { received_at, .. } => {
                self.received_at = Some(received_at);
                self.phase = TurnPhase::Recorded;
            }
            TurnEvent::MessageScored { policy, .. } => self.scored = Some(policy),
            TurnEvent::TurnAdmitted { admission, .. } => {
                self.admission = Some(admission);
                self.phase = TurnPhase::Admitted;
            }
            TurnEvent::MessageRefused { reason, notify, notices, .. } => {
                self.refusal = Some(reason);
                self.refusal_notices = notices;
                self.phase = if notify { TurnPhase::RefusalPending } else { TurnPhase::Refused };
            }
            TurnEvent::ReplyGenerated { body, .. } => {
                self.reply = Some(body);
                self.phase = TurnPhase::Answered;
            }
            TurnEvent::ReplyFailed { code, .. } => {
                self.failure = Some(code);
                self.phase = TurnPhase::FailurePending;
            }
            TurnEvent::ReplyStarted { message_id, .. } => self.started_message = Some(message_id),
            TurnEvent::ReplyDelivered { .. } => {
                self.phase = match self.phase {
                    TurnPhase::RefusalPending | TurnPhase::Refused => TurnPhase::Refused,
                    TurnPhase::FailurePending | TurnPhase::Failed => TurnPhase::Failed,
                    _ => TurnPhase::Delivered,
                };
            }
            TurnEvent::ReplyUndeliverable { .. } => self.phase = TurnPhase::Undeliverable,
            TurnEvent::ReplyOutcomeUnknown { .. } => self.phase = TurnPhase::OutcomeUnknown,
        }
    }
}

impl Decide for Turn {
    fn decide(&self, command: TurnCommand, now: DateTime<Utc>) -> Result<Vec<TurnEvent>, TurnError> {
        use TurnPhase as P;
        let known = self.phase != P::Unknown;
        let out = matches!(self.phase, P::Answered | P::RefusalPending | P::FailurePending);
        match command {
            TurnCommand::Receive(_) | TurnCommand::Record { .. } | TurnCommand::RecordUnreadable { .. }
                if known =>
            {
                Err(TurnError::AlreadyReceived)
            }
            TurnCommand::Receive(message) => {
                Ok(vec![TurnEvent::MessageReceived { message, received_at: now }])
            }
            TurnCommand::Record { bot, subject, update_id, update_kind, body } => {
                Ok(vec![TurnEvent::UpdateRecorded {
                    bot,
                    subject,
                    update_id,
                    update_kind,
                    body,
                    received_at: now,
                }])
            }
            TurnCommand::RecordUnreadable { bot, update_id, body, problem } => {
                Ok(vec![TurnEvent::UpdateUnreadable { bot, update_id, body, problem, received_at: now }])
            }
            TurnCommand::Score { policy, findings } => match (self.phase, self.scored) {
                (P::Received, None) => {
                    Ok(vec![TurnEvent::MessageScored { policy, findings, scored_at: now }])
                }
                _ => Err(self.out_of_order("be scored")),
            },
            TurnCommand::Admit(admission) => match self.phase {
                P::Received => Ok(vec![TurnEvent::TurnAdmitted { admission, admitted_at: now }]),
                _ => Err(self.out_of_order("be admitted")),
            },
            TurnCommand::Refuse { reason, notify, notices } => match self.phase {
                P::Received => {
                    Ok(vec![TurnEvent::MessageRefused { reason, notify, notices, refused_at: now }])
                }
                _ => Err(self.out_of_order("be refused")),
            },
            TurnCommand::Answer { source, body, latency_ms } => match (&source, self.phase) {
                (ReplySource::Model { .. }, P::Admitted) | (ReplySource::Platform, P::Received) => {
                    let cost = self.cost_of(&source);
                    Ok(vec![TurnEvent::ReplyGenerated { source, body, latency_ms, cost, generated_at: now }])
                }
                _ => Err(self.out_of_order("be answered")),
            },
            TurnCommand::Fail { code, detail } => match self.phase {
                P::Received | P::Admitted => {
                    Ok(vec![TurnEvent::ReplyFailed { code, detail, failed_at: now }])
                }
                _ => Err(self.out_of_order("fail")),
            },
            TurnCommand::StartDelivery { message_id } => match (self.phase, self.started_message) {
                (_, Some(_)) => Ok(vec![]),
                (P::Admitted | P::Answered | P::FailurePending, None) => {
                    Ok(vec![TurnEvent::ReplyStarted { message_id, started_at: now }])
                }
                _ => Err(self.out_of_order("start its delivery")),
            },
            TurnCommand::Deliver { message_ids } if out => {
                Ok(vec![TurnEvent::ReplyDelivered { message_ids, delivered_at: now }])
            }
            TurnCommand::GiveUp { class, code, description } if out => {
                Ok(vec![TurnEvent::ReplyUndeliverable { class, code, description, given_up_at: now }])
            }
            TurnCommand::LoseOutcome { detail } if out => {
                Ok(vec![TurnEvent::ReplyOutcomeUnknown { detail, lost_at: now }])
            }
            TurnCommand::Deliver { .. } => Err(self.out_of_order("be delivered")),
            TurnCommand::GiveUp { .. } => Err(self.out_of_order("be given up")),
            TurnCommand::LoseOutcome { .. } => Err(self.out_of_order("lose its outcome")),
        }
    }
}

aggregate!(
    Turn, "turn", TurnCommand, TurnEvent, TurnError,
    "turn_admitted" => "1.1", "message_refused" => "1.1", "reply_generated" => "1.1",
);

#[cfg(test)]
mod tests;
