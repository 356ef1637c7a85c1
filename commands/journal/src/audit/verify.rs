//! Everything compared with everything: the events' bytes with their leaf hashes, positions and streams
//! with what they must be, the tree over them with every head that was ever signed.

use std::{collections::VecDeque, fmt};

use botledger_domain::{
    leaf::Leaf,
    merkle::{self, Frontier, Hash},
};
use chrono::{DateTime, Utc};

use super::{
    Checkpoint, LogTree, SignedNote, TreeError, VerifierKey,
    tree::{CheckpointRow, TILE, head, number},
};

/// Events read at once: whole tiles.
const PAGE: u64 = 8 * TILE;
/// Checkpoints read at once.
const HEADS: i64 = 1_000;
/// Findings that are told; the rest is only counted.
const MOST_TOLD: usize = 100;

/// A signed head that somebody kept elsewhere.
#[derive(Clone, Debug)]
pub struct Witnessed {
    /// Verified already.
    pub checkpoint: Checkpoint,
    /// Where it was kept, for people.
    pub kept: String,
}

/// A difference, and where. Positions are those of events, sizes count them from the first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// The event is not what its stored leaf hash was taken over.
    Changed {
        /// Where.
        position: u64,
    },
    /// No event stands there.
    Gap {
        /// The first that is missing.
        position: u64,
        /// The next that is there.
        next: u64,
    },
    /// A stream does not count on from an earlier event.
    Stream {
        /// Where.
        position: u64,
        /// `type/id`.
        stream: String,
        /// What the event says.
        sequence: u64,
    },
    /// The ledger ends before a signed head does.
    Truncated {
        /// Its last position.
        head: u64,
        /// Events under the head.
        size: u64,
        /// Which head.
        signed: String,
    },
    /// Bytes and leaf hashes agree with each other, but not with what was signed.
    Rewritten {
        /// First position that can differ.
        from: u64,
        /// Last position where the first difference can be.
        upto: u64,
        /// Which head.
        signed: String,
    },
    /// A checkpoint row is not what the log signed.
    Checkpoint {
        /// Of the row.
        size: u64,
        /// What is wrong.
        reason: String,
    },
    /// The stored tree is damaged, the ledger is not; or no head says which of them is right.
    Tile {
        /// 0 for leaves.
        level: i16,
        /// Its first event, or the one whose hash differs.
        position: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { position } => write!(
                f,
                "event {position} was changed: its bytes do not give the leaf hash that is stored beside them"
            ),
            Self::Gap { position, next } => {
                write!(f, "event {position} is missing: the next one stands at {next}")
            }
            Self::Stream { position, stream, sequence } => write!(
                f,
                "event {position} says that it is number {sequence} of {stream}, but the one before is not before it"
            ),
            Self::Truncated { head, size, signed } => {
                write!(
                    f,
                    "the ledger was cut off: it ends at event {head}, but {signed} covers {size} events"
                )
            }
            Self::Rewritten { from, upto, signed } if from == upto => {
                write!(f, "event {from} was written anew: it is not what stands under {signed}")
            }
            Self::Rewritten { from, upto, signed } => write!(
                f,
                "history was written anew: the first event that is not what stands under {signed} is one of {from} to {upto}"
            ),
            Self::Checkpoint { size, reason } => {
                write!(f, "the stored checkpoint over {size} events is not the log's: {reason}")
            }
            Self::Tile { level, position } => write!(
                f,
                "the stored tree is damaged at level {level}, event {position}; it is only a help, and can be emptied and filled again"
            ),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verdict {
    /// Compared, from the first.
    pub events: u64,
    /// Heads that the events give, those kept elsewhere included.
    pub checkpoints: u64,
    /// In the order in which they were come upon, the first difference first; at most 100.
    pub findings: Vec<Finding>,
    /// Findings beyond these.
    pub more: u64,
}

impl Verdict {
    /// Whether nothing differs.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }

    fn add(&mut self, finding: Finding) {
        if self.findings.len() < MOST_TOLD { self.findings.push(finding) } else { self.more += 1 }
    }
}

#[derive(sqlx::FromRow)]
struct EventRow {
    position: i64,
    recorded_at: DateTime<Utc>,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    metadata: String,
    leaf_hash: Vec<u8>,
    earlier: Option<i64>,
}

impl EventRow {
    fn leaf(&self) -> Hash {
        Leaf {
            position: self.position,
            recorded_at_micros: self.recorded_at.timestamp_micros(),
            aggregate_type: &self.aggregate_type,
            aggregate_id: &self.aggregate_id,
            sequence: self.sequence,
            event_type: &self.event_type,
            event_version: &self.event_version,
            payload: &self.payload,
            metadata: &self.metadata,
        }
        .hash()
    }
}

/// A head to compare with.
struct Head {
    size: u64,
    root: Hash,
    name: String,
}

/// One walk over the ledger.
struct Walk {
    verdict: Verdict,
    /// Over the events as they stand.
    ours: Frontier,
    /// Over the leaves as the tiles keep them, from the first one that differs, at that position.
    kept: Option<(Frontier, u64)>,
    /// Events under the last head that agreed.
    agreed: u64,
    /// A head did not agree: those after it cannot.
    parted: bool,
    /// Roots of the tiles of level 0.
    roots: Vec<Hash>,
    /// Leaves of the tile that is being filled.
    tile: Vec<Hash>,
}

impl Walk {
    fn event(&mut self, event: &EventRow, kept: Option<Hash>) {
        let (position, leaf) = (event.position.unsigned_abs(), event.leaf());
        if leaf[..] != event.leaf_hash {
            self.verdict.add(Finding::Changed { position });
        }
        if event.sequence != 1 && event.earlier.is_none_or(|earlier| earlier >= event.position) {
            self.verdict.add(Finding::Stream {
                position,
                stream: format!("{}/{}", event.aggregate_type, event.aggregate_id),
                sequence: event.sequence.unsigned_abs(),
            });
        }
        if self.kept.is_none() && kept.is_some_and(|kept| kept != leaf) {
            self.kept = Some((self.ours.clone(), position));
        }
        self.ours.push(leaf);
        if let Some((tree, _)) = &mut self.kept {
            tree.push(kept.unwrap_or(leaf));
        }
        self.tile.push(leaf);
        if self.tile.len() as u64 == TILE {
            self.roots.extend(merkle::fold(&self.tile));
            self.tile.clear();
        }
        self.verdict.events = position;
    }

    fn head(&mut self, head: &Head) {
        if self.parted {
            return;
        }
        if self.ours.root() == head.root {
            self.agreed = head.size;
            self.verdict.checkpoints += 1;
            if let Some((_, position)) = self.kept.take() {
                self.verdict.add(Finding::Tile { level: 0, position });
            }
            return;
        }
        self.parted = true;
        // Tiles that give the signed head are as good as signed.
        let exactly = match &self.kept {
            Some((tree, position)) if tree.root() == head.root => Some(*position),
            _ => None,
        };
        let (from, upto) = exactly.map_or((self.agreed + 1, head.size), |position| (position, position));
        if exactly.is_none_or(|position| !self.verdict.findings.contains(&Finding::Changed { position })) {
            self.verdict.add(Finding::Rewritten { from, upto, signed: head.name.clone() });
        }
    }
}

impl LogTree {
    /// Walks the whole ledger up to where it ends now, and changes nothing. With keys, every stored
    /// checkpoint must carry a signature of one of them under the name of `origin`; without, signatures
    /// are not looked at. After a gap the walk ends: everything behind it stands elsewhere. `progress` is
    /// told the events done and all of them.
    ///
    /// # Errors
    /// When the database fails. Differences are no errors.
    pub async fn verify(
        &self,
        keys: &[VerifierKey],
        origin: Option<&str>,
        mut witnessed: Vec<Witnessed>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Verdict, TreeError> {
        let mut connection = self.pool.acquire().await?;
        // Heads first: what was signed by now is in the ledger that is read afterwards.
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(size) FROM log_checkpoints").fetch_one(&mut *connection).await?;
        let newest = newest.unwrap_or(0).unsigned_abs();
        let end = head(&mut connection).await?;
        witnessed.sort_by_key(|one| one.checkpoint.size);
        let mut elsewhere = VecDeque::from(witnessed);
        let mut stored: VecDeque<CheckpointRow> = VecDeque::new();
        let mut seen = 0;
        let mut walk = Walk {
            verdict: Verdict::default(),
            ours: Frontier::default(),
            kept: None,
            agreed: 0,
            parted: false,
            roots: Vec::new(),
            tile: Vec::new(),
        };
        let mut done = 0;
        let mut whole = true;
        // One turn a page of events; the last one is for heads beyond the end.
        loop {
            let rows: Vec<EventRow> = sqlx::query_as(
                "SELECT e.position, e.recorded_at, e.aggregate_type, e.aggregate_id, e.sequence, e.event_type,
                    e.event_version, e.payload::text AS payload, e.metadata::text AS metadata, e.leaf_hash,
                    p.position AS earlier
                 FROM events e
                 LEFT JOIN events p ON p.aggregate_type = e.aggregate_type AND p.aggregate_id = e.aggregate_id
                    AND p.sequence = e.sequence - 1
                 WHERE e.position > $1 AND e.position <= $2
                 ORDER BY e.position",
            )
            .bind(number(done))
            .bind(number(end.min(done + PAGE)))
            .fetch_all(&mut *connection)
            .await?;
            let leaves = tiles(&mut connection, done).await?;
            for at in 0..end.min(done + PAGE).saturating_sub(done) {
                let position = done + at + 1;
                let Some(event) = rows.get(at as usize).filter(|row| row.position.unsigned_abs() == position)
                else {
                    let next = rows.get(at as usize).map(|row| row.position.unsigned_abs());
                    let next = match next {
                        Some(next) => next,
                        None => next_after(&mut connection, position).await?.unwrap_or(end),
                    };
                    walk.verdict.add(Finding::Gap { position, next });
                    whole = false;
                    break;
                };
                let kept = leaves.get(at as usize).copied().flatten();
                walk.event(event, kept);
                loop {
                    if stored.is_empty() && seen < newest {
                        stored = checkpoints(&mut connection, seen, newest).await?.into();
                        seen = stored.back().map_or(newest, |row| row.size.unsigned_abs());
                    }
                    if stored.front().is_some_and(|row| row.size.unsigned_abs() <= position) {
                        if let Some(row) = stored.pop_front() {
                            walk.stored(&row, keys, origin);
                        }
                    } else if elsewhere.front().is_some_and(|one| one.checkpoint.size <= position) {
                        if let Some(one) = elsewhere.pop_front() {
                            walk.head(&one.into());
                        }
                    } else {
                        break;
                    }
                }
            }
            if !whole || end <= done + PAGE {
                break;
            }
            done += PAGE;
            progress(done, end);
        }
        if whole {
            if newest > end {
                let signed = "the newest stored checkpoint".to_owned();
                walk.verdict.add(Finding::Truncated { head: end, size: newest, signed });
            }
            for Witnessed { checkpoint, kept } in elsewhere {
                walk.verdict.add(Finding::Truncated { head: end, size: checkpoint.size, signed: kept });
            }
            if let (Some((_, position)), false) = (&walk.kept, walk.parted) {
                let position = *position;
                if !walk.verdict.findings.contains(&Finding::Changed { position }) {
                    walk.verdict.add(Finding::Tile { level: 0, position });
                }
            }
            if walk.verdict.holds() {
                upper_tiles(&mut connection, &mut walk).await?;
            }
            progress(end, end);
        }
        Ok(walk.verdict)
    }
}

impl From<Witnessed> for Head {
    fn from(one: Witnessed) -> Self {
        Self { size: one.checkpoint.size, root: one.checkpoint.root, name: one.kept }
    }
}

impl Walk {
    fn stored(&mut self, row: &CheckpointRow, keys: &[VerifierKey], origin: Option<&str>) {
        let size = row.size.unsigned_abs();
        match signed(row, keys, origin) {
            Ok(root) => {
                self.head(&Head { size, root, name: format!("the stored checkpoint over {size} events") });
            }
            Err(reason) => self.verdict.add(Finding::Checkpoint { size, reason }),
        }
    }
}

/// The root of a stored checkpoint that may be believed.
fn signed(row: &CheckpointRow, keys: &[VerifierKey], origin: Option<&str>) -> Result<Hash, String> {
    let stored = row.read().map_err(|error| error.to_string())?;
    let named = &stored.checkpoint.origin;
    if origin.is_some_and(|origin| origin != named) {
        return Err(format!("it is of the log {named}"));
    }
    if !keys.is_empty() {
        let note: &SignedNote = &stored.note;
        note.verify(keys).map_err(|error| error.to_string())?;
    }
    Ok(stored.checkpoint.root)
}

async fn checkpoints(
    connection: &mut sqlx::PgConnection,
    after: u64,
    upto: u64,
) -> Result<Vec<CheckpointRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT size, root, note, signed_at FROM log_checkpoints WHERE size > $1 AND size <= $2
         ORDER BY size LIMIT $3",
    )
    .bind(number(after))
    .bind(number(upto))
    .bind(HEADS)
    .fetch_all(connection)
    .await
}

/// The leaves of one page as the tiles keep them; `None` where no full tile is stored.
async fn tiles(connection: &mut sqlx::PgConnection, done: u64) -> Result<Vec<Option<Hash>>, sqlx::Error> {
    let first = done / TILE;
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT number, leaves FROM log_tiles WHERE level = 0 AND number >= $1 AND number < $2 ORDER BY number",
    )
    .bind(number(first))
    .bind(number(first + PAGE / TILE))
    .fetch_all(connection)
    .await?;
    let mut leaves = vec![None; PAGE as usize];
    for (tile, bytes) in rows {
        let start = ((tile.unsigned_abs() - first) * TILE) as usize;
        for (slot, hash) in leaves[start..].iter_mut().zip(bytes.as_chunks::<32>().0) {
            *slot = Some(*hash);
        }
    }
    Ok(leaves)
}

async fn next_after(connection: &mut sqlx::PgConnection, position: u64) -> Result<Option<u64>, sqlx::Error> {
    let next: Option<i64> = sqlx::query_scalar("SELECT min(position) FROM events WHERE position > $1")
        .bind(number(position))
        .fetch_one(connection)
        .await?;
    Ok(next.map(i64::unsigned_abs))
}

/// Compares the roots of tiles, level by level, with those that the events give.
async fn upper_tiles(connection: &mut sqlx::PgConnection, walk: &mut Walk) -> Result<(), sqlx::Error> {
    let (mut roots, mut level, mut span) = (std::mem::take(&mut walk.roots), 0i16, TILE);
    while !roots.is_empty() {
        let rows: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT number, root FROM log_tiles WHERE level = $1 ORDER BY number")
                .bind(level)
                .fetch_all(&mut *connection)
                .await?;
        for (tile, root) in rows {
            let tile = tile.unsigned_abs();
            if roots.get(tile as usize).is_none_or(|ours| ours[..] != root) {
                walk.verdict.add(Finding::Tile { level, position: tile.saturating_mul(span) + 1 });
            }
        }
        roots = roots.chunks_exact(TILE as usize).filter_map(merkle::fold).collect();
        (level, span) = (level + 1, span.saturating_mul(TILE));
    }
    Ok(())
}
