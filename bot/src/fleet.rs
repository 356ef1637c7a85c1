//! Holding bots: finding those that should run, one process each, and letting go of them in order.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use botledger_commands::{App, Caller, Fence, Lease};
use botledger_domain::{
    BotId, Language, Position, TurnId,
    bot::{Bot, BotStatus, UpdateMode},
    turn::{Ask, Lane},
};
use botledger_llm::ChatProvider;
use botledger_projections::{ReadPool, open_turns, running_bots, wait_for};
use futures::FutureExt;
use redis::{AsyncCommands, Script, aio::ConnectionManager};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::{
    commands::{Command, menu},
    dispatcher::{Dispatcher, Started, Work},
    intake,
    pacer::Pacer,
    queue::{Cursor, Queue},
    runtime::BotConfig,
    stranded,
    telegram::{CallError, ErrorClass, Refusal, Telegram},
    update::Viewer,
    worker::{End, work_off},
};

/// How often the fleet is compared with what should run.
const LOOK: Duration = Duration::from_millis(500);
/// How often the ledger is searched for turns that nobody works on.
const SWEEP: Duration = Duration::from_secs(2);
/// Open turns looked at in one sweep, at most; the next one goes on behind them.
const SWEPT: i64 = 1_000;
/// How long the outcome of a call may take to get into the ledger after the bot was halted.
const RECORDING: Duration = Duration::from_secs(2);
/// Commands answered at the same time by this process.
const HIGH_LANE: usize = 32;

/// What all bots of a process share.
pub(crate) struct Deps {
    pub(crate) app: App,
    pub(crate) read: ReadPool,
    pub(crate) telegram: Telegram,
    pub(crate) provider: Arc<dyn ChatProvider>,
    pub(crate) redis: Option<ConnectionManager>,
    pub(crate) config: BotConfig,
    normal: Arc<Semaphore>,
    high: Arc<Semaphore>,
}

impl Deps {
    pub(crate) fn new(
        app: App,
        read: ReadPool,
        telegram: Telegram,
        provider: Arc<dyn ChatProvider>,
        redis: Option<ConnectionManager>,
        config: BotConfig,
    ) -> Self {
        let normal = Arc::new(Semaphore::new(config.max_concurrent_turns));
        Self {
            app,
            read,
            telegram,
            provider,
            redis,
            config,
            normal,
            high: Arc::new(Semaphore::new(HIGH_LANE)),
        }
    }

    pub(crate) fn queue(&self, bot: BotId) -> Queue {
        Queue::new(self.redis.clone(), self.config.redis_patience, bot)
    }

    fn caller(&self, part: &'static str) -> Caller {
        Caller::system(part, self.app.core.ids.next())
    }
}

/// A bot that this process runs, under one lease.
pub(crate) struct HeldBot {
    pub(crate) deps: Arc<Deps>,
    pub(crate) id: BotId,
    pub(crate) token: Zeroizing<String>,
    pub(crate) fence: Fence,
    pub(crate) viewer: Viewer,
    pub(crate) pacer: Pacer,
    pub(crate) queue: Queue,
    pub(crate) dispatcher: Dispatcher,
    /// Takes nothing in any more; what is being worked on may end.
    pub(crate) closing: CancellationToken,
    /// Everything stops where it stands.
    pub(crate) halt: CancellationToken,
    faulted: watch::Sender<Option<Fault>>,
}

/// Why a bot cannot run until somebody does something about it.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    code: &'static str,
    /// What an operator should know; no secrets.
    detail: String,
}

impl Fault {
    /// Telegram does not accept the token.
    pub(crate) fn token(refusal: &Refusal) -> Self {
        let detail = format!("Telegram answered {} {}; set a new token", refusal.code, refusal.description);
        Self { code: "TOKEN_REVOKED", detail }
    }
}

impl HeldBot {
    /// The bot cannot run: it will be stopped. The first reason stands.
    pub(crate) fn fault(&self, fault: Fault) {
        self.faulted.send_if_modified(|faulted| {
            let first = faulted.is_none();
            if first {
                *faulted = Some(fault);
            }
            first
        });
    }

    /// Puts turns in line: through Redis, or directly when Redis is away.
    pub(crate) async fn enqueue(&self, works: Vec<Work>) {
        if works.is_empty() || self.queue.push(&works).await {
            return;
        }
        for work in works {
            self.dispatcher.submit(work);
        }
    }
}

type Held = Arc<Mutex<HashMap<BotId, Arc<HeldBot>>>>;

/// The bots of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fleet {
    deps: Arc<Deps>,
    held: Held,
}

struct Task {
    stop: CancellationToken,
    ended: bool,
}

/// Why a bot is not held any more.
enum Ended {
    /// Asked to; all went well.
    Stopped,
    /// Somebody else has it; come back after this long.
    Elsewhere(Duration),
    /// It went wrong after it had run for a while; come back later and later, and not before Telegram
    /// allows.
    Failed { not_before: Option<Duration>, ran: Duration },
}

impl Ended {
    fn failed() -> Self {
        Self::Failed { not_before: None, ran: Duration::ZERO }
    }
}

fn lock(held: &Held) -> MutexGuard<'_, HashMap<BotId, Arc<HeldBot>>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub(crate) fn new(deps: Arc<Deps>) -> Self {
        Self { deps, held: Held::default() }
    }

    /// A bot, if this process holds it.
    pub(crate) fn held(&self, bot: BotId) -> Option<Arc<HeldBot>> {
        lock(&self.held).get(&bot).cloned()
    }

    /// Holds every bot that should run and nobody else holds, until cancelled; then lets go of all.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut tasks: HashMap<BotId, Task> = HashMap::new();
        let mut pauses: HashMap<BotId, (u32, Instant)> = HashMap::new();
        let mut running: JoinSet<(BotId, Ended)> = JoinSet::new();
        let stranded = tokio::spawn(stranded::release(Arc::clone(&self.deps), cancel.clone()));
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                // Panics are caught inside, so there is always an end to be told.
                Some(Ok(ended)) = running.join_next() => self.ended(ended, &mut tasks, &mut pauses),
                _ = look.tick() => {
                    match running_bots(&self.deps.read).await {
                        Ok(wanted) => self.reconcile(&wanted, &mut tasks, &pauses, &mut running),
                        Err(error) => tracing::warn!(error = %error, "the list of bots cannot be read"),
                    }
                    metrics::gauge!("botledger_bots_held").set(lock(&self.held).len() as f64);
                }
            }
        }
        for task in tasks.values() {
            task.stop.cancel();
        }
        while running.join_next().await.is_some() {}
        // A panic was reported by the runtime.
        let _ = stranded.await;
    }

    fn reconcile(
        &self,
        wanted: &[BotId],
        tasks: &mut HashMap<BotId, Task>,
        pauses: &HashMap<BotId, (u32, Instant)>,
        running: &mut JoinSet<(BotId, Ended)>,
    ) {
        for (bot, task) in tasks.iter_mut() {
            if !task.ended && !wanted.contains(bot) {
                task.stop.cancel();
                task.ended = true;
            }
        }
        for &bot in wanted {
            let paused = pauses.get(&bot).is_some_and(|(_, until)| Instant::now() < *until);
            if paused || tasks.contains_key(&bot) || tasks.len() >= self.deps.config.max_bots {
                continue;
            }
            let stop = CancellationToken::new();
            tasks.insert(bot, Task { stop: stop.clone(), ended: false });
            let (deps, held) = (Arc::clone(&self.deps), Arc::clone(&self.held));
            running.spawn(async move {
                let holding = hold(deps, Arc::clone(&held), bot, stop);
                match AssertUnwindSafe(holding).catch_unwind().await {
                    Ok(ended) => (bot, ended),
                    Err(_) => {
                        // The panic was reported where it happened. The lease runs out by itself.
                        tracing::error!(bot.id = %bot, "the task of bot {bot} panicked");
                        lock(&held).remove(&bot);
                        (bot, Ended::failed())
                    }
                }
            });
        }
    }

    fn ended(
        &self,
        (bot, ended): (BotId, Ended),
        tasks: &mut HashMap<BotId, Task>,
        pauses: &mut HashMap<BotId, (u32, Instant)>,
    ) {
        tasks.remove(&bot);
        let failures = pauses.remove(&bot).map_or(0, |(failures, _)| failures);
        if let Some((failures, pause)) = next_try(&ended, failures, self.deps.config.retry_max) {
            pauses.insert(bot, (failures, Instant::now() + pause));
        }
    }
}

/// Failures in a row and the pause before a bot is tried again; nothing when it need not wait.
fn next_try(ended: &Ended, failures: u32, retry_max: Duration) -> Option<(u32, Duration)> {
    match ended {
        Ended::Stopped => None,
        Ended::Elsewhere(pause) => Some((0, *pause)),
        Ended::Failed { not_before, ran } => {
            // What ran for longer than the longest pause was well: this failure is the first.
            let failures = if *ran > retry_max { 1 } else { failures + 1 };
            let pause = Duration::from_millis(500) * 2u32.saturating_pow(failures.min(16));
            Some((failures, pause.min(retry_max).max(not_before.unwrap_or_default())))
        }
    }
}

/// Tells fast who holds a bot; what counts is the epoch in PostgreSQL.
#[derive(Clone)]
struct Hint {
    redis: Option<ConnectionManager>,
    key: String,
    instance: String,
    patience: Duration,
}

impl Hint {
    fn new(deps: &Deps, bot: BotId) -> Self {
        Self {
            redis: deps.redis.clone(),
            key: format!("bl:lease:{{{bot}}}"),
            instance: deps.app.core.instance.to_string(),
            patience: deps.config.redis_patience,
        }
    }

    async fn is_elsewhere(&self) -> bool {
        let Some(mut redis) = self.redis.clone() else { return false };
        let holder = tokio::time::timeout(self.patience, redis.get::<_, Option<String>>(&self.key)).await;
        matches!(holder, Ok(Ok(Some(holder))) if holder != self.instance)
    }

    async fn set(&self, ttl: Duration) {
        let Some(mut redis) = self.redis.clone() else { return };
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let _ =
            tokio::time::timeout(self.patience, redis.pset_ex::<_, _, ()>(&self.key, &self.instance, ttl))
                .await;
    }

    /// Takes one's own hint back; the next holder may have left another one meanwhile.
    async fn clear(&self) {
        static CLEAR: LazyLock<Script> = LazyLock::new(|| {
            Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end")
        });
        let Some(mut redis) = self.redis.clone() else { return };
        let mut clearing = CLEAR.key(&self.key);
        let clearing = clearing.arg(&self.instance).invoke_async::<()>(&mut redis);
        let _ = tokio::time::timeout(self.patience, clearing).await;
    }
}

async fn hold(deps: Arc<Deps>, held: Held, id: BotId, stop: CancellationToken) -> Ended {
    let ttl = deps.config.lease_ttl;
    let hint = Hint::new(&deps, id);
    if hint.is_elsewhere().await {
        return Ended::Elsewhere(ttl / 3);
    }
    let caller = deps.caller("fleet");
    let asked_at = Instant::now();
    let fence = match deps.app.bots.acquire_lease(&caller, id, ttl).await {
        Ok(Lease::Granted(fence)) => fence,
        Ok(Lease::Taken { time_left, .. }) => return Ended::Elsewhere(time_left.min(ttl)),
        Err(error) => {
            tracing::warn!(bot.id = %id, error = %error, "the lease of bot {id} could not be asked for");
            return Ended::failed();
        }
    };
    hint.set(ttl).await;
    tracing::info!(bot.id = %id, epoch = fence.epoch, "holding bot {id}");
    let ended = serve(&deps, &held, id, fence, asked_at + ttl, &hint, stop).await;
    lock(&held).remove(&id);
    if !matches!(ended, Ended::Elsewhere(_)) {
        if let Err(error) = deps.app.bots.release_lease(&caller, id, fence).await {
            tracing::warn!(bot.id = %id, error = %error, "the lease of bot {id} could not be given back; it will run out");
        }
        hint.clear().await;
    }
    tracing::info!(bot.id = %id, epoch = fence.epoch, "let go of bot {id}");
    ended
}

async fn serve(
    deps: &Arc<Deps>,
    held: &Held,
    id: BotId,
    fence: Fence,
    valid_until: Instant,
    hint: &Hint,
    stop: CancellationToken,
) -> Ended {
    let caller = deps.caller("fleet");
    let (state, token) = match (deps.app.bots.get(&caller, id).await, deps.app.bots.token(id).await) {
        (Ok(state), Ok(token)) => (state, token),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(bot.id = %id, error = %error, "bot {id} cannot be opened");
            return Ended::failed();
        }
    };
    let bot = Arc::new(HeldBot {
        deps: Arc::clone(deps),
        id,
        token,
        fence,
        viewer: Viewer {
            telegram_id: state.telegram_id.unwrap_or_default(),
            username: state.username.as_ref().map_or_else(String::new, |name| name.as_str().to_owned()),
        },
        pacer: Pacer::default(),
        queue: deps.queue(id),
        dispatcher: Dispatcher::default(),
        closing: CancellationToken::new(),
        halt: CancellationToken::new(),
        faulted: watch::channel(None).0,
    });
    let mut faulted = bot.faulted.subscribe();
    let workers = TaskTracker::new();
    let mut parts = JoinSet::new();
    let changed = CancellationToken::new();
    let mut keeper =
        tokio::spawn(keep(Arc::clone(&bot), state.clone(), hint.clone(), valid_until, changed.clone()));

    let began = tokio::select! {
        began = begin(&bot, &state) => began,
        () = stop.cancelled() => Ok(()),
    };
    let begun_at = Instant::now();
    if began.is_ok() {
        lock(held).insert(id, Arc::clone(&bot));
        parts.spawn(run_lane(Arc::clone(&bot), Lane::High, Arc::clone(&deps.high), workers.clone()));
        parts.spawn(run_lane(Arc::clone(&bot), Lane::Normal, Arc::clone(&deps.normal), workers.clone()));
        parts.spawn(drain_queue(Arc::clone(&bot), state.mode));
        parts.spawn(sweep(Arc::clone(&bot)));
        if state.mode == UpdateMode::Polling {
            parts.spawn(intake::poll(Arc::clone(&bot)));
        }
    }
    let ended = match began {
        Err(error) => {
            let not_before = match &error {
                CallError::Refused(refusal) if refusal.class == ErrorClass::Credential => {
                    bot.fault(Fault::token(refusal));
                    None
                }
                CallError::Refused(refusal) => refusal.retry_after,
                _ => None,
            };
            if bot.faulted.borrow().is_none() {
                tracing::warn!(bot.id = %id, error = %error, "bot {id} could not be started");
            }
            Ended::Failed { not_before, ran: Duration::ZERO }
        }
        Ok(()) => tokio::select! {
            () = stop.cancelled() => Ended::Stopped,
            () = changed.cancelled() => Ended::Stopped,
            _ = faulted.wait_for(Option::is_some) => Ended::failed(),
            // None of them ends by itself; one that panicked leaves a bot that is deaf or mute.
            Some(part) = parts.join_next() => {
                tracing::error!(bot.id = %id, part = ?part, "a part of bot {id} ended");
                Ended::Failed { not_before: None, ran: begun_at.elapsed() }
            }
            // It ends only with the lease.
            _ = &mut keeper => Ended::Elsewhere(Duration::ZERO),
        },
    };
    bot.closing.cancel();
    workers.close();
    if !matches!(ended, Ended::Elsewhere(_)) {
        let _ = tokio::time::timeout(deps.config.drain, workers.wait()).await;
    }
    bot.halt.cancel();
    // What is on its way to Telegram is waited for and recorded: the next holder would send it again.
    let _ = tokio::time::timeout(deps.config.call_timeout + RECORDING, workers.wait()).await;
    keeper.abort();
    while parts.join_next().await.is_some() {}
    let fault = bot.faulted.borrow().clone();
    if let Some(Fault { code, detail }) = fault {
        tracing::error!(bot.id = %id, code, "bot {id} stops: {detail}");
        if let Err(error) = deps.app.bots.fault(&caller, id, code, &detail).await {
            tracing::warn!(bot.id = %id, error = %error, "the fault of bot {id} could not be recorded");
        }
    }
    ended
}

/// Tells Telegram how updates shall come and which commands there are, and takes up open turns.
async fn begin(bot: &Arc<HeldBot>, state: &Bot) -> Result<(), CallError> {
    let (telegram, token) = (&bot.deps.telegram, &bot.token);
    match state.mode {
        UpdateMode::Polling => {
            telegram.call::<bool>(token, "deleteWebhook", &json!({"drop_pending_updates": false})).await?;
        }
        UpdateMode::Webhook => {
            let secret = bot.deps.app.bots.webhook_secret(bot.id).await.map_err(|_| CallError::NotSent)?;
            let Some(base) = &bot.deps.config.webhook_base_url else {
                bot.fault(Fault {
                    code: "WEBHOOK_BASE_URL_MISSING",
                    detail: "set telegram.webhook_base_url or switch the bot to polling".to_owned(),
                });
                return Err(CallError::NotSent);
            };
            let parameters = json!({
                "url": format!("{base}/telegram/{}", bot.id),
                "secret_token": secret.as_str(),
                "allowed_updates": intake::ALLOWED_UPDATES,
                "max_connections": 40,
            });
            telegram.call::<bool>(token, "setWebhook", &parameters).await?;
        }
    }
    for language in [Language::En, Language::Ru] {
        // A menu is a comfort; the bot works without.
        if let Err(error) = telegram.call::<Value>(token, "setMyCommands", &menu(language)).await {
            if error.class() == Some(ErrorClass::Credential) {
                return Err(error);
            }
            tracing::warn!(bot.id = %bot.id, error = %error, "the commands of bot {} could not be shown", bot.id);
        }
    }
    bot.queue.clear().await;
    // Turns of the holder before: they stand in line before anything new is taken in.
    let head = bot.deps.app.core.journal.head().await.unwrap_or_default();
    let caught_up = wait_for(&bot.deps.read, "turns", head, Duration::from_secs(10)).await;
    if !matches!(caught_up, Ok(true)) {
        tracing::warn!(bot.id = %bot.id, "the turns read model is behind; open turns will be found a little later");
    }
    let (mut after, mut found) = (Position(0), 0);
    while let Some(behind) = take_up(bot, after, &mut found).await {
        after = behind;
    }
    if found > 0 {
        tracing::info!(bot.id = %bot.id, turns = found, "took up {found} open turns of bot {}", bot.id);
    }
    Ok(())
}

/// Puts open turns after a position that nobody here works on into line and counts them; where to
/// go on, when there may be more.
async fn take_up(bot: &Arc<HeldBot>, after: Position, found: &mut usize) -> Option<Position> {
    match open_turns(&bot.deps.read, bot.id, after, SWEPT).await {
        Ok(turns) => {
            let full = i64::try_from(turns.len()).is_ok_and(|turns| turns == SWEPT);
            let behind = turns.last().filter(|_| full).map(|open| open.position);
            for open in turns {
                if bot.dispatcher.knows(open.turn) {
                    continue;
                }
                let work = Work {
                    turn: open.turn,
                    conversation: open.conversation,
                    lane: open.lane,
                    stops: open.lane == Lane::High && asks_to_stop(bot, open.turn).await,
                    entry: None,
                };
                *found += usize::from(bot.dispatcher.submit(work));
            }
            behind
        }
        Err(error) => {
            tracing::warn!(bot.id = %bot.id, error = %error, "open turns cannot be read");
            None
        }
    }
}

/// Whether a turn found in the ledger is a `/stop`, which does not wait for what it is to end.
async fn asks_to_stop(bot: &HeldBot, turn: TurnId) -> bool {
    let loaded = bot.deps.app.turns.load(turn).await;
    let ask = loaded.ok().and_then(|loaded| loaded.state.message).map(|message| message.ask);
    matches!(ask, Some(Ask::Command { name }) if name == Command::Stop.name())
}

/// Prolongs the lease until it is over, or nobody can say; then the bot is halted. Tells when the bot
/// should be run in another way, or not at all, and keeps it while what is under way ends.
async fn keep(
    bot: Arc<HeldBot>,
    as_begun: Bot,
    hint: Hint,
    mut valid_until: Instant,
    changed: CancellationToken,
) {
    let ttl = bot.deps.config.lease_ttl;
    let caller = bot.deps.caller("fleet");
    loop {
        tokio::time::sleep((ttl / 4).min(Duration::from_secs(2))).await;
        let asked_at = Instant::now();
        let renewing = bot.deps.app.bots.renew_lease(bot.id, bot.fence, ttl);
        // Another process may take the bot at that moment, whether the database answers us or not.
        let Ok(renewed) = tokio::time::timeout_at(valid_until, renewing).await else {
            tracing::warn!(bot.id = %bot.id, epoch = bot.fence.epoch, "the lease of bot {} has run out unanswered", bot.id);
            bot.halt.cancel();
            return;
        };
        match renewed {
            Ok(true) => {
                valid_until = asked_at + ttl;
                hint.set(ttl).await;
            }
            Ok(false) => {
                tracing::warn!(bot.id = %bot.id, epoch = bot.fence.epoch, "bot {} is run by somebody else now", bot.id);
                bot.halt.cancel();
                return;
            }
            Err(error) => {
                tracing::warn!(bot.id = %bot.id, error = %error, "the lease of bot {} could not be prolonged", bot.id);
                if Instant::now() >= valid_until {
                    bot.halt.cancel();
                    return;
                }
                continue;
            }
        }
        if let Ok(now) = bot.deps.app.bots.get(&caller, bot.id).await
            && (now.status != BotStatus::Running
                || now.mode != as_begun.mode
                || now.token_fingerprint != as_begun.token_fingerprint)
        {
            changed.cancel();
        }
    }
}

/// Frees the conversation however the work ends.
struct Finish {
    bot: Arc<HeldBot>,
    started: Option<Started>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(started) = &self.started {
            self.bot.dispatcher.finish(&started.work);
        }
    }
}

async fn run_lane(bot: Arc<HeldBot>, lane: Lane, permits: Arc<Semaphore>, workers: TaskTracker) {
    loop {
        let started = tokio::select! {
            () = bot.closing.cancelled() => return,
            started = bot.dispatcher.next(lane) => started,
        };
        let mut finish = Finish { bot: Arc::clone(&bot), started: Some(started.clone()) };
        let permit = tokio::select! {
            () = bot.closing.cancelled() => return,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        workers.spawn(async move {
            let _permit = permit;
            match work_off(&finish.bot, &started).await {
                End::Parked { pause, sent } => {
                    finish.started = None;
                    finish.bot.dispatcher.park(Started { sent, ..started }, Instant::now() + pause);
                }
                End::Done if !finish.bot.halt.is_cancelled() => finish.bot.queue.remove(&started.work).await,
                End::Done => {}
            }
        });
    }
}

async fn drain_queue(bot: Arc<HeldBot>, mode: UpdateMode) {
    // Other processes push for a bot with a webhook; for a polling bot only this one does.
    let pause = match mode {
        UpdateMode::Webhook => Duration::from_millis(100),
        UpdateMode::Polling => Duration::from_secs(1),
    };
    let mut cursor = Cursor::default();
    while !bot.closing.is_cancelled() {
        match bot.queue.read(&mut cursor).await {
            Some(works) if !works.is_empty() => {
                for work in works {
                    if !bot.dispatcher.submit(work.clone()) {
                        // Here already, by the sweeper: the entry has done its part.
                        bot.queue.remove(&work).await;
                    }
                }
            }
            _ => {
                tokio::select! {
                    () = bot.closing.cancelled() => return,
                    () = bot.queue.wait(pause) => {}
                }
            }
        }
    }
}

/// Finds turns that are in the ledger and not in line: Redis lost them, or a process died with them.
async fn sweep(bot: Arc<HeldBot>) {
    let mut after = Position(0);
    loop {
        tokio::select! {
            () = bot.closing.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        let mut found = 0;
        after = take_up(&bot, after, &mut found).await.unwrap_or(Position(0));
        if found > 0 {
            metrics::counter!("botledger_queue_recovered_total").increment(found as u64);
        }
        if bot.dispatcher.waiting() > intake::MOST_WAITING {
            bot.queue.say_crowded(2 * SWEEP).await;
        }
        let id = bot.id.to_string();
        metrics::gauge!("botledger_turns_open", "bot" => id.clone()).set(bot.dispatcher.open() as f64);
        let now_ms = u64::try_from(bot.deps.app.core.clock.now().timestamp_millis()).unwrap_or(0);
        for lane in [Lane::High, Lane::Normal] {
            if let Some(fill) = bot.queue.fill(lane, now_ms).await {
                let lane: &'static str = lane.into();
                metrics::gauge!("botledger_queue_depth", "bot" => id.clone(), "lane" => lane)
                    .set(fill.depth as f64);
                metrics::gauge!("botledger_queue_age_seconds", "bot" => id.clone(), "lane" => lane)
                    .set(fill.age_ms as f64 / 1_000.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_in_a_row_and_begin_anew_after_a_good_run() {
        let max = Duration::from_secs(60);
        let failed = |ran| Ended::Failed { not_before: None, ran: Duration::from_secs(ran) };
        assert_eq!(next_try(&failed(0), 0, max), Some((1, Duration::from_secs(1))));
        assert_eq!(next_try(&failed(0), 3, max), Some((4, Duration::from_secs(8))));
        assert_eq!(next_try(&failed(0), 30, max), Some((31, max)));
        assert_eq!(next_try(&failed(3_600), 30, max), Some((1, Duration::from_secs(1))));
        let told = Ended::Failed { not_before: Some(Duration::from_secs(90)), ran: Duration::ZERO };
        assert_eq!(next_try(&told, 0, max), Some((1, Duration::from_secs(90))));
        assert_eq!(next_try(&Ended::Stopped, 5, max), None);
    }
}
