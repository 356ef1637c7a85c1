//! A batch as statements of SQL.

use sqlx::Row;
use uuid::Uuid;

use super::Link;
use crate::{AppendError, AppendSet, NewBody, Receipt};

/// Column-wise form of a batch, as the functions take it.
#[derive(Default)]
struct Columns<'s> {
    event_sets: Vec<i32>,
    aggregate_types: Vec<&'s str>,
    aggregate_ids: Vec<&'s str>,
    sequences: Vec<i64>,
    event_types: Vec<&'s str>,
    event_versions: Vec<&'s str>,
    payloads: Vec<&'s str>,
    metadatas: Vec<&'s str>,
    /// Of the event that begins its set, likewise the next.
    keys: Vec<Option<&'s str>>,
    set_sizes: Vec<Option<i32>>,
    stream_sets: Vec<i32>,
    stream_types: Vec<&'s str>,
    stream_ids: Vec<&'s str>,
    stream_expected: Vec<i64>,
    set_keys: Vec<Option<&'s str>>,
    fence_bots: Vec<Option<Uuid>>,
    fence_epochs: Vec<Option<i64>>,
    bodies: Bodies<'s>,
}

#[derive(Default)]
struct Bodies<'s> {
    sets: Vec<i32>,
    /// Number of the event that begins the set.
    places: Vec<i64>,
    ids: Vec<Uuid>,
    owners: Vec<Uuid>,
    purposes: Vec<&'s str>,
    key_versions: Vec<i32>,
    nonces: Vec<&'s [u8]>,
    ciphertexts: Vec<&'s [u8]>,
    turns: Vec<Uuid>,
    conversations: Vec<Option<Uuid>>,
    sessions: Vec<Option<i32>>,
    epochs: Vec<Option<i32>>,
    prompts: Vec<Option<Uuid>>,
}

impl<'s> Columns<'s> {
    fn of(sets: &[&'s AppendSet]) -> Self {
        let mut columns = Self::default();
        for (number, set) in (1i32..).zip(sets) {
            let place = columns.sequences.len() as i64 + 1;
            let size = i32::try_from(set.events.len()).unwrap_or(i32::MAX);
            for (at, event) in set.events.iter().enumerate() {
                columns.event_sets.push(number);
                columns.aggregate_types.push(event.aggregate_type);
                columns.aggregate_ids.push(&event.aggregate_id);
                columns.sequences.push(event.sequence);
                columns.event_types.push(&event.event_type);
                columns.event_versions.push(&event.event_version);
                columns.payloads.push(&event.payload);
                columns.metadatas.push(&event.metadata);
                columns.keys.push(set.idempotency_key().filter(|_| at == 0));
                columns.set_sizes.push((at == 0).then_some(size));
            }
            for ((aggregate_type, id), expected) in set.expected.iter().chain(set.only_seen()) {
                columns.stream_sets.push(number);
                columns.stream_types.push(aggregate_type);
                columns.stream_ids.push(id);
                columns.stream_expected.push(*expected);
            }
            columns.set_keys.push(set.idempotency_key());
            columns.fence_bots.push(set.fence.map(|(bot, _)| bot.uuid()));
            columns.fence_epochs.push(set.fence.map(|(_, epoch)| epoch));
            set.bodies.iter().for_each(|body| columns.bodies.push(number, place, body));
        }
        columns
    }
}

impl<'s> Bodies<'s> {
    fn push(&mut self, set: i32, place: i64, body: &'s NewBody) {
        self.sets.push(set);
        self.places.push(place);
        self.ids.push(body.body_id.uuid());
        self.owners.push(body.owner);
        self.purposes.push(body.purpose.as_ref());
        self.key_versions.push(body.key_version);
        self.nonces.push(&body.nonce);
        self.ciphertexts.push(&body.ciphertext);
        self.turns.push(body.turn_id.uuid());
        let number_of = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        self.conversations.push(body.place.map(|place| place.conversation.uuid()));
        self.sessions.push(body.place.map(|place| number_of(place.session)));
        self.epochs.push(body.place.map(|place| number_of(place.context_epoch)));
        self.prompts.push(body.place.map(|place| place.prompt_body.uuid()));
    }
}

/// What became of the sets, each for itself, and whether the disk has it already.
pub(super) struct Appended {
    pub(super) outcomes: Vec<Result<Receipt, AppendError>>,
    pub(super) flushed: bool,
}

/// Writes the sets in one transaction. The outer error is about all of them, the inner ones each
/// about its own.
pub(super) async fn append(
    link: &mut Link,
    sets: &[&AppendSet],
    may_flush: bool,
) -> Result<Appended, sqlx::Error> {
    let columns = Columns::of(sets);
    match append_all(link, sets, &columns, may_flush).await {
        Ok(Some(appended)) => return Ok(appended),
        Ok(None) => {}
        // A stream that others began, or a key that is known.
        Err(sqlx::Error::Database(refusal)) if refusal.is_unique_violation() => {}
        Err(error) => return Err(error),
    }
    Ok(Appended { outcomes: append_apart(link, sets, &columns).await?, flushed: false })
}

/// Appends all sets, or nothing where one of them has to be refused.
async fn append_all(
    link: &mut Link,
    sets: &[&AppendSet],
    c: &Columns<'_>,
    may_flush: bool,
) -> Result<Option<Appended>, sqlx::Error> {
    let begun = |set: &AppendSet, stream: &(&'static str, String)| set.expected.get(stream) == Some(&0);
    let heads = sets.iter().flat_map(|set| {
        let streams = set.expected.iter().chain(set.only_seen());
        streams.filter(|(stream, _)| !begun(set, stream))
    });
    let (mut types, mut ids, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for ((aggregate_type, id), version) in heads {
        types.push(*aggregate_type);
        ids.push(id.as_str());
        expected.push(*version);
    }
    let fences = sets.iter().filter_map(|set| set.fence).map(|(bot, epoch)| (bot.uuid(), epoch));
    let (bots, epochs): (Vec<Uuid>, Vec<i64>) = fences.unzip();
    let connection = link.get().await?;
    // Not `query!`: the arrays of keys, sizes and places hold NULLs, which the macro has no type for.
    let row = sqlx::query(
        "SELECT base, flushed
         FROM journal_append_all($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                                 $20, $21, $22, $23, $24, $25, $26, $27)",
    )
    .bind(&c.aggregate_types)
    .bind(&c.aggregate_ids)
    .bind(&c.sequences)
    .bind(&c.event_types)
    .bind(&c.event_versions)
    .bind(&c.payloads)
    .bind(&c.metadatas)
    .bind(&c.keys)
    .bind(&c.set_sizes)
    .bind(types)
    .bind(ids)
    .bind(expected)
    .bind(bots)
    .bind(epochs)
    .bind(&c.bodies.places)
    .bind(&c.bodies.ids)
    .bind(&c.bodies.owners)
    .bind(&c.bodies.purposes)
    .bind(&c.bodies.key_versions)
    .bind(&c.bodies.nonces)
    .bind(&c.bodies.ciphertexts)
    .bind(&c.bodies.turns)
    .bind(&c.bodies.conversations)
    .bind(&c.bodies.sessions)
    .bind(&c.bodies.epochs)
    .bind(&c.bodies.prompts)
    .bind(may_flush)
    .fetch_one(connection)
    .await?;
    let Some(base) = row.try_get::<Option<i64>, _>("base")? else { return Ok(None) };
    let mut next = base + 1;
    let receipts = sets.iter().map(|set| {
        let count = i32::try_from(set.events.len()).unwrap_or(i32::MAX);
        let receipt = Receipt::of_range(next, count, set.versions_after(), false);
        next += i64::from(count);
        Ok(receipt)
    });
    let outcomes = receipts.collect();
    Ok(Some(Appended { outcomes, flushed: row.try_get("flushed")? }))
}

/// Says of each set whether it was appended, known, stale or fenced.
async fn append_apart(
    link: &mut Link,
    sets: &[&AppendSet],
    c: &Columns<'_>,
) -> Result<Vec<Result<Receipt, AppendError>>, sqlx::Error> {
    let connection = link.get().await?;
    // Not `query!`: the arrays of fences, keys and places hold NULLs, which the macro has no type for.
    let rows = sqlx::query(
        "SELECT set_number, outcome, first_position, event_count, conflict_type, conflict_id, actual
         FROM journal_append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                             $20, $21, $22, $23, $24, $25, $26, $27)",
    )
    .bind(&c.event_sets)
    .bind(&c.aggregate_types)
    .bind(&c.aggregate_ids)
    .bind(&c.sequences)
    .bind(&c.event_types)
    .bind(&c.event_versions)
    .bind(&c.payloads)
    .bind(&c.metadatas)
    .bind(&c.stream_sets)
    .bind(&c.stream_types)
    .bind(&c.stream_ids)
    .bind(&c.stream_expected)
    .bind(&c.set_keys)
    .bind(&c.fence_bots)
    .bind(&c.fence_epochs)
    .bind(&c.bodies.sets)
    .bind(&c.bodies.ids)
    .bind(&c.bodies.owners)
    .bind(&c.bodies.purposes)
    .bind(&c.bodies.key_versions)
    .bind(&c.bodies.nonces)
    .bind(&c.bodies.ciphertexts)
    .bind(&c.bodies.turns)
    .bind(&c.bodies.conversations)
    .bind(&c.bodies.sessions)
    .bind(&c.bodies.epochs)
    .bind(&c.bodies.prompts)
    .fetch_all(connection)
    .await?;

    let mut outcomes = Vec::with_capacity(sets.len());
    for (row, set) in rows.iter().zip(sets) {
        let outcome: &str = row.try_get("outcome")?;
        outcomes.push(match outcome {
            "appended" => Ok(Receipt::of_range(
                row.try_get("first_position")?,
                row.try_get("event_count")?,
                set.versions_after(),
                false,
            )),
            "duplicate" => Ok(Receipt::of_range(
                row.try_get("first_position")?,
                row.try_get("event_count")?,
                vec![],
                true,
            )),
            "fenced" => {
                let (bot, epoch) = set.fence.expect("only sets with a fence are fenced");
                Err(AppendError::Fenced { bot, epoch })
            }
            _ => {
                let aggregate_type: String = row.try_get("conflict_type")?;
                let aggregate_id: String = row.try_get("conflict_id")?;
                let expected = set
                    .expected
                    .iter()
                    .chain(&set.seen)
                    .find(|((t, id), _)| *t == aggregate_type && *id == aggregate_id)
                    .map_or(0, |(_, version)| *version);
                Err(AppendError::Conflict {
                    aggregate_type,
                    aggregate_id,
                    expected,
                    actual: row.try_get("actual")?,
                })
            }
        });
    }
    Ok(outcomes)
}
