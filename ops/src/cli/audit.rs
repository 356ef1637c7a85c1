//! `botledger audit`: heads of the ledger's Merkle tree, proofs, and the comparison of everything with
//! what was signed.

pub mod report;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use botledger_commands::SystemClock;
use botledger_domain::leaf::Leaf;
use botledger_domain::{Clock, Position, RecordedEvent};
use botledger_journal::audit::{
    Algorithm, Checkpoint, Finding, LogTree, Signed, SignedNote, StoredCheckpoint, TreeError, VerifierKey,
    Witnessed, origin_of,
};
use botledger_local::progress::say;
use botledger_projections::{EventFilter, LogReader, Page, ReadPool};
use chrono::{DateTime, SecondsFormat};
use clap::Subcommand;
use serde_json::json;

use super::Settings;
use super::shell::Told;
use super::witness::WitnessCommand;
use crate::config::Config;
use crate::heads::{KeptHead, log_keys};
use crate::platform::answering_pool;

/// Events fetched at once.
const PAGE: i64 = 1_000;

#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the public key that checkpoints are verified with
    Key,
    /// Sign the head over all events that are there, and print the newest checkpoint
    Checkpoint {
        /// Sign nothing: print the newest one that this witness has cosigned
        #[arg(long, value_name = "NAME")]
        cosigned_by: Option<String>,
        /// Begin a new log under a new `audit.origin`, or believe the heads in the tables where the file
        /// `audit.kept_head` is lost
        #[arg(long, conflicts_with = "cosigned_by")]
        begin: bool,
    },
    /// Print the proof that an event is in the ledger, as a C2SP tlog-proof
    Prove {
        /// Its position
        position: u64,
        /// Under the checkpoint over so many events [default: the newest]
        #[arg(long, value_name = "SIZE")]
        under: Option<u64>,
    },
    /// Print the proof that the ledger of one checkpoint begins with that of an earlier one
    Consistency {
        /// Events under the earlier checkpoint
        old: u64,
        /// Events under the later checkpoint
        new: u64,
    },
    /// Compare every stored byte with its hash, and the tree over them with every signed head
    Verify {
        /// A checkpoint that was kept elsewhere; may be given several times
        #[arg(long, value_name = "FILE")]
        checkpoint: Vec<PathBuf>,
        /// Public key of the log that is believed; may be given several times [default: those of
        /// audit.signing_key and audit.previous_keys]
        #[arg(long, value_name = "KEY")]
        key: Vec<VerifierKey>,
        /// Public key of a witness that must have cosigned: the checkpoints that are given, or else the newest
        /// stored one that it did; may be given several times
        #[arg(long, value_name = "KEY")]
        witness: Vec<VerifierKey>,
        /// How old a witness's newest cosignature may be when events follow it, in seconds
        #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
        max_lag: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write what others need to verify everything without this program: checkpoint, key, leaves
    Export {
        /// Folder, made if it is not there
        folder: PathBuf,
    },
    /// What operators and shells did and tried in a period, as a file with its hash
    Report(report::Report),
    /// Be a witness: remember what a ledger has signed, cosign what follows from it, refuse the rest
    Witness(WitnessCommand),
}

impl AuditCommand {
    /// `verify` exits with 1 when something differs.
    ///
    /// # Errors
    /// When the database does not answer, a key is missing, or what is asked for is not there.
    pub async fn run(self, settings: Settings, told: &mut Told) -> Result<u8> {
        let this = match self {
            // Has no connection to the ledger.
            Self::Witness(command) => return command.run(settings).await,
            Self::Report(report) => return report.run(settings, told).await,
            this => this,
        };
        let config = settings.load_running()?.config;
        if let Self::Key = this {
            say(log_keys(&config)?.known()[0].to_string());
            return Ok(0);
        }
        let pool = answering_pool(&config).await?;
        let tree = LogTree::new(pool.clone());
        match this {
            Self::Key | Self::Report(_) | Self::Witness(_) => {}
            Self::Checkpoint { cosigned_by: Some(witness), .. } => {
                let cosigned = tree.newest_cosigned(&witness).await?;
                let cosigned = cosigned.with_context(|| format!("{witness} has cosigned no checkpoint"))?;
                print(&cosigned.note.to_string());
            }
            Self::Checkpoint { cosigned_by: None, begin } => {
                let stored = match sign(&config, &tree, begin).await? {
                    Signed::New(stored) | Signed::Unchanged(Some(stored)) => stored,
                    Signed::Unchanged(None) => bail!("the ledger is empty: there is nothing to sign"),
                    Signed::Busy => newest(&tree).await?,
                };
                print(&stored.note.to_string());
            }
            Self::Prove { position, under } => {
                let under = match under {
                    Some(size) => at(&tree, size).await?,
                    None => newest(&tree).await?,
                };
                print(&tree.prove(position, &under).await?.to_string());
            }
            Self::Consistency { old, new } => {
                let (old, new) = (at(&tree, old).await?, at(&tree, new).await?);
                print(&tree.consistency(&old.checkpoint, &new).await?.to_string());
            }
            Self::Verify { checkpoint, key, witness, max_lag, json } => {
                let believed = Believed { max_lag, ..Believed::new(&config, key, witness)? };
                return verify(&believed, &tree, &checkpoint, json).await;
            }
            Self::Export { folder } => export(&config, &tree, pool, &folder).await?,
        }
        Ok(0)
    }
}

/// Files of these formats end in one newline, which `say` adds.
fn print(text: &str) {
    say(text.strip_suffix('\n').unwrap_or(text));
}

/// Signs what is there, behind the head that is kept outside the database.
async fn sign(config: &Config, tree: &LogTree, begin: bool) -> Result<Signed> {
    let (keys, kept, now) = (log_keys(config)?, KeptHead::of(config), SystemClock.now());
    let signed = if begin {
        if kept.read(&keys)?.is_some() {
            bail!("a head of this log is kept already: leave out --begin");
        }
        match tree.begin(&keys, now).await {
            Err(TreeError::Begun { .. }) if config.audit.kept_head.is_some() => {
                tree.sign(&keys, None, now).await?
            }
            signed => signed?,
        }
    } else {
        let seen = kept.believed(&keys, tree).await?;
        tree.sign(&keys, seen.as_ref(), now).await?
    };
    if let Signed::New(stored) | Signed::Unchanged(Some(stored)) = &signed {
        kept.write(stored)?;
    }
    Ok(signed)
}

async fn newest(tree: &LogTree) -> Result<StoredCheckpoint> {
    tree.newest().await?.context("there is no checkpoint yet: `botledger audit checkpoint` makes one")
}

async fn at(tree: &LogTree, size: u64) -> Result<StoredCheckpoint> {
    let stored = tree.at(size).await?;
    stored.with_context(|| format!("no checkpoint covers exactly {size} events"))
}

/// Whose word counts.
struct Believed {
    log: Vec<VerifierKey>,
    witnesses: Vec<VerifierKey>,
    /// Seconds that a witness's newest cosignature may be old when events follow it.
    max_lag: u64,
}

/// What a witness has said last.
#[derive(serde::Serialize)]
struct LastWord {
    witness: String,
    /// Events under the head.
    size: u64,
    /// Seconds since the Unix epoch, by the witness's clock.
    signed_at: u64,
}

impl LastWord {
    /// Why it says too little about a ledger of so many events: whoever has database and key can keep an old
    /// word and write anew what follows it.
    fn too_old(&self, events: u64, now: u64, max_lag: u64) -> Option<String> {
        let lag = now.saturating_sub(self.signed_at);
        (events > self.size && lag > max_lag).then(|| {
            format!(
                "its last word covers {} of {events} events and is {lag} seconds old, more than {max_lag}: what follows is only the log's word",
                self.size
            )
        })
    }
}

impl Believed {
    fn new(config: &Config, log: Vec<VerifierKey>, witnesses: Vec<VerifierKey>) -> Result<Self> {
        let log = if log.is_empty() {
            let own = log_keys(config).context("nobody to believe: give the log's public key with --key")?;
            own.known().to_vec()
        } else {
            log
        };
        origin_of(&log).context("--key")?;
        if let Some(other) = witnesses.iter().find(|key| key.algorithm() != Algorithm::Cosignature) {
            bail!("--witness {other} is no key of a witness");
        }
        Ok(Self { log, witnesses, max_lag: 0 })
    }

    fn origin(&self) -> &str {
        self.log[0].name()
    }

    /// A head that somebody kept, when everybody has signed who has to.
    fn read(&self, note: &SignedNote) -> Result<Checkpoint> {
        let checkpoint: Checkpoint = note.text().parse()?;
        if checkpoint.origin != self.origin() {
            bail!("it is of the log {}, not of {}", checkpoint.origin, self.origin());
        }
        note.verify(&self.log)?;
        for witness in &self.witnesses {
            let signed = note.verify(std::slice::from_ref(witness));
            signed.with_context(|| format!("{} must have cosigned it", witness.name()))?;
        }
        Ok(checkpoint)
    }
}

async fn verify(believed: &Believed, tree: &LogTree, files: &[PathBuf], as_json: bool) -> Result<u8> {
    let mut kept = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).with_context(|| format!("{name} cannot be read"))?;
        let note: SignedNote = text.parse().with_context(|| format!("{name} is no checkpoint"))?;
        let checkpoint = believed.read(&note).with_context(|| format!("{name} must not be believed"))?;
        kept.push(Witnessed { checkpoint, kept: name });
    }
    let (mut unwitnessed, mut said) = (Vec::new(), Vec::new());
    for witness in believed.witnesses.iter().filter(|_| files.is_empty()) {
        let cosigned = match tree.newest_cosigned(witness.name()).await? {
            Some(stored) => {
                let only =
                    Believed { log: believed.log.clone(), witnesses: vec![witness.clone()], max_lag: 0 };
                only.read(&stored.note).map_err(|error| format!("{error:#}")).inspect(|head| {
                    let signed = stored.note.verify(std::slice::from_ref(witness)).unwrap_or_default();
                    said.push(LastWord {
                        witness: witness.name().to_owned(),
                        size: head.size,
                        signed_at: signed.first().and_then(|signed| signed.signed_at).unwrap_or(0),
                    });
                })
            }
            None => Err("none is stored".to_owned()),
        };
        let witness = witness.name().to_owned();
        match cosigned {
            Ok(checkpoint) => {
                kept.push(Witnessed { checkpoint, kept: format!("the newest head that {witness} cosigned") });
            }
            Err(reason) => unwitnessed.push(Finding::Unwitnessed { witness, reason }),
        }
    }
    let mut last = 0;
    let progress = |done: u64, all: u64| {
        let tenth = done * 10 / all.max(1);
        if all > 100_000 && tenth > last {
            last = tenth;
            // Results go to stdout.
            drop(writeln!(std::io::stderr(), "{done} of {all} events"));
        }
    };
    let mut verdict = tree.verify(&believed.log, Some(believed.origin()), kept, progress).await?;
    let now = SystemClock.now().timestamp().unsigned_abs();
    for word in &said {
        if let Some(reason) = word.too_old(verdict.events, now, believed.max_lag) {
            unwitnessed.push(Finding::Unwitnessed { witness: word.witness.clone(), reason });
        }
    }
    unwitnessed.into_iter().for_each(|finding| verdict.add(finding));
    if as_json {
        say(json!({ "holds": verdict.holds(), "verdict": verdict, "witnesses": said }).to_string());
    } else {
        for LastWord { witness, size, signed_at } in &said {
            let at = i64::try_from(*signed_at).ok().and_then(|at| DateTime::from_timestamp(at, 0));
            let at = at.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true);
            say(format!("{witness} has cosigned the first {size} events at {at}"));
        }
        for finding in &verdict.findings {
            say(finding.to_string());
        }
        if verdict.more > 0 {
            say(format!("and {} more", verdict.more));
        }
        let word = if verdict.holds() { "nothing differs" } else { "NOT what was signed" };
        say(format!(
            "{} events, {} signed heads, {} sealed texts ({} no longer there): {word}",
            verdict.events, verdict.checkpoints, verdict.bodies, verdict.bodies_gone
        ));
    }
    Ok(u8::from(!verdict.holds()))
}

async fn export(config: &Config, tree: &LogTree, pool: ReadPool, folder: &Path) -> Result<()> {
    let stored = newest(tree).await?;
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
    };
    write("checkpoint", stored.note.to_string())?;
    let keys: Vec<String> = log_keys(config)?.known().iter().map(ToString::to_string).collect();
    write("key", keys.join("\n") + "\n")?;
    let path = folder.join("leaves.ndjson");
    let file = fs::File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    let log = LogReader::new(pool);
    let size = i64::try_from(stored.checkpoint.size)?;
    let filter = EventFilter { upto: Some(Position(size)), ..EventFilter::default() };
    let mut page = Page::oldest(PAGE);
    let mut written = 0;
    loop {
        let events = log.page(&filter, page).await.context("the ledger cannot be read")?;
        let Some(last) = events.last() else { break };
        page.after = Some(last.position);
        for event in &events {
            writeln!(out, "{}", leaf_line(event))?;
        }
        written += events.len();
    }
    out.flush()?;
    say(format!("{written} leaves under the checkpoint over {size} events, in {}", folder.display()));
    Ok(())
}

/// The leaf's fields in their order; texts letter by letter, as strings.
fn leaf_line(event: &RecordedEvent) -> String {
    let leaf = Leaf {
        position: event.position.0,
        recorded_at_micros: event.recorded_at.timestamp_micros(),
        aggregate_type: &event.aggregate_type,
        aggregate_id: &event.aggregate_id,
        sequence: event.sequence,
        event_type: &event.event_type,
        event_version: &event.event_version,
        payload: &event.payload,
        metadata: &event.metadata,
    };
    json!({
        "position": leaf.position,
        "recorded_at_micros": leaf.recorded_at_micros,
        "sequence": leaf.sequence,
        "aggregate_type": leaf.aggregate_type,
        "aggregate_id": leaf.aggregate_id,
        "event_type": leaf.event_type,
        "event_version": leaf.event_version,
        "payload": leaf.payload,
        "metadata": leaf.metadata,
        "leaf_hash": hex::encode(leaf.hash()),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_word_of_a_witness_says_nothing_about_what_follows_it() {
        let word = LastWord { witness: "w".to_owned(), size: 10, signed_at: 1_000 };
        assert!(word.too_old(5_000, 4_601, 3_600).is_some_and(|reason| reason.contains("10 of 5000")));
        assert_eq!(word.too_old(5_000, 4_600, 3_600), None, "as young as is allowed");
        assert_eq!(word.too_old(10, 1_000_000, 3_600), None, "nothing follows");
    }
}
