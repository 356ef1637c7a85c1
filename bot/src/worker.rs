//! Takes one turn from received to delivered. Every step reads the turn's phase from the ledger first,
//! so it does not matter who did the step before, or how they ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use botledger_commands::{
    AdmittedTurn, BodyContent, Caller, CommandError, Decision, StepOutcome, TurnFailure,
};
use botledger_domain::{
    Language,
    standing::Appealable,
    turn::{Ask, ChatKind, Message, ReplySource, Turn, TurnError, TurnPhase},
};
use botledger_llm::{ChatEvent, Completion, FinishReason, LlmError, LlmFailure, Usage};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    commands::{Button, Command, keyboard},
    crash,
    dispatcher::Started,
    fleet::{Fault, HeldBot},
    markup::{Formatted, MESSAGE_CHARS, format, split},
    telegram::{CallError, ErrorClass, Refusal},
    texts,
    update::Destination,
};

type StepError = CommandError<TurnError>;

enum Next {
    /// The turn moved on: look again.
    Again,
    /// Nothing more to do for it here.
    Done,
    /// Its chat takes nothing for that long.
    Park(Duration),
}

/// What became of a turn that was worked on.
pub(crate) enum End {
    /// Nothing more to do for it here.
    Done,
    /// To be gone on with after that long; these messages of its answer have arrived.
    Parked { pause: Duration, sent: Vec<i64> },
}

/// Failures in a row after which a step that is not the database's fault is given up.
const PATIENCE: u32 = 6;
/// A turn that has to wait longer than this for its chat lets others of the process go on meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Telegram's own failures in a row before a reply is given up.
const SERVER_FAILURES: u32 = 8;
/// An answer that takes longer than this is shown while it is being written.
const SHOW_AFTER: Duration = Duration::from_millis(1_000);
/// What the gate misses when a message was erased.
const MESSAGE_BODY: &str = "message body";
/// Edits of a streamed answer that hang longer than this are left out.
const EDIT_PATIENCE: Duration = Duration::from_secs(5);

/// Works a turn off; comes back when it is ended, or when the bot is halted.
pub(crate) async fn work_off(bot: &Arc<HeldBot>, started: &Started) -> End {
    let mut worker = Worker {
        bot,
        started,
        caller: Caller::system("worker", started.work.turn.uuid()),
        lost: AtomicBool::new(false),
        sent: started.sent.clone(),
    };
    let mut failures = 0;
    // Whoever comes next does not know that a send was lost: that much is still recorded.
    while !bot.halt.is_cancelled() || worker.lost.load(Ordering::Relaxed) {
        match worker.advance().await {
            Ok(Next::Done) => return End::Done,
            Ok(Next::Again) => failures = 0,
            Ok(Next::Park(pause)) => return End::Parked { pause, sent: worker.sent },
            Err(error) => {
                failures += 1;
                let transient = matches!(error, CommandError::Unavailable { .. });
                let broken = matches!(error, CommandError::Broken { .. });
                tracing::warn!(
                    bot.id = %bot.id, turn.id = %started.work.turn, failures, error = %chain(&error),
                    "a step of a turn failed"
                );
                if broken || (!transient && failures >= PATIENCE) {
                    worker.give_in(&error).await;
                    return End::Done;
                }
                let pause = Duration::from_millis(100) * 2u32.saturating_pow(failures.min(6));
                tokio::select! {
                    () = bot.halt.cancelled() => return End::Done,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
    End::Done
}

/// Whether a person may do this while they are blocked.
fn is_for_blocked_people(ask: &Ask, text: &str) -> bool {
    match ask {
        Ask::Command { name } => Command::find(name).is_some_and(Command::is_for_blocked_people),
        Ask::Callback => matches!(Button::read(text), Some(Button::Language(_))),
        Ask::Text | Ask::Unsupported { .. } => false,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn stage(name: &'static str, seconds: f64) {
    metrics::histogram!("botledger_turn_stage_seconds", "stage" => name).record(seconds.max(0.0));
}

struct Worker<'a> {
    bot: &'a Arc<HeldBot>,
    started: &'a Started,
    caller: Caller,
    /// Whether a message was sent of which nobody knows if it arrived.
    lost: AtomicBool,
    /// Messages of the answer that have arrived.
    sent: Vec<i64>,
}

/// How a send ended without a message.
enum SendEnd {
    GaveUp(Refusal),
    Unknown,
    Parked(Duration),
    Halted,
}

#[derive(Deserialize)]
struct Sent {
    message_id: i64,
}

impl Worker<'_> {
    async fn advance(&mut self) -> Result<Next, StepError> {
        let turn = self.bot.deps.app.turns.load(self.started.work.turn).await?.state;
        let Some(message) = turn.message.clone() else { return Ok(Next::Done) };
        match (turn.phase, &message.ask) {
            (TurnPhase::Received, ask) => {
                crash::point("dequeued");
                if let Some(received_at) = turn.received_at {
                    stage("queue", self.seconds_since(received_at));
                }
                match ask {
                    Ask::Text => self.ask_model().await,
                    _ => self.answer_ourselves(&message).await,
                }
            }
            (TurnPhase::Admitted, _) => self.ask_model().await,
            (TurnPhase::Answered | TurnPhase::RefusalPending | TurnPhase::FailurePending, _) => {
                self.deliver(&turn, &message).await
            }
            _ => Ok(Next::Done),
        }
    }

    fn seconds_since(&self, at: chrono::DateTime<chrono::Utc>) -> f64 {
        (self.bot.deps.app.core.clock.now() - at).num_microseconds().map_or(0.0, |micros| micros as f64 / 1e6)
    }

    /// The turn cannot go on and trying again does not help.
    async fn give_in(&self, error: &StepError) {
        let failure = TurnFailure { code: error.code().to_owned(), detail: chain(error), used: None };
        let (turns, turn, fence) = (&self.bot.deps.app.turns, self.started.work.turn, self.bot.fence);
        let ended = match turns.fail(&self.caller, turn, fence, failure).await {
            // It has its answer, which cannot be brought to anybody.
            Ok(StepOutcome::AlreadyPast(phase)) if phase.is_open() => {
                turns.give_up(&self.caller, turn, fence, "broken", 0, &error.to_string()).await
            }
            ended => ended,
        };
        if let Err(error) = ended {
            tracing::error!(turn.id = %turn, error = %chain(&error), "a turn is stuck");
        }
    }

    async fn fail(&self, code: &str, detail: String, used: Option<Usage>) -> Result<Next, StepError> {
        let used = used.map(|used| (used.prompt_tokens, used.completion_tokens));
        let failure = TurnFailure { code: code.to_owned(), detail, used };
        self.bot.deps.app.turns.fail(&self.caller, self.started.work.turn, self.bot.fence, failure).await?;
        Ok(Next::Again)
    }

    async fn miss_the_message(&self) -> Result<Next, StepError> {
        self.fail("BODY_ERASED", "the message is no longer there".to_owned(), None).await
    }

    // ---- answers of a model ----

    async fn ask_model(&self) -> Result<Next, StepError> {
        let begun = Instant::now();
        let decision =
            self.bot.deps.app.gate.decide(&self.caller, self.started.work.turn, self.bot.fence).await;
        let decision = match decision {
            Err(CommandError::NotFound { what: MESSAGE_BODY }) => return self.miss_the_message().await,
            decision => decision?,
        };
        stage("gate", begun.elapsed().as_secs_f64());
        crash::point("decided");
        let admitted = match decision {
            Decision::Admitted(admitted) => admitted,
            Decision::Outgrown { tokens, held } => {
                let detail = format!("it needs {tokens} tokens by now and holds {held}");
                return self.fail("HOLD_OUTGROWN", detail, None).await;
            }
            Decision::Refused { .. } | Decision::AlreadyDecided(_) => return Ok(Next::Again),
        };
        let BodyContent::Update { raw, .. } = &admitted.body else { return self.miss_the_message().await };
        let Some(destination) = Destination::of(raw) else { return self.miss_the_message().await };
        let mut screen = Screen {
            worker: self,
            destination: &destination,
            message_id: admitted.started_message,
            shown: String::new(),
            next_at: Instant::now() + SHOW_AFTER,
            interval: match admitted.message.chat_kind {
                ChatKind::Private => self.bot.deps.config.edit_interval_private,
                _ => self.bot.deps.config.edit_interval_group,
            },
            open: admitted.streaming,
        };
        let gate = &self.bot.deps.app.gate;
        let turn = self.started.work.turn;
        let kept = gate.keep(turn, &admitted);
        let typing = self.type_on(&destination);
        let generated = tokio::select! {
            never = typing => never,
            generated = self.generate(&admitted, &mut screen) => generated,
        };
        drop(kept);
        let Some(generated) = generated else { return Ok(Next::Done) };
        crash::point("generated");
        let used = match &generated {
            Ok((_, completion)) => Some(completion.usage),
            Err(failure) => failure.used,
        };
        let used = used.map_or(0, |used| used.prompt_tokens.saturating_add(used.completion_tokens));
        gate.settle(turn, &admitted, used).await;
        let (text, completion) = match generated {
            Ok(generated) => generated,
            Err(failure) => {
                return self.fail(failure.error.code(), failure.to_string(), failure.used).await;
            }
        };
        stage("generate", completion.total.as_secs_f64());
        let text = match (text.trim().is_empty(), completion.finish) {
            (false, _) => text,
            (true, FinishReason::Cancelled) => {
                texts::stopped_before_first_word(admitted.message.language).to_owned()
            }
            (true, _) => "…".to_owned(),
        };
        let source = ReplySource::Model {
            provider: admitted.admission.provider.clone(),
            model: admitted.admission.model.clone(),
            prompt_tokens: completion.usage.prompt_tokens,
            completion_tokens: completion.usage.completion_tokens,
            estimated: completion.usage.estimated,
            finish: completion.finish.as_str().to_owned(),
            attempts: completion.attempts,
        };
        let latency = u64::try_from(completion.total.as_millis()).unwrap_or(u64::MAX);
        let turns = &self.bot.deps.app.turns;
        self.insist(|| {
            turns.answer(&self.caller, self.started.work.turn, self.bot.fence, source.clone(), &text, latency)
        })
        .await;
        crash::point("answered");
        Ok(Next::Again)
    }

    /// Asks the model and shows what comes; nothing when the bot was halted before the end. A message
    /// on its way is waited for all the same: what nobody waits for may arrive and be sent again.
    async fn generate(
        &self,
        admitted: &AdmittedTurn,
        screen: &mut Screen<'_>,
    ) -> Option<Result<(String, Completion), LlmFailure>> {
        let begun = Instant::now();
        let deadline = begun + self.bot.deps.config.answer_deadline;
        let asked =
            self.bot.deps.provider.chat(admitted.request.clone(), self.started.stop.clone(), deadline);
        let mut stream = match asked.await {
            Ok(stream) => stream,
            Err(error) => return Some(Err(error.into())),
        };
        let mut text = String::new();
        // Where the request had placeholders, the person reads what they stand for.
        let mut restorer = admitted.replaced.restorer();
        loop {
            let lost = self.lost.load(Ordering::Relaxed);
            if lost {
                // Whatever is written from here on, nobody will be sent.
                self.started.stop.cancel();
            }
            let piece = tokio::select! {
                piece = stream.next() => piece,
                () = self.bot.halt.cancelled(), if !lost => return None,
            };
            match piece {
                None => return Some(Err(LlmError::Interrupted.into())),
                Some(Err(failure)) => return Some(Err(failure)),
                Some(Ok(ChatEvent::Done(completion))) => {
                    text.push_str(&restorer.finish());
                    return Some(Ok((text, completion)));
                }
                Some(Ok(ChatEvent::Text(more))) => {
                    if text.is_empty() {
                        stage("first_text", begun.elapsed().as_secs_f64());
                        crash::point("first_text");
                    }
                    text.push_str(&restorer.push(&more));
                    screen.show(&text).await;
                }
            }
        }
    }

    /// Repeats the typing action; it lasts five seconds.
    async fn type_on(&self, destination: &Destination) -> ! {
        let mut parameters = json!({"chat_id": destination.chat, "action": "typing"});
        if let Some(thread) = destination.thread {
            parameters["message_thread_id"] = thread.into();
        }
        loop {
            if self.bot.pacer.parked_for(destination.chat).is_none() {
                // Decoration: whether it arrives does not matter.
                let _ = self.call::<Value>("sendChatAction", &parameters, EDIT_PATIENCE).await;
            }
            tokio::time::sleep(self.bot.deps.config.typing_interval).await;
        }
    }

    // ---- answers of our own ----

    async fn answer_ourselves(&self, message: &Message) -> Result<Next, StepError> {
        let app = &self.bot.deps.app;
        let turn = self.started.work.turn;
        let Some(BodyContent::Update { text, .. }) = app.turns.open_body(message.body.body_id).await? else {
            return self.miss_the_message().await;
        };
        let text = text.unwrap_or_default();
        let mends = is_for_blocked_people(&message.ask, &text);
        let refused = app.gate.refuse_unless_allowed(&self.caller, turn, self.bot.fence, mends).await?;
        if refused.is_some() {
            return Ok(Next::Again);
        }
        let begun = Instant::now();
        let answer = match &message.ask {
            Ask::Command { name } => match Command::find(name) {
                Some(command) => self.obey(command, message, argument(&text)).await?,
                None => texts::unknown_command(message.language),
            },
            Ask::Callback => self.press(message, &text).await?,
            Ask::Unsupported { .. } | Ask::Text => texts::unsupported(message.language),
        };
        let latency = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        app.turns.answer(&self.caller, turn, self.bot.fence, ReplySource::Platform, &answer, latency).await?;
        crash::point("answered");
        Ok(Next::Again)
    }

    /// Carries a step out once, however often the turn is taken up again.
    /// It is the person who does it.
    fn once(&self, message: &Message, step: &str) -> Caller {
        let turn = self.started.work.turn;
        Caller { idempotency_key: Some(format!("{turn}:{step}")), ..Caller::subject(message.subject, turn) }
    }

    async fn obey(&self, command: Command, message: &Message, argument: &str) -> Result<String, StepError> {
        let app = &self.bot.deps.app;
        let language = message.language;
        let now = app.core.clock.now();
        Ok(match command {
            Command::Start => {
                let bot = app.bots.get(&self.caller, self.bot.id).await.map_err(other)?;
                match bot.settings.welcome {
                    Some(welcome) => welcome,
                    None => {
                        let profile = app.subjects.profile(message.subject).await.map_err(other)?;
                        texts::welcome(language, profile.as_ref().map_or("", |profile| &profile.first_name))
                    }
                }
            }
            Command::Help => texts::help(language),
            Command::Privacy => texts::privacy(language),
            Command::Settings => texts::settings(language),
            Command::Stop => texts::stopped(language, self.started.stopped_something),
            Command::Usage => {
                let limits = app.quotas.left(message.workspace, message.subject).await.map_err(other)?;
                texts::usage::usage(language, &limits, now)
            }
            Command::Status => {
                let limits = app.quotas.left(message.workspace, message.subject).await.map_err(other)?;
                let quota = texts::usage::tightest(language, &limits, now);
                let sessions = app.sessions.of(message.conversation).await.map_err(other)?;
                let bot = app.bots.get(&self.caller, self.bot.id).await.map_err(other)?;
                let model = bot.settings.model.unwrap_or_else(|| self.bot.deps.config.default_model.clone());
                let standing = app.standings.explain(message.bot, message.subject).await.map_err(other)?;
                let session = sessions.state.current().map(|(number, _)| number);
                texts::status(language, &standing, &quota, session, model.as_str(), now)
            }
            Command::Appeal => {
                let standing = app.standings.explain(message.bot, message.subject).await.map_err(other)?;
                if argument.is_empty() && standing.appeal == Some(Appealable::Now) {
                    return Ok(texts::standing::appeal_usage(language));
                }
                let caller = self.once(message, "appeal");
                let turn = self.started.work.turn;
                let filed =
                    app.standings.file_appeal(&caller, message.bot, message.subject, turn, argument).await;
                match filed {
                    Ok(_) => texts::standing::appeal_filed(language),
                    Err(error) => match texts::standing::appeal_refused(language, &error, now) {
                        Some(told) => told,
                        None => return Err(other(error)),
                    },
                }
            }
            Command::History => {
                let limit = argument.parse().unwrap_or(5).clamp(1, 20);
                let sessions = app.sessions.of(message.conversation).await.map_err(other)?;
                let session = sessions.state.current().map(|(number, _)| number);
                let mut said = app.histories.newest(message.conversation, session, None, limit).await?;
                if said.is_empty() {
                    return Ok(texts::no_history(language));
                }
                said.reverse();
                self.listed(texts::history_heading(language), language, &said)
            }
            Command::Search if argument.is_empty() => texts::search_usage(language),
            Command::Search => {
                let found = app.histories.search(message.conversation, argument, None, 10).await?;
                self.listed(&texts::found(language, &found, argument), language, &found.said)
            }
            Command::New => {
                let opened = app
                    .sessions
                    .open(&self.once(message, "open"), message.conversation, message.bot, message.subject)
                    .await;
                let number = match opened {
                    Ok(done) => done.after.state.current().map_or(1, |(number, _)| number),
                    Err(CommandError::Refused(_)) => return Ok(texts::too_many_sessions(language)),
                    Err(error) => return Err(other(error)),
                };
                if !argument.is_empty() {
                    let title = texts::shortened(argument, 80);
                    app.sessions
                        .rename(
                            &self.once(message, "rename"),
                            message.conversation,
                            message.subject,
                            number,
                            &title,
                        )
                        .await
                        .map_err(other)?;
                }
                texts::session_opened(language, number)
            }
            Command::Sessions => {
                let sessions = app.sessions.of(message.conversation).await.map_err(other)?;
                if sessions.state.sessions.is_empty() {
                    texts::no_sessions(language)
                } else {
                    texts::sessions_heading(language).to_owned()
                }
            }
        })
    }

    fn listed(&self, heading: &str, language: Language, said: &[botledger_commands::Said]) -> String {
        let mut text = heading.to_owned();
        for one in said {
            text.push_str("\n\n");
            text.push_str(&texts::exchange(language, one.session, one.prompt.as_deref(), &one.reply));
        }
        text
    }

    async fn press(&self, message: &Message, data: &str) -> Result<String, StepError> {
        let app = &self.bot.deps.app;
        Ok(match Button::read(data) {
            Some(Button::Session(number)) => {
                match app.sessions.switch(&self.once(message, "switch"), message.conversation, number).await {
                    Ok(_) => texts::session_switched(message.language, number),
                    Err(CommandError::Refused(_)) => texts::stale_button(message.language),
                    Err(error) => return Err(other(error)),
                }
            }
            Some(Button::Language(language)) => {
                app.subjects
                    .choose_language(&self.once(message, "language"), message.subject, language)
                    .await
                    .map_err(other)?;
                texts::language_chosen(language)
            }
            None => texts::stale_button(message.language),
        })
    }

    /// The buttons under an answer. Made at delivery, so that they show what is so by then.
    async fn buttons(&self, message: &Message) -> Result<Option<Value>, StepError> {
        let Ask::Command { name } = &message.ask else { return Ok(None) };
        match Command::find(name) {
            Some(Command::Settings) => Ok(Some(keyboard(&[
                ("English".to_owned(), Button::Language(Language::En)),
                ("Русский".to_owned(), Button::Language(Language::Ru)),
            ]))),
            Some(Command::Sessions) => {
                let app = &self.bot.deps.app;
                let sessions = app.sessions.of(message.conversation).await.map_err(other)?.state;
                let mut buttons = Vec::new();
                for (number, session) in sessions.sessions.iter().rev().take(20) {
                    let title = match &session.title {
                        Some(sealed) => app.core.vault.open(sealed).await.ok(),
                        None => None,
                    };
                    let title = title.as_ref().and_then(|bytes| std::str::from_utf8(bytes).ok());
                    let mark = if *number == sessions.current { "● " } else { "" };
                    let label = texts::session_label(message.language, *number, title);
                    buttons.push((format!("{mark}{label}"), Button::Session(*number)));
                }
                Ok((!buttons.is_empty()).then(|| keyboard(&buttons)))
            }
            _ => Ok(None),
        }
    }

    // ---- delivery ----

    async fn destination(&self, message: &Message) -> Result<Option<Destination>, StepError> {
        let content = self.bot.deps.app.turns.open_body(message.body.body_id).await?;
        Ok(match content {
            Some(BodyContent::Update { raw, .. }) => Destination::of(&raw),
            _ => None,
        })
    }

    async fn deliver(&mut self, turn: &Turn, message: &Message) -> Result<Next, StepError> {
        let begun = Instant::now();
        let app = &self.bot.deps.app;
        let (turns, id, fence) = (&app.turns, self.started.work.turn, self.bot.fence);
        if self.lost.load(Ordering::Relaxed) {
            self.lose_outcome().await;
            return Ok(Next::Done);
        }
        let Some(mut destination) = self.destination(message).await? else {
            turns.give_up(&self.caller, id, fence, "erased", 0, "the message is no longer there").await?;
            return Ok(Next::Done);
        };
        let now = app.core.clock.now();
        let text = match (turn.phase, &turn.reply, &turn.refusal, &turn.failure) {
            (TurnPhase::RefusalPending, _, Some(reason), _) => texts::refusal(message.language, reason, now),
            (TurnPhase::FailurePending, _, _, Some(code)) => texts::failure(message.language, code),
            (_, Some(reply), ..) => match app.turns.open_body(reply.body_id).await? {
                Some(BodyContent::Reply { text }) => text,
                _ => {
                    turns
                        .give_up(&self.caller, id, fence, "erased", 0, "the answer is no longer there")
                        .await?;
                    return Ok(Next::Done);
                }
            },
            _ => return Ok(Next::Done),
        };
        let buttons = self.buttons(message).await?;
        if let Some(callback) = &destination.callback {
            // Ends the button's spinner; too late is as good as done.
            let _ = self
                .call::<Value>("answerCallbackQuery", &json!({"callback_query_id": callback}), EDIT_PATIENCE)
                .await;
        }
        let mut shown = format(&text);
        if split(&shown).is_empty() {
            // Nothing but markup: shown as it was written.
            shown = Formatted::plain(if text.trim().is_empty() { "…" } else { &text });
        }
        let notices = match (turn.phase, &turn.admission) {
            (TurnPhase::Answered | TurnPhase::FailurePending, Some(admission)) => &admission.notices[..],
            (TurnPhase::RefusalPending, _) => &turn.refusal_notices[..],
            _ => &[],
        };
        if let Some(told) = texts::standing::notices(message.language, notices, now) {
            shown = shown.then(format(&told));
        }
        let pieces = split(&shown);
        let last = pieces.len() - 1;
        let mut end = None;
        for (place, piece) in pieces.iter().enumerate().skip(self.sent.len()) {
            let buttons = buttons.as_ref().filter(|_| place == last);
            let edited = match turn.started_message.filter(|_| place == 0) {
                Some(started) => self.edit(&mut destination, started, piece, buttons).await,
                None => Ok(None),
            };
            let sent = match edited {
                Ok(Some(edited)) => Ok(edited),
                Ok(None) => self.send(&mut destination, piece, buttons, place == 0).await,
                Err(end) => Err(end),
            };
            match sent {
                Ok(message_id) => self.sent.push(message_id),
                Err(failed) => {
                    end = Some(failed);
                    break;
                }
            }
        }
        crash::point("sent");
        match end {
            None => self.insist(|| turns.deliver(&self.caller, id, fence, self.sent.clone())).await,
            Some(SendEnd::Halted) => return Ok(Next::Done),
            Some(SendEnd::Parked(pause)) => return Ok(Next::Park(pause)),
            Some(SendEnd::GaveUp(refusal)) => {
                tracing::info!(
                    turn.id = %id, code = refusal.code, class = refusal.class.as_str(),
                    "Telegram does not take the answer of turn {id}"
                );
                let class = refusal.class.as_str();
                self.insist(|| {
                    turns.give_up(&self.caller, id, fence, class, refusal.code, &refusal.description)
                })
                .await;
            }
            Some(SendEnd::Unknown) => self.lose_outcome().await,
        }
        crash::point("delivered");
        stage("deliver", begun.elapsed().as_secs_f64());
        if let Some(received_at) = turn.received_at {
            stage("total", self.seconds_since(received_at));
        }
        Ok(Next::Done)
    }

    async fn lose_outcome(&self) {
        let turns = &self.bot.deps.app.turns;
        let (turn, fence) = (self.started.work.turn, self.bot.fence);
        self.insist(|| turns.lose_outcome(&self.caller, turn, fence, "the answer to a send never came"))
            .await;
    }

    /// Records what has happened outside already: tried until it stands, because doing the step again
    /// would do it twice.
    async fn insist<F>(&self, record: impl Fn() -> F)
    where
        F: Future<Output = Result<StepOutcome, StepError>>,
    {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = record().await {
            tracing::warn!(turn.id = %self.started.work.turn, error = %chain(&error), "not recorded yet, trying again");
            tokio::select! {
                () = self.bot.halt.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        parameters: &Value,
        patience: Duration,
    ) -> Result<T, CallError> {
        let outcome = self.bot.deps.telegram.call_within(&self.bot.token, method, parameters, patience).await;
        if let Err(CallError::Refused(refusal)) = &outcome
            && refusal.class == ErrorClass::Credential
        {
            self.bot.fault(Fault::token(refusal));
        }
        outcome
    }

    async fn pause(&self, pause: Duration) -> Result<(), SendEnd> {
        tokio::select! {
            () = self.bot.halt.cancelled() => Err(SendEnd::Halted),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }

    /// What to do about a refusal that may pass: waits and comes back, or ends.
    async fn endure(
        &self,
        destination: &Destination,
        refusal: Refusal,
        failures: &mut u32,
    ) -> Result<(), SendEnd> {
        match refusal.class {
            ErrorClass::Rate => {
                let asked = refusal.retry_after.unwrap_or(Duration::from_secs(5));
                // The next try waits in the pacer, or in line.
                self.bot.pacer.park(destination.chat, asked);
                Ok(())
            }
            ErrorClass::Server => {
                *failures += 1;
                if *failures >= SERVER_FAILURES {
                    return Err(SendEnd::GaveUp(refusal));
                }
                self.pause(Duration::from_millis(250) * 2u32.pow((*failures).min(6))).await
            }
            // The bot is about to be stopped; the turn stays open for when it has a good token.
            ErrorClass::Credential => Err(SendEnd::Halted),
            _ => Err(SendEnd::GaveUp(refusal)),
        }
    }

    async fn place(&self, destination: &Destination) -> Result<(), SendEnd> {
        if let Some(pause) = self.bot.pacer.parked_for(destination.chat).filter(|pause| *pause > LONGEST_WAIT)
        {
            return Err(SendEnd::Parked(pause));
        }
        tokio::select! {
            // Looked at first: whoever has lost the bot sends nothing more.
            biased;
            () = self.bot.halt.cancelled() => Err(SendEnd::Halted),
            () = self.bot.pacer.wait(destination.chat) => Ok(()),
        }
    }

    async fn send(
        &self,
        destination: &mut Destination,
        piece: &Formatted,
        buttons: Option<&Value>,
        first: bool,
    ) -> Result<i64, SendEnd> {
        let mut entities = !piece.entities.is_empty();
        let mut failures = 0;
        loop {
            let parameters = send_parameters(destination, piece, entities, buttons, first);
            self.place(destination).await?;
            match self.call::<Sent>("sendMessage", &parameters, self.bot.deps.config.call_timeout).await {
                Ok(sent) => return Ok(sent.message_id),
                Err(CallError::NotSent) => {
                    failures += 1;
                    self.pause(Duration::from_millis(250) * 2u32.pow(failures.min(7))).await?;
                }
                Err(CallError::Unknown | CallError::Unreadable) => return Err(SendEnd::Unknown),
                Err(CallError::Refused(refusal)) => match (refusal.class, refusal.migrate_to) {
                    (ErrorClass::Migrate, Some(chat)) if chat != destination.chat => destination.chat = chat,
                    (ErrorClass::BadRequest, _)
                        if entities && refusal.description.contains("parse entities") =>
                    {
                        entities = false;
                    }
                    _ => self.endure(destination, refusal, &mut failures).await?,
                },
            }
        }
    }

    /// Puts a text into a message that is there. Nothing when that message is gone, or stayed behind in
    /// a group that moved: then it is sent.
    async fn edit(
        &self,
        destination: &mut Destination,
        message_id: i64,
        piece: &Formatted,
        buttons: Option<&Value>,
    ) -> Result<Option<i64>, SendEnd> {
        let mut entities = !piece.entities.is_empty();
        let mut failures = 0;
        loop {
            let parameters = edit_parameters(destination, message_id, piece, entities, buttons);
            self.place(destination).await?;
            match self.call::<Value>("editMessageText", &parameters, self.bot.deps.config.call_timeout).await
            {
                Ok(_) => return Ok(Some(message_id)),
                // An edit may be repeated: the message looks the same afterwards.
                Err(CallError::NotSent | CallError::Unknown | CallError::Unreadable) => {
                    failures += 1;
                    self.pause(Duration::from_millis(250) * 2u32.pow(failures.min(7))).await?;
                }
                Err(CallError::Refused(refusal)) => match (refusal.class, refusal.migrate_to) {
                    (ErrorClass::SuccessInEffect, _) => return Ok(Some(message_id)),
                    (ErrorClass::TooLate, _) => return Ok(None),
                    (ErrorClass::Migrate, Some(chat)) if chat != destination.chat => {
                        destination.chat = chat;
                        return Ok(None);
                    }
                    (ErrorClass::BadRequest, _)
                        if entities && refusal.description.contains("parse entities") =>
                    {
                        entities = false;
                    }
                    _ => self.endure(destination, refusal, &mut failures).await?,
                },
            }
        }
    }
}

fn other<E: botledger_domain::DomainError>(error: CommandError<E>) -> StepError {
    match error {
        CommandError::NotFound { what } => CommandError::NotFound { what },
        CommandError::Conflict => CommandError::Conflict,
        CommandError::Forbidden { permission } => CommandError::Forbidden { permission },
        CommandError::Invalid { code, message } => CommandError::Invalid { code, message },
        CommandError::Probe(error) => CommandError::Probe(error),
        CommandError::Unavailable { source } => CommandError::Unavailable { source },
        CommandError::Broken { source } => CommandError::Broken { source },
        CommandError::Refused(refusal) => {
            CommandError::Invalid { code: refusal.code(), message: refusal.to_string() }
        }
    }
}

/// What follows a command's name.
fn argument(text: &str) -> &str {
    text.split_once(char::is_whitespace).map_or("", |(_, argument)| argument.trim())
}

fn set_text(parameters: &mut Value, piece: &Formatted, entities: bool, buttons: Option<&Value>) {
    parameters["text"] = piece.text.as_str().into();
    if entities {
        parameters["entities"] = serde_json::to_value(&piece.entities).unwrap_or_default();
    }
    if let Some(buttons) = buttons {
        parameters["reply_markup"] = buttons.clone();
    }
}

fn send_parameters(
    destination: &Destination,
    piece: &Formatted,
    entities: bool,
    buttons: Option<&Value>,
    first: bool,
) -> Value {
    let mut parameters = json!({"chat_id": destination.chat});
    set_text(&mut parameters, piece, entities, buttons);
    if let Some(thread) = destination.thread {
        parameters["message_thread_id"] = thread.into();
    }
    if let Some(reply_to) = destination.reply_to.filter(|_| first) {
        parameters["reply_parameters"] = json!({"message_id": reply_to, "allow_sending_without_reply": true});
    }
    parameters
}

fn edit_parameters(
    destination: &Destination,
    message_id: i64,
    piece: &Formatted,
    entities: bool,
    buttons: Option<&Value>,
) -> Value {
    let mut parameters = json!({"chat_id": destination.chat, "message_id": message_id});
    set_text(&mut parameters, piece, entities, buttons);
    parameters
}

/// The message that shows an answer while it is being written.
struct Screen<'a> {
    worker: &'a Worker<'a>,
    destination: &'a Destination,
    message_id: Option<i64>,
    shown: String,
    next_at: Instant,
    interval: Duration,
    open: bool,
}

impl Screen<'_> {
    async fn show(&mut self, text: &str) {
        if !self.open || Instant::now() < self.next_at {
            return;
        }
        let piece = format(text);
        if piece.text.trim().is_empty() || piece.text == self.shown {
            return;
        }
        if piece.text.chars().count() > MESSAGE_CHARS {
            // The rest appears with the whole answer.
            self.open = false;
            return;
        }
        if !self.worker.bot.pacer.try_edit(self.destination.chat) {
            return;
        }
        self.next_at = Instant::now() + self.interval;
        let outcome = match self.message_id {
            Some(message_id) => self.change(message_id, &piece).await,
            None => self.begin(&piece).await,
        };
        match outcome {
            Ok(()) => self.shown = piece.text,
            Err(CallError::Refused(Refusal { class: ErrorClass::Rate, retry_after, .. })) => {
                self.worker
                    .bot
                    .pacer
                    .park(self.destination.chat, retry_after.unwrap_or(Duration::from_secs(5)));
                self.open = false;
            }
            // The whole answer is delivered later by the careful way; no more showing until then.
            Err(error) => {
                self.open = false;
                let unknown = matches!(error, CallError::Unknown | CallError::Unreadable);
                if unknown && self.message_id.is_none() {
                    self.worker.lost.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    async fn change(&self, message_id: i64, piece: &Formatted) -> Result<(), CallError> {
        let parameters =
            edit_parameters(self.destination, message_id, piece, !piece.entities.is_empty(), None);
        match self.worker.call::<Value>("editMessageText", &parameters, EDIT_PATIENCE).await {
            Err(error) if error.class() == Some(ErrorClass::SuccessInEffect) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn begin(&mut self, piece: &Formatted) -> Result<(), CallError> {
        let parameters = send_parameters(self.destination, piece, !piece.entities.is_empty(), None, true);
        let patience = self.worker.bot.deps.config.call_timeout;
        let sent: Sent = self.worker.call("sendMessage", &parameters, patience).await?;
        crash::point("start_sent");
        self.message_id = Some(sent.message_id);
        let worker = self.worker;
        let turns = &worker.bot.deps.app.turns;
        worker
            .insist(|| {
                turns.start_delivery(
                    &worker.caller,
                    worker.started.work.turn,
                    worker.bot.fence,
                    sent.message_id,
                )
            })
            .await;
        crash::point("start_recorded");
        Ok(())
    }
}
