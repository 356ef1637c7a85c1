//! The gate: access lists, standing, rate limits, scoring, quota and budgets. One append set a decision, with
//! its reason.

mod ask;
mod score;

use std::{sync::Arc, time::Duration};

use botledger_domain::{
    ConversationId, ModelName, ReservationId, SubjectId, TurnId,
    account::Amounts,
    bot::{Bot, BotRateLimits, BotSettings},
    chat_session::{ChatSession, ChatSessionCommand},
    policy::PolicyTerms,
    price::PriceList,
    rate_limit::{RateLimit, RateRule, RateSubject, RateSubjectKind},
    standing::{BlockCause, Standing, Verdict},
    standing_stream,
    turn::{Admission, Message, Notice, RefusalReason, Turn, TurnCommand, TurnError, TurnPhase},
};
use botledger_journal::{AppendError, AppendSet, Loaded};
use botledger_llm::ChatRequest;
use botledger_scoring::pii::Replaced;
use chrono::{DateTime, Utc};
use moka::sync::Cache;

use self::{
    ask::Asked,
    score::{Judged, Looked},
};
use crate::{
    Access, AccessLists, BodyContent, Caller, CommandError, Core, EffectivePolicy, KeptCall, Policies,
    RateCall, RateLimiter, RateRefusal, VaultError,
    execute::ATTEMPTS,
    holds::{self, Held, Holds},
    scorer::{Scorer, Sender},
};

/// What a bot without settings of its own gets.
#[derive(Clone, Debug)]
pub struct GateDefaults {
    /// Provider's name as recorded.
    pub provider: String,
    /// Model that answers.
    pub model: ModelName,
    /// What models cost.
    pub prices: PriceList,
    /// Rate limits.
    pub rate_limits: BotRateLimits,
    /// Exchanges looked at for context, at most.
    pub context_exchanges: i64,
    /// How long the same person is not told the same refusal again.
    pub notice_pause: Duration,
    /// Likewise for a block.
    pub block_notice_pause: Duration,
}

/// The right to write for a bot: its present lease epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// From the lease.
    pub epoch: i64,
}

/// A turn that may be answered, and everything the model has to be told.
#[derive(Clone, Debug)]
pub struct AdmittedTurn {
    /// The message's facts.
    pub message: Message,
    /// What was granted.
    pub admission: Admission,
    /// Ready to be sent.
    pub request: ChatRequest,
    /// The message itself, as it was opened for the request: it says where the answer goes.
    pub body: BodyContent,
    /// The Telegram message that shows the answer already, where an earlier try sent one.
    pub started_message: Option<i64>,
    /// Whether the bot shows answers while they are written.
    pub streaming: bool,
    /// Personal data and secrets that the request has placeholders for: they go back into the answer.
    pub replaced: Replaced,
    /// The rate limits that it counts against.
    pub(crate) rate_limits: BotRateLimits,
}

/// What the gate said.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Ask the model.
    Admitted(Box<AdmittedTurn>),
    /// Tell the person, if `notify`.
    Refused {
        /// Why.
        reason: RefusalReason,
        /// Whether they are told this time.
        notify: bool,
    },
    /// The turn was decided before; it stands here.
    AlreadyDecided(TurnPhase),
    /// It was admitted before, and the bot was given longer instructions since: the question does not fit
    /// what is held for it any more, so it can only fail.
    Outgrown {
        /// The question and the shortest answer.
        tokens: u64,
        /// What is held.
        held: u64,
    },
}

/// What the gate can fail with.
pub type GateError = CommandError<TurnError>;

/// Decides who gets through.
#[derive(Clone)]
pub struct Gate {
    core: Arc<Core>,
    access: AccessLists,
    limiter: RateLimiter,
    holds: Holds,
    policies: Policies,
    scorer: Scorer,
    defaults: Arc<GateDefaults>,
    notices: Cache<Told, ()>,
    block_notices: Cache<Told, ()>,
}

/// Who was told where, and what.
type Told = (ConversationId, SubjectId, &'static str);

/// What stands in a message's way before anybody reads it.
struct Screened {
    refusal: Option<RefusalReason>,
    /// Whether what they write counts for or against them: they are not let in by a list, and were not
    /// refused before.
    counts: bool,
    /// Whether it was too fast for a limit that is the person's own.
    hasty: bool,
}

impl Screened {
    fn refused(reason: RefusalReason) -> Self {
        Self { refusal: Some(reason), counts: false, hasty: false }
    }
}

impl Gate {
    pub(crate) fn new(
        core: Arc<Core>,
        access: AccessLists,
        limiter: RateLimiter,
        holds: Holds,
        policies: Policies,
        scorer: Scorer,
        defaults: GateDefaults,
    ) -> Self {
        let notices = Cache::builder().max_capacity(100_000).time_to_live(defaults.notice_pause).build();
        let block_notices =
            Cache::builder().max_capacity(100_000).time_to_live(defaults.block_notice_pause).build();
        let defaults = Arc::new(defaults);
        Self { core, access, limiter, holds, policies, scorer, defaults, notices, block_notices }
    }

    /// Makes the detectors ready in the background: the first message need not wait for them.
    pub fn warm_up(&self) {
        Scorer::warm_up();
    }

    /// Decides a received turn and records the decision. A turn that was admitted before and has no
    /// answer yet (its instance died) is admitted again under the hold it has.
    ///
    /// # Errors
    /// When ledger, keys or database cannot be used, or the epoch is over.
    pub async fn decide(&self, caller: &Caller, turn: TurnId, fence: Fence) -> Result<Decision, GateError> {
        let first = self.core.journal.load::<Turn>(&turn.to_string()).await?;
        let message = match (first.state.phase, &first.state.message, &first.state.admission) {
            (TurnPhase::Received, Some(message), _) => message.clone(),
            (TurnPhase::Admitted, Some(message), Some(admission)) => {
                let started_message = first.state.started_message;
                return self.admit_again(message.clone(), admission.clone(), started_message).await;
            }
            (phase, ..) => return Ok(Decision::AlreadyDecided(phase)),
        };
        let bot = self.core.journal.load::<Bot>(&message.bot.to_string()).await?.state;
        let policy = self.policies.effective(message.workspace, message.bot).await?;
        // Taken and looked at once, before the first attempt: a conflict is no second message.
        let screened = self.screen(turn, &message, &bot.settings, &policy, false).await?;
        let body = self.body_of(&message).await?;
        let text = body.text().unwrap_or_default();
        let looked = self.look(turn, &message, policy.clone(), &screened, Some(text)).await;
        let mut loaded = first;
        let mut attempt = 1;
        loop {
            if loaded.state.phase != TurnPhase::Received {
                return Ok(Decision::AlreadyDecided(loaded.state.phase));
            }
            let now = self.core.clock.now();
            let mut set = AppendSet::new(caller.at(turn).metadata(self.core.instance));
            set.fence(message.bot, fence.epoch);
            let judged = self.judge(&mut set, &mut loaded, looked.as_ref(), now).await?;
            let refusal = judged.blocked.clone().or(screened.refusal.clone()).or(judged.refusal.clone());
            let notices = judged.notices.clone();
            let decided = match refusal {
                Some(reason) => self.refuse(&mut set, &mut loaded, reason, notices, now),
                None => {
                    let terms = &policy.terms;
                    self.reserve(&mut set, &mut loaded, &bot.settings, &body, terms, notices, now).await
                }
            };
            let decision = match decided {
                // What it was to be held in moved meanwhile.
                Err(CommandError::Conflict) if attempt < ATTEMPTS => {
                    attempt += 1;
                    loaded = self.core.journal.load::<Turn>(&turn.to_string()).await?;
                    continue;
                }
                decided => decided?,
            };
            match self.core.journal.append(set).await {
                Ok(_) => {
                    self.remember(&message, &decision);
                    score::count(&judged);
                    if matches!(decision, Decision::Refused { .. }) {
                        self.limiter.settle(&self.rate_call(turn, &message, &bot.settings, 0), 0).await;
                    }
                    return Ok(decision);
                }
                Err(AppendError::Conflict { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
            loaded = self.core.journal.load::<Turn>(&turn.to_string()).await?;
        }
    }

    /// Access lists, standing and rate limits, in that order. `even_if_blocked` is for what people may do
    /// about a block; nothing is for people on a deny list.
    async fn screen(
        &self,
        turn: TurnId,
        message: &Message,
        settings: &BotSettings,
        policy: &EffectivePolicy,
        even_if_blocked: bool,
    ) -> Result<Screened, GateError> {
        let (bot, subject) = (message.bot, message.subject);
        let listed = self.access.verdict(message.workspace, bot, subject, message.conversation).await;
        let listed = listed.map_err(CommandError::within)?;
        if let Access::Denied { until, .. } = listed {
            return Ok(Screened::refused(RefusalReason::Denied { until }));
        }
        let stream = standing_stream(bot, subject).to_string();
        let standing = self.core.journal.load::<Standing>(&stream).await?;
        let now = self.core.clock.now();
        let allowed = matches!(listed, Access::Allowed(_));
        if !even_if_blocked && let Some(reason) = blocked(&standing.state, allowed, now) {
            return Ok(Screened::refused(reason));
        }
        let mut call = self.rate_call(turn, message, settings, 0);
        let slow = RateSubject::throttled(bot, subject);
        if !allowed && !even_if_blocked && standing.state.verdict_at(now) == Verdict::Throttled {
            let requests = RateLimit { burst: 1, per_minute: policy.terms.throttled_per_minute };
            call.limits.push((slow.clone(), RateRule { requests: Some(requests), ..RateRule::default() }));
        }
        let full = self.limiter.take(&call).await.err();
        let hasty = full.as_ref().is_some_and(|full| {
            full.subject.as_ref().is_some_and(|subject| subject.kind() == RateSubjectKind::User)
        });
        let refusal = full.map(|full| {
            let retry_at = full.retry_at;
            let throttled = full.subject.as_ref() == Some(&slow);
            if throttled { RefusalReason::Throttled { retry_at } } else { rate_limited(full) }
        });
        Ok(Screened { refusal, counts: !allowed, hasty })
    }

    /// What the detectors see in a message that counts; without a text only how it came is looked at.
    async fn look(
        &self,
        turn: TurnId,
        message: &Message,
        policy: EffectivePolicy,
        screened: &Screened,
        text: Option<&str>,
    ) -> Option<Looked> {
        if !screened.counts {
            return None;
        }
        let sender = Sender { bot: message.bot, subject: message.subject, turn };
        let now = self.core.clock.now();
        let findings = match (&screened.refusal, text) {
            (None, Some(text)) => Some(self.scorer.look(&policy, sender, text, now).await),
            (Some(_), _) if screened.hasty => self.scorer.look_at_refused(sender, now),
            _ => None,
        };
        findings.map(|findings| Looked { policy, findings })
    }

    /// Records what was seen and moves the person's standing by it, as it is now: looking took its time, and
    /// who was blocked meanwhile is not scored.
    async fn judge(
        &self,
        set: &mut AppendSet,
        turn: &mut Loaded<Turn>,
        looked: Option<&Looked>,
        now: DateTime<Utc>,
    ) -> Result<Judged, GateError> {
        let (Some(looked), Some(message)) = (looked, turn.state.message.clone()) else {
            return Ok(Judged::default());
        };
        let stream = standing_stream(message.bot, message.subject).to_string();
        let mut standing = self.core.journal.load::<Standing>(&stream).await?;
        if let Some(reason) = blocked(&standing.state, false, now) {
            return Ok(Judged { blocked: Some(reason), ..Judged::default() });
        }
        score::judge(set, turn, &mut standing, &message, looked, now)
    }

    fn rate_call(&self, turn: TurnId, message: &Message, settings: &BotSettings, tokens: u64) -> RateCall {
        let limits = settings.rate_limits.unwrap_or(self.defaults.rate_limits);
        self.limiter.message(turn, message, limits, tokens)
    }

    /// Keeps the places that a turn takes among the parallel calls, for as long as its model works.
    #[must_use]
    pub fn keep(&self, turn: TurnId, admitted: &AdmittedTurn) -> KeptCall {
        self.limiter.keep(self.counted(turn, admitted))
    }

    /// Ends a turn for the rate limits: its places are free, and of the tokens only the used ones count.
    pub async fn settle(&self, turn: TurnId, admitted: &AdmittedTurn, tokens: u64) {
        self.limiter.settle(&self.counted(turn, admitted), tokens).await;
    }

    fn counted(&self, turn: TurnId, admitted: &AdmittedTurn) -> RateCall {
        self.limiter.message(
            turn,
            &admitted.message,
            admitted.rate_limits,
            admitted.admission.reserved_tokens,
        )
    }

    /// Screens a received turn that asks no model (a command, a button, a photo): refuses it when the
    /// person is denied, blocked or too fast, and gives nothing when it may be answered. `even_if_blocked`
    /// is for what people may do about a block.
    ///
    /// # Errors
    /// When ledger, keys or database cannot be used, or the epoch is over.
    pub async fn refuse_unless_allowed(
        &self,
        caller: &Caller,
        turn: TurnId,
        fence: Fence,
        even_if_blocked: bool,
    ) -> Result<Option<Decision>, GateError> {
        let mut loaded = self.core.journal.load::<Turn>(&turn.to_string()).await?;
        let (TurnPhase::Received, Some(message)) = (loaded.state.phase, loaded.state.message.clone()) else {
            return Ok(Some(Decision::AlreadyDecided(loaded.state.phase)));
        };
        let bot = self.core.journal.load::<Bot>(&message.bot.to_string()).await?.state;
        let policy = self.policies.effective(message.workspace, message.bot).await?;
        let screened = self.screen(turn, &message, &bot.settings, &policy, even_if_blocked).await?;
        // Without a model there is nothing that would run beside others.
        self.limiter.settle(&self.rate_call(turn, &message, &bot.settings, 0), 0).await;
        let looked = self.look(turn, &message, policy, &screened, None).await;
        let Some(reason) = screened.refusal else { return Ok(None) };
        let now = self.core.clock.now();
        let mut set = AppendSet::new(caller.at(turn).metadata(self.core.instance));
        set.fence(message.bot, fence.epoch);
        let judged = self.judge(&mut set, &mut loaded, looked.as_ref(), now).await?;
        let reason = judged.blocked.clone().unwrap_or(reason);
        let decision = self.refuse(&mut set, &mut loaded, reason, judged.notices.clone(), now)?;
        self.core.journal.append(set).await?;
        self.remember(&message, &decision);
        score::count(&judged);
        Ok(Some(decision))
    }

    async fn body_of(&self, message: &Message) -> Result<BodyContent, GateError> {
        let body = self.core.journal.body(message.body.body_id).await?;
        let Some(body) = body else { return Err(CommandError::NotFound { what: "message body" }) };
        match self.core.vault.open_body(&body).await {
            Ok(content) => Ok(content),
            Err(VaultError::Shredded) => Err(CommandError::NotFound { what: "message body" }),
            Err(error) => Err(error.into()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an admission rests on that many things")]
    async fn reserve(
        &self,
        set: &mut AppendSet,
        turn: &mut Loaded<Turn>,
        settings: &BotSettings,
        body: &BodyContent,
        terms: &PolicyTerms,
        mut notices: Vec<Notice>,
        now: DateTime<Utc>,
    ) -> Result<Decision, GateError> {
        let Some(message) = turn.state.message.clone() else { return Err(CommandError::Conflict) };
        let message = &message;
        let model = self.model(settings);
        let listed = self.defaults.prices.of(&self.defaults.provider, &model);
        let price = listed.cloned().unwrap_or_default();
        // Nothing asks for more than the model's window.
        let most = holds::worst_case(u64::from(settings.context_tokens), &price);
        let mut sessions = self.core.journal.load::<ChatSession>(&message.conversation.to_string()).await?;
        let (conversation, bot, subject) = (message.conversation, message.bot, message.subject);
        set.decide(&mut sessions, ChatSessionCommand::Ensure { conversation, bot, subject }, now)
            .map_err(CommandError::broken)?;
        let (session, state) = sessions.state.current().ok_or(CommandError::NotFound { what: "session" })?;
        let context_epoch = state.context_epoch;

        let reservation = ReservationId(turn_uuid(turn)?);
        let prompt = body.text().unwrap_or_default();
        let question = self.question(message, settings, terms, (session, context_epoch), prompt).await?;
        // From here on others wait for the same quota and shares.
        let mut opened = self.holds.open(set, message, most, now).await?;
        if listed.is_none() && opened.counts_money() {
            tracing::warn!(
                model = %model, bot = %bot,
                "money is limited here and the model has no price (prices.models): nothing is asked of it"
            );
            return self.refuse(set, turn, RefusalReason::Unpriced { model }, notices, now);
        }
        let window = u64::from(settings.context_tokens).min(opened.tokens(&price, now));
        let (request, asked) = match question.within(settings, &model, window)? {
            Asked::Fits { request, tokens } => {
                let answer = u64::from(request.num_predict);
                let money = price.cost(tokens.saturating_sub(answer), answer);
                (Some(request), Amounts { tokens, messages: 1, money })
            }
            Asked::TooLong { tokens } if tokens > u64::from(settings.context_tokens) => {
                let reason = RefusalReason::TooLong { tokens, limit: u64::from(settings.context_tokens) };
                return self.refuse(set, turn, reason, notices, now);
            }
            Asked::TooLong { tokens } => (None, holds::worst_case(tokens, &price)),
        };
        if request.is_some() {
            // The message counts already; now it is known how many tokens it may take at most.
            let call = self.rate_call(TurnId(reservation.uuid()), message, settings, asked.tokens);
            if let Err(full) = self.limiter.take_tokens(&call).await {
                return self.refuse(set, turn, rate_limited(full), notices, now);
            }
        }
        let held = self.holds.reserve(set, &mut opened, reservation, asked, now).await?;
        let (request, reserved) = match (held, request) {
            (Held::Refused(reason, more), _) => {
                notices.extend(more);
                return self.refuse(set, turn, reason, notices, now);
            }
            (Held::Reserved(reserved), Some(request)) => (request, reserved),
            // What was left grew while the question was put together.
            (Held::Reserved(_), None) => return Err(CommandError::Conflict),
        };
        notices.extend(reserved.notices);
        let admission = Admission {
            reservation,
            reserved_tokens: reserved.amounts.tokens,
            price,
            reserved_money: reserved.amounts.money,
            budgets: reserved.budgets,
            session,
            context_epoch,
            provider: self.defaults.provider.clone(),
            model,
            notices,
        };
        set.decide(turn, TurnCommand::Admit(admission.clone()), now).map_err(CommandError::Refused)?;
        Ok(Decision::Admitted(Box::new(AdmittedTurn {
            message: message.clone(),
            admission,
            request,
            body: body.clone(),
            started_message: turn.state.started_message,
            streaming: settings.streaming,
            replaced: question.replaced,
            rate_limits: settings.rate_limits.unwrap_or(self.defaults.rate_limits),
        })))
    }

    /// The same question under the hold that was granted before.
    async fn admit_again(
        &self,
        message: Message,
        admission: Admission,
        started_message: Option<i64>,
    ) -> Result<Decision, GateError> {
        let bot = self.core.journal.load::<Bot>(&message.bot.to_string()).await?.state;
        let body = self.body_of(&message).await?;
        let prompt = body.text().unwrap_or_default();
        let place = (admission.session, admission.context_epoch);
        // What leaves now is masked as is wanted now.
        let policy = self.policies.effective(message.workspace, message.bot).await?;
        let question = self.question(&message, &bot.settings, &policy.terms, place, prompt).await?;
        let window = admission.reserved_tokens;
        match question.within(&bot.settings, &admission.model, window)? {
            Asked::Fits { mut request, tokens } => {
                let prompt = tokens.saturating_sub(u64::from(request.num_predict));
                request.num_predict = affordable(&admission, prompt, request.num_predict);
                Ok(Decision::Admitted(Box::new(AdmittedTurn {
                    message,
                    admission,
                    request,
                    body,
                    started_message,
                    streaming: bot.settings.streaming,
                    replaced: question.replaced,
                    rate_limits: bot.settings.rate_limits.unwrap_or(self.defaults.rate_limits),
                })))
            }
            Asked::TooLong { tokens } => Ok(Decision::Outgrown { tokens, held: window }),
        }
    }

    fn refuse(
        &self,
        set: &mut AppendSet,
        turn: &mut Loaded<Turn>,
        reason: RefusalReason,
        notices: Vec<Notice>,
        now: DateTime<Utc>,
    ) -> Result<Decision, GateError> {
        let message = turn.state.message.as_ref();
        let told = message.is_some_and(|message| {
            let memory = self.notice_memory(&reason);
            memory.is_some_and(|known| known.contains_key(&told(message, &reason)))
        });
        let notify = !told || !notices.is_empty();
        set.decide(turn, TurnCommand::Refuse { reason: reason.clone(), notify, notices }, now)
            .map_err(CommandError::Refused)?;
        Ok(Decision::Refused { reason, notify })
    }

    /// What is not told twice in a row. A message that is too long is always told of: the next one may
    /// be shorter, and the person has to know which of them will not be answered.
    fn notice_memory(&self, reason: &RefusalReason) -> Option<&Cache<Told, ()>> {
        match reason {
            RefusalReason::Blocked { .. }
            | RefusalReason::BlockedUntilAppeal { .. }
            | RefusalReason::TemporarilyBlocked { .. }
            | RefusalReason::Denied { .. } => Some(&self.block_notices),
            RefusalReason::RateLimited { .. }
            | RefusalReason::Throttled { .. }
            | RefusalReason::Unscored
            | RefusalReason::QuotaExceeded { .. }
            | RefusalReason::BudgetExhausted { .. }
            | RefusalReason::Unpriced { .. }
            | RefusalReason::Overloaded { .. } => Some(&self.notices),
            RefusalReason::TooLong { .. } | RefusalReason::Content { .. } | RefusalReason::OffTopic => None,
        }
    }

    /// What a recorded decision leaves in this process: it is counted, and what the person is told is not
    /// told again soon.
    fn remember(&self, message: &Message, decision: &Decision) {
        count(decision);
        if let Decision::Refused { reason, notify: true } = decision
            && let Some(memory) = self.notice_memory(reason)
        {
            memory.insert(told(message, reason), ());
        }
    }
}

fn told(message: &Message, reason: &RefusalReason) -> Told {
    (message.conversation, message.subject, reason.into())
}

fn turn_uuid(turn: &Loaded<Turn>) -> Result<uuid::Uuid, GateError> {
    uuid::Uuid::try_parse(&turn.id).map_err(CommandError::broken)
}

fn count(decision: &Decision) {
    let outcome: &'static str = match decision {
        Decision::Admitted(admitted) => {
            holds::count(&admitted.admission);
            "admitted"
        }
        Decision::Refused { reason, .. } => {
            holds::count_refusal(reason);
            reason.into()
        }
        Decision::AlreadyDecided(_) | Decision::Outgrown { .. } => return,
    };
    metrics::counter!("botledger_gate_decisions_total", "outcome" => outcome).increment(1);
}

/// The longest answer, up to one of so many tokens, that the money of an earlier hold covers: it was held
/// for another split into prompt and answer.
fn affordable(admission: &Admission, prompt: u64, answer: u32) -> u32 {
    let covered = |answer: u32| admission.price.cost(prompt, answer.into()) <= admission.reserved_money;
    let (mut covers, mut exceeds) = (0, answer.saturating_add(1));
    while covers + 1 < exceeds {
        let middle = covers + (exceeds - covers) / 2;
        if covered(middle) { covers = middle } else { exceeds = middle }
    }
    covers.max(1)
}

fn rate_limited(full: RateRefusal) -> RefusalReason {
    RefusalReason::RateLimited { scope: full.scope.to_owned(), retry_at: full.retry_at }
}

/// The block that holds, if any. People who are let in by a list are not held up by a score.
fn blocked(standing: &Standing, allowed: bool, now: DateTime<Utc>) -> Option<RefusalReason> {
    let Verdict::Blocked(ban) = standing.verdict_at(now) else { return None };
    match (ban.cause, ban.reason, ban.until) {
        (BlockCause::Moderator, Some(reason), until) => Some(RefusalReason::Blocked { reason, until }),
        _ if allowed => None,
        (_, _, Some(until)) => Some(RefusalReason::TemporarilyBlocked { until }),
        (cause, ..) => Some(RefusalReason::BlockedUntilAppeal { severe: cause == BlockCause::Severe }),
    }
}
