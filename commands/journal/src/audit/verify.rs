//! Everything compared with everything: the events' bytes with their leaf hashes, positions, streams and
//! append sets with what they must be, sealed texts with the hashes in the events, and the tree over it
//! all with every head that was ever signed.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use botledger_domain::{
    BodyRef,
    leaf::Leaf,
    merkle::{self, Frontier, Hash},
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Checkpoint, LogTree, TreeError, VerifierKey,
    tree::{CheckpointRow, TILE, head, number},
};

/// Events read at once: whole tiles.
const PAGE: u64 = 8 * TILE;
/// Checkpoints read at once.
const HEADS: i64 = 1_000;
/// Sealed texts read at once: some are long.
const BODIES: usize = 256;
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
    /// More than one event stands there; the tree is compared with one of them.
    Double {
        /// Where.
        position: u64,
    },
    /// An event stands where none can: readers by position never see it, readers of its stream do.
    Outside {
        /// 0 or below; `None` for no position at all.
        position: Option<i64>,
        /// `type/id`.
        stream: String,
        /// What the event says.
        sequence: i64,
    },
    /// A column that repeats what the leaves say differs from them.
    Copy {
        /// Where.
        position: u64,
        /// `idempotency_key` or `set_size`.
        column: &'static str,
    },
    /// A sealed text is not the one that the event names.
    Body {
        /// Of the event.
        position: u64,
        /// Its row.
        body: Uuid,
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
    /// A witness whose word was asked for has given none.
    Unwitnessed {
        /// Name of its key.
        witness: String,
        /// What is wrong.
        reason: String,
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
            Self::Double { position } => {
                write!(f, "event {position} stands there more than once")
            }
            Self::Outside { position, stream, sequence } => {
                let place = position.map_or("no position".to_owned(), |place| format!("position {place}"));
                write!(f, "number {sequence} of {stream} hides at {place}: only readers of the stream see it")
            }
            Self::Copy { position, column } => write!(
                f,
                "the column {column} of event {position} was changed: it does not repeat what the event says"
            ),
            Self::Body { position, body } => {
                write!(f, "the sealed text {body} was changed: it is not the one that event {position} names")
            }
            Self::Unwitnessed { witness, reason } => {
                write!(f, "no head that {witness} has cosigned: {reason}")
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
    /// Sealed texts that are still there, compared with the events that name them.
    pub bodies: u64,
    /// Sealed texts that events name and that are not there: erased, or kept no longer.
    pub bodies_gone: u64,
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

    /// One more difference.
    pub fn add(&mut self, finding: Finding) {
        if self.findings.len() < MOST_TOLD { self.findings.push(finding) } else { self.more += 1 }
    }
}

/// What is read of metadata.
#[derive(Deserialize)]
struct Keyed {
    idempotency_key: Option<String>,
}

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
    idempotency_key: Option<String>,
    set_size: Option<i32>,
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

/// All sealed texts that a payload names, wherever they stand in it.
fn bodies(payload: &str) -> Vec<BodyRef> {
    fn walk(value: serde_json::Value, found: &mut Vec<BodyRef>) {
        match value {
            serde_json::Value::Array(items) => items.into_iter().for_each(|item| walk(item, found)),
            serde_json::Value::Object(fields) if fields.contains_key("ciphertext_sha256") => {
                found.extend(serde_json::from_value::<BodyRef>(fields.into()));
            }
            serde_json::Value::Object(fields) => fields.into_iter().for_each(|(_, item)| walk(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if payload.contains("\"ciphertext_sha256\"")
        && let Ok(value) = serde_json::from_str(payload)
    {
        walk(value, &mut found);
    }
    found
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
    /// Over the leaves as the tiles keep them, or else the hashes beside the events, from the first one that
    /// differs, at that position.
    kept: Option<(Frontier, u64)>,
    /// Events under the last head that agreed.
    agreed: u64,
    /// A head did not agree: those after it cannot.
    parted: bool,
    /// No position was missing so far: only then there is a tree.
    whole: bool,
    /// Last position of the append set that is being read; `None` behind a gap.
    set_end: Option<u64>,
    /// Roots of the tiles of level 0.
    roots: Vec<Hash>,
    /// Leaves of the tile that is being filled.
    tile: Vec<Hash>,
}

impl Walk {
    fn event(&mut self, event: &EventRow, kept: Option<Hash>) {
        let (position, leaf) = (event.position.unsigned_abs(), event.leaf());
        self.verdict.events += 1;
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
        self.copies(event, position);
        if !self.whole {
            return;
        }
        // Where no tile is full yet, the hash beside the event is what may still give the signed head.
        let kept = kept.or_else(|| <Hash>::try_from(&event.leaf_hash[..]).ok());
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
    }

    /// Sets stand one behind the other, and the key of a set on its first event is that of its metadata.
    fn copies(&mut self, event: &EventRow, position: u64) {
        let begins = event.set_size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0);
        let expected = self.set_end.is_none_or(|end| (end < position) == begins.is_some());
        if !expected || event.set_size.is_some() != begins.is_some() {
            self.verdict.add(Finding::Copy { position, column: "set_size" });
        }
        if let Some(size) = begins {
            self.set_end = Some(position + size - 1);
        }
        let key = match begins {
            Some(_) if event.metadata.contains("\"idempotency_key\"") => {
                serde_json::from_str(&event.metadata).ok().and_then(|keyed: Keyed| keyed.idempotency_key)
            }
            _ => None,
        };
        if key != event.idempotency_key {
            self.verdict.add(Finding::Copy { position, column: "idempotency_key" });
        }
    }

    fn gap(&mut self, position: u64, next: u64) {
        self.verdict.add(Finding::Gap { position, next });
        (self.whole, self.set_end) = (false, None);
    }

    fn head(&mut self, head: &Head) {
        if self.parted || !self.whole {
            return;
        }
        if self.ours.root() == head.root {
            self.agreed = head.size;
            self.verdict.checkpoints += 1;
            if let Some((_, position)) = self.kept.take()
                && !self.verdict.findings.contains(&Finding::Changed { position })
            {
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
    /// checkpoint of the log `origin` must carry a signature of one of them; without, signatures
    /// are not looked at. Behind a gap there is no tree: events are compared with their own hashes only.
    /// `progress` is told the events done and all of them.
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
        let newest =
            sqlx::query_scalar!("SELECT max(size) FROM log_checkpoints").fetch_one(&mut *connection).await?;
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
            whole: true,
            set_end: Some(0),
            roots: Vec::new(),
            tile: Vec::new(),
        };
        outside(&mut connection, &mut walk.verdict).await?;
        let mut expected = 1;
        let mut done = 0;
        // One turn a page of events.
        while done < end {
            let upto = end.min(done + PAGE);
            let rows = events(&mut connection, done, upto).await?;
            let leaves = tiles(&mut connection, done).await?;
            for event in &rows {
                let position = event.position.unsigned_abs();
                if position < expected {
                    walk.verdict.add(Finding::Double { position });
                    continue;
                }
                if position > expected {
                    walk.gap(expected, position);
                }
                let kept = leaves.get((position - done - 1) as usize).copied().flatten();
                walk.event(event, kept);
                expected = position + 1;
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
            sealed_texts(&mut connection, &rows, &mut walk.verdict).await?;
            done = upto;
            progress(done, end);
        }
        let cut = |size: u64, signed: &str| Finding::Truncated { head: end, size, signed: signed.to_owned() };
        if newest > end {
            // The signed one says that something is gone; a row that nobody signed says only that it is there.
            let mut missed = None;
            for row in checkpoints(&mut connection, end, newest).await? {
                let size = row.size.unsigned_abs();
                match signed(&row, keys, origin) {
                    Ok(Some(_)) => missed = Some(size),
                    Ok(None) => {}
                    Err(reason) => walk.verdict.add(Finding::Checkpoint { size, reason }),
                }
            }
            if let Some(size) = missed {
                walk.verdict.add(cut(size, "the newest stored checkpoint"));
            }
        }
        for Witnessed { checkpoint, kept } in elsewhere {
            walk.verdict.add(cut(checkpoint.size, &kept));
        }
        if let Some(size) = walk.set_end.filter(|size| *size > end) {
            walk.verdict.add(cut(size, "the append set of its last event"));
        }
        if let (Some((_, position)), true, false) = (&walk.kept, walk.whole, walk.parted) {
            let position = *position;
            if !walk.verdict.findings.contains(&Finding::Changed { position }) {
                walk.verdict.add(Finding::Tile { level: 0, position });
            }
        }
        if walk.verdict.holds() {
            upper_tiles(&mut connection, &mut walk).await?;
        }
        Ok(walk.verdict)
    }
}

/// Events where no position is, as many as are told.
async fn outside(connection: &mut sqlx::PgConnection, verdict: &mut Verdict) -> Result<(), sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT position AS "position?", aggregate_type, aggregate_id, sequence FROM events
         WHERE position < 1 OR position IS NULL ORDER BY position LIMIT $1"#,
        MOST_TOLD as i64,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        verdict.add(Finding::Outside {
            position: row.position,
            stream: format!("{}/{}", row.aggregate_type, row.aggregate_id),
            sequence: row.sequence,
        });
    }
    Ok(())
}

async fn events(
    connection: &mut sqlx::PgConnection,
    after: u64,
    upto: u64,
) -> Result<Vec<EventRow>, sqlx::Error> {
    sqlx::query_as!(
        EventRow,
        r#"SELECT e.position, e.recorded_at, e.aggregate_type, e.aggregate_id, e.sequence, e.event_type,
            e.event_version, e.payload::text AS "payload!", e.metadata::text AS "metadata!", e.leaf_hash,
            e.idempotency_key, e.set_size, p.position AS "earlier?"
         FROM events e
         LEFT JOIN events p ON p.aggregate_type = e.aggregate_type AND p.aggregate_id = e.aggregate_id
            AND p.sequence = e.sequence - 1
         WHERE e.position > $1 AND e.position <= $2
         ORDER BY e.position"#,
        number(after),
        number(upto),
    )
    .fetch_all(connection)
    .await
}

/// Compares the sealed texts that are still there with the hashes in the events that name them.
async fn sealed_texts(
    connection: &mut sqlx::PgConnection,
    events: &[EventRow],
    verdict: &mut Verdict,
) -> Result<(), sqlx::Error> {
    let named: Vec<(u64, BodyRef)> = events
        .iter()
        .flat_map(|event| {
            bodies(&event.payload).into_iter().map(|body| (event.position.unsigned_abs(), body))
        })
        .collect();
    for named in named.chunks(BODIES) {
        let ids: Vec<Uuid> = named.iter().map(|(_, body)| body.body_id.0).collect();
        let rows =
            sqlx::query!("SELECT body_id, ciphertext FROM message_bodies WHERE body_id = ANY($1)", &ids)
                .fetch_all(&mut *connection)
                .await?;
        let texts: HashMap<Uuid, Vec<u8>> =
            rows.into_iter().map(|row| (row.body_id, row.ciphertext)).collect();
        for (position, body) in named {
            let body_id = body.body_id.0;
            let Some(text) = texts.get(&body_id) else {
                verdict.bodies_gone += 1;
                continue;
            };
            verdict.bodies += 1;
            if hex(&Sha256::digest(text)) != body.ciphertext_sha256 {
                verdict.add(Finding::Body { position: *position, body: body_id });
            }
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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
            Ok(None) => {}
            Ok(Some(root)) => {
                self.head(&Head { size, root, name: format!("the stored checkpoint over {size} events") });
            }
            Err(reason) => self.verdict.add(Finding::Checkpoint { size, reason }),
        }
    }
}

/// The root of a stored checkpoint that may be believed; none of one that is another log's, as where this
/// one has begun after a loss.
fn signed(row: &CheckpointRow, keys: &[VerifierKey], origin: Option<&str>) -> Result<Option<Hash>, String> {
    let stored = row.read().map_err(|error| error.to_string())?;
    let named = &stored.checkpoint.origin;
    if origin.is_some_and(|origin| origin != named) {
        return Ok(None);
    }
    if !keys.is_empty() {
        stored.note.verify(keys).map_err(|error| error.to_string())?;
    }
    Ok(Some(stored.checkpoint.root))
}

async fn checkpoints(
    connection: &mut sqlx::PgConnection,
    after: u64,
    upto: u64,
) -> Result<Vec<CheckpointRow>, sqlx::Error> {
    sqlx::query_as!(
        CheckpointRow,
        r#"SELECT size, root, note, signed_at, '{}'::text[] AS "cosignatures!"
         FROM log_checkpoints WHERE size > $1 AND size <= $2 ORDER BY size LIMIT $3"#,
        number(after),
        number(upto),
        HEADS,
    )
    .fetch_all(connection)
    .await
}

/// The leaves of one page as the tiles keep them; `None` where no full tile is stored.
async fn tiles(connection: &mut sqlx::PgConnection, done: u64) -> Result<Vec<Option<Hash>>, sqlx::Error> {
    let first = done / TILE;
    let rows = sqlx::query!(
        r#"SELECT number, leaves AS "leaves!" FROM log_tiles
         WHERE level = 0 AND number >= $1 AND number < $2 ORDER BY number"#,
        number(first),
        number(first + PAGE / TILE),
    )
    .fetch_all(connection)
    .await?;
    let mut leaves = vec![None; PAGE as usize];
    for row in rows {
        let start = ((row.number.unsigned_abs() - first) * TILE) as usize;
        for (slot, hash) in leaves[start..].iter_mut().zip(row.leaves.as_chunks::<32>().0) {
            *slot = Some(*hash);
        }
    }
    Ok(leaves)
}

/// Compares the roots of tiles, level by level, with those that the events give.
async fn upper_tiles(connection: &mut sqlx::PgConnection, walk: &mut Walk) -> Result<(), sqlx::Error> {
    let (mut roots, mut level, mut span) = (std::mem::take(&mut walk.roots), 0i16, TILE);
    while !roots.is_empty() {
        let rows = sqlx::query!("SELECT number, root FROM log_tiles WHERE level = $1 ORDER BY number", level)
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            let tile = row.number.unsigned_abs();
            // Whoever signs meanwhile fills tiles behind the end of this walk.
            if roots.get(tile as usize).is_some_and(|ours| ours[..] != row.root) {
                walk.verdict.add(Finding::Tile { level, position: tile.saturating_mul(span) + 1 });
            }
        }
        roots = roots.chunks_exact(TILE as usize).filter_map(merkle::fold).collect();
        (level, span) = (level + 1, span.saturating_mul(TILE));
    }
    Ok(())
}
