//! While the product runs: heads of the ledger are signed, and shown to witnesses.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use botledger_commands::SystemClock;
use botledger_domain::Clock;
use botledger_journal::audit::{
    Algorithm, Checkpoint, ConsistencyProof, LogKeys, LogTree, Signed, SignedNote, Signer, StoredCheckpoint,
    VerifierKey,
};
use botledger_local::secrets::write_whole;
use botledger_projections::ReadPool;
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SIZE_TYPE, WitnessAddress};

/// Heads are no secret.
pub const READABLE: u32 = 0o666;
/// How long a witness may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a witness may take for the last head, when the process ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// Bytes of a witness's answer that are read.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Longest pause after a failure.
const SELDOM: Duration = Duration::from_secs(60);
/// A failure that stays the same is told again after this long.
const AGAIN: Duration = Duration::from_secs(600);

/// What the log signs with, and by what its heads are known.
///
/// # Errors
/// When `audit.signing_key`, `audit.origin` or `audit.previous_keys` is missing or makes no sense.
pub fn log_keys(config: &Config) -> Result<LogKeys> {
    let seed = config
        .audit
        .signing_key
        .key()
        .map_err(|reason| anyhow!("audit.signing_key {reason}: `openssl rand -hex 32` makes one"))?;
    let signer = Signer::new(&config.audit.origin, &seed, Algorithm::Ed25519)
        .context("audit.origin does not do for a name")?;
    let previous = config.audit.previous_keys().map_err(|reason| anyhow!("audit.previous_keys {reason}"))?;
    LogKeys::new(signer, previous).context("audit.previous_keys")
}

/// The newest signed head in a file outside the database: whoever owns the tables cannot take it back.
#[derive(Clone)]
pub struct KeptHead(Option<PathBuf>);

impl KeptHead {
    /// Where `audit.kept_head` says; nothing is kept when it says nothing.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self(config.audit.kept_head.clone())
    }

    /// The head that is kept. `None` when nothing is to be kept, or nothing has been.
    ///
    /// # Errors
    /// When it cannot be read or is not the log's.
    pub fn read(&self, keys: &LogKeys) -> Result<Option<Checkpoint>> {
        let Some(path) = &self.0 else { return Ok(None) };
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{shown} cannot be read")),
        };
        let read = || -> Result<Checkpoint> {
            let note: SignedNote = text.parse()?;
            note.verify(keys.known())?;
            Ok(note.text().parse()?)
        };
        read().map(Some).with_context(|| {
            format!("the head in {shown} is not this log's: move it away to begin with --begin")
        })
    }

    /// What the next head must begin with, at the start of a process.
    ///
    /// # Errors
    /// When a head should be kept and is not, though the log has signed some.
    pub async fn believed(&self, keys: &LogKeys, tree: &LogTree) -> Result<Option<Checkpoint>> {
        let kept = self.read(keys)?;
        if let (Some(path), None) = (&self.0, &kept)
            && tree.newest_of(keys).await?.is_some()
        {
            bail!(
                "there is no kept head in {}: bring it back from a backup that is not the database's, or believe the \
                 heads in the tables with `botledger audit checkpoint --begin`",
                path.display()
            );
        }
        Ok(kept)
    }

    /// Keeps a head in place of the one before it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, stored: &StoredCheckpoint) -> Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        if path.file_name().is_none() {
            bail!("audit.kept_head names no file");
        }
        write_whole(path, &stored.note.to_string(), READABLE)
    }
}

/// The tasks of a process.
pub struct Heads(Vec<JoinHandle<()>>);

impl Heads {
    /// Begins to sign, and to show what was signed. Without a key it only says so.
    ///
    /// # Errors
    /// When keys or addresses make no sense.
    pub fn start(config: &Config, pool: &ReadPool, stop: &CancellationToken) -> Result<Self> {
        if config.audit.signing_key.is_empty() {
            tracing::warn!("heads of the ledger are not signed: audit.signing_key is not set");
            return Ok(Self(Vec::new()));
        }
        let every = Duration::from_secs(config.audit.checkpoint_interval_s);
        let tree = LogTree::new(pool.clone());
        let (newest, shown) = watch::channel(None);
        let keys = Arc::new(log_keys(config)?);
        let kept = KeptHead::of(config);
        if kept.0.is_none() {
            tracing::warn!(
                "audit.kept_head is not set: after a restart only the database says which heads were signed"
            );
        }
        let signing = Signing { tree: tree.clone(), keys: keys.clone(), kept, every, newest };
        let mut tasks = vec![tokio::spawn(signing.run(stop.clone()))];
        let witnesses = config.audit.witnesses().map_err(|reason| anyhow!("audit.witnesses {reason}"))?;
        for WitnessAddress { key, url } in witnesses {
            let http = reqwest::Client::builder()
                .timeout(PATIENCE)
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .context("TLS cannot be set up")?;
            let url = format!("{}/add-checkpoint", url.trim_end_matches('/'));
            let asking = Asking { tree: tree.clone(), keys: keys.clone(), http, key, url, every };
            tasks.push(tokio::spawn(asking.run(shown.clone(), stop.clone())));
        }
        Ok(Self(tasks))
    }

    /// Waits for their ends; a last head is signed on the way, and shown to the witnesses.
    pub async fn join(self) {
        for task in self.0 {
            // It has nothing to answer.
            let _ = task.await;
        }
    }
}

type Newest = Option<Arc<StoredCheckpoint>>;

/// Signs a head as often as it may, while there is something new; of several processes any one does.
struct Signing {
    tree: LogTree,
    keys: Arc<LogKeys>,
    kept: KeptHead,
    every: Duration,
    newest: watch::Sender<Newest>,
}

impl Signing {
    /// The newest head, when it is another than what this process has in mind; it has it then, and the file.
    async fn sign(&self, seen: &mut Option<Checkpoint>) -> Result<Option<StoredCheckpoint>> {
        if seen.is_none() {
            *seen = self.kept.believed(&self.keys, &self.tree).await?;
        }
        let signed = self.tree.sign(&self.keys, seen.as_ref(), SystemClock.now()).await?;
        let (Signed::New(stored) | Signed::Unchanged(Some(stored))) = signed else { return Ok(None) };
        if seen.as_ref() != Some(&stored.checkpoint) {
            self.kept.write(&stored)?;
            *seen = Some(stored.checkpoint.clone());
        }
        Ok(Some(stored))
    }

    async fn run(self, stop: CancellationToken) {
        let mut seen: Option<Checkpoint> = None;
        let mut trouble = Trouble::default();
        let mut signed = Instant::now();
        loop {
            let pause = match self.sign(&mut seen).await {
                Ok(newest) => {
                    signed = Instant::now();
                    if trouble.over() {
                        tracing::info!("heads of the ledger are signed again");
                    }
                    if let Some(stored) = newest {
                        metrics::gauge!("botledger_checkpoint_size").set(stored.checkpoint.size as f64);
                        let shown = self.newest.borrow().as_ref().map(|shown| shown.checkpoint.size);
                        if shown != Some(stored.checkpoint.size) {
                            self.newest.send_replace(Some(Arc::new(stored)));
                        }
                    }
                    self.every
                }
                Err(error) => {
                    metrics::counter!("botledger_checkpoint_failures_total").increment(1);
                    let error = format!("{error:#}");
                    if trouble.is_news(&error) {
                        tracing::error!(%error, "no head of the ledger was signed");
                    }
                    trouble.pause(self.every)
                }
            };
            metrics::gauge!("botledger_checkpoint_age_seconds").set(signed.elapsed().as_secs_f64());
            // What was recorded on the way out gets a head too.
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Shows every new head to one witness and keeps what it says (C2SP tlog-witness).
struct Asking {
    tree: LogTree,
    keys: Arc<LogKeys>,
    http: reqwest::Client,
    key: VerifierKey,
    url: String,
    every: Duration,
}

impl Asking {
    async fn run(self, mut newest: watch::Receiver<Newest>, stop: CancellationToken) {
        let name = self.key.name().to_owned();
        let mut known = None;
        let mut trouble = Trouble::default();
        loop {
            let head = newest.borrow_and_update().clone();
            let pause = match head {
                Some(head) if known != Some(head.checkpoint.size) => match self.show(&head, &mut known).await
                {
                    Ok(()) => {
                        metrics::gauge!("botledger_witness_size", "witness" => name.clone())
                            .set(head.checkpoint.size as f64);
                        if trouble.over() {
                            tracing::info!(witness = name, "the witness {name} cosigns again");
                        }
                        Some(self.every)
                    }
                    Err(error) => {
                        metrics::counter!("botledger_witness_failures_total", "witness" => name.clone())
                            .increment(1);
                        let error = format!("{error:#}");
                        if trouble.is_news(&error) {
                            tracing::error!(witness = name, %error, "the witness {name} has not cosigned");
                        }
                        Some(trouble.pause(self.every))
                    }
                },
                _ => None,
            };
            tokio::select! {
                () = stop.cancelled() => return self.show_last(newest, known).await,
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                changed = newest.changed(), if pause.is_none() => if changed.is_err() { return },
            }
        }
    }

    /// Waits for the head that is signed last, and shows it once.
    async fn show_last(&self, mut newest: watch::Receiver<Newest>, mut known: Option<u64>) {
        while newest.changed().await.is_ok() {}
        let head = newest.borrow().clone();
        if let Some(head) = head.filter(|head| known != Some(head.checkpoint.size)) {
            let name = self.key.name();
            match tokio::time::timeout(FAREWELL, self.show(&head, &mut known)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(witness = name, error = %format!("{error:#}"), "the last head was not cosigned");
                }
                Err(_) => tracing::warn!(witness = name, "the last head was not cosigned in time"),
            }
        }
    }

    /// Shows a head. `known` is the size that the witness has cosigned, as far as that is known.
    async fn show(&self, head: &StoredCheckpoint, known: &mut Option<u64>) -> Result<()> {
        let size = head.checkpoint.size;
        if known.is_none() {
            // Only where to begin: what nobody can have cosigned here yet counts for nothing.
            let cosigned = self.tree.newest_cosigned(self.key.name()).await.ok().flatten();
            let cosigned = cosigned.map(|cosigned| cosigned.checkpoint.size);
            *known = Some(cosigned.filter(|cosigned| *cosigned <= size).unwrap_or(0));
        }
        // It says itself where it stands when that is elsewhere; then one more try.
        for _ in 0..2 {
            let old = known.unwrap_or(0);
            if old > size {
                // Another process may have signed and shown a later one.
                let newest = self.tree.newest_of(&self.keys).await?;
                if newest.is_some_and(|newest| newest.checkpoint.size >= old) {
                    return Ok(());
                }
                bail!(
                    "it has cosigned a head over {old} events, the newest here covers {size}: THE LEDGER WAS ROLLED BACK"
                );
            }
            let response = self.http.post(&self.url).body(self.proof(old, head).await?.to_string()).send();
            let mut response = response.await.map_err(reqwest::Error::without_url).context("no answer")?;
            let (status, kind) = (response.status(), response.headers().get(CONTENT_TYPE).cloned());
            let mut answer = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(reqwest::Error::without_url)? {
                answer.extend_from_slice(&piece);
                if answer.len() > LONGEST_ANSWER {
                    bail!("its answer is longer than any that is read");
                }
            }
            let answer = String::from_utf8(answer).context("its answer is no text")?;
            match status {
                StatusCode::OK => {
                    let note = head.note.clone().with_signatures(&answer).context("its answer")?;
                    let line = note.lines_of(slice::from_ref(&self.key)).context("its answer")?;
                    self.tree.keep_cosignature(size, self.key.name(), &line).await?;
                    *known = Some(size);
                    return Ok(());
                }
                StatusCode::CONFLICT if kind.is_some_and(|kind| kind == SIZE_TYPE) => {
                    *known = Some(answer.trim_end().parse().context("its answer is no size")?);
                }
                status => {
                    let said: String = answer.trim().chars().take(300).collect();
                    bail!("it refused ({status}): {said}");
                }
            }
        }
        bail!("it cosigns heads of another process at the same time")
    }

    async fn proof(&self, old: u64, head: &StoredCheckpoint) -> Result<ConsistencyProof> {
        if old == 0 {
            return Ok(ConsistencyProof { old, hashes: Vec::new(), checkpoint: head.note.clone() });
        }
        let earlier = self.tree.at(old).await?.with_context(|| {
            format!(
                "it has cosigned a head over {old} events that is not kept here: WAS HISTORY WRITTEN ANEW?"
            )
        })?;
        Ok(self.tree.consistency(&earlier.checkpoint, head).await?)
    }
}

/// A failure that repeats itself.
#[derive(Default)]
struct Trouble {
    /// What was told last, and when.
    told: Option<(String, Instant)>,
    failures: u32,
}

impl Trouble {
    /// Whether to tell it: at first, when it is another one, and now and then.
    fn is_news(&mut self, error: &str) -> bool {
        let known = self.told.as_ref().is_some_and(|(told, at)| told == error && at.elapsed() < AGAIN);
        if !known {
            self.told = Some((error.to_owned(), Instant::now()));
        }
        !known
    }

    /// Longer after every failure.
    fn pause(&mut self, usual: Duration) -> Duration {
        self.failures = self.failures.saturating_add(1);
        usual.saturating_mul(1 << self.failures.min(6)).min(SELDOM.max(usual))
    }

    /// Whether there was any until now.
    fn over(&mut self) -> bool {
        let was = self.failures > 0;
        *self = Self::default();
        was
    }
}

/// Says what the metrics of this module mean.
pub fn describe_metrics() {
    use metrics::{Unit, describe_counter, describe_gauge};
    describe_gauge!(
        "botledger_checkpoint_size",
        Unit::Count,
        "Events under the newest signed head of the ledger"
    );
    describe_gauge!(
        "botledger_checkpoint_age_seconds",
        Unit::Seconds,
        "Since when events may wait to be signed: 0 while all are"
    );
    describe_counter!(
        "botledger_checkpoint_failures_total",
        Unit::Count,
        "Heads that could not or must not be signed"
    );
    describe_gauge!(
        "botledger_witness_size",
        Unit::Count,
        "Events under the newest head that a witness cosigned"
    );
    describe_counter!(
        "botledger_witness_failures_total",
        Unit::Count,
        "Heads that a witness did not cosign, by witness"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_head_reads_back_and_is_believed_only_from_the_log() {
        let folder = std::env::temp_dir().join(format!("botledger-kept-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        let kept = KeptHead(Some(folder.join("head")));
        let signer = |seed: u8| Signer::new("ledger.example", &[seed; 32], Algorithm::Ed25519).unwrap();
        let keys = |seed: u8| LogKeys::new(signer(seed), Vec::new()).unwrap();
        assert!(kept.read(&keys(1)).unwrap().is_none());
        let checkpoint = Checkpoint { origin: "ledger.example".to_owned(), size: 7, root: [9; 32] };
        let note = SignedNote::sign(checkpoint.to_string(), &signer(1), 0).unwrap();
        let stored = StoredCheckpoint { checkpoint, note, signed_at: SystemClock.now() };
        kept.write(&stored).unwrap();
        assert_eq!(kept.read(&keys(1)).unwrap(), Some(stored.checkpoint));
        assert!(kept.read(&keys(2)).unwrap_err().to_string().contains("not this log's"));
        assert!(KeptHead(None).read(&keys(1)).unwrap().is_none());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_failure_is_told_once_and_asked_about_ever_more_seldom() {
        let mut trouble = Trouble::default();
        assert!(!trouble.over());
        assert!(trouble.is_news("cut off") && !trouble.is_news("cut off") && trouble.is_news("no answer"));
        let second = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..8).map(|_| trouble.pause(second).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(trouble.pause(Duration::from_secs(300)).as_secs(), 300);
        assert!(trouble.over() && trouble.is_news("no answer"));
        assert_eq!(trouble.pause(second).as_secs(), 2);
    }
}
