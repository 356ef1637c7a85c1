//! Token buckets: exact over instances, right about when to come back, and never open to all.
#![allow(clippy::unwrap_used, reason = "tests may unwrap")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use botledger_commands::{RateLimiter, RateRefusal, SystemClock};
use botledger_domain::{
    BotId, ConversationId, SubjectId,
    bot::{BotRateLimits, RateLimit},
};
use chrono::TimeDelta;
use proptest::prelude::*;
use redis::aio::ConnectionManager;
use support::{TestClock, limits, noon, redis_at, redis_client};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use uuid::Uuid;

fn limiter(redis: Option<ConnectionManager>, patience: Duration) -> RateLimiter {
    RateLimiter::new(redis, Arc::new(SystemClock), patience)
}

fn bot() -> BotId {
    BotId(Uuid::now_v7())
}

fn person(n: u128) -> SubjectId {
    SubjectId(Uuid::from_u128(n))
}

fn chat(n: u128) -> ConversationId {
    ConversationId(Uuid::from_u128(n))
}

/// A bucket as one would draw it: a level that rises with time and falls by one message.
#[derive(Clone, Copy)]
struct Bucket {
    level: i64,
    full: i64,
    message: i64,
}

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        let message = 60_000_000 / i64::from(limit.per_minute);
        let full = message * i64::from(limit.burst);
        Self { level: full, full, message }
    }

    fn fill(&mut self, micros: i64) {
        self.level = (self.level + micros).min(self.full);
    }

    fn missing(&self) -> i64 {
        (self.message - self.level).max(0)
    }
}

fn any_limit() -> impl Strategy<Value = RateLimit> {
    (1u32..6, 1u32..90).prop_map(|(burst, per_minute)| RateLimit { burst, per_minute })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_limiter_is_a_bucket_per_person_chat_and_bot(
        user in any_limit(), chats in any_limit(), whole in any_limit(),
        steps in prop::collection::vec((0i64..20_000_000, 0usize..2, 0usize..2), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let clock = TestClock::at(noon());
            let limiter = RateLimiter::new(None, clock.clone(), Duration::from_secs(1));
            let limits = BotRateLimits { user, chat: chats, bot: whole };
            let bot = bot();
            let mut model = [[Bucket::new(user); 2], [Bucket::new(chats); 2], [Bucket::new(whole); 2]];
            for (pause, who, place) in steps {
                clock.advance(TimeDelta::microseconds(pause));
                model.iter_mut().flatten().for_each(|bucket| bucket.fill(pause));
                let mut used = [(0, who), (1, place), (2, 0)];
                let missing = used.map(|(scope, n)| model[scope][n].missing());
                let longest = *missing.iter().max().unwrap();
                let answer = limiter.take(bot, person(who as u128), chat(place as u128), limits).await;
                if longest > 0 {
                    let scope = missing.iter().position(|wait| *wait == longest).unwrap();
                    let now = noon().max(botledger_domain::Clock::now(&*clock));
                    let expected = RateRefusal {
                        scope: ["user", "chat", "bot"][scope],
                        retry_at: now + TimeDelta::microseconds(longest),
                    };
                    assert_eq!(answer, Err(expected));
                } else {
                    assert_eq!(answer, Ok(()));
                    used.iter_mut().for_each(|(scope, n)| model[*scope][*n].level -= model[*scope][*n].message);
                }
            }
        });
    }
}

#[tokio::test]
async fn two_instances_share_their_buckets_in_redis() {
    let patience = Duration::from_secs(5);
    let limiters = [0, 1].map(|_| limiter(Some(redis_at(redis_client())), patience));
    let (bot, limits) = (bot(), limits(5, 8, 100));
    let take = |n: usize, who: u128| limiters[n % 2].take(bot, person(who), chat(1), limits);
    let first = futures::future::join_all((0..40).map(|n| take(n, 1))).await;
    assert_eq!(first.iter().filter(|taken| taken.is_ok()).count(), 5);
    assert!(first.iter().flat_map(|taken| taken.err()).all(|full| full.scope == "user"));
    // What was refused for the person took nothing from the chat.
    let second = futures::future::join_all((0..20).map(|n| take(n, 2))).await;
    assert_eq!(second.iter().filter(|taken| taken.is_ok()).count(), 3);
    let refused: Vec<_> = second.iter().flat_map(|taken| taken.err()).collect();
    assert!(refused.iter().all(|full| full.scope == "chat"), "{refused:?}");
}

#[tokio::test]
async fn redis_says_when_to_come_back_and_forgets_full_buckets() {
    let limiter = limiter(Some(redis_at(redis_client())), Duration::from_secs(5));
    let (bot, limits) = (bot(), limits(1, 1, 1));
    limiter.take(bot, person(1), chat(1), limits).await.unwrap();
    let before = botledger_domain::Clock::now(&SystemClock);
    let full = limiter.take(bot, person(1), chat(1), limits).await.unwrap_err();
    let wait = full.retry_at - before;
    assert!(wait > TimeDelta::zero() && wait <= TimeDelta::seconds(60) + TimeDelta::seconds(10), "{wait}");
    let mut redis = redis_client().get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("bl:rate:{{{bot}}}:*")).query_async(&mut redis).await.unwrap();
    assert_eq!(keys.len(), 3);
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
        assert!((1..=61_000).contains(&left), "{key} lives {left} ms");
    }
}

async fn allowed(limiter: &RateLimiter, bot: BotId, limits: BotRateLimits, tries: usize) -> usize {
    let takes = (0..tries).map(|_| limiter.take(bot, person(1), chat(1), limits));
    let taken = futures::future::join_all(takes);
    // A limit far above the patience: it shows a call that waits for ever, not a slow machine.
    let taken = tokio::time::timeout(Duration::from_secs(30), taken).await.expect("bounded wait");
    taken.iter().filter(|taken| taken.is_ok()).count()
}

#[tokio::test]
async fn without_redis_the_process_counts_itself() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = redis::Client::open(format!("redis://{nobody}")).unwrap();
    let limiter = limiter(Some(redis_at(client)), Duration::from_millis(50));
    assert_eq!(allowed(&limiter, bot(), limits(4, 100, 100), 12).await, 4);
}

#[tokio::test]
async fn a_redis_that_hangs_is_not_waited_for_and_is_used_again_when_it_answers() {
    let (address, frozen) = freezable_redis().await;
    let way = redis_client().get_connection_info().clone().set_addr(address);
    let limiter = limiter(Some(redis_at(redis::Client::open(way).unwrap())), Duration::from_millis(100));
    let (bot, limits) = (bot(), limits(3, 100, 100));
    assert_eq!(allowed(&limiter, bot, limits, 6).await, 3);
    frozen.store(true, Ordering::SeqCst);
    // This process has not counted yet, so one more burst passes at most; then it is closed here too.
    assert!(allowed(&limiter, bot, limits, 12).await <= 3);
    assert_eq!(allowed(&limiter, bot, limits, 4).await, 0);
    frozen.store(false, Ordering::SeqCst);
    // Bots whose buckets are known to be empty by Redis only: the first refusal came from there.
    let direct = self::limiter(Some(redis_at(redis_client())), Duration::from_secs(5));
    let asked_again = async {
        loop {
            let bot = self::bot();
            assert_eq!(allowed(&direct, bot, limits, 3).await, 3);
            if limiter.take(bot, person(1), chat(1), limits).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked_again).await.expect("Redis is used again");
}

/// A way to Redis that stops moving bytes while told so.
async fn freezable_redis() -> (redis::ConnectionAddr, Arc<AtomicBool>) {
    let redis = redis_client().get_connection_info().addr().clone();
    let frozen = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ice = Arc::clone(&frozen);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (server_in, server_out) = connect(&redis).await;
            let (client_in, client_out) = client.into_split();
            tokio::spawn(pass(Box::new(client_in), server_out, Arc::clone(&ice)));
            tokio::spawn(pass(server_in, Box::new(client_out), Arc::clone(&ice)));
        }
    });
    (redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), port), frozen)
}

type Incoming = Box<dyn AsyncRead + Send + Unpin>;
type Outgoing = Box<dyn AsyncWrite + Send + Unpin>;

async fn connect(redis: &redis::ConnectionAddr) -> (Incoming, Outgoing) {
    match redis {
        redis::ConnectionAddr::Tcp(host, port) => {
            let (incoming, outgoing) = TcpStream::connect((host.as_str(), *port)).await.unwrap().into_split();
            (Box::new(incoming), Box::new(outgoing))
        }
        redis::ConnectionAddr::Unix(path) => {
            let (incoming, outgoing) = UnixStream::connect(path).await.unwrap().into_split();
            (Box::new(incoming), Box::new(outgoing))
        }
        other => panic!("no way to {other:?}"),
    }
}

async fn pass(mut from: Incoming, mut to: Outgoing, frozen: Arc<AtomicBool>) {
    let mut bytes = [0; 4_096];
    while let Ok(read) = from.read(&mut bytes).await {
        while frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
