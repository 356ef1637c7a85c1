//! Many turns at once against one budget: in as many shares as a budget usually has, in a single one
//! (what a budget in one stream would be), and without any budget. A turn here is its decision and its
//! answer, so that nothing else dilutes the difference.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use botledger_commands::{
    App, AppConfig, BotIdentity, Caller, CommandError, Decision, DetectorServices, Fence, GateDefaults,
    IncomingKind, IncomingUpdate, KeyRing, Lease, NewBot, PersonFacts, ProbeError, RateDefaults, SystemClock,
    SystemIds, TelegramProbe,
};
use botledger_domain::account::{Holder, Period, PlanTerms};
use botledger_domain::bot::{BotRateLimits, BotSettings, RateLimit, UpdateMode};
use botledger_domain::price::PriceList;
use botledger_domain::rate_limit::RateRule;
use botledger_domain::turn::{Ask, ChatKind, Lane, ReplySource};
use botledger_domain::{BotId, Clock, InstanceId, ModelName, PlanName, TurnId, WorkspaceId};
use botledger_journal::JournalConfig;
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{Effort, Row, limits, median, told};

/// Turns under way at once.
const AT_ONCE: usize = 64;
/// Turns of a round, for each second it is meant to last.
const TURNS_A_SECOND: u64 = 250;
/// More than any of these turns takes.
const ENDLESS: u64 = 1_000_000_000_000;

/// How a budget is divided; none at all is what both are compared with.
#[derive(Clone, Copy)]
enum Budget {
    None,
    Shares(u16),
}

pub(crate) async fn rows(pool: &PgPool, effort: Effort) -> Result<Vec<Row>> {
    let app = open(pool)?;
    let turns = effort.round.as_secs() * TURNS_A_SECOND;
    let variants = [Budget::None, Budget::Shares(16), Budget::Shares(1)];
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    // The first turns of a process train its detectors, which belongs to no round.
    House::build(&app, Budget::None, 1).await?.play(AT_ONCE as u64).await?;
    let mut telegram_id = 2;
    for _ in 0..effort.rounds {
        for (variant, speeds) in variants.into_iter().zip(&mut speeds) {
            let house = House::build(&app, variant, telegram_id).await?;
            telegram_id += 1;
            speeds.push(house.play(turns).await?);
        }
    }
    let [none, striped, single] = speeds.map(median);
    told(format!("budget: none {none:.0}/s, 16 shares {striped:.0}/s, 1 share {single:.0}/s"));
    app.core.journal.close().await;
    let row = |what: &str, speed: f64, aim| Row {
        what: format!("a turn's decision and answer under one budget in {what}, {AT_ONCE} at once"),
        ours: format!("{speed:.0} turns/s"),
        base: format!("{none:.0} turns/s without a budget"),
        ratio: speed / none,
        aim,
    };
    Ok(vec![row("16 shares", striped, "≥ 0.7 ×"), row("1 share", single, "")])
}

struct Probe;

#[async_trait]
impl TelegramProbe for Probe {
    async fn get_me(&self, token: &str) -> Result<BotIdentity, ProbeError> {
        let (id, _) = token.split_once(':').ok_or(ProbeError::Malformed)?;
        let telegram_id = id.parse().map_err(|_| ProbeError::Malformed)?;
        Ok(BotIdentity { telegram_id, username: format!("bench_{id}_bot") })
    }
}

fn open(pool: &PgPool) -> Result<App> {
    let generous = RateLimit { burst: 1_000_000, per_minute: 1_000_000 };
    let rule = RateRule { requests: Some(generous), tokens: None, parallel: None };
    let config = AppConfig {
        journal: JournalConfig::default(),
        // They protect nothing.
        keys: KeyRing { master: BTreeMap::from([(1, [1; 32].into())]), pseudonym: [2; 32].into() },
        gate: GateDefaults {
            provider: "bench".to_owned(),
            model: model()?,
            prices: PriceList::default(),
            rate_limits: BotRateLimits::of_messages(generous, generous, generous),
            context_exchanges: 20,
            notice_pause: Duration::from_secs(60),
            block_notice_pause: Duration::from_secs(60),
        },
        detectors: DetectorServices::default(),
        rates: RateDefaults { workspace: rule, ..RateDefaults::default() },
        redis_patience: Duration::from_secs(5),
        instance: InstanceId(Uuid::now_v7()),
    };
    let redis = Some(limits::redis()?);
    Ok(App::open(config, pool.clone(), redis, Arc::new(Probe), Arc::new(SystemClock), Arc::new(SystemIds)))
}

fn model() -> Result<ModelName> {
    ModelName::parse("bench").context("it is a name")
}

fn system() -> Caller {
    Caller::system("bench", Uuid::now_v7())
}

/// A workspace with a running bot.
struct House {
    app: App,
    bot: BotId,
    fence: Fence,
}

impl House {
    async fn build(app: &App, budget: Budget, telegram_id: i64) -> Result<Self> {
        let (workspace, plan) = (WorkspaceId(Uuid::now_v7()), PlanName::parse("free")?);
        let terms = PlanTerms::tokens(ENDLESS, Period::Day);
        app.workspaces.create(&system(), workspace, "Bench".to_owned(), plan, terms.clone()).await?;
        let token = Zeroizing::new(format!("{telegram_id}:bench"));
        let (mode, settings) = (UpdateMode::Polling, BotSettings::default());
        let (bot, _) = app.bots.register(&system(), NewBot { workspace, token, mode, settings }).await?;
        app.bots.start(&system(), bot).await?;
        let lease = app.bots.acquire_lease(&system(), bot, Duration::from_secs(600)).await?;
        let Lease::Granted(fence) = lease else { bail!("somebody else runs the bot") };
        if let Budget::Shares(shares) = budget {
            app.budgets.set(&system(), workspace, Holder::Workspace(workspace), terms, Some(shares)).await?;
        }
        Ok(Self { app: app.clone(), bot, fence })
    }

    /// Turns a second. Everybody writes once, and is known before the clock runs.
    async fn play(self, turns: u64) -> Result<f64> {
        let mut waiting = Vec::new();
        let numbers: Vec<u64> = (1..=turns).collect();
        for batch in numbers.chunks(100) {
            let updates = batch.iter().map(|number| update(*number)).collect();
            let received = self.app.turns.receive_batch(&system(), self.bot, self.fence, updates).await?;
            waiting.extend(received.into_iter().map(|received| received.turn));
        }
        let (waiting, next) = (Arc::new(waiting), Arc::new(AtomicUsize::new(0)));
        let house = Arc::new(self);
        let begun = Instant::now();
        let mut lanes = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (house, waiting, next) = (Arc::clone(&house), Arc::clone(&waiting), Arc::clone(&next));
            lanes.spawn(async move {
                while let Some(turn) = waiting.get(next.fetch_add(1, Ordering::Relaxed)) {
                    house.turn(*turn).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane??;
        }
        Ok(turns as f64 / begun.elapsed().as_secs_f64())
    }

    /// As a worker does: a conflict is tried again.
    async fn turn(&self, turn: TurnId) -> Result<()> {
        loop {
            match self.app.gate.decide(&system(), turn, self.fence).await {
                Ok(Decision::Admitted(_)) => break,
                Ok(other) => bail!("{other:?}"),
                Err(CommandError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let source = ReplySource::Model {
            provider: "bench".to_owned(),
            model: model()?,
            prompt_tokens: 100,
            completion_tokens: 100,
            estimated: false,
            finish: "stop".to_owned(),
            attempts: 1,
        };
        loop {
            match self.app.turns.answer(&system(), turn, self.fence, source.clone(), "fine", 1).await {
                Ok(_) => return Ok(()),
                Err(CommandError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn update(number: u64) -> IncomingUpdate {
    let id = i64::try_from(number).unwrap_or(i64::MAX);
    let text = format!("what is question {number} about?");
    IncomingUpdate {
        update_id: Some(id),
        date: SystemClock.now(),
        raw: format!("{{\"update_id\":{id}}}"),
        kind: IncomingKind::Message {
            user: PersonFacts {
                telegram_id: id,
                first_name: format!("Person {id}"),
                last_name: None,
                username: None,
                language_tag: None,
            },
            chat_id: id,
            thread_id: None,
            chat_kind: ChatKind::Private,
            ask: Ask::Text,
            lane: Lane::Normal,
            text: Some(text),
        },
    }
}
