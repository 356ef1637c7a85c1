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
        let mut works = Vec::new();
        for stream in reply.unwrap_or_default().keys {
            let (lane, place) = if stream.key == keys[0] {
                (Lane::High, &mut cursor.high)
            } else {
                (Lane::Normal, &mut cursor.normal)
            };
            for entry in stream.ids {
                place.clone_from(&entry.id);
                let text = |field: &str| {
                    entry.map.get(field).and_then(|value| String::from_redis_value(value.clone()).ok())
                };
                let ids = (
                    text("t").and_then(|id| TurnId::parse(&id).ok()),
                    text("c").and_then(|id| ConversationId::parse(&id).ok()),
                );
                if let (Some(turn), Some(conversation)) = ids {
                    let stops = text("s").as_deref() == Some("1");
                    let number = text("n").and_then(|number| number.parse::<u64>().ok());
                    let place = (pushed_at(&entry.id), number);
                    works.push((place, Work { turn, conversation, lane, stops, entry: Some(entry.id) }));
                }
            }
        }
        works.sort_by_key(|(place, _)| *place);
        Some(works.into_iter().map(|(_, work)| work).collect())
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

/// The time in an entry's id, Unix milliseconds.
fn pushed_at(id: &str) -> Option<u64> {
    id.split('-').next()?.parse().ok()
}
