//! `botledger local up`: the product on this machine, with whatever it lacks made or played.
//!
//! What is missing is made up for, and said: keys are generated under `.local/secrets`, a busy default
//! port gives way to a free one, and without a bot token or a model server their stand-ins run.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use botledger_domain::bot::UpdateMode;
use botledger_local::cli::Where;
use botledger_local::progress::Progress;
use botledger_local::supervise::{Launch, Output};
use botledger_local::{Application, Environment, Given, Outcome, Plan, Program, state};
use botledger_projections::wait_for;
use clap::Args;
use zeroize::Zeroizing;

use super::Settings;
use super::bot::register_and_start;
use super::link::first_owner_link;
use crate::config::{Config, Loaded, Origin, Secret, Sources, problems};
use crate::demo::{Demonstration, make_bots, play};
use crate::local_run;
use crate::platform::Platform;

/// A token of @BotFather in this variable makes `up` talk to the real Telegram.
pub const TOKEN_VARIABLE: &str = "TELEGRAM_BOT_TOKEN";

#[derive(Clone, Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub place: Where,
    /// Install what is missing without asking
    #[arg(long)]
    pub yes: bool,
    /// Use the stand-ins for Telegram and the model even where real ones could be reached
    #[arg(long)]
    pub demo: bool,
    /// Play this file at the stand-in for Telegram once everything runs; may be given several times
    #[arg(long, value_name = "FILE")]
    pub feed: Vec<PathBuf>,
    /// How many people write the fed texts
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub people: u32,
    /// Fed lines a second; 0 for as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub rate: f64,
    /// Stop everything after the feed; the exit code says whether the books agree
    #[arg(long)]
    pub exit: bool,
}

impl Up {
    /// Holds everything until a signal comes. Gives the exit code.
    ///
    /// # Errors
    /// When the configuration makes no sense, or something does not start.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let program = std::env::current_exe().context("this program does not know where it is")?;
        let mut product = Product::new(program, settings.arguments(), settings.sources(), self.demo)?;
        product.exit = self.exit;
        if (self.exit || !self.feed.is_empty()) && state::is_held(&self.place.layout()?) {
            bail!(
                "--feed and --exit want a run of their own, but one is up here: stop it first with ops/down"
            );
        }
        if !self.feed.is_empty() {
            if let Some(missing) = self.feed.iter().find(|file| !file.is_file()) {
                bail!("--feed {}: there is no such file", missing.display());
            }
            if !product.stand_ins().await.telegram {
                bail!("--feed plays to the stand-in for Telegram, but a real one is configured: add --demo");
            }
            product.demonstration =
                Some(Demonstration { files: self.feed, people: self.people, rate: self.rate.max(0.0) });
        }
        let wrong = problems(&product.loaded.config, false);
        if !wrong.is_empty() {
            bail!("the configuration makes no sense: {}", wrong.join("; "));
        }
        botledger_local::cli::up(self.place, self.yes, &product).await
    }
}

/// The product as `up` runs it: itself again, as `serve` and, where needed, as `sim serve`.
#[derive(Clone, Debug)]
pub struct Product {
    /// This program.
    pub program: PathBuf,
    /// `--config` and `--set` as they were given to us.
    pub arguments: Vec<OsString>,
    /// Where the configuration as it was given to us is from.
    sources: Sources,
    /// That configuration.
    loaded: Loaded,
    /// `--demo`
    demo: bool,
    /// `--feed`
    pub demonstration: Option<Demonstration>,
    /// `--exit`
    pub exit: bool,
    running: OnceLock<Running>,
}

/// What became known while planning.
#[derive(Clone, Debug)]
struct Running {
    /// The configuration that `serve` runs with.
    config: Config,
    /// `host:port` of `/metrics`.
    admin: String,
    stand_ins: StandIns,
}

/// Which partners are played by `ops/sim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandIns {
    pub telegram: bool,
    pub ollama: bool,
}

#[async_trait]
impl Application for Product {
    fn given(&self) -> Given {
        let database = &self.loaded.config.database;
        let set = |secret: &Secret| (!secret.is_empty()).then(|| secret.expose().to_owned());
        Given {
            database_url: set(&database.url),
            migrate_url: set(&database.migrate_url),
            redis_url: set(&self.loaded.config.redis.url),
        }
    }

    async fn plan(&self, environment: &Environment, progress: &Progress) -> Result<Plan> {
        let config = &self.loaded.config;
        let mut variables = self.services(environment);
        variables.extend(keys(config, environment)?);

        let listen = self.port("http.listen", &config.http.listen, progress)?;
        let admin = self.port("http.admin_listen", &config.http.admin_listen, progress)?;
        variables.push(("BOTLEDGER_HTTP__LISTEN".to_owned(), listen.clone()));
        variables.push(("BOTLEDGER_HTTP__ADMIN_LISTEN".to_owned(), admin.clone()));

        let public = match config.http.public_url.as_str() {
            "" => format!("http://{listen}"),
            url => url.trim_end_matches('/').to_owned(),
        };
        let mut plan = Plan {
            programs: Vec::new(),
            rows: vec![
                ("GraphQL".to_owned(), format!("{public}/graphql")),
                ("health".to_owned(), format!("http://{admin}/readyz  /metrics")),
            ],
        };

        let stand_ins = self.stand_ins().await;
        if stand_ins.telegram || stand_ins.ollama {
            let telegram = free_address()?;
            let ollama = free_address()?;
            plan.programs.push(self.run(
                "sim",
                environment,
                &["sim", "serve", "--telegram", &telegram, "--ollama", &ollama],
                Vec::new(),
                Some((telegram.clone(), "/_sim/health".to_owned())),
            ));
            if stand_ins.telegram {
                variables.push(("BOTLEDGER_TELEGRAM__API_URL".to_owned(), format!("http://{telegram}")));
                plan.rows.push((
                    "Telegram".to_owned(),
                    format!("SIMULATED on {telegram}; set {TOKEN_VARIABLE} for the real one"),
                ));
            }
            if stand_ins.ollama {
                variables.push(("BOTLEDGER_OLLAMA__URL".to_owned(), format!("http://{ollama}")));
                plan.rows.push((
                    "model".to_owned(),
                    format!("SIMULATED on {ollama}; nothing answers at {}", config.ollama.url),
                ));
            }
        }
        if !stand_ins.telegram {
            plan.rows.push(("Telegram".to_owned(), config.telegram.api_url.clone()));
        }
        if !stand_ins.ollama {
            plan.rows.push(("model".to_owned(), config.ollama.url.clone()));
        }
        local_run::remember(&environment.secrets, &variables)?;
        let running = Running { config: self.with(&variables)?, admin: admin.clone(), stand_ins };
        self.running.set(running).map_err(|_| anyhow::anyhow!("a run is planned once"))?;
        plan.programs.push(self.run(
            "botledger",
            environment,
            &["serve"],
            variables,
            Some((admin, "/readyz".to_owned())),
        ));
        Ok(plan)
    }

    async fn opened(&self, _environment: &Environment) -> Result<Vec<(String, String)>> {
        let running = self.running()?;
        let platform = Platform::open(&running.config)?;
        let rows = self.let_in(running, &platform).await;
        platform.close().await;
        rows
    }

    async fn work(&self, _environment: &Environment) -> Result<Outcome> {
        let running = self.running()?;
        let code = match &self.demonstration {
            Some(demonstration) => play(demonstration, &running.config, &running.admin).await?,
            None => 0,
        };
        Ok(if self.exit { Outcome::Exit(code) } else { Outcome::Hold })
    }
}

impl Product {
    /// The product as it is to run.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub fn new(program: PathBuf, arguments: Vec<OsString>, sources: Sources, demo: bool) -> Result<Self> {
        let loaded = sources.clone().read()?;
        Ok(Self {
            program,
            arguments,
            sources,
            loaded,
            demo,
            demonstration: None,
            exit: false,
            running: OnceLock::new(),
        })
    }

    fn running(&self) -> Result<&Running> {
        self.running.get().context("nothing was planned yet")
    }

    /// The configuration that a program gets who is started with these variables.
    fn with(&self, variables: &[(String, String)]) -> Result<Config> {
        let mut sources = self.sources.clone();
        sources.environment.retain(|(name, _)| variables.iter().all(|(ours, _)| ours != name));
        sources.environment.extend(variables.iter().cloned());
        Ok(sources.read()?.config)
    }

    /// The way in for the owner, and the bots there are to talk to.
    async fn let_in(&self, running: &Running, platform: &Platform) -> Result<Vec<(String, String)>> {
        let mut rows = Vec::new();
        match first_owner_link(platform, &running.config).await? {
            Some(link) => rows.push(("first owner".to_owned(), format!("{link} (good once)"))),
            None => rows.push(("login".to_owned(), "with the password you have set".to_owned())),
        }
        if running.stand_ins.telegram {
            directory_is_shown(platform).await?;
            let names = make_bots(platform, &running.config).await?;
            let first = names.first().map_or("", String::as_str);
            rows.push(("bots".to_owned(), names.join(", ")));
            rows.push(("talk to one".to_owned(), format!("ops/botledger sim say {first} \"Hello!\"")));
        } else if let Ok(token) = std::env::var(TOKEN_VARIABLE)
            && !token.is_empty()
        {
            directory_is_shown(platform).await?;
            let registered = register_and_start(platform, Zeroizing::new(token), UpdateMode::Polling).await;
            rows.push(match registered {
                Ok((_, username)) => ("bot".to_owned(), format!("https://t.me/{username}")),
                // The rest works; the box says what to do about this.
                Err(error) => {
                    ("bot".to_owned(), format!("NOT RUNNING: {error:#}; then: ops/botledger bot register"))
                }
            });
        }
        Ok(rows)
    }

    fn run(
        &self,
        name: &'static str,
        environment: &Environment,
        command: &[&str],
        variables: Vec<(String, String)>,
        ready: Option<(String, String)>,
    ) -> Program {
        let log = environment.layout.logs().join(format!("{name}.log"));
        let mut launch = Launch::new(name, &self.program, Output::Log(log.clone()))
            .args(self.arguments.iter().cloned())
            .args(command.iter().copied());
        launch.env = variables.into_iter().map(|(variable, value)| (variable, value.into())).collect();
        Program { launch, log, ready }
    }

    fn services(&self, environment: &Environment) -> Vec<(String, String)> {
        [
            ("DATABASE__URL", environment.database_url.as_str()),
            ("DATABASE__MIGRATE_URL", &environment.migrate_url),
            ("REDIS__URL", &environment.redis_url),
            // Read already; said twice they would contradict.
            ("DATABASE__URL_FILE", ""),
            ("DATABASE__MIGRATE_URL_FILE", ""),
            ("REDIS__URL_FILE", ""),
        ]
        .map(|(variable, value)| (format!("BOTLEDGER_{variable}"), value.to_owned()))
        .to_vec()
    }

    /// A busy default gives way to a free port; a port that someone asked for does not.
    fn port(&self, key: &str, address: &str, progress: &Progress) -> Result<String> {
        if TcpListener::bind(address).is_ok() {
            return Ok(address.to_owned());
        }
        if self.origin(key) != Origin::Default {
            bail!(
                "{address} ({key}) is in use or not an address of this machine: stop what listens there, or change it"
            );
        }
        let free = free_address()?;
        progress.step(format!("{address} is in use, {key} is {free} this time"));
        Ok(free)
    }

    fn origin(&self, key: &str) -> Origin {
        self.loaded
            .effective()
            .into_iter()
            .find(|setting| setting.key == key)
            .map_or(Origin::Default, |setting| setting.origin)
    }

    /// Telegram is real when someone gave a token or named a server; the model is real when it answers.
    pub async fn stand_ins(&self) -> StandIns {
        if self.demo {
            return StandIns { telegram: true, ollama: true };
        }
        let token = std::env::var(TOKEN_VARIABLE).is_ok_and(|token| !token.is_empty());
        let telegram = !token && self.origin("telegram.api_url") == Origin::Default;
        let named = self.origin("ollama.url") != Origin::Default;
        StandIns { telegram, ollama: !named && !answers(&self.loaded.config.ollama.url).await }
    }
}

/// Waits until the first workspace can be found: bots belong to one.
async fn directory_is_shown(platform: &Platform) -> Result<()> {
    let head = platform.app.core.journal.head().await?;
    if !wait_for(&platform.read, "directory", head, Duration::from_secs(30)).await? {
        bail!("the read models do not keep up: see the log of botledger");
    }
    Ok(())
}

async fn answers(url: &str) -> bool {
    let Ok(client) = reqwest::Client::builder().timeout(Duration::from_millis(1_500)).build() else {
        return false;
    };
    let url = format!("{}/api/version", url.trim_end_matches('/'));
    client.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
}

/// Keys that are not configured are generated once and kept in `.local/secrets`.
fn keys(config: &Config, environment: &Environment) -> Result<Vec<(String, String)>> {
    let wanted = [
        (&config.keys.master_key, "KEYS__MASTER_KEY", "master_key"),
        (&config.keys.pseudonym_key, "KEYS__PSEUDONYM_KEY", "pseudonym_key"),
        (&config.auth.jwt_key, "AUTH__JWT_KEY", "jwt_key"),
        (&config.audit.signing_key, "AUDIT__SIGNING_KEY", "signing_key"),
    ];
    let mut variables = Vec::new();
    for (configured, variable, name) in wanted {
        if configured.is_empty() {
            environment.secrets.get_or_create(name)?;
            let path = environment.secrets.path(name).display().to_string();
            variables.push((format!("BOTLEDGER_{variable}_FILE"), path));
        }
    }
    Ok(variables)
}

/// `host:port` on the loopback that nobody listens on at this moment.
///
/// # Errors
/// When the machine has none left.
pub fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.to_string())
}
