//! The queue of one bot in Redis: a stream a lane. It tells the holder of a bot what others took in,
//! and everybody how deep and old the queue is. All of it may vanish at any moment: open turns are
//! in the ledger, and the sweeper puts them back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use botledger_domain::{BotId, ConversationId, TurnId, turn::Lane};
use redis::{
    AsyncCommands, FromRedisValue, RedisError,
    aio::ConnectionManager,
    streams::{StreamReadOptions, StreamReadReply},
};
use tokio::sync::Notify;

use crate::dispatcher::Work;

/// Entries a stream holds at most, about; older ones are in the ledger anyway.
const MAX_LEN: usize = 100_000;
const BATCH: usize = 500;
/// Numbers what this process pushes: two lanes are two streams, and within a millisecond their ids
/// do not tell which entry came first.
static PUSHED: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
pub(crate) struct Queue {
    redis: Option<ConnectionManager>,
    patience: Duration,
    bot: BotId,
    pushed: Arc<Notify>,
}

/// How full a lane is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub(crate) depth: u64,
    /// Milliseconds since the oldest entry came.
    pub(crate) age_ms: u64,
}

/// Where reading goes on, by lane.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    high: String,
    normal: String,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { high: "0".to_owned(), normal: "0".to_owned() }
    }
}

impl Queue {
    pub(crate) fn new(redis: Option<ConnectionManager>, patience: Duration, bot: BotId) -> Self {
        Self { redis, patience, bot, pushed: Arc::default() }
    }

    fn key(&self, lane: Lane) -> String {
        format!("bl:queue:{{{}}}:{}", self.bot, lane.as_ref())
    }

    async fn ask<T>(&self, call: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        match tokio::time::timeout(self.patience, call).await {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::debug!(bot.id = %self.bot, error = %error, "the queue gave no answer");
                None
            }
            Err(_) => None,
        }
    }

    /// Puts turns in line; false when Redis did not take them.
    pub(crate) async fn push(&self, works: &[Work]) -> bool {
        let Some(mut redis) = self.redis.clone() else { return false };
        let mut pipe = redis::pipe();
        for work in works {
            pipe.cmd("XADD")
                .arg(self.key(work.lane))
                .arg("MAXLEN")
                .arg("~")
                .arg(MAX_LEN)
                .arg("*")
                .arg("t")
                .arg(work.turn.to_string())
                .arg("c")
                .arg(work.conversation.to_string())
                .arg("s")
                .arg(u8::from(work.stops))
                .arg("n")
                .arg(PUSHED.fetch_add(1, Ordering::Relaxed))
                .ignore();
        }
        let taken = self.ask(async { pipe.query_async::<()>(&mut redis).await }).await.is_some();
        if taken {
            self.pushed.notify_one();
        } else {
            metrics::counter!("botledger_queue_failures_total").increment(1);
        }
        taken
    }

    /// Everything that came since the cursor, of both lanes in the order in which it was pushed: a
    /// command must not overtake the text before it. Absent when Redis gives no answer.
    pub(crate) async fn read(&self, cursor: &mut Cursor) -> Option<Vec<Work>> {
        let mut redis = self.redis.clone()?;
        let keys = [self.key(Lane::High), self.key(Lane::Normal)];
        let options = StreamReadOptions::default().count(BATCH);
        let reply: Option<StreamReadReply> = self
            .ask(async { redis.xread_options(&keys, &[&cursor.high, &cursor.normal], &options).await })
            .await?;
        let (mut high, mut normal) = (Vec::new(), Vec::new());
        for stream in reply.unwrap_or_default().keys {
            let (lane, entries) =
                if stream.key == keys[0] { (Lane::High, &mut high) } else { (Lane::Normal, &mut normal) };
            for entry in stream.ids {
                let text = |field: &str| {
                    entry.map.get(field).and_then(|value| String::from_redis_value(value.clone()).ok())
                };
                let ids = (
                    text("t").and_then(|id| TurnId::parse(&id).ok()),
                    text("c").and_then(|id| ConversationId::parse(&id).ok()),
                );
                let stops = text("s").as_deref() == Some("1");
                let number = text("n").and_then(|number| number.parse().ok());
                let id = entry.id.clone();
                let work = match ids {
                    (Some(turn), Some(conversation)) => {
                        Some(Work { turn, conversation, lane, stops, entry: Some(entry.id) })
                    }
                    _ => None,
                };
                entries.push(Entry { place: (pushed_at(&id), number), id, work });
            }
        }
        Some(merge(high, normal, BATCH, cursor))
    }

    /// Waits until something was pushed by this process, or until the pause is over.
    pub(crate) async fn wait(&self, pause: Duration) {
        let _ = tokio::time::timeout(pause, self.pushed.notified()).await;
    }

    /// Takes a finished turn out.
    pub(crate) async fn remove(&self, work: &Work) {
        if let (Some(mut redis), Some(entry)) = (self.redis.clone(), &work.entry) {
            let key = self.key(work.lane);
            self.ask(async { redis.xdel::<_, _, ()>(&key, &[entry]).await }).await;
        }
    }

    /// Empties the queue: the new holder fills it from the ledger.
    pub(crate) async fn clear(&self) {
        if let Some(mut redis) = self.redis.clone() {
            let keys = [self.key(Lane::High), self.key(Lane::Normal)];
            self.ask(async { redis.del::<_, ()>(&keys).await }).await;
        }
    }

    fn crowded_key(&self) -> String {
        format!("bl:crowded:{{{}}}", self.bot)
    }

    /// Tells processes that do not hold the bot, for as long as given, that it has too much in line.
    pub(crate) async fn say_crowded(&self, ttl: Duration) {
        let Some(mut redis) = self.redis.clone() else { return };
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.ask(async { redis.pset_ex::<_, _, ()>(self.crowded_key(), 1, ttl).await }).await;
    }

    /// Whether the holder said that it has too much in line; not when Redis gives no answer.
    pub(crate) async fn is_crowded(&self) -> bool {
        let Some(mut redis) = self.redis.clone() else { return false };
        self.ask(async { redis.exists(self.crowded_key()).await }).await.unwrap_or(false)
    }

    /// How full a lane is; absent when Redis gives no answer. `now_ms` is Unix time in milliseconds.
    pub(crate) async fn fill(&self, lane: Lane, now_ms: u64) -> Option<Fill> {
        let mut redis = self.redis.clone()?;
        let key = self.key(lane);
        let mut pipe = redis::pipe();
        pipe.xlen(&key).cmd("XRANGE").arg(&key).arg("-").arg("+").arg("COUNT").arg(1);
        let (depth, oldest): (u64, redis::streams::StreamRangeReply) =
            self.ask(async { pipe.query_async(&mut redis).await }).await?;
        let born = oldest.ids.first().and_then(|entry| pushed_at(&entry.id));
        Some(Fill { depth, age_ms: born.map_or(0, |born| now_ms.saturating_sub(born)) })
    }
}

struct Entry {
    /// When it was pushed, and as the how manieth.
    place: (Option<u64>, Option<u64>),
    id: String,
    /// Absent when it is none of ours.
    work: Option<Work>,
}

/// Both lanes in the order of their pushing, and the cursor behind what was taken. What came after
/// the end of a lane that may go on (it gave as much as was asked for) is left for the next reading.
fn merge(mut high: Vec<Entry>, mut normal: Vec<Entry>, full: usize, cursor: &mut Cursor) -> Vec<Work> {
    let end = |lane: &[Entry]| lane.last().filter(|_| lane.len() >= full).map(|entry| entry.place);
    let cut = |lane: &mut Vec<Entry>, end| {
        let kept = lane.iter().take_while(|entry| entry.place <= end).count();
        lane.truncate(kept);
    };
    match (end(&high), end(&normal)) {
        (Some(high_end), Some(normal_end)) if high_end <= normal_end => cut(&mut normal, high_end),
        (_, Some(normal_end)) => cut(&mut high, normal_end),
        (Some(high_end), None) => cut(&mut normal, high_end),
        (None, None) => {}
    }
    for (lane, place) in [(&high, &mut cursor.high), (&normal, &mut cursor.normal)] {
        if let Some(last) = lane.last() {
            place.clone_from(&last.id);
        }
    }
    high.append(&mut normal);
    high.sort_by_key(|entry| entry.place);
    high.into_iter().filter_map(|entry| entry.work).collect()
}

/// The time in an entry's id, Unix milliseconds.
fn pushed_at(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn entry(at: u64, lane: Lane) -> Entry {
        let work = Work {
            turn: TurnId(Uuid::from_u128(at.into())),
            conversation: ConversationId(Uuid::nil()),
            lane,
            stops: false,
            entry: None,
        };
        Entry { place: (Some(at), Some(0)), id: format!("{at}-0"), work: Some(work) }
    }

    fn read(high: &[u64], normal: &[u64], cursor: &mut Cursor) -> Vec<u128> {
        let entries = |lane, places: &[u64]| places.iter().map(|at| entry(*at, lane)).collect::<Vec<Entry>>();
        let works = merge(entries(Lane::High, high), entries(Lane::Normal, normal), 3, cursor);
        works.iter().map(|work| work.turn.uuid().as_u128()).collect()
    }

    #[test]
    fn a_command_behind_a_backlog_waits_for_the_texts_before_it() {
        let mut cursor = Cursor::default();
        assert_eq!(read(&[2, 5], &[1, 3, 4], &mut cursor), [1, 2, 3, 4], "5 came after a lane's end");
        assert_eq!((cursor.high.as_str(), cursor.normal.as_str()), ("2-0", "4-0"));
        assert_eq!(read(&[5], &[6], &mut cursor), [5, 6]);
        assert_eq!((cursor.high.as_str(), cursor.normal.as_str()), ("5-0", "6-0"));
    }

    #[test]
    fn of_two_full_lanes_the_one_that_ends_first_is_read_to_its_end() {
        let mut cursor = Cursor::default();
        assert_eq!(read(&[1, 2, 9], &[3, 4, 5], &mut cursor), [1, 2, 3, 4, 5]);
        assert_eq!((cursor.high.as_str(), cursor.normal.as_str()), ("2-0", "5-0"));
        assert_eq!(read(&[7, 8, 9], &[], &mut cursor), [7, 8, 9]);
    }
}
