//! `botledger sim …`: the stand-ins for Telegram and the model server, and playing at them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use botledger_local::progress::{Progress, say};
use botledger_local::up::Signals;
use botledger_sim::{
    FeedConfig, ModerationConfig, ModerationSim, OllamaConfig, OllamaSim, Person, SentMessage,
    TelegramConfig, TelegramSim, feed,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Settings;

/// An answer that has not changed for this long is taken as whole.
const SETTLED: Duration = Duration::from_millis(1_500);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Subcommand)]
pub enum Sim {
    /// Run the stand-ins until Ctrl-C
    Serve(Serve),
    /// Play files at a running stand-in
    Feed(Feed),
    /// Write to a bot as a made-up person and show what it answers
    Say(Say),
}

impl Sim {
    /// Runs the subcommand and gives its exit code.
    ///
    /// # Errors
    /// When it cannot be carried out.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        match self {
            Self::Serve(serve) => serve.run().await,
            Self::Feed(feed) => feed.run(settings).await,
            Self::Say(say) => say.run(settings).await,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// `host:port` of the Bot API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub telegram: String,
    /// `host:port` of the model server
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:11434")]
    pub ollama: String,
    /// `host:port` of a moderation endpoint as OpenAI's; none by default
    #[arg(long, value_name = "ADDRESS")]
    pub moderation: Option<String>,
    /// Also append the log of the Bot API to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Milliseconds until the first piece of an answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub first_piece_ms: u64,
    /// Milliseconds between the pieces of an answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub between_pieces_ms: u64,
    /// Keep no flood limits; for benchmarks
    #[arg(long)]
    pub no_limits: bool,
}

impl Serve {
    async fn run(self) -> Result<u8> {
        let mut signals = Signals::listen()?;
        let mut telegram =
            TelegramConfig { listen: self.telegram.clone(), log: self.log, ..TelegramConfig::default() };
        if self.no_limits {
            telegram.limits = None;
        }
        let telegram = TelegramSim::start(telegram)
            .await
            .with_context(|| format!("the stand-in for Telegram cannot run on {}", self.telegram))?;
        let ollama = OllamaConfig {
            listen: self.ollama.clone(),
            first_piece: Duration::from_millis(self.first_piece_ms),
            between_pieces: Duration::from_millis(self.between_pieces_ms),
            ..OllamaConfig::default()
        };
        let ollama = OllamaSim::start(ollama)
            .await
            .with_context(|| format!("the stand-in for Ollama cannot run on {}", self.ollama))?;
        say(format!("SIMULATED Telegram on {}, SIMULATED Ollama on {}", telegram.url(), ollama.url()));
        let moderation = async {
            let Some(listen) = self.moderation else { return std::future::pending().await };
            let sim = ModerationSim::start(ModerationConfig {
                listen: listen.clone(),
                ..ModerationConfig::default()
            })
            .await
            .with_context(|| format!("the stand-in for a moderation endpoint cannot run on {listen}"))?;
            say(format!("SIMULATED moderation endpoint on {}", sim.url()));
            sim.run().await;
            anyhow::Ok(())
        };
        tokio::select! {
            () = telegram.run() => {}
            () = ollama.run() => {}
            ended = moderation => ended?,
            _ = signals.next() => {}
        }
        Ok(0)
    }
}

/// Where a running stand-in for Telegram is.
#[derive(Clone, Debug, Args)]
pub struct Api {
    /// URL of the stand-in [default: telegram.api_url of the running product]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
}

impl Api {
    fn url(self, settings: Settings) -> Result<String> {
        match self.api {
            Some(url) => Ok(url.trim_end_matches('/').to_owned()),
            None => Ok(settings.load_running()?.config.telegram.api_url.trim_end_matches('/').to_owned()),
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Feed {
    /// JSONL: a line is an Update, {"update": Update} or {"text": "…"}
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    api: Api,
    /// Usernames of the bots that are written to [default: all]
    #[arg(long, value_name = "USERNAME")]
    bot: Vec<String>,
    /// How many people write the texts
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    people: u32,
    /// Lines a second; 0 for as fast as it goes
    #[arg(long, default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Print JSON: `{"texts", "updates"}`
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        _ => Err("a rate is a number of lines a second, 0 or more".to_owned()),
    }
}

impl Feed {
    async fn run(self, settings: Settings) -> Result<u8> {
        let config = FeedConfig {
            api: self.api.url(settings)?,
            files: self.files,
            bots: self.bot,
            people: self.people,
            rate: self.rate,
        };
        let fed = played(&config, if self.json { Progress::silent() } else { Progress::begin() }).await?;
        if self.json {
            say(json!({ "texts": fed.texts, "updates": fed.updates }).to_string());
        } else {
            say(format!("played {} texts and {} updates", fed.texts, fed.updates));
        }
        Ok(0)
    }
}

/// Plays and shows every tenth of the way.
///
/// # Errors
/// When a file cannot be read or the stand-in does not answer.
pub async fn played(config: &FeedConfig, progress: Progress) -> Result<botledger_sim::Fed> {
    let mut told = 0;
    let fed = feed(config, |played, total| {
        let tenth = played * 10 / total.max(1);
        if tenth > told {
            told = tenth;
            progress.step(format!("played {played} of {total}"));
        }
    });
    Ok(fed.await?)
}

#[derive(Clone, Debug, Args)]
pub struct Say {
    /// Username of the bot
    bot: String,
    /// What to write
    text: String,
    #[command(flatten)]
    api: Api,
    /// Which made-up person; every fourth speaks Russian
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..1_000_000_000))]
    person: i64,
    /// Longest wait for an answer, in seconds
    #[arg(long, default_value_t = 60)]
    patience_s: u64,
    /// Print JSON: the messages of the answer
    #[arg(long)]
    json: bool,
}

impl Say {
    async fn run(self, settings: Settings) -> Result<u8> {
        let base = self.api.url(settings)?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let person = Person::number(self.person);
        let bot = self.bot.trim_start_matches('@');
        let said = http
            .post(format!("{base}/_sim/say"))
            .json(&json!({ "bot": bot, "person": person, "text": self.text }))
            .send()
            .await
            .with_context(|| format!("no stand-in answers at {base}: is the product up with --demo?"))?;
        let answer: Value = said.json().await.with_context(|| format!("{base} is no stand-in of ours"))?;
        let Some(message_id) = answer["message_id"].as_i64() else {
            bail!("{}", answer["error"].as_str().unwrap_or("the stand-in refuses"));
        };
        let url = format!("{base}/_sim/messages?bot={bot}&chat={}", person.id);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(self.patience_s);
        let mut shown: Vec<(i64, String)> = Vec::new();
        let mut changed_at = tokio::time::Instant::now();
        let messages = loop {
            let messages: Vec<SentMessage> = http.get(&url).send().await?.json().await?;
            let messages: Vec<SentMessage> =
                messages.into_iter().filter(|message| message.id > message_id).collect();
            let now: Vec<(i64, String)> =
                messages.iter().map(|message| (message.id, message.text.clone())).collect();
            if now != shown {
                shown = now;
                changed_at = tokio::time::Instant::now();
            }
            if !shown.is_empty() && changed_at.elapsed() > SETTLED {
                break messages;
            }
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "@{bot} did not answer within {} s: a refusal is told once a minute (once an hour for a block), \
                     else see `ops/status` and the logs",
                    self.patience_s
                );
            }
            tokio::time::sleep(LOOK).await;
        };
        if self.json {
            say(serde_json::to_string_pretty(&messages)?);
            return Ok(0);
        }
        for message in messages {
            let who = if std::io::stdout().is_terminal() { format!("@{bot}: ") } else { String::new() };
            say(format!("{who}{}", message.text));
            for row in message.reply_markup["inline_keyboard"].as_array().into_iter().flatten() {
                for button in row.as_array().into_iter().flatten() {
                    say(format!("  [{}]", button["text"].as_str().unwrap_or_default()));
                }
            }
        }
        Ok(0)
    }
}
