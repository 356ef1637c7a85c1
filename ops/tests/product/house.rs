//! One installation a test: a database, keys and stand-ins of its own, and the binary that runs on them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use botledger_ops::cli::up::free_address;
use botledger_sim::{
    Limits, LogEntry, OllamaConfig, OllamaSim, Person, SentMessage, TelegramConfig, TelegramSim,
};
use sqlx::{ConnectOptions, PgPool};

const BINARY: &str = env!("CARGO_BIN_EXE_botledger");
/// Longest wait for a condition; a machine under load is slow, a stuck product is for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(20);
/// The role that the product runs under: it may do what `botledger_writer` may, and no more.
const ROLE: &str = "botledger_tested";
const ROLE_PASSWORD: &str = "only-for-tests";

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(LOOK).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited too long until {what}"));
}

/// How the stand-ins behave.
pub(crate) struct Partners {
    pub(crate) first_piece: Duration,
    pub(crate) between_pieces: Duration,
    pub(crate) private_burst: u32,
}

impl Default for Partners {
    fn default() -> Self {
        Self { first_piece: Duration::ZERO, between_pieces: Duration::ZERO, private_burst: 1_000 }
    }
}

pub(crate) struct House {
    pub(crate) pool: PgPool,
    pub(crate) telegram: TelegramSim,
    _ollama: OllamaSim,
    pub(crate) folder: PathBuf,
    pub(crate) listen: String,
    pub(crate) admin: String,
    environment: BTreeMap<String, String>,
}

impl House {
    pub(crate) async fn build(pool: PgPool, partners: Partners) -> Self {
        let limits = Limits { private_burst: partners.private_burst, ..Limits::default() };
        let telegram = TelegramConfig { limits: Some(limits), ..TelegramConfig::default() };
        let telegram = TelegramSim::start(telegram).await.unwrap();
        let ollama = OllamaConfig {
            first_piece: partners.first_piece,
            between_pieces: partners.between_pieces,
            ..OllamaConfig::default()
        };
        let ollama = OllamaSim::start(ollama).await.unwrap();
        let name = pool.connect_options().get_database().unwrap_or("test").to_owned();
        let folder = std::env::temp_dir().join(format!("botledger-{name}"));
        // What a failed run left for people to look at.
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        let (listen, admin) = (free_address().unwrap(), free_address().unwrap());
        let url = limited_role(&pool).await;
        let environment = [
            ("DATABASE__URL", url.as_str()),
            ("DATABASE__MAX_CONNECTIONS", "8"),
            ("REDIS__URL", &std::env::var("REDIS_URL").unwrap()),
            ("HTTP__LISTEN", &listen),
            ("HTTP__ADMIN_LISTEN", &admin),
            ("TELEGRAM__API_URL", &telegram.url()),
            ("OLLAMA__URL", &ollama.url()),
            ("KEYS__MASTER_KEY", &key()),
            ("KEYS__PSEUDONYM_KEY", &key()),
            ("AUTH__JWT_KEY", &key()),
            ("AUDIT__SIGNING_KEY", &key()),
            ("AUDIT__ORIGIN", "ledger.example"),
            ("BOTS__LEASE_TTL_S", "2"),
            ("LIMITS__USER__BURST", "1000"),
            ("LIMITS__CHAT__BURST", "1000"),
            ("LOG__LEVEL", "debug,hyper=info,sqlx=info,h2=info"),
        ]
        .map(|(name, value)| (format!("BOTLEDGER_{name}"), value.to_owned()))
        .into();
        Self { pool, telegram, _ollama: ollama, folder, listen, admin, environment }
    }

    fn command(&self) -> Command {
        let mut command = self.bare_command();
        command.envs(&self.environment);
        command
    }

    /// The binary on somebody else's machine: it knows nothing of this installation.
    pub(crate) fn bare_command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(&self.folder).env_clear();
        for name in ["PATH", "HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(&[], arguments).await
    }

    /// The same with further settings.
    pub(crate) async fn run_with(&self, extra: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).envs(extra.iter().copied()).stdin(Stdio::null());
        // The stand-ins live on this thread's runtime and have to go on meanwhile.
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What a command that must succeed prints.
    pub(crate) async fn told(&self, arguments: &[&str]) -> String {
        self.told_with(&[], arguments).await
    }

    /// The same with further settings.
    pub(crate) async fn told_with(&self, extra: &[(&str, &str)], arguments: &[&str]) -> String {
        let output = self.run_with(extra, arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the product without waiting for anything.
    pub(crate) fn start(&self, extra: &[(&str, &str)]) -> Running {
        self.spawn(&["serve"], extra, self.admin.clone())
    }

    /// Starts a command without waiting for its end.
    pub(crate) fn begin(&self, extra: &[(&str, &str)], arguments: &[&str]) -> Running {
        self.spawn(arguments, extra, self.admin.clone())
    }

    fn spawn(&self, arguments: &[&str], extra: &[(&str, &str)], admin: String) -> Running {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let child = self
            .command()
            .args(arguments)
            .env("BOTLEDGER_HTTP__ADMIN_LISTEN", &admin)
            .envs(extra.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Running { child, admin }
    }

    /// Starts a process of one role, with an admin address of its own, and waits until it is ready.
    pub(crate) async fn role(&self, command: &str, extra: &[(&str, &str)]) -> Running {
        let arguments: Vec<&str> = command.split(' ').collect();
        let running = self.spawn(&arguments, extra, free_address().unwrap());
        self.ready(running).await
    }

    /// Starts the product and waits until it is ready.
    pub(crate) async fn serve(&self, extra: &[(&str, &str)]) -> Running {
        self.ready(self.start(extra)).await
    }

    async fn ready(&self, mut running: Running) -> Running {
        let url = format!("http://{}/readyz", running.admin);
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Ok(answer) = reqwest::get(&url).await
                    && answer.status().is_success()
                {
                    return;
                }
                if let Some(status) = running.child.try_wait().unwrap() {
                    panic!("the product ended ({status}) before it was ready:\n{}", self.log());
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("not ready:\n{}", self.log()));
        running
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.folder.join("product.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Makes the first owner and a running bot; the product has to run.
    pub(crate) async fn open_with_bot(&self, username: &str) {
        self.told(&["link"]).await;
        until("the workspace is shown", async || {
            let shown: i64 = sqlx::query_scalar("SELECT count(*) FROM read.workspaces")
                .fetch_one(&self.pool)
                .await
                .unwrap();
            shown > 0
        })
        .await;
        self.add_bot(username).await;
    }

    pub(crate) async fn add_bot(&self, username: &str) {
        let bot = self.telegram.add_bot(username).unwrap();
        let file = self.folder.join("token");
        fs::write(&file, &bot.token).unwrap();
        self.told(&["bot", "register", "--token-file", file.to_str().unwrap()]).await;
        fs::remove_file(&file).unwrap();
        until("the bot asks for updates", async || self.telegram.delivery(username).unwrap().polling).await;
    }

    /// Waits until this many turns are known and none of them is open.
    pub(crate) async fn all_ended(&self, turns: i64) {
        until(&format!("all {turns} turns have ended"), async || {
            let (known, open): (i64, i64) =
                sqlx::query_as("SELECT count(*), count(*) FILTER (WHERE open) FROM read.turns")
                    .fetch_one(&self.pool)
                    .await
                    .unwrap();
            known >= turns && open == 0
        })
        .await;
    }

    /// How often each text was answered, by the stand-in's own books: the model repeats the question.
    pub(crate) fn answers(&self, bot: &str, said: &[(Person, String)]) -> HashMap<String, Vec<SentMessage>> {
        said.iter()
            .map(|(person, text)| {
                let mut messages = self.telegram.messages(bot, person.id);
                messages.retain(|message| message.text.contains(&format!("\"{text}\"")));
                (text.clone(), messages)
            })
            .collect()
    }

    /// Every read model equals a replay of the ledger.
    pub(crate) async fn assert_replay_agrees(&self) {
        let told = self.told(&["replay", "--all", "--verify", "--json"]).await;
        let reports: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert!(reports.as_array().unwrap().iter().all(|report| report["different"] == 0), "{reports:#}");
    }

    /// Positions are dense, and every stream's sequences are.
    pub(crate) async fn assert_ledger_is_gapless(&self) {
        let (events, last): (i64, i64) =
            sqlx::query_as("SELECT count(*), coalesce(max(position), 0) FROM events")
                .fetch_one(&self.pool)
                .await
                .unwrap();
        assert_eq!(events, last);
        let gaps: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT count(*) AS n, max(sequence) AS last FROM events
             GROUP BY aggregate_type, aggregate_id) AS streams WHERE n <> last",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(gaps, 0);
    }

    pub(crate) fn sends(&self) -> Vec<LogEntry> {
        self.telegram.log(0).into_iter().filter(|entry| entry.what == "sendMessage").collect()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the product's log is {}", self.log_path().display());
        } else {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// The product; dies with this value.
pub(crate) struct Running {
    pub(crate) child: Child,
    /// Where it tells how it is.
    pub(crate) admin: String,
}

impl Running {
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        waited.await.expect("the product should have ended")
    }

    pub(crate) async fn stop(mut self) {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{status}");
    }

    pub(crate) async fn kill(mut self) {
        self.signal("KILL");
        self.ended().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn key() -> String {
    botledger_local::secrets::random_secret()
}

/// The URL of the test's database for the product's own role.
async fn limited_role(pool: &PgPool) -> String {
    let sql = format!(
        "DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE_PASSWORD}' IN ROLE botledger_writer;
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    );
    sqlx::raw_sql(&sql).execute(pool).await.unwrap();
    let options = pool.connect_options().as_ref().clone().username(ROLE).password(ROLE_PASSWORD);
    options.to_url_lossy().to_string()
}
