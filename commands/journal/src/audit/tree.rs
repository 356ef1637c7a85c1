//! Tiles, checkpoints and proofs over the ledger in the database.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use botledger_domain::merkle::{self, Frontier, Hash, Node};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, PgTransaction};

use super::{
    Checkpoint, ConsistencyProof, InclusionProof, MalformedCheckpoint, NoWitness, SignedNote, Signer,
    Unverified, VerifierKey, witness::origin_of,
};

/// Hashes of a tile.
pub(super) const TILE: u64 = 256;
/// Two to this power are in a tile.
const TILE_HEIGHT: u32 = 8;
/// Tiles filled by one statement, and read at once to be filled.
const TILES_AT_ONCE: usize = 64;
/// Stored heads looked at by one statement.
const HEADS_AT_ONCE: i64 = 100;
/// Held by whoever signs; one below it is the ledger's own.
const SIGNING_LOCK: i64 = 7_209_065_212;

/// Proofs that cannot be given, or heads that will not be signed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The database failed.
    #[error("the database did not answer")]
    Database(#[from] sqlx::Error),
    /// Fewer events than a signed head counts.
    #[error("the ledger ends at position {head}, but a head over {size} events was signed: it was cut off")]
    Truncated {
        /// The ledger's last position.
        head: u64,
        /// Of the newest checkpoint.
        size: u64,
    },
    /// The events do not give the head that was signed.
    #[error(
        "the first {size} events do not give the head that was signed over them; find out where with `botledger audit verify`"
    )]
    Rewritten {
        /// Of the checkpoint.
        size: u64,
    },
    /// There are stored heads, and none carries a signature of the log.
    #[error(
        "no stored checkpoint is the log's, and not the newest, over {size} events ({source}): no head will follow it. After a change of keys the old public key belongs into `audit.previous_keys`"
    )]
    Forged {
        /// Of the row.
        size: u64,
        /// What is wrong.
        #[source]
        source: Unverified,
    },
    /// Hashes that should be there are not.
    #[error(
        "hash {number} of level {level} of the tree is not there; find out more with `botledger audit verify`"
    )]
    Missing {
        /// 0 for events, then for tiles of the level below.
        level: i16,
        /// From 0.
        number: u64,
    },
    /// A stored tile is not what the events below it give.
    #[error(
        "tile {number} of level {level} of the stored tree is not what the events give: nothing is signed until the owner has emptied `log_tiles`, which is filled again"
    )]
    Tile {
        /// 0 for leaves.
        level: i16,
        /// From 0.
        number: u64,
    },
    /// A log that has begun does not begin.
    #[error("this log has begun already: its newest head covers {size} events")]
    Begun {
        /// Of the head.
        size: u64,
    },
    /// A row that is not ours stands where the next head belongs.
    #[error(
        "somebody has stored another head over {size} events: the next one is signed with the next event; see `botledger audit verify`"
    )]
    Taken {
        /// Of the row.
        size: u64,
    },
    /// A log keeps its name.
    #[error(
        "this log is {was}: `audit.origin` must stay that, because a new name is a new log to everybody outside; after a real loss `botledger audit checkpoint --begin` begins one"
    )]
    OtherOrigin {
        /// In the newest checkpoint.
        was: String,
    },
    /// No such event under a checkpoint.
    #[error("there is no event at position {position} among the first {size}")]
    NoSuchEvent {
        /// Asked for.
        position: u64,
        /// Of the checkpoint.
        size: u64,
    },
    /// The later tree is the smaller one.
    #[error("a tree of {new} events cannot begin with one of {old}")]
    Backwards {
        /// The earlier size.
        old: u64,
        /// The later size.
        new: u64,
    },
    /// A stored checkpoint does not parse.
    #[error("the stored checkpoint over {size} events is damaged")]
    Malformed {
        /// Of the row.
        size: u64,
        /// What is wrong.
        #[source]
        source: MalformedCheckpoint,
    },
    /// A name or text that cannot be signed.
    #[error("`audit.origin` does not do for a name: {0}")]
    Origin(MalformedCheckpoint),
}

/// With what a log signs, and by what it knows its own heads again.
pub struct LogKeys {
    signer: Signer,
    known: Vec<VerifierKey>,
}

impl LogKeys {
    /// A key, and the public halves of those before it.
    ///
    /// # Errors
    /// When they do not share one name, which is the log's.
    pub fn new(signer: Signer, previous: Vec<VerifierKey>) -> Result<Self, NoWitness> {
        let mut known = vec![signer.verifier().clone()];
        known.extend(previous);
        origin_of(&known)?;
        Ok(Self { signer, known })
    }

    /// All public keys, that of today first.
    #[must_use]
    pub fn known(&self) -> &[VerifierKey] {
        &self.known
    }

    /// The name of the log.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.signer.verifier().name()
    }

    /// A stored head that is the log's own.
    fn own(&self, row: &CheckpointRow) -> Result<StoredCheckpoint, TreeError> {
        let size = row.size.unsigned_abs();
        let stored = row.read().map_err(|source| TreeError::Malformed { size, source })?;
        if stored.checkpoint.origin != self.origin() {
            return Err(TreeError::OtherOrigin { was: stored.checkpoint.origin });
        }
        // Otherwise a head put there by somebody else would give their history our signature.
        stored.note.verify(&self.known).map_err(|source| TreeError::Forged { size, source })?;
        Ok(stored)
    }
}

/// What came of a try to sign.
#[derive(Clone, Debug)]
pub enum Signed {
    /// A new head.
    New(StoredCheckpoint),
    /// The newest one still covers everything; none in an empty ledger.
    Unchanged(Option<StoredCheckpoint>),
    /// Another process is signing.
    Busy,
}

/// A signed head as it is kept.
#[derive(Clone, Debug)]
pub struct StoredCheckpoint {
    /// What was signed.
    pub checkpoint: Checkpoint,
    /// With its signatures and those of witnesses, which nobody has verified yet.
    pub note: SignedNote,
    /// By the clock of who signed.
    pub signed_at: DateTime<Utc>,
}

pub(super) struct CheckpointRow {
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    pub(super) note: String,
    pub(super) signed_at: DateTime<Utc>,
    /// Lines of witnesses, each ending in a newline.
    pub(super) cosignatures: Vec<String>,
}

impl CheckpointRow {
    /// The note says what counts; the columns beside it are for looking up.
    pub(super) fn read(&self) -> Result<StoredCheckpoint, MalformedCheckpoint> {
        let mut note: SignedNote = self.note.parse()?;
        let checkpoint: Checkpoint = note.text().parse()?;
        let own = format!("\u{2014} {} ", checkpoint.origin);
        for line in &self.cosignatures {
            // Nobody's line speaks for the log. Lines that are none count as little as those of strangers.
            let one = line.find('\n') == line.len().checked_sub(1) && !line.starts_with(&own);
            if one {
                note = note.clone().with_signatures(line).unwrap_or(note);
            }
        }
        if checkpoint.size != self.size.unsigned_abs() || checkpoint.root[..] != self.root {
            return Err(MalformedCheckpoint::Text("what the columns beside it say"));
        }
        Ok(StoredCheckpoint { checkpoint, note, signed_at: self.signed_at })
    }
}

/// The tree over the ledger of one database.
#[derive(Clone)]
pub struct LogTree {
    pub(super) pool: PgPool,
    /// Size of the foreign head that was told last, so that it is told once.
    foreign: Arc<AtomicI64>,
}

impl LogTree {
    /// Over the ledger that the pool's connections see.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, foreign: Arc::new(AtomicI64::new(0)) }
    }

    /// Signs a head over all events that are there, after making sure that they begin with those of the
    /// newest one, which must be the log's own, and with those of `seen`: a head that this process has
    /// in mind, whatever the tables say today. Stored heads that are not the log's are stepped over when there
    /// is one to follow. Durable when it returns, and so are the events.
    ///
    /// # Errors
    /// See [`TreeError`]; nothing was signed.
    pub async fn sign(
        &self,
        keys: &LogKeys,
        seen: Option<&Checkpoint>,
        now: DateTime<Utc>,
    ) -> Result<Signed, TreeError> {
        self.try_to_sign(keys, seen, false, now).await
    }

    /// The same where no head is to be followed: a new log begins under the name of `keys`, whatever other
    /// heads are stored. One of that log must not be there yet.
    ///
    /// # Errors
    /// See [`TreeError`]; nothing was signed.
    pub async fn begin(&self, keys: &LogKeys, now: DateTime<Utc>) -> Result<Signed, TreeError> {
        self.try_to_sign(keys, None, true, now).await
    }

    async fn try_to_sign(
        &self,
        keys: &LogKeys,
        seen: Option<&Checkpoint>,
        begin: bool,
        now: DateTime<Utc>,
    ) -> Result<Signed, TreeError> {
        let mut tx = self.pool.begin().await?;
        let signed = self.sign_in_tx(&mut tx, keys, seen, begin, now).await;
        // Not by dropping: the lock would be held until the connection is used again.
        match signed {
            Ok(_) => tx.commit().await?,
            Err(_) => tx.rollback().await?,
        }
        signed
    }

    /// The newest checkpoint over events that are there, by what its table says.
    ///
    /// # Errors
    /// When the database fails or it is damaged.
    pub async fn newest(&self) -> Result<Option<StoredCheckpoint>, TreeError> {
        let row = sqlx::query_as!(
            CheckpointRow,
            r#"SELECT size, root, note, signed_at,
                ARRAY(SELECT line FROM log_cosignatures w
                      WHERE w.size = c.size AND starts_with(line, '— ' || witness || ' ') ORDER BY witness) AS "cosignatures!"
             FROM log_checkpoints c WHERE size <= (SELECT max(position) FROM events) ORDER BY size DESC LIMIT 1"#,
        );
        read(row.fetch_optional(&self.pool).await?)
    }

    /// The newest checkpoint that is the log's own; those of others are stepped over.
    ///
    /// # Errors
    /// When the database fails, or there are checkpoints and none is the log's.
    pub async fn newest_of(&self, keys: &LogKeys) -> Result<Option<StoredCheckpoint>, TreeError> {
        self.own(&mut *self.pool.acquire().await?, keys).await
    }

    async fn own(
        &self,
        connection: &mut PgConnection,
        keys: &LogKeys,
    ) -> Result<Option<StoredCheckpoint>, TreeError> {
        let (mut upto, mut newest, mut foreign) = (i64::MAX, None, None);
        loop {
            let rows = sqlx::query_as!(
                CheckpointRow,
                r#"SELECT size, root, note, signed_at, '{}'::text[] AS "cosignatures!"
                 FROM log_checkpoints WHERE size <= $1 ORDER BY size DESC LIMIT $2"#,
                upto,
                HEADS_AT_ONCE,
            )
            .fetch_all(&mut *connection)
            .await?;
            let Some(last) = rows.last() else { break };
            upto = last.size - 1;
            for row in &rows {
                let reason = match keys.own(row) {
                    Ok(stored) => {
                        newest = Some(stored);
                        break;
                    }
                    // A log that ended under another name is nobody's attack once this one has begun.
                    Err(reason @ TreeError::OtherOrigin { .. }) => reason,
                    Err(reason) => {
                        if self.foreign.swap(row.size, Ordering::Relaxed) != row.size {
                            tracing::error!(error = %reason, size = row.size, "a stored head is not the log's");
                        }
                        reason
                    }
                };
                foreign.get_or_insert(reason);
            }
            if newest.is_some() {
                break;
            }
        }
        match (newest, foreign) {
            (None, Some(reason)) => Err(reason),
            (newest, _) => Ok(newest),
        }
    }

    /// The checkpoint over exactly so many events.
    ///
    /// # Errors
    /// When the database fails or it is damaged.
    pub async fn at(&self, size: u64) -> Result<Option<StoredCheckpoint>, TreeError> {
        let row = sqlx::query_as!(
            CheckpointRow,
            r#"SELECT size, root, note, signed_at,
                ARRAY(SELECT line FROM log_cosignatures w
                      WHERE w.size = c.size AND starts_with(line, '— ' || witness || ' ') ORDER BY witness) AS "cosignatures!"
             FROM log_checkpoints c WHERE size = $1"#,
            number(size),
        );
        read(row.fetch_optional(&self.pool).await?)
    }

    /// The newest checkpoint that a witness has cosigned, by what its table says: to be verified.
    ///
    /// # Errors
    /// When the database fails or it is damaged.
    pub async fn newest_cosigned(&self, witness: &str) -> Result<Option<StoredCheckpoint>, TreeError> {
        let size = sqlx::query_scalar!("SELECT max(size) FROM log_cosignatures WHERE witness = $1", witness)
            .fetch_one(&self.pool)
            .await?;
        match size {
            Some(size) => self.at(size.unsigned_abs()).await,
            None => Ok(None),
        }
    }

    /// Keeps the signature line of a witness, newline included, under the checkpoint over so many events.
    /// A second one of the same witness is not kept.
    ///
    /// # Errors
    /// When the database fails, or there is no such checkpoint.
    pub async fn keep_cosignature(&self, size: u64, witness: &str, line: &str) -> Result<(), TreeError> {
        sqlx::query!(
            "INSERT INTO log_cosignatures (size, witness, line) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            number(size),
            witness,
            line,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The proof that the event at a position is under a checkpoint. It has been tried: what it is built
    /// from gives the checkpoint's root.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn prove(&self, position: u64, under: &StoredCheckpoint) -> Result<InclusionProof, TreeError> {
        let Checkpoint { size, root, .. } = under.checkpoint;
        let index = position.wrapping_sub(1);
        let ranges =
            merkle::inclusion_ranges(index, size).ok_or(TreeError::NoSuchEvent { position, size })?;
        let mut connection = self.pool.acquire().await?;
        let leaf = range_hash(&mut connection, index..position).await?;
        let hashes = ranges_hashes(&mut connection, ranges).await?;
        if !merkle::verify_inclusion(&leaf, index, size, &hashes, &root) {
            return Err(TreeError::Rewritten { size });
        }
        Ok(InclusionProof { index, hashes, checkpoint: under.note.clone() })
    }

    /// The proof that the tree of a checkpoint begins with that of an earlier one. It has been tried.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub async fn consistency(
        &self,
        old: &Checkpoint,
        new: &StoredCheckpoint,
    ) -> Result<ConsistencyProof, TreeError> {
        let Checkpoint { size, root, .. } = new.checkpoint;
        let ranges = merkle::consistency_ranges(old.size, size)
            .ok_or(TreeError::Backwards { old: old.size, new: size })?;
        let mut connection = self.pool.acquire().await?;
        let hashes = ranges_hashes(&mut connection, ranges).await?;
        if !merkle::verify_consistency(old.size, &old.root, size, &root, &hashes) {
            return Err(TreeError::Rewritten { size });
        }
        Ok(ConsistencyProof { old: old.size, hashes, checkpoint: new.note.clone() })
    }
}

impl LogTree {
    async fn sign_in_tx(
        &self,
        tx: &mut PgTransaction<'_>,
        keys: &LogKeys,
        seen: Option<&Checkpoint>,
        begin: bool,
        now: DateTime<Utc>,
    ) -> Result<Signed, TreeError> {
        // A head that was told must outlive a crash, whatever the role's setting; flushing it flushes the
        // events before it, which may have been seen before they were durable.
        sqlx::query!("SET LOCAL synchronous_commit = on").execute(&mut **tx).await?;
        let alone = sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "alone!""#, SIGNING_LOCK)
            .fetch_one(&mut **tx)
            .await?;
        if !alone {
            return Ok(Signed::Busy);
        }
        let newest =
            match self.own(tx, keys).await {
                Err(
                    TreeError::Forged { .. } | TreeError::Malformed { .. } | TreeError::OtherOrigin { .. },
                ) if begin || seen.is_some() => None,
                Ok(Some(newest)) if begin => {
                    return Err(TreeError::Begun { size: newest.checkpoint.size });
                }
                newest => newest?,
            };
        let size = head(tx).await?;
        let known = newest.as_ref().map_or(0, |newest| newest.checkpoint.size);
        let earlier = newest.as_ref().map(|newest| &newest.checkpoint);
        for Checkpoint { size: earlier, .. } in earlier.into_iter().chain(seen) {
            if size < *earlier {
                return Err(TreeError::Truncated { head: size, size: *earlier });
            }
        }
        if size == known && earlier == seen && filled(tx, size).await? {
            return Ok(Signed::Unchanged(newest));
        }
        let base = earlier.into_iter().chain(seen).max_by_key(|head| head.size);
        let grown = grow(tx, base, size).await?;
        fill(tx, &grown.tiles).await?;
        for head in earlier.into_iter().chain(seen).filter(|head| Some(*head) != base) {
            if range_hash(tx, 0..head.size).await? != head.root {
                return Err(TreeError::Rewritten { size: head.size });
            }
        }
        if size == known {
            return Ok(Signed::Unchanged(newest));
        }
        let checkpoint = Checkpoint { origin: keys.origin().to_owned(), size, root: grown.root };
        let seconds = now.timestamp().unsigned_abs();
        let note = SignedNote::sign(checkpoint.to_string(), &keys.signer, seconds)
            .map_err(|error| TreeError::Origin(error.into()))?;
        let stored = sqlx::query!(
            "INSERT INTO log_checkpoints (size, root, note, signed_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (size) DO NOTHING",
            number(size),
            &checkpoint.root[..],
            note.to_string(),
            now,
        )
        .execute(&mut **tx)
        .await?;
        if stored.rows_affected() == 0 {
            return Err(TreeError::Taken { size });
        }
        Ok(Signed::New(StoredCheckpoint { checkpoint, note, signed_at: now }))
    }
}

/// Positions and sizes are `bigint` there; none comes near the end of it.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) async fn head(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let head = sqlx::query_scalar!("SELECT max(position) FROM events").fetch_one(connection).await?;
    Ok(head.unwrap_or(0).unsigned_abs())
}

fn read(row: Option<CheckpointRow>) -> Result<Option<StoredCheckpoint>, TreeError> {
    let read = |row: CheckpointRow| {
        row.read().map_err(|source| TreeError::Malformed { size: row.size.unsigned_abs(), source })
    };
    row.map(read).transpose()
}

struct HashRow {
    number: i64,
    hash: Vec<u8>,
}

/// Neighbouring hashes of one level: leaf hashes of events at 0, roots of the tiles below above it.
async fn hashes(
    connection: &mut PgConnection,
    level: i16,
    from: u64,
    count: u64,
) -> Result<Vec<Hash>, TreeError> {
    let (first, end) = (number(from), number(from + count));
    let rows = if level == 0 {
        sqlx::query_as!(
            HashRow,
            r#"SELECT position - 1 AS "number!", leaf_hash AS hash FROM events
             WHERE position > $1 AND position <= $2 ORDER BY position"#,
            first,
            end,
        )
        .fetch_all(connection)
        .await?
    } else {
        sqlx::query_as!(
            HashRow,
            "SELECT number, root AS hash FROM log_tiles
             WHERE level = $1 AND number >= $2 AND number < $3 ORDER BY number",
            level - 1,
            first,
            end,
        )
        .fetch_all(connection)
        .await?
    };
    let mut hashes = Vec::with_capacity(rows.len());
    for (place, expected) in (from..from + count).enumerate() {
        let hash = rows
            .get(place)
            .filter(|row| row.number.unsigned_abs() == expected)
            .and_then(|row| <Hash>::try_from(&row.hash[..]).ok());
        hashes.push(hash.ok_or(TreeError::Missing { level, number: expected })?);
    }
    Ok(hashes)
}

async fn subtree_hash(connection: &mut PgConnection, node: Node) -> Result<Hash, TreeError> {
    let (level, above) = (node.height / TILE_HEIGHT, node.height % TILE_HEIGHT);
    let level = i16::try_from(level).expect("64 levels of hashes are 8 of tiles");
    let hashes = hashes(connection, level, node.index << above, 1 << above).await?;
    Ok(merkle::fold(&hashes).expect("a power of two was asked for and came"))
}

async fn range_hash(connection: &mut PgConnection, range: Range<u64>) -> Result<Hash, TreeError> {
    let mut hashes = Vec::new();
    for node in merkle::cover(range) {
        hashes.push(subtree_hash(connection, node).await?);
    }
    Ok(merkle::join(&hashes))
}

async fn ranges_hashes(
    connection: &mut PgConnection,
    ranges: Vec<Range<u64>>,
) -> Result<Vec<Hash>, TreeError> {
    let mut hashes = Vec::with_capacity(ranges.len());
    for range in ranges {
        hashes.push(range_hash(connection, range).await?);
    }
    Ok(hashes)
}

/// The tree after new leaves.
struct Grown {
    root: Hash,
    /// By level, the first one's number and the roots of all tiles that were completed on the way.
    tiles: BTreeMap<i16, (u64, Vec<Hash>)>,
}

/// The tree over `size` events, which must begin with `base`. Tiles give only what `base` has signed: what
/// comes after it is computed from the hashes beside the events, whatever tiles there are.
async fn grow(
    connection: &mut PgConnection,
    base: Option<&Checkpoint>,
    size: u64,
) -> Result<Grown, TreeError> {
    let (known, root) = base.map_or((0, merkle::empty_root()), |base| (base.size, base.root));
    let start = known - known % TILE;
    let mut subtrees = Vec::new();
    let mut tree = Frontier::default();
    for node in merkle::cover(0..start) {
        match subtree_hash(connection, node).await {
            Ok(hash) => subtrees.push(hash),
            // An emptied table: everything from the first event on.
            Err(TreeError::Missing { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    if let Some(resumed) = Frontier::resume(start, subtrees) {
        tree = resumed;
    }
    let mut tiles = BTreeMap::new();
    loop {
        let done = tree.size();
        if done == known && tree.root() != root {
            return Err(TreeError::Rewritten { size: known });
        }
        if done == size {
            return Ok(Grown { root: tree.root(), tiles });
        }
        let stop = if done < known { known } else { size };
        let count = (TILES_AT_ONCE as u64 * TILE).min(stop - done);
        for leaf in hashes(connection, 0, done, count).await? {
            tree.push_telling(leaf, |node, hash| {
                if node.height % TILE_HEIGHT == 0 {
                    let level = i16::try_from(node.height / TILE_HEIGHT - 1)
                        .expect("64 levels of hashes are 8 of tiles");
                    tiles.entry(level).or_insert((node.index, Vec::new())).1.push(*hash);
                }
            });
        }
    }
}

/// Fills tiles, and makes sure that they are those that were computed.
async fn fill(
    connection: &mut PgConnection,
    tiles: &BTreeMap<i16, (u64, Vec<Hash>)>,
) -> Result<(), TreeError> {
    for (level, (first, roots)) in tiles {
        for (place, roots) in (0..).zip(roots.chunks(TILES_AT_ONCE)) {
            let first = first + place * TILES_AT_ONCE as u64;
            let stored = sqlx::query_as!(
                HashRow,
                r#"SELECT tile AS "number!", tile_root AS "hash!" FROM log_tiles_fill($1, $2, $3)"#,
                level,
                number(first),
                number(first + roots.len() as u64),
            )
            .fetch_all(&mut *connection)
            .await?;
            for (tile, root) in (first..).zip(roots) {
                let stored = stored.iter().find(|row| row.number.unsigned_abs() == tile);
                if stored.is_none_or(|row| row.hash != root[..]) {
                    return Err(TreeError::Tile { level: *level, number: tile });
                }
            }
        }
    }
    Ok(())
}

/// Whether the last tile that so many events complete is there; the owner may have emptied the table.
async fn filled(connection: &mut PgConnection, size: u64) -> Result<bool, TreeError> {
    let Some(last) = (size / TILE).checked_sub(1) else { return Ok(true) };
    let there = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM log_tiles WHERE level = 0 AND number = $1) AS "there!""#,
        number(last),
    );
    Ok(there.fetch_one(connection).await?)
}
