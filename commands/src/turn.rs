use std::sync::Arc;

use botledger_domain::{
    BodyId, BotId, ConversationId, Language, SubjectId, TurnId, WorkspaceId,
    bot::Bot,
    quota::ReleaseCause,
    turn::{Ask, ChatKind, Lane, Message, ReplySource, Turn, TurnCommand, TurnError, TurnPhase},
};
use botledger_journal::{AppendError, AppendSet, Loaded, Place, Receipt};
use chrono::{DateTime, Utc};
use futures::StreamExt;

use crate::{
    BodyContent, Caller, CommandError, Core, Fence, PersonFacts, Subjects,
    execute::{ATTEMPTS, known_receipt},
    holds::{HoldEnd, Holds},
};

/// An update on its way in, as the Telegram side understood it.
#[derive(Clone, Debug)]
pub struct IncomingUpdate {
    /// Absent only when unreadable.
    pub update_id: Option<i64>,
    /// The update's own date; the epoch, 1970, when it has none.
    pub date: DateTime<Utc>,
    /// The raw JSON, kept sealed.
    pub raw: String,
    /// What it is.
    pub kind: IncomingKind,
}

/// What an update is.
#[derive(Clone, Debug)]
pub enum IncomingKind {
    /// A message or button to be answered.
    Message {
        user: PersonFacts,
        chat_id: i64,
        thread_id: Option<i64>,
        chat_kind: ChatKind,
        ask: Ask,
        lane: Lane,
        /// Text or caption or button data.
        text: Option<String>,
    },
    /// Anything else: kept, not answered.
    Other { update_kind: String, user: Option<PersonFacts> },
    /// Not what the Bot API describes: kept raw.
    Unreadable { problem: String },
}

/// What became of an update at intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its turn.
    pub turn: TurnId,
    /// Where its answer goes, when it gets one.
    pub queued: Option<(ConversationId, Lane)>,
    /// New or known.
    pub outcome: ReceivedOutcome,
}

/// New or known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedOutcome {
    /// Stored now, will be answered.
    Accepted,
    /// Stored now, nothing to answer.
    Recorded,
    /// Stored before. If it is still open it is worked on again.
    Duplicate,
}

/// What became of a step on a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Recorded now.
    Done(Receipt),
    /// The turn is past this step.
    AlreadyPast(TurnPhase),
}

/// Why no answer will exist.
#[derive(Clone, Debug)]
pub struct TurnFailure {
    /// Stable code such as `LLM_UNAVAILABLE`.
    pub code: String,
    /// For operators; no personal data.
    pub detail: String,
    /// Tokens of prompt and of answer that the model took all the same, as far as can be estimated;
    /// absent when it was not asked or took nothing.
    pub used: Option<(u64, u64)>,
}

/// What the updates of a bot have in common.
#[derive(Clone, Copy)]
struct Home {
    workspace: WorkspaceId,
    /// For people whose own is not known.
    language: Language,
}

/// How a model's answer ends that was stopped ([`ReplySource::Model::finish`]).
const CANCELLED: &str = "cancelled";
/// Updates of a batch that are made ready at the same time.
const INTAKES_AT_ONCE: usize = 16;

/// Turns, from intake to delivery.
#[derive(Clone)]
pub struct Turns {
    core: Arc<Core>,
    subjects: Subjects,
    holds: Holds,
}

type Step = Result<StepOutcome, CommandError<TurnError>>;

impl Turns {
    pub(crate) fn new(core: Arc<Core>, subjects: Subjects, holds: Holds) -> Self {
        Self { core, subjects, holds }
    }

    /// Stores a batch of updates of one bot, in one append, before anybody is told that they came.
    /// Answers in order. Known updates are told apart; nothing is stored twice.
    ///
    /// # Errors
    /// When ledger or keys cannot be used, or the bot is run by somebody else by now; then the
    /// caller must not confirm the batch. What was stored before the failure is told apart next time.
    pub async fn receive_batch(
        &self,
        caller: &Caller,
        bot: BotId,
        fence: Fence,
        updates: Vec<IncomingUpdate>,
    ) -> Result<Vec<Received>, CommandError<TurnError>> {
        let home = self.home_of(bot).await?;
        let mut sets = Vec::with_capacity(updates.len());
        let mut received = Vec::with_capacity(updates.len());
        // In the updates' order, but several at once: a new person costs round trips.
        let intakes = futures::stream::iter(updates)
            .map(|update| self.intake(caller, bot, home, fence, update))
            .buffered(INTAKES_AT_ONCE);
        let mut intakes = std::pin::pin!(intakes);
        while let Some(intake) = intakes.next().await {
            let (one, set) = intake?;
            // The same update twice in one batch: the second is as known as one from yesterday.
            if received.iter().any(|earlier: &Received| earlier.turn == one.turn) {
                received.push(Received { outcome: ReceivedOutcome::Duplicate, ..one });
            } else {
                sets.push((received.len(), set));
                received.push(one);
            }
        }
        let (places, sets): (Vec<_>, Vec<_>) = sets.into_iter().unzip();
        for (place, result) in places.into_iter().zip(self.core.journal.append_all(sets).await) {
            match result {
                Ok(_) => {}
                Err(AppendError::Conflict { .. }) => received[place].outcome = ReceivedOutcome::Duplicate,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(received)
    }

    async fn home_of(&self, bot: BotId) -> Result<Home, CommandError<TurnError>> {
        let bot = self.core.journal.load::<Bot>(&bot.to_string()).await?.state;
        let workspace = bot.workspace.ok_or(CommandError::NotFound { what: "bot" })?;
        Ok(Home { workspace, language: bot.settings.default_language })
    }

    async fn intake(
        &self,
        caller: &Caller,
        bot: BotId,
        home: Home,
        fence: Fence,
        update: IncomingUpdate,
    ) -> Result<(Received, AppendSet), CommandError<TurnError>> {
        let now = self.core.clock.now();
        let workspace = home.workspace;
        let turn = match update.update_id {
            Some(update_id) => TurnId::of_update(bot, update_id, update.date.timestamp()),
            // Nothing to recognise it by: each receipt is one of its own.
            None => TurnId(self.core.ids.next()),
        };
        let body_id = BodyId(self.core.ids.next());
        let mut loaded = Loaded::<Turn>::empty(turn.to_string());
        let ours = Caller { correlation_id: turn.uuid(), causation_id: Some(turn.uuid()), ..caller.clone() };
        let (author, command, body, queued, outcome) = match update.kind {
            IncomingKind::Message { user, chat_id, thread_id, chat_kind, ask, lane, text } => {
                let subject = self.core.vault.subject_id(workspace, user.telegram_id);
                let author = Caller::subject(subject, turn);
                let language = self
                    .subjects
                    .see(&author, workspace, bot, &user, home.language)
                    .await
                    .map_err(CommandError::within)?;
                let conversation =
                    ConversationId::of_chat(bot, self.core.vault.chat_pseudonym(bot, chat_id), thread_id);
                let content = BodyContent::Update { text, raw: update.raw };
                let (row, body) =
                    self.core.vault.seal_body(body_id, subject.uuid(), turn, &content, None).await?;
                let message = Message {
                    workspace,
                    bot,
                    subject,
                    conversation,
                    update_id: update.update_id.unwrap_or_default(),
                    chat_kind,
                    ask,
                    lane,
                    body,
                    language,
                    sent_at: update.date,
                };
                let queued = Some((conversation, lane));
                (author, TurnCommand::Receive(message), row, queued, ReceivedOutcome::Accepted)
            }
            IncomingKind::Other { update_kind, user } => {
                let subject: Option<SubjectId> =
                    user.map(|user| self.core.vault.subject_id(workspace, user.telegram_id));
                let owner = subject.map_or(bot.uuid(), SubjectId::uuid);
                let content = BodyContent::Update { text: None, raw: update.raw };
                let (row, body) = self.core.vault.seal_body(body_id, owner, turn, &content, None).await?;
                let update_id = update.update_id.unwrap_or_default();
                (
                    subject.map_or(ours, |subject| Caller::subject(subject, turn)),
                    TurnCommand::Record { bot, subject, update_id, update_kind, body },
                    row,
                    None,
                    ReceivedOutcome::Recorded,
                )
            }
            IncomingKind::Unreadable { problem } => {
                let content = BodyContent::Update { text: None, raw: update.raw };
                let (row, body) =
                    self.core.vault.seal_body(body_id, bot.uuid(), turn, &content, None).await?;
                let command =
                    TurnCommand::RecordUnreadable { bot, update_id: update.update_id, body, problem };
                (ours, command, row, None, ReceivedOutcome::Recorded)
            }
        };
        let mut set = AppendSet::new(author.metadata(self.core.instance));
        set.fence(bot, fence.epoch);
        set.decide(&mut loaded, command, now).map_err(CommandError::Refused)?;
        set.body(body);
        Ok((Received { turn, queued, outcome }, set))
    }

    /// A turn as it stands.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn load(&self, turn: TurnId) -> Result<Loaded<Turn>, CommandError<TurnError>> {
        Ok(self.core.journal.load::<Turn>(&turn.to_string()).await?)
    }

    /// Opens a body; absent when it was erased.
    ///
    /// # Errors
    /// When ledger or keys cannot be used.
    pub async fn open_body(&self, body: BodyId) -> Result<Option<BodyContent>, CommandError<TurnError>> {
        let Some(stored) = self.core.journal.body(body).await? else { return Ok(None) };
        match self.core.vault.open_body(&stored).await {
            Ok(content) => Ok(Some(content)),
            Err(crate::VaultError::Shredded) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// An answer exists: stores it sealed, and settles the hold when a model gave it. One that was
    /// stopped before the model was asked gives the hold back.
    ///
    /// # Errors
    /// When ledger or keys cannot be used, or the epoch is over.
    pub async fn answer(
        &self,
        caller: &Caller,
        turn: TurnId,
        fence: Fence,
        source: ReplySource,
        text: &str,
        latency_ms: u64,
    ) -> Step {
        let end = match &source {
            ReplySource::Model { prompt_tokens: 0, completion_tokens: 0, finish, .. }
                if finish == CANCELLED =>
            {
                Some(HoldEnd::Release(ReleaseCause::Cancelled))
            }
            ReplySource::Model { prompt_tokens, completion_tokens, estimated, .. } => Some(HoldEnd::Settle {
                prompt_tokens: *prompt_tokens,
                completion_tokens: *completion_tokens,
                estimated: *estimated,
            }),
            ReplySource::Platform => None,
        };
        let body_id = BodyId(self.core.ids.next());
        let content = BodyContent::Reply { text: text.to_owned() };
        let mut attempt = 1;
        loop {
            let mut loaded = self.load(turn).await?;
            if !matches!(loaded.state.phase, TurnPhase::Received | TurnPhase::Admitted) {
                return Ok(StepOutcome::AlreadyPast(loaded.state.phase));
            }
            let message = loaded.state.message.clone().ok_or(CommandError::NotFound { what: "message" })?;
            let place = loaded.state.admission.as_ref().map(|admission| Place {
                conversation: message.conversation,
                session: admission.session,
                context_epoch: admission.context_epoch,
                prompt_body: message.body.body_id,
            });
            let (row, body) =
                self.core.vault.seal_body(body_id, message.subject.uuid(), turn, &content, place).await?;
            let mut set = self.set(caller, turn, message.bot, fence);
            let now = self.core.clock.now();
            set.decide(&mut loaded, TurnCommand::Answer { source: source.clone(), body, latency_ms }, now)
                .map_err(CommandError::Refused)?;
            set.body(row);
            if !self.end_hold(&mut set, &loaded.state, end, now).await? {
                if attempt == ATTEMPTS {
                    return Err(CommandError::Conflict);
                }
                attempt += 1;
                continue;
            }
            match self.core.journal.append(set).await {
                Ok(receipt) => return Ok(StepOutcome::Done(receipt)),
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// No answer will exist: gives the hold back, or settles it with what the model took all the same.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the epoch is over.
    pub async fn fail(&self, caller: &Caller, turn: TurnId, fence: Fence, failure: TurnFailure) -> Step {
        let mut attempt = 1;
        loop {
            let mut loaded = self.load(turn).await?;
            if !matches!(loaded.state.phase, TurnPhase::Received | TurnPhase::Admitted) {
                // A repeated request finds what it did itself.
                let done = known_receipt(&self.core, caller).await?;
                return Ok(done.map_or(StepOutcome::AlreadyPast(loaded.state.phase), StepOutcome::Done));
            }
            let message = loaded.state.message.clone().ok_or(CommandError::NotFound { what: "message" })?;
            let admitted = loaded.state.phase == TurnPhase::Admitted;
            let mut set = self.set(caller, turn, message.bot, fence);
            let now = self.core.clock.now();
            let command = TurnCommand::Fail { code: failure.code.clone(), detail: failure.detail.clone() };
            set.decide(&mut loaded, command, now).map_err(CommandError::Refused)?;
            let end = admitted.then_some(match failure.used {
                Some((prompt_tokens, completion_tokens)) => {
                    HoldEnd::Settle { prompt_tokens, completion_tokens, estimated: true }
                }
                None => HoldEnd::Release(ReleaseCause::Failed),
            });
            if !self.end_hold(&mut set, &loaded.state, end, now).await? {
                if attempt == ATTEMPTS {
                    return Err(CommandError::Conflict);
                }
                attempt += 1;
                continue;
            }
            match self.core.journal.append(set).await {
                Ok(receipt) => return Ok(StepOutcome::Done(receipt)),
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The message that shows the answer while it is written exists.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the epoch is over.
    pub async fn start_delivery(&self, caller: &Caller, turn: TurnId, fence: Fence, message_id: i64) -> Step {
        self.step(caller, turn, fence, TurnCommand::StartDelivery { message_id }).await
    }

    /// The person has it.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the epoch is over.
    pub async fn deliver(&self, caller: &Caller, turn: TurnId, fence: Fence, message_ids: Vec<i64>) -> Step {
        self.step(caller, turn, fence, TurnCommand::Deliver { message_ids }).await
    }

    /// Telegram will not take it.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the epoch is over.
    pub async fn give_up(
        &self,
        caller: &Caller,
        turn: TurnId,
        fence: Fence,
        class: &str,
        code: i32,
        description: &str,
    ) -> Step {
        let command =
            TurnCommand::GiveUp { class: class.to_owned(), code, description: description.to_owned() };
        self.step(caller, turn, fence, command).await
    }

    /// Sent, and nobody knows whether it arrived; it is not repeated.
    ///
    /// # Errors
    /// When the ledger cannot be used, or the epoch is over.
    pub async fn lose_outcome(&self, caller: &Caller, turn: TurnId, fence: Fence, detail: &str) -> Step {
        self.step(caller, turn, fence, TurnCommand::LoseOutcome { detail: detail.to_owned() }).await
    }

    async fn step(&self, caller: &Caller, turn: TurnId, fence: Fence, command: TurnCommand) -> Step {
        let mut attempt = 1;
        loop {
            let mut loaded = self.load(turn).await?;
            let bot = loaded.state.message.as_ref().map(|message| message.bot);
            let bot = bot.ok_or(CommandError::NotFound { what: "message" })?;
            let mut set = self.set(caller, turn, bot, fence);
            match set.decide(&mut loaded, command.clone(), self.core.clock.now()) {
                Ok(_) => {}
                Err(TurnError::OutOfOrder { .. }) if !loaded.state.phase.is_open() => {
                    return Ok(StepOutcome::AlreadyPast(loaded.state.phase));
                }
                Err(refusal) => return Err(CommandError::Refused(refusal)),
            }
            match self.core.journal.append(set).await {
                Ok(receipt) => return Ok(StepOutcome::Done(receipt)),
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn set(&self, caller: &Caller, turn: TurnId, bot: BotId, fence: Fence) -> AppendSet {
        let mut set = AppendSet::new(caller.at(turn).metadata(self.core.instance));
        set.fence(bot, fence.epoch);
        set
    }

    /// False when the hold is gone, see [`Holds::end`].
    async fn end_hold(
        &self,
        set: &mut AppendSet,
        turn: &Turn,
        end: Option<HoldEnd>,
        now: DateTime<Utc>,
    ) -> Result<bool, CommandError<TurnError>> {
        match end {
            Some(end) => self.holds.end(set, turn, end, now).await,
            None => Ok(true),
        }
    }
}
