use std::{
    fs::{self, File, TryLockError},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use botledger_domain::merkle::{Frontier, Hash};
use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use super::{
    Encoding, FileEntry, FileKind, Fingerprints, Head, MANIFEST, Manifest, Source, Step, TransferError,
    files::{self, Lines, Sink},
    line::{BodyLine, EventLine, HouseLine, StateLine, as_line, from_line},
    manifest::{FORMAT, PLAN, Plan, VERSION},
};

/// Events or bodies fetched at once.
const PAGE: i64 = 500;
/// Leaf hashes fetched at once.
const HASHES: i64 = 10_000;

/// What is to be exported, and where to.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// Made if it is not there; otherwise empty, or holding the unfinished part of the same export.
    pub folder: PathBuf,
    /// How events are written.
    pub encoding: Encoding,
    /// Position of the first event; the append set that holds it is taken whole. The first when absent.
    pub first: Option<i64>,
    /// Position of the last event, likewise. The newest when absent.
    pub last: Option<i64>,
    /// Whether sealed bodies come along.
    pub bodies: bool,
    /// Whether keys and logins come along.
    pub house: bool,
    /// A file ends with the line that reaches this length.
    pub max_file_bytes: u64,
    /// `instance.name`.
    pub instance: String,
    /// Version of the program.
    pub product: String,
    /// Of the keys of this installation.
    pub keys: Fingerprints,
}

/// A finished export.
#[derive(Clone, Debug)]
pub struct Exported {
    /// What it holds.
    pub manifest: Manifest,
    /// SHA-256 of the manifest: whoever keeps it elsewhere can tell whether anything was changed since.
    pub manifest_sha256: Hash,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
}

/// Writes the ledger into a folder. Killed at any moment and started again it goes on; files that are
/// whole already are read again and compared with the ledger. In memory is never more than a page.
///
/// # Errors
/// When the folder holds something else, the ledger is empty or differs from its own hashes, or the
/// database or the disk fails.
pub async fn export(
    pool: &PgPool,
    request: ExportRequest,
    mut progress: impl FnMut(Step),
) -> Result<Exported, TransferError> {
    let folder = request.folder.clone();
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&folder).map_err(TransferError::file(&folder))?;
    let lock = File::open(&folder).map_err(TransferError::file(&folder))?;
    let mode = lock.metadata().map_err(TransferError::file(&folder))?.permissions().mode();
    if request.house && mode & 0o077 != 0 {
        return Err(TransferError::Refused(format!(
            "{} is open to others (mode {:o}) and keys are to go into it: chmod 700 it, or name another folder",
            folder.display(),
            mode & 0o777
        )));
    }
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(TransferError::Refused(format!("{} is being written to", folder.display())));
        }
        Err(TryLockError::Error(error)) => return Err(TransferError::file(&folder)(error)),
    }
    let (plan, resumed) = match unfinished(&folder)? {
        Some(plan) => {
            same_or_refused(pool, &plan, &request).await?;
            (plan, true)
        }
        None => {
            let plan = plan(pool, &request).await?;
            let text = serde_json::to_string_pretty(&plan).expect("a plan is an object of texts and numbers");
            files::write_whole(&folder, PLAN, text.as_bytes())?;
            (plan, false)
        }
    };
    let mut writer = Writer { pool, folder: &folder, plan: &plan, files: Vec::new() };
    let after = writer.events(&mut progress).await?;
    let mut bodies_absent = 0;
    if plan.bodies {
        writer.bodies(&mut progress).await?;
        bodies_absent = absent_bodies(pool, plan.before.size, plan.last).await?;
    }
    writer.state().await?;
    if plan.house {
        writer.house().await?;
    }
    let files = writer.files;
    sweep(&folder, &files)?;
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        version: VERSION,
        source: plan.source,
        encoding: plan.encoding,
        first: plan.before.size + 1,
        last: plan.last,
        before: plan.before,
        after: head(&after),
        bodies: plan.bodies,
        bodies_absent,
        house: plan.house,
        keys: plan.keys,
        files,
    };
    let manifest_sha256 = manifest.write(&folder)?;
    remove(&folder.join(PLAN))?;
    Ok(Exported { manifest, manifest_sha256, resumed })
}

fn head(tree: &Frontier) -> Head {
    Head {
        size: i64::try_from(tree.size()).unwrap_or(i64::MAX),
        root: tree.root(),
        subtrees: tree.subtrees().iter().map(hex::encode).collect(),
    }
}

/// The plan of an export that was begun here; nothing where the folder is empty.
fn unfinished(folder: &Path) -> Result<Option<Plan>, TransferError> {
    let refused = |what: &str| Err(TransferError::Refused(format!("{} {what}", folder.display())));
    if folder.join(MANIFEST).exists() {
        // Killed between the manifest and the end: it is finished.
        remove(&folder.join(PLAN))?;
        return refused("holds a finished export already: name another folder");
    }
    let path = folder.join(PLAN);
    if path.exists() {
        let text = fs::read(&path).map_err(TransferError::file(&path))?;
        let plan = serde_json::from_slice(&text)
            .map_err(|error| TransferError::content(PLAN, format!("is no plan of an export: {error}")))?;
        return Ok(Some(plan));
    }
    if names(folder)?.iter().any(|name| !files::is_part(name)) {
        return refused("is not empty: name another folder");
    }
    Ok(None)
}

pub(super) fn names(folder: &Path) -> Result<Vec<String>, TransferError> {
    let entries = fs::read_dir(folder).map_err(TransferError::file(folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(TransferError::file(folder))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn remove(path: &Path) -> Result<(), TransferError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TransferError::file(path)(error)),
        _ => Ok(()),
    }
}

/// Takes away what earlier runs left and the manifest will not name.
fn sweep(folder: &Path, files: &[FileEntry]) -> Result<(), TransferError> {
    for name in names(folder)? {
        let ours = name.starts_with("events-") || name.starts_with("bodies-") || files::is_part(&name);
        if ours && files.iter().all(|file| file.name != name) {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

async fn plan(pool: &PgPool, request: &ExportRequest) -> Result<Plan, TransferError> {
    let newest = sqlx::query_scalar!(r#"SELECT coalesce(max(position), 0) AS "head!" FROM events"#)
        .fetch_one(pool)
        .await?;
    // A batch commits before it is flushed. What leaves the process must not be taken back by a crash.
    sqlx::query!("SELECT pg_logical_emit_message(true, 'botledger', '')::text AS mark")
        .fetch_one(pool)
        .await?;
    let (first, last) = (request.first.unwrap_or(1).max(1), request.last.unwrap_or(newest).min(newest));
    if first > last {
        let what = if newest == 0 { "the ledger is empty" } else { "no event is in that range" };
        return Err(TransferError::Refused(what.to_owned()));
    }
    let first = whole_set(pool, first).await?.0;
    let last = whole_set(pool, last).await?.1;
    let ledger = leaf_hashes(pool, 0, 1).await?.first().copied();
    let before = tree_of(pool, first - 1).await?;
    let source = Source {
        ledger: ledger.ok_or(TransferError::Ledger { position: 1, problem: "it is missing" })?,
        instance: request.instance.clone(),
        product: request.product.clone(),
        schema: schema(pool).await?,
    };
    Ok(Plan {
        source,
        encoding: request.encoding,
        before: head(&before),
        last,
        bodies: request.bodies,
        house: request.house,
        max_file_bytes: request.max_file_bytes,
        keys: request.keys.clone(),
    })
}

/// The tree over so many events from the first on.
async fn tree_of(pool: &PgPool, size: i64) -> Result<Frontier, TransferError> {
    let (mut tree, mut at) = (Frontier::default(), 0);
    while at < size {
        for leaf in leaf_hashes(pool, at, HASHES.min(size - at)).await? {
            tree.push(leaf);
            at += 1;
        }
    }
    Ok(tree)
}

pub(super) async fn schema(pool: &PgPool) -> Result<i64, TransferError> {
    Ok(sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
        .fetch_one(pool)
        .await?)
}

/// First and last position of the append set that an event came in: a set is never torn.
async fn whole_set(pool: &PgPool, position: i64) -> Result<(i64, i64), TransferError> {
    let set = sqlx::query!(
        r#"SELECT position, set_size AS "set_size!" FROM events
           WHERE position <= $1 AND set_size IS NOT NULL ORDER BY position DESC LIMIT 1"#,
        position,
    )
    .fetch_optional(pool)
    .await?
    .ok_or(TransferError::Ledger { position, problem: "it belongs to no append set" })?;
    Ok((set.position, set.position + i64::from(set.set_size) - 1))
}

/// Neighbouring leaf hashes as they are stored, after a position.
pub(super) async fn leaf_hashes(pool: &PgPool, after: i64, count: i64) -> Result<Vec<Hash>, TransferError> {
    let rows = sqlx::query!(
        "SELECT position, leaf_hash FROM events WHERE position > $1 ORDER BY position LIMIT $2",
        after,
        count,
    )
    .fetch_all(pool)
    .await?;
    let gap = |position| TransferError::Ledger { position, problem: "it is missing" };
    let mut hashes = Vec::with_capacity(rows.len());
    for (expected, row) in (after + 1..).zip(rows) {
        if row.position != expected {
            return Err(gap(expected));
        }
        hashes.push(row.leaf_hash.try_into().map_err(|_| gap(expected))?);
    }
    if hashes.is_empty() { Err(gap(after + 1)) } else { Ok(hashes) }
}

/// Of bodies that events of a range name, how many are not there.
pub(super) async fn absent_bodies(
    database: impl PgExecutor<'_>,
    after: i64,
    last: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "absent!" FROM events e
           WHERE e.position > $1 AND e.position <= $2 AND e.payload #>> '{body,ciphertext_sha256}' IS NOT NULL
             AND NOT EXISTS (
                 SELECT FROM message_bodies b WHERE b.body_id = (e.payload #>> '{body,body_id}')::uuid
             )"#,
        after,
        last,
    )
    .fetch_one(database)
    .await
}

async fn same_or_refused(pool: &PgPool, plan: &Plan, request: &ExportRequest) -> Result<(), TransferError> {
    let first = match request.first {
        Some(first) => whole_set(pool, first.max(1)).await?.0,
        None => 1,
    };
    let last = match request.last {
        Some(last) => whole_set(pool, last).await?.1,
        None => plan.last,
    };
    let same = (first, last, request.encoding, request.bodies, request.house, request.max_file_bytes)
        == (plan.before.size + 1, plan.last, plan.encoding, plan.bodies, plan.house, plan.max_file_bytes)
        && leaf_hashes(pool, 0, 1).await?.first() == Some(&plan.source.ledger);
    if same {
        // The plan is a file like others: what the manifest will say of earlier events is taken from the ledger.
        if head(&tree_of(pool, plan.before.size).await?) != plan.before {
            return Err(TransferError::content(PLAN, "its tree before the first event is not the ledger's"));
        }
        return Ok(());
    }
    Err(TransferError::Refused(format!(
        "{} holds the unfinished export of events {} to {} as {} in files of {} bytes, {} bodies, {} keys: give \
         the same again, or name another folder",
        request.folder.display(),
        plan.before.size + 1,
        plan.last,
        plan.encoding,
        plan.max_file_bytes,
        if plan.bodies { "with" } else { "without" },
        if plan.house { "with" } else { "without" },
    )))
}

struct Writer<'a> {
    pool: &'a PgPool,
    folder: &'a Path,
    plan: &'a Plan,
    files: Vec<FileEntry>,
}

impl Writer<'_> {
    async fn events(&mut self, progress: &mut impl FnMut(Step)) -> Result<Frontier, TransferError> {
        let first = self.plan.before.size;
        let subtrees =
            self.plan.before.subtrees.iter().filter_map(|hash| super::parse_hash(hash).ok()).collect();
        let mut tree = Frontier::of(first.unsigned_abs(), subtrees)
            .ok_or_else(|| TransferError::content(PLAN, "its tree makes no sense"))?;
        let mut at = first;
        while let Some((entry, grown)) = self.recognised(at, &tree).await? {
            at += entry.lines;
            tree = grown;
            self.files.push(entry);
            progress(Step::Events(at - first, self.plan.last - first));
        }
        let mut sink: Option<Sink> = None;
        while at < self.plan.last {
            for event in self.page(at).await? {
                if event.position != at + 1 {
                    return Err(TransferError::Ledger { position: at + 1, problem: "it is missing" });
                }
                if !event.is_whole() {
                    let problem = "its bytes do not give its leaf hash";
                    return Err(TransferError::Ledger { position: event.position, problem });
                }
                at = event.position;
                tree.push(event.leaf_hash);
                let line = event.encode(self.plan.encoding, &self.plan.source.ledger);
                self.add(&mut sink, FileKind::Events, at, &line)?;
            }
            progress(Step::Events(at - first, self.plan.last - first));
        }
        self.files.extend(sink.map(Sink::finish).transpose()?);
        Ok(tree)
    }

    /// Adds a line to the file in the making, and ends that file when it is long enough.
    fn add(
        &mut self,
        sink: &mut Option<Sink>,
        kind: FileKind,
        number: i64,
        line: &[u8],
    ) -> Result<(), TransferError> {
        let mut open = match sink.take() {
            Some(open) => open,
            None => Sink::create(self.folder, kind, number)?,
        };
        open.line(line)?;
        if open.bytes() >= self.plan.max_file_bytes {
            self.files.push(open.finish()?);
        } else {
            *sink = Some(open);
        }
        Ok(())
    }

    /// The file of an earlier run that begins after this position, if it is there and holds what the ledger
    /// holds; and the tree with its events.
    async fn recognised(
        &self,
        at: i64,
        tree: &Frontier,
    ) -> Result<Option<(FileEntry, Frontier)>, TransferError> {
        let kind = FileKind::Events;
        let name = kind.name(at + 1);
        if at >= self.plan.last || !self.folder.join(&name).exists() {
            return Ok(None);
        }
        let mut lines = Lines::open(self.folder, &name)?;
        let (mut tree, mut position, mut stored) = (tree.clone(), at, Vec::new().into_iter());
        while let Ok(Some(line)) = lines.read() {
            let Ok(event) = EventLine::decode(line, self.plan.encoding, &self.plan.source.ledger) else {
                return Ok(None);
            };
            let hash = match stored.next() {
                Some(hash) => hash,
                None => {
                    stored = leaf_hashes(self.pool, position, HASHES).await?.into_iter();
                    stored.next().unwrap_or_default()
                }
            };
            position += 1;
            if event.position != position
                || position > self.plan.last
                || !event.is_whole()
                || event.leaf_hash != hash
            {
                return Ok(None);
            }
            tree.push(hash);
        }
        let (count, bytes, sha256) = lines.finish();
        // A whole file is as long as it may be, or the last one.
        let whole =
            count == position - at && (bytes >= self.plan.max_file_bytes || position == self.plan.last);
        Ok(whole.then(|| (FileEntry { name, kind, first: at + 1, lines: count, bytes, sha256 }, tree)))
    }

    async fn page(&self, after: i64) -> Result<Vec<EventLine>, TransferError> {
        struct Row {
            position: i64,
            recorded_at: DateTime<Utc>,
            sequence: i64,
            aggregate_type: String,
            aggregate_id: String,
            event_type: String,
            event_version: String,
            payload: String,
            metadata: String,
            leaf_hash: Vec<u8>,
            idempotency_key: Option<String>,
            set_size: Option<i32>,
        }
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT position, recorded_at, sequence, aggregate_type, aggregate_id, event_type, event_version,
                      payload::text AS "payload!", metadata::text AS "metadata!", leaf_hash, idempotency_key,
                      set_size
               FROM events WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3"#,
            after,
            self.plan.last,
            PAGE,
        )
        .fetch_all(self.pool)
        .await?;
        if rows.is_empty() {
            return Err(TransferError::Ledger { position: after + 1, problem: "it is missing" });
        }
        rows.into_iter()
            .map(|row| {
                let leaf_hash = row.leaf_hash.try_into().map_err(|_| TransferError::Ledger {
                    position: row.position,
                    problem: "its leaf hash is none",
                })?;
                Ok(EventLine {
                    position: row.position,
                    recorded_at_micros: row.recorded_at.timestamp_micros(),
                    sequence: row.sequence,
                    aggregate_type: row.aggregate_type,
                    aggregate_id: row.aggregate_id,
                    event_type: row.event_type,
                    event_version: row.event_version,
                    payload: row.payload,
                    metadata: row.metadata,
                    leaf_hash,
                    idempotency_key: row.idempotency_key,
                    set_size: row.set_size,
                })
            })
            .collect()
    }

    async fn bodies(&mut self, progress: &mut impl FnMut(Step)) -> Result<(), TransferError> {
        let (mut written, mut last) = (0, None);
        while let Some((entry, id)) = self.recognised_bodies(written + 1, last).await? {
            written += entry.lines;
            last = Some(id);
            self.files.push(entry);
        }
        let mut sink: Option<Sink> = None;
        loop {
            let bodies = self.body_page(last).await?;
            let Some(end) = bodies.last() else { break };
            last = Some(end.body_id);
            for body in &bodies {
                written += 1;
                self.add(&mut sink, FileKind::Bodies, written, &as_line(body))?;
            }
            progress(Step::Bodies(written));
        }
        self.files.extend(sink.map(Sink::finish).transpose()?);
        Ok(())
    }

    /// The file of an earlier run that begins with this body, if it is whole and holds the rows that are there; and
    /// its last body.
    async fn recognised_bodies(
        &self,
        first: i64,
        after: Option<Uuid>,
    ) -> Result<Option<(FileEntry, Uuid)>, TransferError> {
        let kind = FileKind::Bodies;
        let name = kind.name(first);
        if !self.folder.join(&name).exists() {
            return Ok(None);
        }
        let mut lines = Lines::open(self.folder, &name)?;
        let (mut last, mut stored) = (after, Vec::new().into_iter());
        while let Ok(Some(line)) = lines.read() {
            let row = match stored.next() {
                Some(row) => Some(row),
                None => {
                    stored = self.body_page(last).await?.into_iter();
                    stored.next()
                }
            };
            match from_line::<BodyLine>(line) {
                Ok(body) if row.as_ref() == Some(&body) => last = Some(body.body_id),
                _ => return Ok(None),
            }
        }
        let (count, bytes, sha256) = lines.finish();
        let entry = FileEntry { name, kind, first, lines: count, bytes, sha256 };
        // The last, shorter one is written again: bodies cannot tell whether it is the last.
        Ok(last.filter(|_| bytes >= self.plan.max_file_bytes).map(|last| (entry, last)))
    }

    /// Bodies of the exported events by id: new ones come in between, and do not belong to them.
    async fn body_page(&self, after: Option<Uuid>) -> Result<Vec<BodyLine>, TransferError> {
        Ok(sqlx::query_as!(
            BodyLine,
            r#"SELECT body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, position, conversation,
                      session, context_epoch, prompt_body
               FROM message_bodies
               WHERE ($1::uuid IS NULL OR body_id > $1) AND position BETWEEN $2 AND $3
               ORDER BY body_id LIMIT $4"#,
            after,
            self.plan.before.size + 1,
            self.plan.last,
            PAGE,
        )
        .fetch_all(self.pool)
        .await?)
    }

    async fn state(&mut self) -> Result<(), TransferError> {
        let mut sink = Sink::create(self.folder, FileKind::State, 1)?;
        let decisions = sqlx::query!(
            "SELECT name, position, decision, reason, operator_id, decided_at FROM projection_decisions
             WHERE position BETWEEN $1 AND $2 ORDER BY id",
            self.plan.before.size + 1,
            self.plan.last,
        )
        .fetch_all(self.pool)
        .await?;
        for row in decisions {
            sink.line(&as_line(&StateLine::Decision {
                name: row.name,
                position: row.position,
                decision: row.decision,
                reason: row.reason,
                operator_id: row.operator_id,
                decided_at_micros: row.decided_at.timestamp_micros(),
            }))?;
        }
        let epochs =
            sqlx::query!("SELECT bot_id, epoch FROM bot_leases ORDER BY bot_id").fetch_all(self.pool).await?;
        for row in epochs {
            sink.line(&as_line(&StateLine::BotEpoch { bot_id: row.bot_id, epoch: row.epoch }))?;
        }
        self.keep(sink)
    }

    async fn house(&mut self) -> Result<(), TransferError> {
        let mut sink = Sink::create(self.folder, FileKind::House, 1)?;
        let mut after: Option<(Uuid, String, i32)> = None;
        loop {
            let (owner, purpose, version) = match &after {
                Some((owner, purpose, version)) => (*owner, purpose.as_str(), *version),
                None => (Uuid::nil(), "", 0),
            };
            let keys = sqlx::query!(
                "SELECT owner, purpose, version, wrapped, master_version, created_at FROM keys.data_keys
                 WHERE (owner, purpose, version) > ($1, $2, $3) ORDER BY owner, purpose, version LIMIT $4",
                owner,
                purpose,
                version,
                PAGE,
            )
            .fetch_all(self.pool)
            .await?;
            let Some(last) = keys.last() else { break };
            after = Some((last.owner, last.purpose.clone(), last.version));
            for row in keys {
                sink.line(&as_line(&HouseLine::DataKey {
                    owner: row.owner,
                    purpose: row.purpose,
                    version: row.version,
                    wrapped: row.wrapped,
                    master_version: row.master_version,
                    created_at_micros: row.created_at.timestamp_micros(),
                }))?;
            }
        }
        let logins = sqlx::query!(
            "SELECT login, operator_id, workspace, password_hash FROM operator_logins ORDER BY login"
        )
        .fetch_all(self.pool)
        .await?;
        for row in logins {
            sink.line(&as_line(&HouseLine::Login {
                login: row.login,
                operator_id: row.operator_id,
                workspace: row.workspace,
                password_hash: row.password_hash,
            }))?;
        }
        self.keep(sink)
    }

    /// A file that may be empty is left out then.
    fn keep(&mut self, sink: Sink) -> Result<(), TransferError> {
        if sink.lines() > 0 {
            self.files.push(sink.finish()?);
        }
        Ok(())
    }
}
