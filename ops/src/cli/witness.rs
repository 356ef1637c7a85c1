//! `botledger audit witness`: a process of somebody else's, on another machine, that remembers what a
//! ledger has signed (C2SP tlog-witness). It has no connection to the ledger's database.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use botledger_commands::SystemClock;
use botledger_domain::Clock;
use botledger_journal::audit::{
    Algorithm, Checkpoint, ConsistencyProof, Refusal, SignedNote, Signer, VerifierKey, Witness,
};
use botledger_local::progress::say;
use botledger_local::secrets::write_whole;
use botledger_local::up::Signals;
use clap::Args;
use tokio::net::TcpListener;

use super::Settings;
use crate::config::{SIZE_TYPE, Secret, refuse_open_key};
use crate::heads::READABLE;
use crate::telemetry::start_logging;

/// Signatures that quantum computers do not break are some kilobytes each.
const LONGEST_REQUEST: usize = 256 * 1024;
/// Signed heads that were refused, kept as evidence: forks, and apart from them what was never proved.
const MOST_EVIDENCE: usize = 100;
const MOST_UNPROVED: usize = 1_000;
/// What the names of the latter begin with.
const UNPROVED: &str = "unproved-";

#[derive(Clone, Debug, Args)]
pub struct WitnessCommand {
    /// Its name to everybody, for example witness.example.org/w1
    #[arg(long)]
    name: String,
    /// File with its secret key, 32 bytes as 64 hex digits; `openssl rand -hex 32` makes one
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Print its public key and end
    #[arg(long)]
    print_key: bool,
    /// Public key of the ledger that it watches; may be given several times after a change of keys
    #[arg(long, value_name = "KEY", required_unless_present = "print_key")]
    log: Vec<VerifierKey>,
    /// Folder in which it keeps what it cosigned last, and refused heads as evidence
    #[arg(long, value_name = "FOLDER", required_unless_present = "print_key")]
    state: Option<PathBuf>,
    /// Begin with whatever the ledger shows first; without this a lost state is an error
    #[arg(long)]
    begin: bool,
    /// Where to listen; a proxy in front does TLS
    #[arg(long, default_value = "127.0.0.1:8790", value_name = "ADDRESS")]
    listen: String,
}

impl WitnessCommand {
    /// Runs until a signal comes.
    ///
    /// # Errors
    /// When keys or state must not be used, or the address is taken.
    pub async fn run(self, settings: Settings) -> Result<u8> {
        let shown = self.key_file.display();
        refuse_open_key(&self.key_file).map_err(|reason| anyhow::anyhow!("{shown} {reason}"))?;
        let secret = fs::read_to_string(&self.key_file).with_context(|| format!("{shown} cannot be read"))?;
        let seed = Secret::new(secret.trim()).key().map_err(|reason| anyhow::anyhow!("{shown} {reason}"))?;
        let signer = Signer::new(&self.name, &seed, Algorithm::Cosignature)?;
        if self.print_key {
            say(signer.verifier().to_string());
            return Ok(0);
        }
        start_logging(&settings.load()?.config.log)?;
        let folder = self.state.context("--state is not given")?;
        let witness = Witness::new(signer, self.log)?;
        let desk = Desk::open(witness, folder, self.begin)?;
        let mut signals = Signals::listen()?;
        let listener = TcpListener::bind(&self.listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        tracing::info!(
            "the witness {} watches {} from event {} on at {}",
            desk.witness.verifier(),
            desk.witness.origin(),
            desk.known.as_ref().map_or(0, |known| known.size),
            listener.local_addr()?
        );
        let router = Router::new()
            .route("/add-checkpoint", post(add_checkpoint))
            .route("/checkpoint", get(checkpoint))
            .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
            .with_state(Arc::new(Mutex::new(desk)));
        let stopped = async move {
            signals.next().await;
        };
        axum::serve(listener, router).with_graceful_shutdown(stopped).await.context("the witness ended")?;
        Ok(0)
    }
}

/// A witness and what it keeps. One request at a time: the look at what was cosigned last and its
/// replacement are one step.
struct Desk {
    witness: Witness,
    folder: PathBuf,
    known: Option<Checkpoint>,
    /// Held while this process lives: two witnesses on one state could cosign a fork.
    _lock: File,
}

impl Desk {
    fn open(witness: Witness, folder: PathBuf, begin: bool) -> Result<Self> {
        let shown = folder.display();
        fs::create_dir_all(&folder).with_context(|| format!("{shown} cannot be made"))?;
        let lock = File::options().create(true).append(true).open(folder.join("lock"))?;
        if lock.try_lock().is_err() {
            bail!("another witness keeps its state in {shown}");
        }
        let known = match fs::read_to_string(folder.join("cosigned")) {
            Ok(_) if begin => bail!("there is a state in {shown} already: leave out --begin"),
            Ok(note) => {
                let known = witness.read_state(&note);
                Some(
                    known.map_err(|reason| {
                        anyhow::anyhow!("the state in {shown} must not be used: {reason}")
                    })?,
                )
            }
            Err(error) if error.kind() == ErrorKind::NotFound && begin => None,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "there is no state in {shown}: bring it back from a backup that is not the ledger's, or start anew with --begin, \
                 which cosigns whatever is shown first"
            ),
            Err(error) => return Err(error).with_context(|| format!("the state in {shown} cannot be read")),
        };
        Ok(Self { witness, folder, known, _lock: lock })
    }

    /// Cosigns, or says why not. The new state is on disk before the answer is there.
    fn add(&mut self, request: &str, now: u64) -> Result<Result<(Checkpoint, String), Refusal>> {
        let shown: ConsistencyProof = match request.parse() {
            Ok(shown) => shown,
            Err(error) => return Ok(Err(Refusal::Malformed(error))),
        };
        let (checkpoint, note) = match self.witness.judge(self.known.as_ref(), &shown, now) {
            Ok(cosigned) => cosigned,
            Err(refusal) => {
                match refusal {
                    // Once a head: whoever has it can send it again and again.
                    Refusal::Fork { .. } | Refusal::Inconsistent { .. }
                        if self.keep_evidence("", MOST_EVIDENCE, &shown.checkpoint, request)? =>
                    {
                        tracing::error!("{refusal}; it is kept in the folder `refused`");
                    }
                    // Another process of the log may be ahead, or this is another history: as long as the
                    // head is not proved, it is kept.
                    Refusal::Conflict { .. } => {
                        self.keep_evidence(UNPROVED, MOST_UNPROVED, &shown.checkpoint, request)?;
                    }
                    _ => {}
                }
                return Ok(Err(refusal));
            }
        };
        write_whole(&self.folder.join("cosigned"), &note.to_string(), READABLE)?;
        // Proved now.
        for kind in ["", UNPROVED] {
            fs::remove_file(self.folder.join("refused").join(evidence(kind, &checkpoint))).ok();
        }
        self.known = Some(checkpoint.clone());
        let line = note.lines_of(std::slice::from_ref(self.witness.verifier()))?;
        Ok(Ok((checkpoint, line)))
    }

    /// Whether it is new: kept, or one too many. The head that was cosigned last is no evidence.
    fn keep_evidence(&self, kind: &str, most: usize, note: &SignedNote, request: &str) -> Result<bool> {
        let shown: Checkpoint = note.text().parse()?;
        let folder = self.folder.join("refused");
        fs::create_dir_all(&folder)?;
        let name = evidence(kind, &shown);
        if self.known.as_ref() == Some(&shown) || folder.join(&name).exists() {
            return Ok(false);
        }
        let mut kept = 0;
        for entry in fs::read_dir(&folder)? {
            let unproved = entry?.file_name().to_string_lossy().starts_with(UNPROVED);
            kept += usize::from(unproved == (kind == UNPROVED));
        }
        if kept < most {
            write_whole(&folder.join(name), request, READABLE)?;
        }
        Ok(true)
    }
}

/// Name of a refused head's file.
fn evidence(kind: &str, head: &Checkpoint) -> String {
    format!("{kind}{}-{}", head.size, hex::encode(&head.root[..8]))
}

async fn add_checkpoint(State(desk): State<Arc<Mutex<Desk>>>, request: String) -> Response {
    let now = SystemClock.now().timestamp().unsigned_abs();
    let judged = tokio::task::spawn_blocking(move || {
        desk.lock().expect("a witness that panicked must not go on").add(&request, now)
    });
    let text = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    match judged.await.map_err(anyhow::Error::from).flatten() {
        Ok(Ok((checkpoint, line))) => {
            tracing::debug!("cosigned the head over {} events", checkpoint.size);
            ([text], line).into_response()
        }
        Ok(Err(refusal)) => refused(&refusal),
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "a head could not be cosigned");
            (StatusCode::INTERNAL_SERVER_ERROR, [text], "the witness cannot keep its state\n").into_response()
        }
    }
}

fn refused(refusal: &Refusal) -> Response {
    let (status, kind, mut said) =
        (StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", format!("{refusal}\n"));
    let (status, kind) = match refusal {
        Refusal::Malformed(_) | Refusal::Backwards { .. } => (status, kind),
        Refusal::UnknownLog(_) => (StatusCode::NOT_FOUND, kind),
        Refusal::NotSigned(_) => (StatusCode::FORBIDDEN, kind),
        Refusal::Conflict { known, .. } => {
            said = format!("{known}\n");
            (StatusCode::CONFLICT, SIZE_TYPE)
        }
        Refusal::Fork { .. } => (StatusCode::CONFLICT, kind),
        Refusal::Inconsistent { .. } | Refusal::NoProof => (StatusCode::UNPROCESSABLE_ENTITY, kind),
    };
    tracing::warn!("{refusal}");
    (status, [(header::CONTENT_TYPE, kind)], said).into_response()
}

/// What was cosigned last, for everybody.
async fn checkpoint(State(desk): State<Arc<Mutex<Desk>>>) -> Response {
    let path = desk.lock().expect("a witness that panicked must not go on").folder.join("cosigned");
    match fs::read_to_string(path) {
        Ok(note) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], note).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("botledger-witness-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn log() -> Signer {
        Signer::new("ledger.example", &[1; 32], Algorithm::Ed25519).unwrap()
    }

    fn open(folder: &Path, begin: bool) -> Result<Desk> {
        let signer = Signer::new("witness.example/w1", &[2; 32], Algorithm::Cosignature).unwrap();
        Desk::open(Witness::new(signer, vec![log().verifier().clone()]).unwrap(), folder.to_owned(), begin)
    }

    /// The head of a tree of one leaf, from nothing.
    fn shown(leaf: u8) -> String {
        let checkpoint = Checkpoint { origin: "ledger.example".to_owned(), size: 1, root: [leaf; 32] };
        let checkpoint = SignedNote::sign(checkpoint.to_string(), &log(), 0).unwrap();
        ConsistencyProof { old: 0, hashes: Vec::new(), checkpoint }.to_string()
    }

    #[test]
    fn a_lost_or_foreign_state_is_no_state() {
        let folder = folder();
        let refused = |begin| open(&folder, begin).err().unwrap().to_string();
        assert!(refused(false).contains("--begin"));
        let mut desk = open(&folder, true).unwrap();
        assert!(refused(false).contains("another witness"));
        assert!(desk.add(&shown(1), 7).unwrap().is_ok());
        drop(desk);
        assert!(refused(true).contains("already"));
        assert_eq!(open(&folder, false).unwrap().known.unwrap().root, [1; 32]);
        let kept = fs::read_to_string(folder.join("cosigned")).unwrap();
        fs::write(folder.join("cosigned"), kept.replacen("\n1\n", "\n2\n", 1)).unwrap();
        assert!(refused(false).contains("must not be used"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_fork_is_refused_and_kept_as_evidence_and_changes_nothing() {
        let folder = folder();
        let mut desk = open(&folder, true).unwrap();
        desk.add(&shown(1), 7).unwrap().unwrap();
        let fork = shown(2).replacen("old 0", "old 1", 1);
        assert_eq!(desk.add(&fork, 8).unwrap(), Err(Refusal::Fork { size: 1 }));
        assert_eq!(fs::read_to_string(folder.join("refused/1-0202020202020202")).unwrap(), fork);
        assert!(fs::read_to_string(folder.join("cosigned")).unwrap().contains("AQEBAQEB"));
        // A head that starts elsewhere proves nothing yet, and is kept until something does.
        let early = shown(1).replacen("ledger.example\n1\n", "ledger.example\n2\n", 1);
        assert!(matches!(desk.add(&early, 8).unwrap(), Err(Refusal::NotSigned(_))));
        let later = Checkpoint { origin: "ledger.example".to_owned(), size: 7, root: [3; 32] };
        let later = SignedNote::sign(later.to_string(), &log(), 0).unwrap();
        let later = ConsistencyProof { old: 4, hashes: Vec::new(), checkpoint: later }.to_string();
        assert_eq!(desk.add(&later, 8).unwrap(), Err(Refusal::Conflict { known: 1, old: 4 }));
        assert!(folder.join("refused/unproved-7-0303030303030303").exists());
        // Nobody makes evidence of the head that was cosigned.
        let public = shown(1).replacen("old 0\n", &format!("old 1\n{}\n", "A".repeat(43) + "="), 1);
        assert_eq!(desk.add(&public, 8).unwrap(), Err(Refusal::NoProof));
        assert_eq!(desk.add(&shown(1), 8).unwrap(), Err(Refusal::Conflict { known: 1, old: 0 }));
        assert_eq!(fs::read_dir(folder.join("refused")).unwrap().count(), 2);
        // The same head again is cosigned again, with the time of now.
        let again = desk.add(&shown(1).replacen("old 0", "old 1", 1), 9).unwrap();
        assert!(again.is_ok(), "{again:?}");
        drop(desk);
        fs::remove_dir_all(&folder).unwrap();
    }
}
