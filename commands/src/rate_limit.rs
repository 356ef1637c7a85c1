//! Rate limits: how fast people, chats, bots, workspaces, addresses and others may go.
//!
//! A call (a message, an API request) is one decision about all its subjects at once, in requests,
//! tokens and parallel calls: all are taken or none is. Buckets are in Redis and decided there by one
//! script, on Redis's own clock, so that any number of processes hold one limit exactly. A call with an
//! id is counted once, whatever process repeats it. While Redis is away this process counts by itself
//! with the same arithmetic and goes on from what it knew: decision 0011 says what that means. Never
//! open to all.

mod level;
mod local;
mod overrides;
mod scripts;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use botledger_domain::{
    SharedClock, TurnId, WorkspaceId,
    bot::BotRateLimits,
    rate_limit::{MOST_OF_A_RATE, RateLimit, RateRule, RateSubject, RateSubjectKind},
    turn::Message,
};
use chrono::{DateTime, TimeDelta, Utc};
use redis::{ScriptInvocation, aio::ConnectionManager};
use uuid::Uuid;

use local::Local;
pub(crate) use overrides::Overrides;
pub use overrides::RateLimits;

/// What wants to get through.
#[derive(Clone, Debug)]
pub struct RateCall {
    /// Everything of a workspace is decided in one place. Absent at the door, before anybody knows who
    /// asks: then the first subject is the place.
    pub workspace: Option<WorkspaceId>,
    /// The same id is the same call, whoever repeats it: it is counted once, and tokens asked for later
    /// come on top of those asked for before. Without an id a call has no parallel places and cannot be
    /// settled.
    pub id: Option<Uuid>,
    /// Whose pace is measured, and the ordinary rule of each; an operator's override takes its place.
    pub limits: Vec<(RateSubject, RateRule)>,
    /// Model tokens it may take at worst.
    pub tokens: u64,
}

impl RateCall {
    /// A request from an address, before anything of it is read.
    #[must_use]
    pub fn at_the_door(address: IpAddr, rule: RateRule) -> Self {
        Self { workspace: None, id: None, limits: vec![(RateSubject::ip(address), rule)], tokens: 0 }
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    /// Messages or requests.
    Requests,
    /// Model tokens.
    Tokens,
    /// Calls under way.
    Parallel,
}

impl RateUnit {
    /// `requests`, `tokens` or `parallel`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Parallel => "parallel",
        }
    }
}

/// One limit as it stands after a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitState {
    /// Whose.
    pub subject: RateSubject,
    /// Of what.
    pub unit: RateUnit,
    /// The most at once.
    pub limit: u64,
    /// What of that is left.
    pub remaining: u64,
    /// What comes back in a minute; absent for parallel calls, which come back when they end.
    pub per_minute: Option<u64>,
    /// When all of it is there again if nothing more is taken.
    pub resets_at: DateTime<Utc>,
}

/// A call that is within all limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Every limit that was looked at, in the order of the call's subjects.
    pub limits: Vec<LimitState>,
    /// It was counted before.
    pub repeated: bool,
}

/// Which limit does not let a call through, and until when; of several the one that takes longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateRefusal {
    /// The kind of subject, for example `user`.
    pub scope: &'static str,
    /// The subject itself.
    pub subject: Option<RateSubject>,
    /// Of what there is too little.
    pub unit: RateUnit,
    /// When the call would fit if nothing else is taken.
    pub retry_at: DateTime<Utc>,
    /// Whether it asks for more than the whole bucket holds: coming back does not help then.
    pub never_fits: bool,
    /// Every limit that was looked at.
    pub limits: Vec<LimitState>,
}

/// When to ask again for a place among parallel calls: nobody knows when one ends.
const PARALLEL_RETRY: Duration = Duration::from_secs(1);

/// What was found of a subject: parts used, calls under way, and whether this call is one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    requests: u64,
    tokens: u64,
    live: u32,
    own: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    admitted: bool,
    repeated: bool,
    /// Tokens asked for on top of what was counted.
    more: u64,
    found: Vec<Found>,
}

impl Answer {
    fn nothing_limited(subjects: usize) -> Self {
        let found = vec![Found { requests: 0, tokens: 0, live: 0, own: false }; subjects];
        Self { admitted: true, repeated: false, more: 0, found }
    }
}

/// Names in Redis, all in one slot of a cluster.
struct Keys {
    call: String,
    subjects: Vec<SubjectKeys>,
}

struct SubjectKeys {
    bucket: String,
    calls: String,
}

impl Keys {
    fn of(call: &RateCall) -> Self {
        let place = match (call.workspace, call.limits.first()) {
            (Some(workspace), _) => workspace.to_string(),
            (None, Some((subject, _))) => subject.to_string(),
            (None, None) => "nobody".to_owned(),
        };
        let id = call.id.map_or_else(String::new, |id| id.to_string());
        let subjects = call.limits.iter().map(|(subject, _)| SubjectKeys {
            bucket: format!("bl:rl:{{{place}}}:{subject}"),
            calls: format!("bl:rl:{{{place}}}:{subject}:calls"),
        });
        Self { call: format!("bl:rl:{{{place}}}:call:{id}"), subjects: subjects.collect() }
    }

    fn given_to(&self, script: &mut ScriptInvocation<'_>) {
        script.key(&self.call);
        for subject in &self.subjects {
            script.key(&subject.bucket).key(&subject.calls);
        }
    }
}

/// Redis gave no answer that could be used.
struct Away(&'static str);

/// Decides whether a call is within all rate limits. Cheap to clone.
#[derive(Clone)]
pub struct RateLimiter {
    redis: Option<ConnectionManager>,
    local: Arc<Local>,
    overrides: Option<Overrides>,
    clock: SharedClock,
    patience: Duration,
    /// Processes among which a limit is divided that none of them holds alone while Redis is away.
    processes: u32,
    /// What messages to all bots of a workspace come to together.
    workspace: RateRule,
    rest: Arc<Rest>,
}

/// What the installation says about limits that no bot's settings name. Nothing of it is limited by
/// default.
#[derive(Clone, Copy, Debug)]
pub struct RateDefaults {
    /// Messages to all bots of a workspace.
    pub workspace: RateRule,
    /// Requests to the API from a network address.
    pub ip: RateRule,
    /// Requests to the API by an operator.
    pub operator: RateRule,
    /// Requests to the API by all operators of a workspace.
    pub api: RateRule,
    /// Processes among which a limit is divided that none of them holds alone while Redis is away; at
    /// least 1.
    pub processes: u32,
}

impl Default for RateDefaults {
    fn default() -> Self {
        let none = RateRule::default();
        Self { workspace: none, ip: none, operator: none, api: none, processes: 1 }
    }
}

/// After a Redis that did not answer in time the next calls do not wait for it as well.
struct Rest {
    begun: Instant,
    /// Milliseconds since `begun`.
    until: AtomicU64,
}

impl Rest {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl RateLimiter {
    /// A limiter on Redis; without a connection it always counts in this process.
    #[must_use]
    pub fn new(redis: Option<ConnectionManager>, clock: SharedClock, patience: Duration) -> Self {
        let rest = Arc::new(Rest { begun: Instant::now(), until: AtomicU64::new(0) });
        let RateDefaults { workspace, processes, .. } = RateDefaults::default();
        let (local, overrides) = (Arc::new(Local::new()), None);
        Self { redis, local, overrides, clock, patience, processes, workspace, rest }
    }

    /// The same limiter under other defaults.
    #[must_use]
    pub fn with_defaults(self, defaults: RateDefaults) -> Self {
        Self { processes: defaults.processes.max(1), workspace: defaults.workspace, ..self }
    }

    pub(crate) fn with_overrides(self, overrides: Overrides) -> Self {
        Self { overrides: Some(overrides), ..self }
    }

    /// A message to a bot, with the tokens that its answer may take at worst (0 while that is not known:
    /// the same call is taken again when it is).
    #[must_use]
    pub fn message(&self, turn: TurnId, message: &Message, limits: BotRateLimits, tokens: u64) -> RateCall {
        RateCall {
            workspace: Some(message.workspace),
            id: Some(turn.uuid()),
            limits: vec![
                (RateSubject::user(message.bot, message.subject), limits.user_rule()),
                (RateSubject::chat(message.conversation), limits.chat_rule()),
                (RateSubject::bot(message.bot), limits.bot_rule()),
                (RateSubject::workspace(message.workspace), self.workspace),
            ],
            tokens,
        }
    }

    /// Takes a call from all its limits, or from none.
    ///
    /// # Errors
    /// The limit that does not let it through.
    pub async fn take(&self, call: &RateCall) -> Result<Taken, RateRefusal> {
        let (answer, rules) = self.ask(call, false).await;
        let now = self.clock.now();
        let limits = states(call, &rules, &answer, now);
        if answer.admitted {
            let outcome = if answer.repeated { "repeated" } else { "admitted" };
            metrics::counter!("botledger_rate_decisions_total", "outcome" => outcome).increment(1);
            return Ok(Taken { limits, repeated: answer.repeated });
        }
        let refusal = refusal(call, &rules, &answer, now, limits);
        metrics::counter!("botledger_rate_decisions_total", "outcome" => "refused").increment(1);
        metrics::counter!(
            "botledger_rate_limited_total", "scope" => refusal.scope, "unit" => refusal.unit.as_str()
        )
        .increment(1);
        Err(refusal)
    }

    /// Takes the tokens of a call that was let through before they were known. Where no limit counts
    /// tokens there is nothing to ask.
    ///
    /// # Errors
    /// The limit that does not let it through.
    pub async fn take_tokens(&self, call: &RateCall) -> Result<(), RateRefusal> {
        if self.rules(call).await.iter().all(|rule| rule.tokens.is_none()) {
            return Ok(());
        }
        self.take(call).await.map(drop)
    }

    /// How all limits of a call stand, without taking anything.
    pub async fn look(&self, call: &RateCall) -> Vec<LimitState> {
        let (answer, rules) = self.ask(call, true).await;
        states(call, &rules, &answer, self.clock.now())
    }

    /// Ends a call: its parallel places are free, and of its tokens those stay taken that were used in
    /// truth. Repeating it changes nothing. Tokens that a bucket has regained meanwhile stay regained.
    pub async fn settle(&self, call: &RateCall, tokens: u64) {
        let Some(id) = call.id else { return };
        let tokens = tokens.min(u64::from(MOST_OF_A_RATE));
        let (keys, rules) = (Keys::of(call), self.rules(call).await);
        if rules.iter().all(|rule| rule.tokens.is_none() && rule.parallel.is_none()) {
            // It took no tokens and no place: there is nothing to give back.
            return;
        }
        let mut script = scripts::SETTLE.prepare_invoke();
        keys.given_to(&mut script);
        let memory = scripts::SETTLED_MEMORY.as_millis();
        script.arg(id.to_string()).arg(tokens).arg(u64::try_from(memory).unwrap_or(u64::MAX));
        for rule in &rules {
            script.arg(rule.tokens.map_or(0, level::per_minute));
        }
        let away = self.run::<i64>(&script).await.is_err();
        self.local.settle(&keys, &rules, id, tokens, self.clock.now().timestamp_micros(), away);
    }

    /// Says that a call is still under way: it keeps its parallel places for another minute. False when
    /// it was settled meanwhile.
    pub async fn renew(&self, call: &RateCall) -> bool {
        let Some(id) = call.id else { return false };
        let (keys, rules) = (Keys::of(call), self.rules(call).await);
        let mut script = scripts::RENEW.prepare_invoke();
        keys.given_to(&mut script);
        let micros = u64::try_from(scripts::LEASE.as_micros()).unwrap_or(u64::MAX);
        let memory = u64::try_from(scripts::MEMORY.as_millis()).unwrap_or(u64::MAX);
        let tokens = call.tokens.min(u64::from(MOST_OF_A_RATE));
        script.arg(id.to_string()).arg(tokens).arg(micros).arg(memory);
        for rule in &rules {
            script.arg(u8::from(rule.parallel.is_some()));
        }
        let now = self.clock.now().timestamp_micros();
        match self.run::<i64>(&script).await {
            Ok(0) => false,
            Ok(_) => {
                self.local.renew(&keys, &rules, id, tokens, now);
                true
            }
            Err(_) => self.local.renew(&keys, &rules, id, tokens, now),
        }
    }

    /// Renews a call until what is given is dropped.
    #[must_use]
    pub fn keep(&self, call: RateCall) -> KeptCall {
        let limiter = self.clone();
        KeptCall {
            task: tokio::spawn(async move {
                loop {
                    tokio::time::sleep(scripts::LEASE / 3).await;
                    if !limiter.renew(&call).await {
                        return;
                    }
                }
            }),
        }
    }

    async fn rules(&self, call: &RateCall) -> Vec<RateRule> {
        match &self.overrides {
            Some(overrides) => overrides.rules(call, self.clock.now()).await,
            None => call.limits.iter().map(|(_, rule)| *rule).collect(),
        }
    }

    /// The answer, and the rules under which it was given.
    async fn ask(&self, call: &RateCall, look: bool) -> (Answer, Vec<RateRule>) {
        let (keys, rules) = (Keys::of(call), self.rules(call).await);
        let tokens = call.tokens.min(u64::from(MOST_OF_A_RATE));
        if rules.iter().all(|rule| rule.is_empty()) {
            return (Answer::nothing_limited(rules.len()), rules);
        }
        match self.ask_redis(&keys, &rules, call.id, tokens, look).await {
            Ok(answer) => {
                let now = self.clock.now().timestamp_micros();
                let id = call.id.filter(|_| !look);
                self.local.note(&keys, &rules, id, &answer, now);
                (answer, rules)
            }
            Err(Away(reason)) => {
                metrics::counter!("botledger_rate_limit_fallbacks_total", "reason" => reason).increment(1);
                let rules: Vec<RateRule> = call
                    .limits
                    .iter()
                    .zip(rules)
                    .map(|((subject, _), rule)| self.share(subject, rule))
                    .collect();
                let now = self.clock.now().timestamp_micros();
                (self.local.take(&keys, &rules, call.id, tokens, look, now), rules)
            }
        }
    }

    /// What this process may let through by itself. A bot and its chats are held by one process at a
    /// time; everybody else may be served by all of them.
    fn share(&self, subject: &RateSubject, rule: RateRule) -> RateRule {
        let whole =
            matches!(subject.kind(), RateSubjectKind::User | RateSubjectKind::Chat | RateSubjectKind::Bot);
        if whole || self.processes == 1 {
            return rule;
        }
        let part = |number: u32| number.div_ceil(self.processes);
        let slower =
            |limit: RateLimit| RateLimit { burst: part(limit.burst), per_minute: part(limit.per_minute) };
        RateRule {
            requests: rule.requests.map(slower),
            tokens: rule.tokens.map(slower),
            parallel: rule.parallel.map(part),
        }
    }

    async fn ask_redis(
        &self,
        keys: &Keys,
        rules: &[RateRule],
        id: Option<Uuid>,
        tokens: u64,
        look: bool,
    ) -> Result<Answer, Away> {
        let mut script = scripts::TAKE.prepare_invoke();
        keys.given_to(&mut script);
        let lease = u64::try_from(scripts::LEASE.as_micros()).unwrap_or(u64::MAX);
        let memory = u64::try_from(scripts::MEMORY.as_millis()).unwrap_or(u64::MAX);
        script.arg(id.map_or_else(String::new, |id| id.to_string()));
        script.arg(tokens).arg(lease).arg(memory).arg(u8::from(look));
        for rule in rules {
            scripts::rule(&mut script, *rule);
        }
        let numbers: Vec<u64> = self.run(&script).await?;
        let [admitted, repeated, more, ref found @ ..] = numbers[..] else { return Err(Away("error")) };
        let found: Vec<Found> = found
            .as_chunks()
            .0
            .iter()
            .map(|&[requests, tokens, live, own]| Found {
                requests,
                tokens,
                live: u32::try_from(live).unwrap_or(u32::MAX),
                own: own == 1,
            })
            .collect();
        if found.len() != rules.len() {
            return Err(Away("error"));
        }
        Ok(Answer { admitted: admitted == 1, repeated: repeated == 1, more, found })
    }

    /// One call of a script. A Redis that lost it is given it again.
    async fn run<T: redis::FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Away> {
        let Some(mut redis) = self.redis.clone() else { return Err(Away("none")) };
        if self.rest.now() < self.rest.until.load(Ordering::Relaxed) {
            return Err(Away("resting"));
        }
        let begun = Instant::now();
        let answer = tokio::time::timeout(self.patience, script.invoke_async(&mut redis)).await;
        metrics::histogram!("botledger_rate_limit_script_seconds").record(begun.elapsed().as_secs_f64());
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "Redis gave no answer, counting here");
                Err(Away("error"))
            }
            Err(_) => {
                let pause = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
                self.rest.until.store(self.rest.now().saturating_add(pause), Ordering::Relaxed);
                Err(Away("timeout"))
            }
        }
    }
}

/// Keeps a call under way; dropping it stops the renewals, and the call lapses unless it is settled.
pub struct KeptCall {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for KeptCall {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn micros(wait: u64) -> TimeDelta {
    TimeDelta::microseconds(i64::try_from(wait).unwrap_or(i64::MAX))
}

fn states(call: &RateCall, rules: &[RateRule], answer: &Answer, now: DateTime<Utc>) -> Vec<LimitState> {
    let mut states = Vec::new();
    for (((subject, _), rule), found) in call.limits.iter().zip(rules).zip(&answer.found) {
        for (unit, limit, used) in [
            (RateUnit::Requests, rule.requests, found.requests),
            (RateUnit::Tokens, rule.tokens, found.tokens),
        ] {
            let Some(limit) = limit else { continue };
            states.push(LimitState {
                subject: subject.clone(),
                unit,
                limit: u64::from(level::burst(limit)),
                remaining: level::capacity(limit).saturating_sub(used) / level::ONE,
                per_minute: Some(u64::from(level::per_minute(limit))),
                resets_at: now + micros(level::rest(used, limit)),
            });
        }
        if let Some(most) = rule.parallel {
            let busy = found.live > 0;
            states.push(LimitState {
                subject: subject.clone(),
                unit: RateUnit::Parallel,
                limit: u64::from(most),
                remaining: u64::from(most.saturating_sub(found.live)),
                per_minute: None,
                resets_at: if busy { now + scripts::LEASE } else { now },
            });
        }
    }
    states
}

fn refusal(
    call: &RateCall,
    rules: &[RateRule],
    answer: &Answer,
    now: DateTime<Utc>,
    limits: Vec<LimitState>,
) -> RateRefusal {
    let requests = u64::from(!answer.repeated);
    let mut longest: Option<(u64, &RateSubject, RateUnit, bool)> = None;
    for (((subject, _), rule), found) in call.limits.iter().zip(rules).zip(&answer.found) {
        let bucket = |limit: Option<RateLimit>, used, cost| {
            let limit = limit.filter(|_| cost > 0)?;
            let never = cost > u64::from(level::burst(limit));
            let wait = level::wait(used, cost, limit);
            (wait > 0 || never).then_some((wait, never))
        };
        let crowded = rule.parallel.is_some_and(|most| call.id.is_some() && !found.own && found.live >= most);
        let place = u64::try_from(PARALLEL_RETRY.as_micros()).unwrap_or(u64::MAX);
        for (unit, wait) in [
            (RateUnit::Requests, bucket(rule.requests, found.requests, requests)),
            (RateUnit::Tokens, bucket(rule.tokens, found.tokens, answer.more)),
            (RateUnit::Parallel, crowded.then_some((place, false))),
        ] {
            if let Some((wait, never)) = wait
                && longest.is_none_or(|(known, .., known_never)| (never, wait) > (known_never, known))
            {
                longest = Some((wait, subject, unit, never));
            }
        }
    }
    let (wait, subject, unit, never_fits) = match longest {
        Some((wait, subject, unit, never)) => (wait, Some(subject.clone()), unit, never),
        // Only a script of another build could refuse for nothing we know of.
        None => (0, None, RateUnit::Requests, false),
    };
    let scope = subject.as_ref().map_or("unknown", |subject| subject.kind().into());
    RateRefusal { scope, subject, unit, retry_at: now + micros(wait), never_fits, limits }
}
