//! A demonstration that checks itself: files are played at the stand-in for Telegram, everybody is
//! answered, and the books are compared with the stand-in's own log and with a replay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use botledger_domain::bot::{BotRateLimits, BotSettings, RateLimit, UpdateMode};
use botledger_domain::turn::{ReplySource, Turn, TurnEvent};
use botledger_domain::{BotId, Position, TurnId};
use botledger_local::progress::{Progress, say};
use botledger_projections::{LogReader, ReadPool, all, wait_for};
use botledger_sim::{Delivery, FeedConfig, SentMessage, SimBot};
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::bot::{bots, register_with};
use crate::cli::replay::rebuilt;
use crate::cli::sim::played;
use crate::config::Config;
use crate::platform::{Platform, pool};
use crate::stages::{Stage, stages};

/// Bots of a simulated Telegram, and what they are told to be.
const BOTS: &[(&str, &str)] = &[
    ("atlas_demo_bot", "You are Atlas. You answer questions about places, travel and money, briefly."),
    ("mira_demo_bot", "You are Mira. You help with home, cooking and everyday errands, briefly."),
    ("vega_demo_bot", "You are Vega. You help with work, words and small talk, briefly."),
];
/// A made-up crowd may write faster than people do.
const CROWD: BotRateLimits = BotRateLimits::of_messages(
    RateLimit { burst: 40, per_minute: 240 },
    RateLimit { burst: 60, per_minute: 360 },
    RateLimit { burst: 5_000, per_minute: 60_000 },
);
/// Nothing moved for this long: something is stuck.
const STUCK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);
const PAGE: i64 = 5_000;

/// What is to be played.
#[derive(Clone, Debug, Default)]
pub struct Demonstration {
    /// JSONL files, as `botledger sim feed` takes them.
    pub files: Vec<PathBuf>,
    /// How many people write the texts.
    pub people: u32,
    /// Lines a second; 0 for as fast as it goes.
    pub rate: f64,
}

/// The remote control of the stand-in.
struct Control {
    base: String,
    http: reqwest::Client,
}

impl Control {
    fn new(config: &Config) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { base: config.telegram.api_url.trim_end_matches('/').to_owned(), http })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, what: &str) -> Result<T> {
        let answer = self.http.get(format!("{}/_sim/{what}", self.base)).send().await;
        let answer = answer.context("the stand-in for Telegram gives no answer")?;
        answer.json().await.with_context(|| format!("the stand-in does not understand {what}"))
    }

    async fn make_bot(&self, username: &str) -> Result<SimBot> {
        let request =
            self.http.post(format!("{}/_sim/bots", self.base)).json(&json!({ "username": username }));
        let answer = request.send().await.context("the stand-in for Telegram gives no answer")?;
        answer.json().await.context("the stand-in makes no bot")
    }

    /// Waits until every bot asks for updates: before it has named the kinds it wants, Telegram throws
    /// some of them away.
    async fn wait_until_asked(&self, bots: &[SimBot]) -> Result<()> {
        let began = Instant::now();
        for bot in bots {
            loop {
                let delivery: Delivery = self.get(&format!("delivery?bot={}", bot.username)).await?;
                if delivery.polling || delivery.webhook.is_some() {
                    break;
                }
                if began.elapsed() > STUCK {
                    bail!("@{} does not ask for updates; see the log of botledger", bot.username);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Every message of every bot, by bot and id.
    async fn shown(&self, bots: &[SimBot]) -> Result<BTreeSet<(String, i64)>> {
        let mut shown = BTreeSet::new();
        for bot in bots {
            let messages: Vec<SentMessage> = self.get(&format!("messages?bot={}", bot.username)).await?;
            shown.extend(messages.into_iter().map(|message| (bot.username.clone(), message.id)));
        }
        Ok(shown)
    }
}

/// Makes the demonstration's bots and lets them run; those that are there stay as they are. Gives
/// their usernames.
///
/// # Errors
/// When the stand-in or the ledger cannot be used.
pub async fn make_bots(platform: &Platform, config: &Config) -> Result<Vec<String>> {
    let control = Control::new(config)?;
    let mut names = Vec::with_capacity(BOTS.len());
    for (username, prompt) in BOTS {
        let bot = control.make_bot(username).await?;
        let settings = BotSettings {
            system_prompt: Some((*prompt).to_owned()),
            rate_limits: Some(CROWD),
            ..BotSettings::default()
        };
        register_with(platform, Zeroizing::new(bot.token), UpdateMode::Polling, settings).await?;
        names.push(bot.username);
    }
    Ok(names)
}

/// How a turn was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decided {
    Admitted,
    Refused(&'static str),
    /// A command or a hint: no model, no gate.
    ByThePlatform,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Delivered,
    /// Refused again within the minute: the person was told already.
    RefusedSilently,
    Undeliverable,
    OutcomeUnknown,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RefusedSilently => "refused without another notice",
            Self::Undeliverable => "undeliverable",
            Self::OutcomeUnknown => "outcome unknown",
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Account {
    bot: Option<BotId>,
    decided: Option<Decided>,
    failed: bool,
    ended: Option<Ended>,
    message_ids: Vec<i64>,
}

/// The turns after a position, counted from the ledger itself.
#[derive(Debug, Default)]
struct Books {
    /// Kept, nothing to answer.
    recorded: u64,
    turns: HashMap<TurnId, Account>,
}

impl Books {
    async fn read(log: &LogReader, after: Position) -> Result<Self> {
        let mut books = Self::default();
        let mut at = after;
        loop {
            let events = log.after(at, PAGE).await.context("the ledger cannot be read")?;
            let Some(last) = events.last() else { return Ok(books) };
            at = last.position;
            for event in &events {
                if let Some(fact) = event.decode::<Turn>()? {
                    books.enter(TurnId::parse(&event.aggregate_id)?, fact);
                }
            }
        }
    }

    fn enter(&mut self, turn: TurnId, fact: TurnEvent) {
        if matches!(fact, TurnEvent::UpdateRecorded { .. } | TurnEvent::UpdateUnreadable { .. }) {
            self.recorded += 1;
            return;
        }
        let account = self.turns.entry(turn).or_default();
        match fact {
            TurnEvent::MessageReceived { message, .. } => account.bot = Some(message.bot),
            TurnEvent::TurnAdmitted { .. } => account.decided = Some(Decided::Admitted),
            TurnEvent::MessageRefused { reason, notify, .. } => {
                account.decided = Some(Decided::Refused((&reason).into()));
                if !notify {
                    account.ended = Some(Ended::RefusedSilently);
                }
            }
            TurnEvent::ReplyGenerated { source: ReplySource::Platform, .. } => {
                account.decided = Some(Decided::ByThePlatform);
            }
            TurnEvent::ReplyFailed { .. } => account.failed = true,
            TurnEvent::ReplyDelivered { message_ids, .. } => {
                account.ended = Some(Ended::Delivered);
                account.message_ids = message_ids;
            }
            TurnEvent::ReplyUndeliverable { .. } => account.ended = Some(Ended::Undeliverable),
            TurnEvent::ReplyOutcomeUnknown { .. } => account.ended = Some(Ended::OutcomeUnknown),
            TurnEvent::MessageScored { .. }
            | TurnEvent::ReplyGenerated { .. }
            | TurnEvent::ReplyStarted { .. }
            | TurnEvent::UpdateRecorded { .. }
            | TurnEvent::UpdateUnreadable { .. } => {}
        }
    }

    fn ended(&self) -> usize {
        self.turns.values().filter(|account| account.ended.is_some()).count()
    }

    fn stored(&self) -> u64 {
        self.recorded + self.turns.len() as u64
    }
}

/// Plays, waits until every turn has ended, prints the account, compares, and gives the exit code: 0
/// when everything agrees.
///
/// # Errors
/// When a file cannot be read, a partner does not answer, or turns are stuck.
pub async fn play(demonstration: &Demonstration, config: &Config, admin: &str) -> Result<u8> {
    let progress = Progress::begin();
    let read = pool(config)?;
    let log = LogReader::new(read.clone());
    let control = Control::new(config)?;
    let sim_bots: Vec<SimBot> = control.get("bots").await?;
    control.wait_until_asked(&sim_bots).await?;
    let shown_before = control.shown(&sim_bots).await?;
    let head = log.head().await?;

    let began = Instant::now();
    let feed = FeedConfig {
        api: control.base.clone(),
        files: demonstration.files.clone(),
        bots: Vec::new(),
        people: demonstration.people,
        rate: demonstration.rate,
    };
    let fed = played(&feed, progress).await?;
    let books = settled(&log, head, fed.texts + fed.updates, progress).await?;
    let seconds = began.elapsed().as_secs_f64();

    let shown: BTreeSet<_> = control.shown(&sim_bots).await?.difference(&shown_before).cloned().collect();
    let usernames: HashMap<BotId, String> =
        bots(&read).await?.into_iter().map(|row| (BotId(row.bot_id), row.username)).collect();
    let mut findings = Vec::new();
    for line in account(&books, fed.texts, fed.updates, seconds, &mut findings) {
        say(line);
    }
    say(witness(&books, &shown, &usernames, &mut findings));
    for stage in stages(admin).await? {
        say(latency(&stage));
    }
    verified(&read, &log, progress, &mut findings).await?;
    for finding in &findings {
        say(format!("MISMATCH: {finding}"));
    }
    if findings.is_empty() {
        say("everything agrees");
    }
    Ok(u8::from(!findings.is_empty()))
}

/// Waits until everything played is stored and every turn has ended.
async fn settled(log: &LogReader, head: Position, played: u64, progress: Progress) -> Result<Books> {
    let mut last = (0, 0);
    let mut moved_at = Instant::now();
    let mut told_at = Instant::now();
    loop {
        let books = Books::read(log, head).await?;
        let now = (books.stored(), books.ended());
        if books.stored() >= played && books.ended() == books.turns.len() {
            progress.step(format!(
                "all {played} updates are stored and all {} turns have ended",
                books.turns.len()
            ));
            return Ok(books);
        }
        if now != last {
            last = now;
            moved_at = Instant::now();
        }
        if told_at.elapsed() > Duration::from_secs(2) {
            told_at = Instant::now();
            progress.step(format!("stored {} of {played}, ended {} of {}", now.0, now.1, books.turns.len()));
        }
        if moved_at.elapsed() > STUCK {
            bail!(
                "nothing moved for {} s: {} of {played} updates stored, {} of {} turns ended; see the logs",
                STUCK.as_secs(),
                now.0,
                now.1,
                books.turns.len()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn account(books: &Books, texts: u64, updates: u64, seconds: f64, findings: &mut Vec<String>) -> Vec<String> {
    let accepted = books.turns.len();
    let mut admitted = 0;
    let mut platform = 0;
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ended: BTreeMap<Ended, usize> = BTreeMap::new();
    let (mut undecided, mut refused_and_delivered, mut failed) = (0, 0, 0);
    for turn in books.turns.values() {
        match &turn.decided {
            Some(Decided::Admitted) => admitted += 1,
            Some(Decided::Refused(kind)) => *refused.entry(kind).or_default() += 1,
            Some(Decided::ByThePlatform) => platform += 1,
            None => undecided += 1,
        }
        if let Some(end) = turn.ended {
            *ended.entry(end).or_default() += 1;
            refused_and_delivered +=
                usize::from(end == Ended::Delivered && matches!(turn.decided, Some(Decided::Refused(_))));
        }
        failed += usize::from(turn.failed);
    }
    if books.stored() != texts + updates {
        findings.push(format!("{} updates were played, {} are stored", texts + updates, books.stored()));
    }
    if undecided > 0 {
        findings.push(format!("{undecided} turns ended without a decision"));
    }
    // The stand-ins do nothing wrong here, so there is no excuse.
    for (what, turns) in [
        ("were told that the model failed", failed),
        ("ended undeliverable", ended.get(&Ended::Undeliverable).copied().unwrap_or(0)),
        ("ended with an unknown outcome", ended.get(&Ended::OutcomeUnknown).copied().unwrap_or(0)),
    ] {
        if turns > 0 {
            findings.push(format!("{turns} turns {what}"));
        }
    }
    let all_refused: usize = refused.values().sum();
    let decided = admitted + platform + all_refused;
    let delivered = ended.get(&Ended::Delivered).copied().unwrap_or(0) - refused_and_delivered;
    let lost: Vec<String> = [Ended::Undeliverable, Ended::OutcomeUnknown]
        .iter()
        .filter_map(|end| Some(format!("{} {}", end.name(), ended.get(end)?)))
        .collect();
    let not_taken: usize =
        [Ended::Undeliverable, Ended::OutcomeUnknown].iter().filter_map(|end| ended.get(end)).sum();
    if accepted != decided || decided != delivered + all_refused + not_taken {
        findings.push(format!(
            "accepted {accepted}, decided {decided}, delivered {delivered} + refused {all_refused} + not taken {not_taken}"
        ));
    }
    let kinds: Vec<String> = refused.iter().map(|(kind, turns)| format!("{kind} {turns}")).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let lost = if lost.is_empty() { String::new() } else { format!(" + {}", lost.join(" + ")) };
    let failed =
        if failed == 0 { String::new() } else { format!(", of them {failed} told that the model failed") };
    vec![
        format!(
            "played    {texts} texts and {updates} updates in {seconds:.1} s ({:.0} a second)",
            (texts + updates) as f64 / seconds
        ),
        format!("stored    {} = {accepted} to answer + {} kept", books.stored(), books.recorded),
        format!("accepted  {accepted}"),
        format!(
            "decided   {decided} = admitted {admitted} + answered by the platform {platform} + refused {all_refused}{kinds}"
        ),
        format!("ended     {decided} = delivered {delivered}{failed} + refused {all_refused}{lost}"),
    ]
}

/// Compares the messages that the ledger says were delivered with those that the stand-in shows.
fn witness(
    books: &Books,
    shown: &BTreeSet<(String, i64)>,
    usernames: &HashMap<BotId, String>,
    findings: &mut Vec<String>,
) -> String {
    let mut recorded = BTreeSet::new();
    let mut twice = 0;
    for turn in books.turns.values() {
        let username = turn.bot.and_then(|bot| usernames.get(&bot)).cloned().unwrap_or_default();
        for id in &turn.message_ids {
            twice += usize::from(!recorded.insert((username.clone(), *id)));
        }
    }
    let missing = recorded.difference(shown).count();
    let unknown = shown.difference(&recorded).count();
    if twice > 0 {
        findings.push(format!("{twice} messages stand for two turns"));
    }
    if missing > 0 {
        findings.push(format!("{missing} messages were recorded as delivered, but Telegram never had them"));
    }
    if unknown > 0 {
        findings.push(format!("{unknown} messages were sent that the ledger does not know"));
    }
    format!(
        "witness   {} messages by the stand-in's own count, {} by the ledger",
        shown.len(),
        recorded.len()
    )
}

fn latency(stage: &Stage) -> String {
    format!(
        "latency   {:<10} p50 {:>9}  p99 {:>9}  ({} measured)",
        stage.name,
        milliseconds(stage.p50),
        milliseconds(stage.p99),
        stage.count
    )
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1_000.0)
}

async fn verified(
    read: &ReadPool,
    log: &LogReader,
    progress: Progress,
    findings: &mut Vec<String>,
) -> Result<()> {
    let head = log.head().await?;
    let projections = all();
    for projection in &projections {
        if !wait_for(read, projection.name(), head, STUCK).await? {
            findings.push(format!("{} did not reach event {head}", projection.name()));
        }
    }
    for report in rebuilt(read, &projections, true, progress).await? {
        say(format!(
            "replay    {:<14} {:>7} rows at event {}: {}",
            report.name,
            report.rows,
            report.position,
            if report.different == 0 { "equal".to_owned() } else { format!("{} differ", report.different) }
        ));
        if report.different > 0 {
            findings.push(format!("{} rows of {} differ from a replay", report.different, report.name));
        }
    }
    Ok(())
}
