use std::{collections::HashMap, path::Path};

use botledger_domain::merkle::{Frontier, Hash};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use super::{
    Encoding, FileKind, Fingerprints, Head, MANIFEST, Manifest, Step, TransferError,
    export::{absent_bodies, leaf_hashes, names, schema},
    files::Lines,
    line::{BodyLine, EventLine, HouseLine, StateLine, from_line},
    manifest::PLAN,
    presence,
};

/// Events or bodies written in one transaction, at most.
const BATCH: usize = 500;
/// Bytes of payloads, metadata or ciphertext written in one transaction, until they are more.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Leaf hashes fetched at once.
const HASHES: i64 = 10_000;

/// What is known about an export from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Tree head over all its events, as a checkpoint gives it.
    pub root: Option<Hash>,
    /// SHA-256 of its manifest, as the export told it.
    pub manifest_sha256: Option<Hash>,
}

/// A folder whose every line was read and agrees with the manifest.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What it holds.
    pub manifest: Manifest,
    /// Of the manifest.
    pub manifest_sha256: Hash,
    /// Whether that was known from elsewhere. The tree head covers events only; this covers everything.
    pub pinned: bool,
}

/// A finished import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Events that the ledger has now; their positions are those of the source.
    pub events: i64,
    /// Sealed bodies that came along.
    pub bodies: i64,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
}

/// Reads every line of an export and compares it with its hashes, its neighbours and the manifest. Needs
/// no database.
///
/// # Errors
/// Names the file and, where it can be told, the line that was cut off, changed, moved, left out or does not
/// belong there.
pub fn verify_files(
    folder: &Path,
    expected: &Expected,
    mut progress: impl FnMut(Step),
) -> Result<Verified, TransferError> {
    let (manifest, manifest_sha256) = Manifest::read(folder)?;
    if expected.manifest_sha256.is_some_and(|hash| hash != manifest_sha256) {
        return Err(TransferError::content(MANIFEST, "its SHA-256 is not the expected one"));
    }
    if expected.root.is_some_and(|root| root != manifest.after.root) {
        return Err(TransferError::content(
            MANIFEST,
            format!("its tree head over {} events is not the expected one", manifest.after.size),
        ));
    }
    for name in names(folder)? {
        let known = name == MANIFEST || name == PLAN || manifest.files.iter().any(|file| file.name == name);
        if !known {
            return Err(TransferError::content(&name, "is not named in the manifest"));
        }
    }
    let mut history = History::begin(&manifest)?;
    let mut bodies = Bodies { last: None, upto: manifest.last };
    for entry in &manifest.files {
        let mut lines = Lines::open(folder, &entry.name)?;
        while let Some(line) = lines.read()? {
            let read = match entry.kind {
                FileKind::Events => history.read(line).map(drop),
                FileKind::Bodies => bodies.read(line).map(drop),
                FileKind::State => from_line::<StateLine>(line).map(drop),
                FileKind::House => from_line::<HouseLine>(line).map(drop),
            };
            read.map_err(|problem| lines.wrong(problem))?;
        }
        lines.compare(entry)?;
        progress(Step::Compared(history.at - manifest.before.size, manifest.last - manifest.before.size));
    }
    history.end()?;
    Ok(Verified { manifest, manifest_sha256, pinned: expected.manifest_sha256.is_some() })
}

/// Events one after the other, each where it must be.
struct History<'a> {
    encoding: Encoding,
    ledger: &'a Hash,
    after: &'a Head,
    tree: Frontier,
    at: i64,
    /// Events of the append set in hand that have not come yet.
    left_of_set: i32,
}

impl<'a> History<'a> {
    fn begin(manifest: &'a Manifest) -> Result<Self, TransferError> {
        let wrong = || TransferError::content(MANIFEST, "its tree before the first event makes no sense");
        let subtrees =
            manifest.before.subtrees.iter().map(|hash| super::parse_hash(hash).map_err(|_| wrong()));
        let subtrees = subtrees.collect::<Result<Vec<Hash>, _>>()?;
        let tree = Frontier::of(manifest.before.size.unsigned_abs(), subtrees)
            .filter(|tree| tree.root() == manifest.before.root)
            .ok_or_else(wrong)?;
        Ok(Self {
            encoding: manifest.encoding,
            ledger: &manifest.source.ledger,
            after: &manifest.after,
            tree,
            at: manifest.before.size,
            left_of_set: 0,
        })
    }

    fn read(&mut self, line: &[u8]) -> Result<EventLine, String> {
        let event = EventLine::decode(line, self.encoding, self.ledger)?;
        if event.position != self.at + 1 {
            return Err(format!("is event {}, where event {} belongs", event.position, self.at + 1));
        }
        if !event.is_whole() {
            return Err(format!("event {} does not give its leaf hash: it was changed", event.position));
        }
        if event.position == 1 && event.leaf_hash != *self.ledger {
            return Err("is not the first event of the ledger that the manifest names".to_owned());
        }
        match (self.left_of_set, event.set_size) {
            (0, Some(size)) if size > 0 => self.left_of_set = size - 1,
            (left, None) if left > 0 && event.idempotency_key.is_none() => self.left_of_set = left - 1,
            _ => return Err(format!("event {} is not where its append set says", event.position)),
        }
        if event.set_size.is_some() {
            // The column is no part of the leaf; the metadata it was taken from is.
            let metadata: serde_json::Value = serde_json::from_str(&event.metadata).unwrap_or_default();
            if metadata["idempotency_key"].as_str() != event.idempotency_key.as_deref() {
                return Err(format!("event {} has not the idempotency key of its metadata", event.position));
            }
        }
        self.at = event.position;
        self.tree.push(event.leaf_hash);
        Ok(event)
    }

    fn end(&self) -> Result<(), TransferError> {
        if self.left_of_set > 0 {
            return Err(TransferError::content(MANIFEST, "the last append set is not whole"));
        }
        if self.tree.root() != self.after.root {
            return Err(TransferError::content(MANIFEST, "its tree head is not that of the events"));
        }
        Ok(())
    }
}

struct Bodies {
    last: Option<Uuid>,
    upto: i64,
}

impl Bodies {
    fn read(&mut self, line: &[u8]) -> Result<BodyLine, String> {
        let body: BodyLine = from_line(line)?;
        if self.last.is_some_and(|last| body.body_id <= last) {
            return Err(format!("body {} is not after the one before it", body.body_id));
        }
        if body.position < 1 || body.position > self.upto {
            return Err(format!("body {} belongs to no event of this export", body.body_id));
        }
        self.last = Some(body.body_id);
        Ok(body)
    }
}

/// Says what to do about an import that has begun here and has not finished.
///
/// # Errors
/// When the database fails.
pub async fn unfinished_import(database: impl PgExecutor<'_>) -> Result<Option<String>, sqlx::Error> {
    let begun = sqlx::query!(
        r#"SELECT instance, last_position, (SELECT coalesce(max(position), 0) FROM events) AS "at!"
           FROM log_imports WHERE finished_at IS NULL"#
    )
    .fetch_optional(database)
    .await?;
    Ok(begun.map(|row| {
        format!(
            "the import of the ledger of {} stands at event {} of {}: run `botledger import` again until it has finished",
            row.instance, row.at, row.last_position
        )
    }))
}

/// Brings a verified export into an empty installation: the same events at the same positions, recorded
/// when they were. Killed at any moment and started again it goes on. While it is unfinished nothing can
/// be appended.
///
/// `pool` has to be of the owner of the tables: the running product's role may only append. `own` are
/// the fingerprints of this installation's keys, or nothing where other keys are meant.
///
/// # Errors
/// When the installation is not empty or somebody works in it, the export is not one from the first event, holds
/// more than events and nobody said its SHA-256, is of a newer schema or of another import that has begun, keys
/// differ or are missing, or what is written is not what was verified.
pub async fn import(
    pool: &PgPool,
    folder: &Path,
    verified: &Verified,
    own: Option<&Fingerprints>,
    now: DateTime<Utc>,
    mut progress: impl FnMut(Step),
) -> Result<Imported, TransferError> {
    let manifest = &verified.manifest;
    let refused = |why: String| Err(TransferError::Refused(why));
    if manifest.first != 1 {
        return refused(format!(
            "the export begins at event {}: only one from the first event can be imported",
            manifest.first
        ));
    }
    let here = schema(pool).await?;
    if manifest.source.schema > here {
        return refused(format!(
            "the export is of schema {}, this installation of {here}: update it first",
            manifest.source.schema
        ));
    }
    let beside_events = manifest.files.iter().find(|file| file.kind != FileKind::Events);
    if let Some(file) = beside_events.filter(|_| !verified.pinned) {
        return refused(format!(
            "the tree head says nothing about {}: give --manifest-sha256 too, as the export told it",
            file.name
        ));
    }
    if let Some(own) = own {
        same_keys(manifest, own)?;
        if !manifest.house {
            return refused(
                "the export is without keys and logins: nobody could log in, and nothing sealed could be opened. \
                 Export --with-keys, or say --other-keys for a copy that only answers questions"
                    .to_owned(),
            );
        }
    }
    let session = presence::alone(pool).await?;
    let (resumed, bodies_done) = begin(pool, verified, now).await?;
    events(pool, folder, manifest, &mut progress).await?;
    bodies(pool, folder, manifest, bodies_done, &mut progress).await?;
    finish(pool, folder, verified, now).await?;
    drop(session);
    Ok(Imported { events: manifest.last, bodies: manifest.lines(FileKind::Bodies), resumed })
}

fn same_keys(manifest: &Manifest, own: &Fingerprints) -> Result<(), TransferError> {
    let theirs = &manifest.keys;
    if theirs.pseudonym.is_some() && theirs.pseudonym != own.pseudonym {
        return Err(TransferError::Refused(
            "keys.pseudonym_key is not the source's: everybody who writes would be a new person. Take over the \
             source's keys, or say --other-keys for a copy that only answers questions"
                .to_owned(),
        ));
    }
    if manifest.house {
        for (version, fingerprint) in &theirs.master {
            if own.master.get(version) != Some(fingerprint) {
                return Err(TransferError::Refused(format!(
                    "master key {version} is not the source's: no sealed text could be opened. Take over the \
                     source's keys, or say --other-keys"
                )));
            }
        }
    }
    Ok(())
}

/// Closes the door to appends and notes what is being imported; or finds that an earlier run did. Gives the
/// number of bodies that are in already.
async fn begin(pool: &PgPool, verified: &Verified, now: DateTime<Utc>) -> Result<(bool, i64), TransferError> {
    let manifest = &verified.manifest;
    let refused = |why: String| Err(TransferError::Refused(why));
    let mut tx = pool.begin().await?;
    alone_in_tx(&mut tx).await?;
    let earlier = sqlx::query!("SELECT manifest, instance, bodies, finished_at FROM log_imports")
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(earlier) = earlier {
        if let Some(finished) = earlier.finished_at {
            return refused(format!(
                "a ledger was imported here already, from {} at {finished}: only an empty installation takes one in",
                earlier.instance
            ));
        }
        if earlier.manifest != verified.manifest_sha256 {
            return refused(format!(
                "the import of another export, from {}, has begun here and has not finished",
                earlier.instance
            ));
        }
        return Ok((true, earlier.bodies));
    }
    let full = sqlx::query_scalar!(
        r#"SELECT what AS "what!" FROM (VALUES
               ('events', EXISTS (SELECT FROM events)),
               ('message bodies', EXISTS (SELECT FROM message_bodies)),
               ('data keys', EXISTS (SELECT FROM keys.data_keys)),
               ('operators', EXISTS (SELECT FROM operator_logins)),
               ('bots', EXISTS (SELECT FROM bot_leases)),
               ('decisions about events', EXISTS (SELECT FROM projection_decisions)),
               ('read models', EXISTS (SELECT FROM projection_checkpoints WHERE position > 0))
           ) AS found (what, there) WHERE there"#
    )
    .fetch_all(&mut *tx)
    .await?;
    if !full.is_empty() {
        return refused(format!(
            "this installation is not empty, it has {}: a ledger is imported into a new one only",
            full.join(", ")
        ));
    }
    sqlx::query!(
        "INSERT INTO log_imports (manifest, ledger, instance, last_position, root, began_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &verified.manifest_sha256[..],
        &manifest.source.ledger[..],
        manifest.source.instance,
        manifest.last,
        &manifest.after.root[..],
        now,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("ALTER TABLE events ENABLE TRIGGER events_wait_for_an_import").execute(&mut *tx).await?;
    tx.commit().await?;
    Ok((false, 0))
}

/// The ledger's own lock, as every append takes it, and the word that lets this transaction through.
async fn alone_in_tx(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(7209065211)::text AS locked, set_config('botledger.importing', 'on', true) AS word"
    )
    .fetch_one(tx)
    .await?;
    Ok(())
}

async fn events(
    pool: &PgPool,
    folder: &Path,
    manifest: &Manifest,
    progress: &mut impl FnMut(Step),
) -> Result<(), TransferError> {
    let head = sqlx::query!("SELECT position, leaf_hash FROM events ORDER BY position DESC LIMIT 1")
        .fetch_optional(pool)
        .await?;
    let head = head.map_or((0, Vec::new()), |row| (row.position, row.leaf_hash));
    // Read from the start, though what is in already is only compared: the tree grows from the first event.
    let mut history = History::begin(manifest)?;
    for entry in manifest.of_kind(FileKind::Events) {
        let mut lines = Lines::open(folder, &entry.name)?;
        let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), 0);
        while let Some(line) = lines.read()? {
            let length = line.len();
            let event = history.read(line).map_err(|problem| lines.wrong(problem))?;
            if event.position <= head.0 {
                if event.position == head.0 && event.leaf_hash[..] != head.1 {
                    return Err(lines.wrong("is not the event that stands there since the import began"));
                }
                continue;
            }
            bytes += length;
            batch.push(event);
            if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                write_events(pool, &batch, &entry.name).await?;
                progress(Step::Events(history.at, manifest.last));
                batch.clear();
                bytes = 0;
            }
        }
        // Before the file's last batch is in, the whole file is known to be the one that was verified.
        lines.compare(entry)?;
        if !batch.is_empty() {
            write_events(pool, &batch, &entry.name).await?;
            progress(Step::Events(history.at, manifest.last));
        }
    }
    history.end()
}

/// One batch: where the ledger ends, under its own lock, each stream counting on; every leaf hash is taken
/// anew by the database from what it stores.
async fn write_events(pool: &PgPool, batch: &[EventLine], file: &str) -> Result<(), TransferError> {
    let Some(first) = batch.first() else { return Ok(()) };
    let wrong = |event: &EventLine, what: &str| {
        TransferError::content(file, format!("event {} {what}", event.position))
    };
    let mut tx = pool.begin().await?;
    alone_in_tx(&mut tx).await?;
    let head = sqlx::query_scalar!(r#"SELECT coalesce(max(position), 0) AS "head!" FROM events"#)
        .fetch_one(&mut *tx)
        .await?;
    if head != first.position - 1 {
        return Err(TransferError::Refused(format!("somebody else wrote event {head} meanwhile")));
    }
    let column =
        |of: fn(&EventLine) -> &str| batch.iter().map(|event| of(event).to_owned()).collect::<Vec<_>>();
    let (types, ids) = (column(|event| &event.aggregate_type), column(|event| &event.aggregate_id));
    let heads = sqlx::query!(
        r#"SELECT s.type AS "type!", s.id AS "id!", coalesce(head.sequence, 0) AS "sequence!"
           FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::text[]) AS given (type, id)) AS s
           LEFT JOIN LATERAL (
               SELECT e.sequence FROM events e WHERE e.aggregate_type = s.type AND e.aggregate_id = s.id
               ORDER BY e.sequence DESC LIMIT 1
           ) head ON true"#,
        &types,
        &ids,
    )
    .fetch_all(&mut *tx)
    .await?;
    let mut streams: HashMap<(String, String), i64> =
        heads.into_iter().map(|row| ((row.r#type, row.id), row.sequence)).collect();
    for event in batch {
        let stream = streams.entry((event.aggregate_type.clone(), event.aggregate_id.clone())).or_default();
        if event.sequence != *stream + 1 {
            let what = format!(
                "is number {} of {}/{}, which stands at {stream}",
                event.sequence, event.aggregate_type, event.aggregate_id
            );
            return Err(wrong(event, &what));
        }
        *stream = event.sequence;
    }
    let times: Vec<DateTime<Utc>> = batch
        .iter()
        .map(|event| {
            DateTime::from_timestamp_micros(event.recorded_at_micros)
                .ok_or_else(|| wrong(event, "was recorded at no time"))
        })
        .collect::<Result<_, _>>()?;
    let leaves: Vec<Vec<u8>> = sqlx::query_scalar!(
        r#"INSERT INTO events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
               position, recorded_at, leaf_hash, idempotency_key, set_size)
           SELECT e.aggregate_type, e.aggregate_id, e.sequence, e.event_type, e.event_version, e.payload::json,
               e.metadata::json, e.position, e.recorded_at,
               event_leaf_hash(e.position, e.micros, e.sequence, e.aggregate_type, e.aggregate_id, e.event_type,
                   e.event_version, e.payload, e.metadata),
               e.idempotency_key, e.set_size
           FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                       $8::bigint[], $9::timestamptz[], $10::bigint[], $11::text[], $12::integer[])
               AS e (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                     position, recorded_at, micros, idempotency_key, set_size)
           ORDER BY e.position
           RETURNING leaf_hash"#,
        &types,
        &ids,
        &batch.iter().map(|event| event.sequence).collect::<Vec<_>>(),
        &column(|event| &event.event_type),
        &column(|event| &event.event_version),
        &column(|event| &event.payload),
        &column(|event| &event.metadata),
        &batch.iter().map(|event| event.position).collect::<Vec<_>>(),
        &times,
        &batch.iter().map(|event| event.recorded_at_micros).collect::<Vec<_>>(),
        &batch.iter().map(|event| event.idempotency_key.clone()).collect::<Vec<_>>() as &[Option<String>],
        &batch.iter().map(|event| event.set_size).collect::<Vec<_>>() as &[Option<i32>],
    )
    .fetch_all(&mut *tx)
    .await?;
    for (event, stored) in batch.iter().zip(&leaves) {
        if event.leaf_hash[..] != stored[..] {
            return Err(wrong(event, "does not give its leaf hash once it is stored"));
        }
    }
    tx.commit().await?;
    Ok(())
}

async fn bodies(
    pool: &PgPool,
    folder: &Path,
    manifest: &Manifest,
    done: i64,
    progress: &mut impl FnMut(Step),
) -> Result<(), TransferError> {
    let (mut written, mut reader) = (0, Bodies { last: None, upto: manifest.last });
    for entry in manifest.of_kind(FileKind::Bodies) {
        let mut lines = Lines::open(folder, &entry.name)?;
        let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), 0);
        while let Some(line) = lines.read()? {
            let body = reader.read(line).map_err(|problem| lines.wrong(problem))?;
            written += 1;
            if written <= done {
                continue;
            }
            bytes += body.ciphertext.len();
            batch.push(body);
            if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                write_bodies(pool, &batch, written, &entry.name).await?;
                progress(Step::Bodies(written));
                batch.clear();
                bytes = 0;
            }
        }
        lines.compare(entry)?;
        if !batch.is_empty() {
            write_bodies(pool, &batch, written, &entry.name).await?;
            progress(Step::Bodies(written));
        }
    }
    Ok(())
}

/// One batch, and how many bodies are in with it. Each has to be the ciphertext that an event of its append set
/// commits to.
async fn write_bodies(
    pool: &PgPool,
    batch: &[BodyLine],
    written: i64,
    file: &str,
) -> Result<(), TransferError> {
    let mut tx = pool.begin().await?;
    let positions: Vec<i64> = batch.iter().map(|body| body.position).collect();
    let hashes: Vec<String> =
        batch.iter().map(|body| format!("\"{}\"", hex::encode(Sha256::digest(&body.ciphertext)))).collect();
    let stranger = sqlx::query_scalar!(
        r#"SELECT b.number AS "number!"
           FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY AS b (position, hash, number)
           WHERE NOT EXISTS (
               SELECT FROM events e
               WHERE e.position BETWEEN b.position
                     AND b.position + (SELECT s.set_size FROM events s WHERE s.position = b.position) - 1
                 AND position(b.hash IN e.payload::text) > 0
           )
           ORDER BY b.number LIMIT 1"#,
        &positions,
        &hashes,
    )
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(body) = stranger.and_then(|number| batch.get(usize::try_from(number - 1).ok()?)) {
        let problem =
            format!("body {} is not the one that its event at {} knows", body.body_id, body.position);
        return Err(TransferError::content(file, problem));
    }
    let ids = |of: fn(&BodyLine) -> Uuid| batch.iter().map(of).collect::<Vec<_>>();
    sqlx::query!(
        "INSERT INTO message_bodies (body_id, owner, purpose, key_version, nonce, ciphertext, turn_id, position,
             conversation, session, context_epoch, prompt_body)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::bytea[], $6::bytea[],
             $7::uuid[], $8::bigint[], $9::uuid[], $10::integer[], $11::integer[], $12::uuid[])",
        &ids(|body| body.body_id),
        &ids(|body| body.owner),
        &batch.iter().map(|body| body.purpose.clone()).collect::<Vec<_>>(),
        &batch.iter().map(|body| body.key_version).collect::<Vec<_>>(),
        &batch.iter().map(|body| body.nonce.clone()).collect::<Vec<_>>(),
        &batch.iter().map(|body| body.ciphertext.clone()).collect::<Vec<_>>(),
        &ids(|body| body.turn_id),
        &positions,
        &batch.iter().map(|body| body.conversation).collect::<Vec<_>>() as &[Option<Uuid>],
        &batch.iter().map(|body| body.session).collect::<Vec<_>>() as &[Option<i32>],
        &batch.iter().map(|body| body.context_epoch).collect::<Vec<_>>() as &[Option<i32>],
        &batch.iter().map(|body| body.prompt_body).collect::<Vec<_>>() as &[Option<Uuid>],
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!("UPDATE log_imports SET bodies = $1", written).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// The rest in one transaction, a last comparison with what the database holds now, and the door opens.
async fn finish(
    pool: &PgPool,
    folder: &Path,
    verified: &Verified,
    now: DateTime<Utc>,
) -> Result<(), TransferError> {
    let manifest = &verified.manifest;
    let (mut tree, mut at) = (Frontier::default(), 0);
    while at < manifest.last {
        for leaf in leaf_hashes(pool, at, HASHES).await? {
            tree.push(leaf);
            at += 1;
        }
    }
    if at != manifest.last || tree.root() != manifest.after.root {
        return Err(TransferError::Refused(format!(
            "the ledger of {at} events that stands here now is not the exported one"
        )));
    }
    let mut tx = pool.begin().await?;
    let absent = absent_bodies(&mut *tx, 0, manifest.last).await?;
    if manifest.bodies && absent != manifest.bodies_absent {
        return Err(TransferError::Refused(format!(
            "{absent} sealed bodies that events name are not in the files, {} of them were not there at the source",
            manifest.bodies_absent
        )));
    }
    for entry in &manifest.files {
        if !matches!(entry.kind, FileKind::State | FileKind::House) {
            continue;
        }
        let mut lines = Lines::open(folder, &entry.name)?;
        while let Some(line) = lines.read()? {
            let written = match entry.kind {
                FileKind::State => {
                    write_state(&mut tx, &from_line(line).map_err(|problem| lines.wrong(problem))?).await
                }
                _ => write_house(&mut tx, &from_line(line).map_err(|problem| lines.wrong(problem))?).await,
            };
            // What the database refuses is a line that no export writes.
            written.map_err(|error| match error.as_database_error() {
                Some(refusal) => lines.wrong(refusal.message()),
                None => TransferError::Database(error),
            })?;
        }
        lines.compare(entry)?;
    }
    sqlx::query!("UPDATE log_imports SET finished_at = $1", now).execute(&mut *tx).await?;
    sqlx::query!("ALTER TABLE events DISABLE TRIGGER events_wait_for_an_import").execute(&mut *tx).await?;
    let notified =
        sqlx::query!("SELECT pg_notify('botledger_events', $1)::text AS told", manifest.last.to_string());
    notified.fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

async fn write_state(tx: &mut PgConnection, line: &StateLine) -> Result<(), sqlx::Error> {
    match line {
        StateLine::Decision { name, position, decision, reason, operator_id, decided_at_micros } => {
            sqlx::query!(
                "INSERT INTO projection_decisions (name, position, decision, reason, operator_id, decided_at)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                name,
                position,
                decision,
                reason,
                *operator_id,
                DateTime::from_timestamp_micros(*decided_at_micros).unwrap_or_default(),
            )
            .execute(tx)
            .await?;
        }
        StateLine::BotEpoch { bot_id, epoch } => {
            // Nobody holds it; whoever takes it gets a higher epoch than any before.
            sqlx::query!(
                "INSERT INTO bot_leases (bot_id, instance, epoch, expires_at)
                 VALUES ($1, '00000000-0000-0000-0000-000000000000', $2, '-infinity')
                 ON CONFLICT (bot_id) DO UPDATE SET epoch = greatest(bot_leases.epoch, excluded.epoch)",
                bot_id,
                epoch,
            )
            .execute(tx)
            .await?;
        }
    }
    Ok(())
}

async fn write_house(tx: &mut PgConnection, line: &HouseLine) -> Result<(), sqlx::Error> {
    match line {
        HouseLine::DataKey { owner, purpose, version, wrapped, master_version, created_at_micros } => {
            sqlx::query!(
                "INSERT INTO keys.data_keys (owner, purpose, version, wrapped, master_version, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                owner,
                purpose,
                version,
                wrapped,
                master_version,
                DateTime::from_timestamp_micros(*created_at_micros).unwrap_or_default(),
            )
            .execute(tx)
            .await?;
        }
        HouseLine::Login { login, operator_id, workspace, password_hash } => {
            sqlx::query!(
                "INSERT INTO operator_logins (login, operator_id, workspace, password_hash) VALUES ($1, $2, $3, $4)",
                login,
                operator_id,
                workspace,
                password_hash.as_deref(),
            )
            .execute(tx)
            .await?;
        }
    }
    Ok(())
}
