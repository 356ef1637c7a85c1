//! The group commit: one task writes all waiting sets in one transaction, another makes finished
//! batches durable, and only then are callers answered.
//!
//! ```text
//! callers ──▶ queue ──▶ batcher ── journal_append(…) ──▶ COMMIT (not flushed, lock released)
//!                          ▲                                   │
//!                          └── next batch meanwhile            ▼
//!                                              flusher ── one durable no-op commit ──▶ answers
//! ```
//! The ledger's lock is therefore not held through an fsync (0.47 × a plain insert with it, 2.13 × without),
//! except by a set that is alone while nobody else waits for the ledger: it takes one plain commit. Whoever is
//! told "appended" was flushed.

mod statement;

use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use uuid::Uuid;

use self::statement::{Appended, append};
use crate::{AppendError, AppendSet, JournalConfig, Receipt};

/// Batch-level retries for deadlocks, serialisation failures and lost races.
const BATCH_RETRIES: u32 = 5;

pub(crate) struct Request {
    pub(crate) set: AppendSet,
    pub(crate) reply: oneshot::Sender<Result<Receipt, AppendError>>,
    since: Instant,
    last: bool,
}

impl Request {
    pub(crate) fn new(set: AppendSet, reply: oneshot::Sender<Result<Receipt, AppendError>>) -> Self {
        Self { set, reply, since: Instant::now(), last: false }
    }

    /// The mark after which the writer ends; carries no events.
    pub(crate) fn last(reply: oneshot::Sender<Result<Receipt, AppendError>>) -> Self {
        Self { last: true, ..Self::new(nothing(), reply) }
    }

    fn answer(self, result: Result<Receipt, AppendError>) {
        match &result {
            Ok(_) => {
                metrics::histogram!("botledger_journal_append_seconds")
                    .record(self.since.elapsed().as_secs_f64());
            }
            Err(AppendError::Conflict { .. }) => {
                metrics::counter!("botledger_journal_conflicts_total").increment(1);
            }
            Err(AppendError::Fenced { .. }) => {
                metrics::counter!("botledger_journal_fenced_total").increment(1)
            }
            Err(_) => {}
        }
        // A caller that no longer waits has no use for the answer.
        let _ = self.reply.send(result);
    }
}

/// A set without events.
pub(crate) fn nothing() -> AppendSet {
    let actor = botledger_domain::Actor::System("journal");
    AppendSet::new(botledger_domain::EventMetadata::new(&actor, Uuid::nil(), Uuid::nil(), "journal"))
}

/// A batch whose transaction is committed and perhaps not yet flushed.
struct Written {
    /// Before its transaction: what came to be later cannot have seen all of it.
    begun: Instant,
    requests: Outcomes,
}

pub(crate) async fn run(
    options: std::sync::Arc<PgConnectOptions>,
    config: JournalConfig,
    mut queue: mpsc::Receiver<Request>,
) {
    let Some(first) = queue.recv().await else { return };
    let mut waiting = VecDeque::from([first]);
    let mut marks = Link::new(std::sync::Arc::clone(&options), "on");
    // Open before anything is written, so that its marks prove something. If it cannot be now, what
    // is written until it can is verified.
    let _ = bounded(config.timeout, marks.get()).await;
    let (to_flush, finished) = mpsc::channel(64);
    let unanswered = std::sync::Arc::new(AtomicUsize::new(0));
    let flusher = tokio::spawn(flush(marks, config.timeout, finished, std::sync::Arc::clone(&unanswered)));
    let mut link = Link::new(options, "off");
    let mut open = true;
    while open || !waiting.is_empty() {
        if waiting.is_empty() {
            match queue.recv().await {
                Some(request) => waiting.push_back(request),
                None => break,
            }
        }
        while waiting.len() < config.max_batch_events {
            match queue.try_recv() {
                Ok(request) => waiting.push_back(request),
                Err(_) => break,
            }
        }
        if let Some(end) = waiting.iter().position(|request| request.last) {
            waiting.truncate(end);
            open = false;
            queue.close();
        }
        let batch = take_batch(&mut waiting, config.max_batch_events);
        let (empty, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(|request| request.set.is_empty());
        let begun = Instant::now();
        // With nobody to share a flush with, a plain commit is the shorter way.
        let alone = batch.len() == 1
            && empty.is_empty()
            && waiting.is_empty()
            && queue.is_empty()
            && unanswered.load(Ordering::Acquire) == 0;
        let (mut requests, flushed) = match batch.is_empty() {
            true => (Vec::with_capacity(empty.len()), false),
            false => write(&mut link, batch, alone, config.timeout).await,
        };
        if flushed {
            requests.into_iter().for_each(|(request, outcome)| request.answer(outcome));
            continue;
        }
        requests.extend(empty.into_iter().map(|request| (request, Ok(Receipt::empty()))));
        unanswered.fetch_add(1, Ordering::AcqRel);
        if to_flush.send(Written { begun, requests }).await.is_err() {
            break;
        }
    }
    drop(to_flush);
    // The flusher ends when all batches are answered; a panic there is already logged by the runtime.
    let _ = flusher.await;
}

/// Takes sets in order; a set that shares a stream or an idempotency key with one before it waits
/// for the next batch, and so does everything that shares a stream with it: order per stream stays. Sets
/// that only rest on a stream share it with those that move it, not with each other.
fn take_batch(waiting: &mut VecDeque<Request>, max_events: usize) -> Vec<Request> {
    let mut moved: HashSet<(&'static str, String)> = HashSet::new();
    let mut seen: HashSet<(&'static str, String)> = HashSet::new();
    let mut keys: HashSet<String> = HashSet::new();
    let mut batch = Vec::new();
    let mut later = VecDeque::new();
    let mut events = 0;
    while let Some(request) = waiting.pop_front() {
        let size = request.set.events.len();
        let full = !batch.is_empty() && events + size > max_events;
        let clash = request.set.expected.keys().any(|stream| moved.contains(stream) || seen.contains(stream))
            || request.set.only_seen().any(|(stream, _)| moved.contains(stream))
            || request.set.idempotency_key().is_some_and(|key| keys.contains(key));
        moved.extend(request.set.expected.keys().cloned());
        seen.extend(request.set.only_seen().map(|(stream, _)| stream.clone()));
        keys.extend(request.set.idempotency_key().map(str::to_owned));
        if full || clash {
            later.push_back(request);
        } else {
            events += size;
            batch.push(request);
        }
        if events >= max_events {
            break;
        }
    }
    later.append(waiting);
    *waiting = later;
    batch
}

/// Requests with what became of them.
type Outcomes = Vec<(Request, Result<Receipt, AppendError>)>;

/// A connection of the writer's own, opened when needed.
struct Link {
    options: std::sync::Arc<PgConnectOptions>,
    synchronous_commit: &'static str,
    connection: Option<PgConnection>,
    /// When the present connection was there, or the last one.
    opened: Instant,
}

impl Link {
    fn new(options: std::sync::Arc<PgConnectOptions>, synchronous_commit: &'static str) -> Self {
        Self { options, synchronous_commit, connection: None, opened: Instant::now() }
    }

    async fn get(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        if self.connection.is_none() {
            // The same few statements for ever: a generic plan saves planning each time.
            let options = (*self.options).clone().application_name("botledger-writer").options([
                ("synchronous_commit", self.synchronous_commit),
                ("plan_cache_mode", "force_generic_plan"),
            ]);
            self.connection = Some(PgConnection::connect_with(&options).await?);
            self.opened = Instant::now();
        }
        Ok(self.connection.as_mut().expect("opened above"))
    }

    fn drop_connection(&mut self) {
        self.connection = None;
    }
}

/// Writes a batch, and says whether the disk has it already: it may, where `may_flush`.
async fn write(link: &mut Link, batch: Vec<Request>, may_flush: bool, limit: Duration) -> (Outcomes, bool) {
    let mut attempt = 0;
    loop {
        let sets: Vec<&AppendSet> = batch.iter().map(|request| &request.set).collect();
        let error = match bounded(limit, append(link, &sets, may_flush)).await {
            Ok(Appended { outcomes, flushed }) => {
                let events: usize =
                    outcomes.iter().filter_map(|o| o.as_ref().ok()).map(|r| r.event_positions.len()).sum();
                metrics::histogram!("botledger_journal_batch_events").record(events as f64);
                metrics::counter!("botledger_journal_appended_total").increment(events as u64);
                return (batch.into_iter().zip(outcomes).collect(), flushed);
            }
            Err(error) => error,
        };
        let cause = Cause::of(&error);
        metrics::counter!("botledger_journal_failures_total", "cause" => cause.label()).increment(1);
        match cause {
            Cause::Race if attempt < BATCH_RETRIES => attempt += 1,
            Cause::Race | Cause::Refused if batch.len() > 1 => {
                return (one_by_one(link, batch, limit).await, false);
            }
            Cause::Lost => {
                link.drop_connection();
                tracing::warn!(error = %error, sets = batch.len(), "the ledger's connection failed; looking up what was written");
                return (after_loss(link, batch, error, limit).await, false);
            }
            Cause::Race | Cause::Refused => {
                // Alone and still in the way of a row that stands: not the moment's fault, but the set's.
                let transient = matches!(cause, Cause::Race)
                    && !error.as_database_error().is_some_and(|refusal| refusal.is_unique_violation());
                let refusal = || {
                    let source = again(&error);
                    if transient {
                        AppendError::Unavailable { source }
                    } else {
                        AppendError::Invalid { source }
                    }
                };
                return (batch.into_iter().map(|r| (r, Err(refusal()))).collect(), false);
            }
        }
    }
}

async fn one_by_one(link: &mut Link, batch: Vec<Request>, limit: Duration) -> Outcomes {
    let mut requests = Vec::with_capacity(batch.len());
    for request in batch {
        // A batch of one never comes back here.
        requests.append(&mut Box::pin(write(link, vec![request], false, limit)).await.0);
    }
    requests
}

/// The connection broke after the batch was sent: nobody knows whether it was committed. Looks each
/// set up by its first event and writes again what is not there.
async fn after_loss(link: &mut Link, batch: Vec<Request>, error: sqlx::Error, limit: Duration) -> Outcomes {
    let found = {
        let sets: Vec<&AppendSet> = batch.iter().map(|request| &request.set).collect();
        bounded(limit, find_written(link, &sets)).await
    };
    let found = match found {
        Ok(found) => found,
        Err(_) => {
            link.drop_connection();
            return batch
                .into_iter()
                .map(|request| (request, Err(AppendError::Unavailable { source: again(&error) })))
                .collect();
        }
    };
    let mut requests = Vec::with_capacity(batch.len());
    let mut missing = Vec::new();
    for (request, first) in batch.into_iter().zip(found) {
        match first {
            Some(first) => {
                let count = i32::try_from(request.set.events.len()).unwrap_or(i32::MAX);
                let receipt = Receipt::of_range(first, count, request.set.versions_after(), false);
                requests.push((request, Ok(receipt)));
            }
            None => missing.push(request),
        }
    }
    if !missing.is_empty() {
        let sets: Vec<&AppendSet> = missing.iter().map(|request| &request.set).collect();
        match bounded(limit, append(link, &sets, false)).await {
            Ok(Appended { outcomes, .. }) => {
                for (request, outcome) in missing.into_iter().zip(outcomes) {
                    let outcome = own_or(link, &request.set, outcome, limit).await;
                    requests.push((request, outcome));
                }
            }
            Err(error) => {
                link.drop_connection();
                requests.extend(
                    missing.into_iter().map(|r| (r, Err(AppendError::Unavailable { source: again(&error) }))),
                );
            }
        }
    }
    requests
}

/// A statement whose connection was given up may still wait in the server for the ledger's lock, and
/// run after it was looked for. Then what stands in the way of its repetition is the set itself.
async fn own_or(
    link: &mut Link,
    set: &AppendSet,
    outcome: Result<Receipt, AppendError>,
    limit: Duration,
) -> Result<Receipt, AppendError> {
    match outcome {
        Err(AppendError::Conflict { .. }) | Ok(Receipt { duplicate: true, .. }) => {
            match bounded(limit, find_written(link, &[set])).await {
                Ok(found) => match found[0] {
                    Some(first) => {
                        let count = i32::try_from(set.events.len()).unwrap_or(i32::MAX);
                        Ok(Receipt::of_range(first, count, set.versions_after(), false))
                    }
                    None => outcome,
                },
                Err(source) => {
                    link.drop_connection();
                    Err(AppendError::Unavailable { source })
                }
            }
        }
        settled => settled,
    }
}

/// For each set the position of its first event, if exactly that event stands in its place.
async fn find_written(link: &mut Link, sets: &[&AppendSet]) -> Result<Vec<Option<i64>>, sqlx::Error> {
    let connection = link.get().await?;
    let mut found = Vec::with_capacity(sets.len());
    for set in sets {
        let first = &set.events[0];
        found.push(
            sqlx::query_scalar!(
                "SELECT position FROM events
                 WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence = $3
                   AND payload::text = $4 AND metadata::text = $5",
                first.aggregate_type,
                first.aggregate_id,
                first.sequence,
                first.payload,
                first.metadata,
            )
            .fetch_optional(&mut *connection)
            .await?,
        );
    }
    Ok(found)
}

/// Makes finished batches durable with one flush for all that wait, then answers their callers.
async fn flush(
    mut link: Link,
    limit: Duration,
    mut finished: mpsc::Receiver<Written>,
    unanswered: std::sync::Arc<AtomicUsize>,
) {
    while let Some(first) = finished.recv().await {
        let mut batches = vec![first];
        while let Ok(next) = finished.try_recv() {
            batches.push(next);
        }
        // Refusals wait too: what a set was refused for may be a commit that is not durable yet.
        let marked = bounded(limit, durable_mark(&mut link)).await;
        if let Err(error) = &marked {
            link.drop_connection();
            tracing::warn!(error = %error, "the durable mark failed; verifying what stands");
        }
        for batch in batches {
            match &marked {
                Ok(opened) if *opened <= batch.begun => {
                    for (request, result) in batch.requests {
                        request.answer(result);
                    }
                }
                // The server may have crashed between this batch and the connection that marked it.
                Ok(_) => verify(&mut link, batch, &between(), limit).await,
                Err(error) => verify(&mut link, batch, error, limit).await,
            }
            unanswered.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A commit that waits for the disk, and with it everything committed before by the same run of the
/// server: by whatever came after the connection was opened. It changes nothing. Says when that was.
async fn durable_mark(link: &mut Link) -> Result<Instant, sqlx::Error> {
    let connection = link.get().await?;
    sqlx::query!("SELECT pg_logical_emit_message(true, 'botledger', '')::text AS mark")
        .fetch_one(connection)
        .await?;
    Ok(link.opened)
}

fn between() -> sqlx::Error {
    sqlx::Error::Protocol("the connection was lost before the batch was durable".to_owned())
}

/// After a broken flush: the server may have lost unflushed commits, and with them what a refusal or
/// an "already so" rested on. Answers "appended" only for what still stands behind a new durable mark,
/// and takes back what it was told of others' commits.
async fn verify(link: &mut Link, batch: Written, error: &sqlx::Error, limit: Duration) {
    for (request, result) in batch.requests {
        let result = match result {
            Ok(receipt) => {
                let stands = bounded(limit, async {
                    let stands = stands(link, &request.set, &receipt).await?;
                    durable_mark(link).await?;
                    Ok(stands)
                })
                .await;
                match stands {
                    Ok(true) => Ok(receipt),
                    Ok(false) => Err(AppendError::Unavailable { source: again(error) }),
                    Err(_) => {
                        link.drop_connection();
                        Err(AppendError::Unavailable { source: again(error) })
                    }
                }
            }
            Err(AppendError::Conflict { .. } | AppendError::Fenced { .. }) => {
                Err(AppendError::Unavailable { source: again(error) })
            }
            unwritten => unwritten,
        };
        request.answer(result);
    }
}

/// Whether what a receipt says is still in the ledger. Nobody knows it of an empty set.
async fn stands(link: &mut Link, set: &AppendSet, receipt: &Receipt) -> Result<bool, sqlx::Error> {
    if set.is_empty() {
        return Ok(false);
    }
    if !receipt.duplicate {
        return Ok(
            find_written(link, &[set]).await?[0] == receipt.event_positions.first().map(|first| first.0)
        );
    }
    let connection = link.get().await?;
    let position =
        sqlx::query_scalar!("SELECT position FROM events WHERE idempotency_key = $1", set.idempotency_key(),)
            .fetch_optional(connection)
            .await?;
    Ok(position.is_some() && position == receipt.event_positions.first().map(|first| first.0))
}

async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the database did not answer in time",
        )))
    })
}

/// What an error says about the batch.
enum Cause {
    /// Another transaction was in the way; nothing was written.
    Race,
    /// The statement was refused; nothing was written.
    Refused,
    /// Nobody knows.
    Lost,
}

impl Cause {
    fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(refusal) => match refusal.code().as_deref() {
                Some("23505" | "40001" | "40P01") => Self::Race,
                // Class 57 is an administrator's or a crash's shutdown, 53 a full disk or memory, 08 a connection.
                Some(code) if code.starts_with("57") || code.starts_with("53") || code.starts_with("08") => {
                    Self::Lost
                }
                _ => Self::Refused,
            },
            sqlx::Error::Encode(_) | sqlx::Error::ColumnDecode { .. } => Self::Refused,
            _ => Self::Lost,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Race => "race",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }
}

/// The same error for one more caller; sqlx's own cannot be cloned.
fn again(error: &sqlx::Error) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}
