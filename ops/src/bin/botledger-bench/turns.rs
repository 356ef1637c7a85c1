//! Turns from intake to delivery through the real binary with an instant model: what the platform
//! itself costs.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use botledger_ops::cli::up::free_address;
use botledger_ops::stages::{Stage, stages};
use botledger_sim::{FeedConfig, OllamaConfig, OllamaSim, TelegramConfig, TelegramSim, feed};
use sqlx::PgPool;

use crate::{Effort, Row, median, told};

/// Turns offered a second.
const RATES: [u32; 2] = [50, 200];
const BOT: &str = "bench_bot";
/// Received, admitted, answered, delivered: a turn is at least these.
const APPENDS: f64 = 4.0;

pub(crate) async fn rows(pool: &PgPool, url: &str, effort: Effort) -> Result<Vec<Row>> {
    let commit = durable_commit(pool, effort).await?;
    let mut rows = Vec::new();
    for rate in RATES {
        let seconds = effort.round.as_secs() * effort.rounds as u64;
        let turns = u64::from(rate) * seconds;
        let product = Product::start(url).await?;
        let file = std::env::temp_dir().join(format!("botledger-bench-{}.jsonl", std::process::id()));
        let lines: String =
            (0..turns).map(|n| format!("{{\"text\":\"what is question {n} about?\"}}\n")).collect();
        std::fs::write(&file, lines)?;
        let config = FeedConfig {
            api: product.telegram.url(),
            files: vec![file.clone()],
            bots: vec![BOT.to_owned()],
            people: rate * 5,
            rate: f64::from(rate),
        };
        let began = Instant::now();
        feed(&config, |_, _| {}).await?;
        let found = product.settled(turns).await?;
        let took = began.elapsed().as_secs_f64();
        std::fs::remove_file(&file).ok();
        let total = found.iter().find(|stage| stage.name == "total").context("no turn was finished")?;
        told(format!("turns: {turns} at {rate}/s took {took:.1} s"));
        for stage in &found {
            told(format!(
                "  {:<10} p50 {:.1} ms, p99 {:.1} ms",
                stage.name,
                stage.p50 * 1e3,
                stage.p99 * 1e3
            ));
        }
        rows.push(Row {
            what: format!("a turn, all stages and events, instant model, {rate} turns/s"),
            ours: format!("p50 {:.1} ms, p99 {:.1} ms", total.p50 * 1e3, total.p99 * 1e3),
            base: format!("{:.1} ms, {APPENDS} durable inserts one after the other", commit * APPENDS * 1e3),
            ratio: total.p50 / (commit * APPENDS),
            aim: if rate == 200 { "p50 ≤ 10 ms, p99 ≤ 40 ms" } else { "" },
        });
    }
    Ok(rows)
}

/// Median seconds of one single-row insert, durable, on an otherwise idle machine.
async fn durable_commit(pool: &PgPool, effort: Effort) -> Result<f64> {
    let mut connection = pool.acquire().await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS public.bench_commits (n bigint)")
        .execute(&mut *connection)
        .await?;
    let until = Instant::now() + effort.round;
    let mut took = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        sqlx::query("INSERT INTO public.bench_commits VALUES (1)").execute(&mut *connection).await?;
        took.push(began.elapsed().as_secs_f64());
    }
    Ok(median(took))
}

/// The real binary and its partners.
struct Product {
    telegram: TelegramSim,
    _ollama: OllamaSim,
    admin: String,
    child: Child,
}

impl Product {
    async fn start(url: &str) -> Result<Self> {
        let telegram =
            TelegramSim::start(TelegramConfig { limits: None, ..TelegramConfig::default() }).await?;
        let ollama = OllamaSim::start(OllamaConfig::default()).await?;
        let (listen, admin) = (free_address()?, free_address()?);
        // The same in every round, because the rounds share a database. They protect nothing.
        let key = |digit: &str| digit.repeat(64);
        let redis = std::env::var("REDIS_URL").context("REDIS_URL is not set")?;
        let environment: Vec<(String, String)> = [
            ("DATABASE__URL", url.to_owned()),
            ("REDIS__URL", redis),
            ("HTTP__LISTEN", listen),
            ("HTTP__ADMIN_LISTEN", admin.clone()),
            ("TELEGRAM__API_URL", telegram.url()),
            ("OLLAMA__URL", ollama.url()),
            ("KEYS__MASTER_KEY", key("1")),
            ("KEYS__PSEUDONYM_KEY", key("2")),
            ("AUTH__JWT_KEY", key("3")),
            ("LIMITS__USER__BURST", "1000".to_owned()),
            ("LIMITS__CHAT__BURST", "1000".to_owned()),
            ("LIMITS__BOT__BURST", "100000".to_owned()),
            ("QUOTA__TOKENS", "1000000000".to_owned()),
            ("LOG__LEVEL", "warn".to_owned()),
        ]
        .map(|(name, value)| (format!("BOTLEDGER_{name}"), value))
        .into();
        let command = |arguments: &[&str]| {
            let mut command = Command::new(beside_us());
            command.args(arguments).envs(environment.iter().cloned()).stdin(Stdio::null());
            command
        };
        let child = command(&["serve"]).spawn().context("the product does not start: is it built?")?;
        let product = Self { telegram, _ollama: ollama, admin, child };
        product.ready().await?;
        let bot = product.telegram.add_bot(BOT).map_err(anyhow::Error::msg)?;
        run(command(&["link"])).await?;
        let began = Instant::now();
        loop {
            let mut register = command(&["bot", "register"]);
            register.env("TELEGRAM_BOT_TOKEN", &bot.token);
            match run(register).await {
                Ok(()) => break,
                // The workspace has to be shown first; a moment later it is.
                Err(_) if began.elapsed() < Duration::from_secs(20) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error),
            }
        }
        while !product.telegram.delivery(BOT).is_some_and(|delivery| delivery.polling) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(product)
    }

    async fn ready(&self) -> Result<()> {
        let began = Instant::now();
        while !reqwest::get(format!("http://{}/readyz", self.admin)).await.is_ok_and(|r| r.status() == 200) {
            if began.elapsed() > Duration::from_secs(60) {
                bail!("the product was not ready within a minute");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The stages once this many turns have ended.
    async fn settled(&self, turns: u64) -> Result<Vec<Stage>> {
        let began = Instant::now();
        loop {
            let found = stages(&self.admin).await?;
            if found.iter().any(|stage| stage.name == "total" && stage.count >= turns) {
                return Ok(found);
            }
            if began.elapsed() > Duration::from_secs(300) {
                bail!("{turns} turns did not end within five minutes");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn beside_us() -> PathBuf {
    let us = std::env::current_exe().unwrap_or_default();
    us.with_file_name("botledger")
}

async fn run(mut command: Command) -> Result<()> {
    // The stand-ins live in this process and have to go on meanwhile.
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(())
}
