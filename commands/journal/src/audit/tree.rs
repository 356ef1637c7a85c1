//! Tiles, checkpoints and proofs over the ledger in the database.

use std::ops::Range;

use botledger_domain::merkle::{self, Hash, Node};
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, PgTransaction};

use super::{Checkpoint, InclusionProof, MalformedCheckpoint, SignedNote, Signer};

/// Hashes of a tile.
pub(super) const TILE: u64 = 256;
/// Two to this power are in a tile.
const TILE_HEIGHT: u32 = 8;
/// Tiles filled by one statement.
const TILES_AT_ONCE: u64 = 64;
/// Levels of tiles that positions can fill.
const LEVELS: i16 = 8;
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
    /// A log keeps its name.
    #[error(
        "this log is {was}: `audit.origin` must stay that, because a new name is a new log to everybody outside"
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
    /// With its signatures, which nobody has verified yet.
    pub note: SignedNote,
    /// By the clock of who signed.
    pub signed_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
pub(super) struct CheckpointRow {
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    pub(super) note: String,
    pub(super) signed_at: DateTime<Utc>,
}

impl CheckpointRow {
    /// The note says what counts; the columns beside it are for looking up.
    pub(super) fn read(&self) -> Result<StoredCheckpoint, MalformedCheckpoint> {
        let note: SignedNote = self.note.parse()?;
        let checkpoint: Checkpoint = note.text().parse()?;
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
}

impl LogTree {
    /// Over the ledger that the pool's connections see.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Signs a head over all events that are there, after making sure that they begin with those of the
    /// newest one. The signer's name is the log's. Durable when it returns, and so are the events: they
    /// committed before.
    ///
    /// # Errors
    /// See [`TreeError`]; nothing was signed.
    pub async fn sign(&self, signer: &Signer, now: DateTime<Utc>) -> Result<Signed, TreeError> {
        let mut tx = self.pool.begin().await?;
        let signed = sign_in_tx(&mut tx, signer, now).await;
        // Not by dropping: the lock would be held until the connection is used again.
        match signed {
            Ok(_) => tx.commit().await?,
            Err(_) => tx.rollback().await?,
        }
        signed
    }

    /// The newest checkpoint.
    ///
    /// # Errors
    /// When the database fails or it is damaged.
    pub async fn newest(&self) -> Result<Option<StoredCheckpoint>, TreeError> {
        newest(&mut *self.pool.acquire().await?).await
    }

    /// The checkpoint over exactly so many events.
    ///
    /// # Errors
    /// When the database fails or it is damaged.
    pub async fn at(&self, size: u64) -> Result<Option<StoredCheckpoint>, TreeError> {
        let query = sqlx::query_as("SELECT size, root, note, signed_at FROM log_checkpoints WHERE size = $1");
        read(query.bind(number(size)).fetch_optional(&self.pool).await?)
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
    pub async fn consistency(&self, old: &Checkpoint, new: &Checkpoint) -> Result<Vec<Hash>, TreeError> {
        let ranges = merkle::consistency_ranges(old.size, new.size)
            .ok_or(TreeError::Backwards { old: old.size, new: new.size })?;
        let mut connection = self.pool.acquire().await?;
        let hashes = ranges_hashes(&mut connection, ranges).await?;
        if !merkle::verify_consistency(old.size, &old.root, new.size, &new.root, &hashes) {
            return Err(TreeError::Rewritten { size: new.size });
        }
        Ok(hashes)
    }
}

async fn sign_in_tx(
    tx: &mut PgTransaction<'_>,
    signer: &Signer,
    now: DateTime<Utc>,
) -> Result<Signed, TreeError> {
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
        .bind(SIGNING_LOCK)
        .fetch_one(&mut **tx)
        .await?;
    if !alone {
        return Ok(Signed::Busy);
    }
    let newest = newest(tx).await?;
    let size = head(tx).await?;
    let origin = signer.verifier().name().to_owned();
    let known = newest.as_ref().map_or(0, |newest| newest.checkpoint.size);
    if let Some(StoredCheckpoint { checkpoint, .. }) = &newest {
        if checkpoint.origin != origin {
            return Err(TreeError::OtherOrigin { was: checkpoint.origin.clone() });
        }
        if size < checkpoint.size {
            return Err(TreeError::Truncated { head: size, size: checkpoint.size });
        }
    }
    extend(tx, size).await?;
    if size == known {
        return Ok(Signed::Unchanged(newest));
    }
    if let Some(StoredCheckpoint { checkpoint, .. }) = &newest
        && range_hash(tx, 0..checkpoint.size).await? != checkpoint.root
    {
        return Err(TreeError::Rewritten { size: checkpoint.size });
    }
    let root = range_hash(tx, 0..size).await?;
    let checkpoint = Checkpoint { origin, size, root };
    let seconds = now.timestamp().unsigned_abs();
    let note = SignedNote::sign(checkpoint.to_string(), signer, seconds)
        .map_err(|error| TreeError::Origin(error.into()))?;
    sqlx::query("INSERT INTO log_checkpoints (size, root, note, signed_at) VALUES ($1, $2, $3, $4)")
        .bind(number(size))
        .bind(&root[..])
        .bind(note.to_string())
        .bind(now)
        .execute(&mut **tx)
        .await?;
    Ok(Signed::New(StoredCheckpoint { checkpoint, note, signed_at: now }))
}

/// Positions and sizes are `bigint` there; none comes near the end of it.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) async fn head(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let head: i64 =
        sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM events").fetch_one(connection).await?;
    Ok(head.unsigned_abs())
}

async fn newest(connection: &mut PgConnection) -> Result<Option<StoredCheckpoint>, TreeError> {
    let query = "SELECT size, root, note, signed_at FROM log_checkpoints ORDER BY size DESC LIMIT 1";
    read(sqlx::query_as(query).fetch_optional(connection).await?)
}

fn read(row: Option<CheckpointRow>) -> Result<Option<StoredCheckpoint>, TreeError> {
    let read = |row: CheckpointRow| {
        row.read().map_err(|source| TreeError::Malformed { size: row.size.unsigned_abs(), source })
    };
    row.map(read).transpose()
}

/// Neighbouring hashes of one level: leaf hashes of events at 0, roots of the tiles below above it.
async fn hashes(
    connection: &mut PgConnection,
    level: i16,
    from: u64,
    count: u64,
) -> Result<Vec<Hash>, TreeError> {
    let query = if level == 0 {
        sqlx::query_as(
            "SELECT position - 1, leaf_hash FROM events WHERE position > $1 AND position <= $2 ORDER BY position",
        )
    } else {
        sqlx::query_as(
            "SELECT number, root FROM log_tiles WHERE level = $3 AND number >= $1 AND number < $2 ORDER BY number",
        )
    };
    let mut query = query.bind(number(from)).bind(number(from + count));
    if level > 0 {
        query = query.bind(level - 1);
    }
    let rows: Vec<(i64, Vec<u8>)> = query.fetch_all(connection).await?;
    let mut hashes = Vec::with_capacity(rows.len());
    for (place, expected) in (from..from + count).enumerate() {
        let hash = rows
            .get(place)
            .filter(|(at, _)| at.unsigned_abs() == expected)
            .and_then(|(_, hash)| <Hash>::try_from(&hash[..]).ok());
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

/// Fills all tiles that `size` events complete.
async fn extend(connection: &mut PgConnection, size: u64) -> Result<(), TreeError> {
    let (mut below, mut level) = (size, 0);
    while level < LEVELS && below >= TILE {
        let full = below / TILE;
        let next: i64 =
            sqlx::query_scalar("SELECT coalesce(max(number) + 1, 0) FROM log_tiles WHERE level = $1")
                .bind(level)
                .fetch_one(&mut *connection)
                .await?;
        let mut next = next.unsigned_abs();
        while next < full {
            let count = TILES_AT_ONCE.min(full - next);
            let hashes = hashes(connection, level, next * TILE, count * TILE).await?;
            let tiles: Vec<&[Hash]> = hashes.chunks_exact(TILE as usize).collect();
            let roots: Vec<Vec<u8>> = tiles
                .iter()
                .map(|tile| merkle::fold(tile).expect("a tile is a power of two").to_vec())
                .collect();
            let leaves: Vec<Option<Vec<u8>>> =
                tiles.iter().map(|tile| (level == 0).then(|| tile.as_flattened().to_vec())).collect();
            sqlx::query(
                "INSERT INTO log_tiles (level, number, root, leaves)
                 SELECT $1, $2 + t.place - 1, t.root, t.leaves
                 FROM unnest($3::bytea[], $4::bytea[]) WITH ORDINALITY AS t (root, leaves, place)",
            )
            .bind(level)
            .bind(number(next))
            .bind(roots)
            .bind(leaves)
            .execute(&mut *connection)
            .await?;
            next += count;
        }
        (below, level) = (full, level + 1);
    }
    Ok(())
}
