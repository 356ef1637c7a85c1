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
    Algorithm, Checkpoint, Finding, LogTree, Signed, SignedNote, StoredCheckpoint, VerifierKey, Witnessed,
    origin_of,
};
use botledger_local::progress::say;
use botledger_projections::{EventFilter, LogReader, Page, ReadPool};
use clap::Subcommand;
use serde_json::json;

use super::Settings;
use super::shell::Told;
use super::witness::WitnessCommand;
use crate::config::Config;
use crate::heads::log_keys;
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
            Self::Checkpoint { cosigned_by: Some(witness) } => {
                let cosigned = tree.newest_cosigned(&witness).await?;
                let cosigned = cosigned.with_context(|| format!("{witness} has cosigned no checkpoint"))?;
                print(&cosigned.note.to_string());
            }
            Self::Checkpoint { cosigned_by: None } => {
                let stored = match tree.sign(&log_keys(&config)?, None, SystemClock.now()).await? {
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
            Self::Verify { checkpoint, key, witness, json } => {
                let believed = Believed::new(&config, key, witness)?;
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
        Ok(Self { log, witnesses })
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
    let mut unwitnessed = Vec::new();
    for witness in believed.witnesses.iter().filter(|_| files.is_empty()) {
        let cosigned = match tree.newest_cosigned(witness.name()).await? {
            Some(stored) => {
                let only = Believed { log: believed.log.clone(), witnesses: vec![witness.clone()] };
                only.read(&stored.note).map_err(|error| format!("{error:#}"))
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
    unwitnessed.into_iter().for_each(|finding| verdict.add(finding));
    if as_json {
        say(json!({ "holds": verdict.holds(), "verdict": verdict }).to_string());
    } else {
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
