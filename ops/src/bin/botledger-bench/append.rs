//! Appends, everything on (metadata, leaf hash, idempotency key, durable before the answer), against
//! `pgbench` inserting single rows of the same size in transactions of their own.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use botledger_commands::{Ids, SystemIds};
use botledger_domain::bot::{Bot, BotCommand, BotSettings, BotUsername, UpdateMode};
use botledger_domain::{Actor, Clock, EventMetadata, KeyPurpose, Sealed, WorkspaceId};
use botledger_journal::{AppendSet, Journal, JournalConfig, Loaded};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{Effort, Row, median, told};

/// What an event of ours is about as large as.
const PAYLOAD: usize = 320;

pub(crate) async fn rows(pool: &PgPool, url: &str, effort: Effort) -> Result<Vec<Row>> {
    let pgbench = Pgbench::prepare(pool, url).await?;
    let mut rows = Vec::new();
    for (writers, events, aim) in
        [(1, 1, "≥ 0.5 ×"), (16, 1, ""), (64, 1, "≥ 2 ×"), (256, 1, "≥ 3 ×"), (64, 10, "≥ 5 ×")]
    {
        // pgbench has a connection a client; beyond 64 more only cost it.
        let clients = writers.min(64);
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            base.push(pgbench.run(clients, effort.round).await?);
            ours.push(rate(pool, writers, events, effort.round).await?);
        }
        let (ours, base) = (median(ours), median(base));
        told(format!("append: {writers} writers, {events} events: {ours:.0}/s, pgbench {base:.0}/s"));
        rows.push(Row {
            what: format!("append, {}", load(writers, events)),
            ours: format!("{ours:.0} events/s"),
            base: format!("{base:.0} rows/s, pgbench with {clients}"),
            ratio: ours / base,
            aim,
        });
    }
    rows.push(plain_insert(pool, effort).await?);
    Ok(rows)
}

/// One writer against the same insert through sqlx, which is what an application without a journal
/// would do.
async fn plain_insert(pool: &PgPool, effort: Effort) -> Result<Row> {
    let payload = payload();
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let mut connection = pool.acquire().await?;
        let began = Instant::now();
        let mut inserted = 0;
        while began.elapsed() < effort.round {
            sqlx::query("INSERT INTO bench.raw (stream, sequence, payload) VALUES ($1, $2, $3::json)")
                .bind(SystemIds.next().to_string())
                .bind(1_i64)
                .bind(&payload)
                .execute(&mut *connection)
                .await?;
            inserted += 1;
        }
        base.push(f64::from(inserted) / began.elapsed().as_secs_f64());
        drop(connection);
        ours.push(rate(pool, 1, 1, effort.round).await?);
    }
    let (ours, base) = (median(ours), median(base));
    Ok(Row {
        what: "append, 1 event, 1 writer, against the insert through sqlx".to_owned(),
        ours: format!("{ours:.0} events/s"),
        base: format!("{base:.0} rows/s"),
        ratio: ours / base,
        aim: "≥ 0.8 ×",
    })
}

fn payload() -> String {
    format!("{{\"type\":\"bench\",\"filler\":\"{}\"}}", "x".repeat(PAYLOAD - 30))
}

/// `pgbench` with a script that inserts one row a transaction, prepared.
struct Pgbench {
    program: PathBuf,
    script: PathBuf,
    url: String,
}

impl Pgbench {
    async fn prepare(pool: &PgPool, url: &str) -> Result<Self> {
        let program = match std::env::var_os("PG_BIN") {
            Some(bin) => PathBuf::from(bin).join("pgbench"),
            None => PathBuf::from("pgbench"),
        };
        if !program.is_file() {
            bail!(
                "pgbench is not beside this PostgreSQL; Debian has it in postgresql-<major>, npm's has none"
            );
        }
        sqlx::raw_sql(
            "CREATE SCHEMA IF NOT EXISTS bench;
             DROP TABLE IF EXISTS bench.raw;
             CREATE TABLE bench.raw (stream text NOT NULL, sequence bigint NOT NULL, payload json NOT NULL,
                 PRIMARY KEY (stream, sequence));",
        )
        .execute(pool)
        .await?;
        let script = std::env::temp_dir().join(format!("botledger-bench-{}.sql", std::process::id()));
        let statement = format!(
            "INSERT INTO bench.raw (stream, sequence, payload)
             VALUES (gen_random_uuid()::text, 1, '{}'::json);\n",
            payload()
        );
        std::fs::write(&script, statement)?;
        Ok(Self { program, script, url: url.to_owned() })
    }

    /// Rows a second.
    async fn run(&self, clients: usize, time: Duration) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
            .arg(format!("--client={clients}"))
            .arg(format!("--time={}", time.as_secs().max(1)))
            .arg(format!("--file={}", self.script.display()))
            .arg(&self.url);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.context("pgbench tells no tps")
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        std::fs::remove_file(&self.script).ok();
    }
}

/// Events a second of our journal: each writer has a bot's stream of its own and waits for every
/// receipt.
pub(crate) async fn rate(pool: &PgPool, writers: usize, events: usize, time: Duration) -> Result<f64> {
    let journal = Journal::open(pool.clone(), JournalConfig::default());
    let mut streams = Vec::with_capacity(writers);
    for _ in 0..writers {
        streams.push(register(&journal).await?);
    }
    let appended = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|bot| tokio::spawn(write(journal.clone(), bot, events, began + time, Arc::clone(&appended))))
        .collect();
    for task in tasks {
        task.await??;
    }
    let rate = appended.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    journal.close().await;
    Ok(rate)
}

fn metadata() -> EventMetadata {
    let id = SystemIds.next();
    EventMetadata::new(&Actor::System("bench"), id, Uuid::nil(), "bench").with_idempotency_key(id.to_string())
}

async fn register(journal: &Journal) -> Result<Loaded<Bot>> {
    let id = SystemIds.next();
    let mut bot = Loaded::<Bot>::empty(id.to_string());
    let mut set = AppendSet::new(metadata());
    set.decide(&mut bot, registration(id)?, botledger_commands::SystemClock.now())?;
    journal.append(set).await?;
    Ok(bot)
}

fn registration(id: Uuid) -> Result<BotCommand> {
    Ok(BotCommand::Register {
        workspace: WorkspaceId(id),
        username: BotUsername::parse("bench_bot")?,
        telegram_id: 1,
        token: Sealed {
            owner: id,
            purpose: KeyPurpose::Credentials,
            key_version: 1,
            nonce: String::new(),
            ciphertext: String::new(),
        },
        token_fingerprint: String::new(),
        mode: UpdateMode::Polling,
        settings: BotSettings::default(),
    })
}

async fn write(
    journal: Journal,
    mut bot: Loaded<Bot>,
    events: usize,
    until: Instant,
    appended: Arc<AtomicU64>,
) -> Result<()> {
    let mut turn: u32 = 0;
    while Instant::now() < until {
        let mut set = AppendSet::new(metadata());
        for _ in 0..events {
            turn += 1;
            change(&mut set, &mut bot, turn)?;
        }
        journal.append(set).await?;
        appended.fetch_add(events as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// A few seconds of appends, so that there is something to replay.
pub(crate) async fn fill(pool: &PgPool) -> Result<()> {
    rate(pool, 256, 10, Duration::from_secs(2)).await.map(drop)
}

/// In words.
pub(crate) fn load(writers: usize, events: usize) -> String {
    format!("{events} event{} each, {writers} writers", if events == 1 { "" } else { "s" })
}

/// Appends one event, which begins this stream.
pub(crate) async fn begin(journal: &Journal, stream: Uuid) -> Result<()> {
    let mut bot = Loaded::<Bot>::empty(stream.to_string());
    let mut set = AppendSet::new(metadata());
    set.decide(&mut bot, registration(stream)?, botledger_commands::SystemClock.now())?;
    journal.append(set).await?;
    Ok(())
}

/// The id of a new stream with so many events.
pub(crate) async fn stream(pool: &PgPool, events: usize) -> Result<String> {
    let journal = Journal::open(pool.clone(), JournalConfig::default());
    let mut bot = register(&journal).await?;
    let mut set = AppendSet::new(metadata());
    for turn in 1..events {
        change(&mut set, &mut bot, turn as u32)?;
    }
    let id = bot.id.clone();
    journal.append(set).await?;
    journal.close().await;
    Ok(id)
}

/// Queues an event that differs from the one before.
fn change(set: &mut AppendSet, bot: &mut Loaded<Bot>, turn: u32) -> Result<()> {
    let settings = BotSettings { max_answer_tokens: 16 + turn % 1_000, ..BotSettings::default() };
    let command = BotCommand::Configure { settings, mode: UpdateMode::Polling };
    set.decide(bot, command, botledger_commands::SystemClock.now())?;
    Ok(())
}

/// One append of a few events by itself.
pub(crate) async fn one(pool: &PgPool) -> Result<()> {
    let journal = Journal::open(pool.clone(), JournalConfig::default());
    register(&journal).await?;
    journal.close().await;
    Ok(())
}
