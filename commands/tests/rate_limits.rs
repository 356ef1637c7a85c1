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

use botledger_commands::{
    CommandError, LimitState, RateCall, RateDefaults, RateLimiter, RateRefusal, RateUnit, SystemClock, Taken,
};
use botledger_domain::{
    Clock, WorkspaceId,
    bot::RateLimit,
    operator::Role,
    rate_limit::{RateOverrideError, RateRule, RateSubject, RateSubjectKind},
};
use chrono::TimeDelta;
use futures::future::join_all;
use proptest::prelude::*;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use sqlx::PgPool;
use support::{TestClock, World, noon, reason, redis_at, redis_client, system};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use uuid::Uuid;

fn limiter(redis: Option<ConnectionManager>) -> RateLimiter {
    RateLimiter::new(redis, Arc::new(SystemClock), Duration::from_secs(5))
}

fn on_redis() -> RateLimiter {
    limiter(Some(redis_at(redis_client())))
}

/// One that waits for Redis however long that takes: whoever gives up counts by itself.
fn patient() -> RateLimiter {
    let long = Duration::from_secs(60);
    let config =
        ConnectionManagerConfig::new().set_connection_timeout(Some(long)).set_response_timeout(Some(long));
    let redis = ConnectionManager::new_lazy_with_config(redis_client(), config).unwrap();
    RateLimiter::new(Some(redis), Arc::new(SystemClock), long)
}

async fn direct() -> MultiplexedConnection {
    redis_client().get_multiplexed_async_connection().await.unwrap()
}

fn workspace() -> WorkspaceId {
    WorkspaceId(Uuid::now_v7())
}

fn subject(kind: RateSubjectKind, number: usize) -> RateSubject {
    RateSubject::parse(kind, &number.to_string()).unwrap()
}

fn user(number: usize) -> RateSubject {
    subject(RateSubjectKind::User, number)
}

fn limit(burst: u32, per_minute: u32) -> RateLimit {
    RateLimit { burst, per_minute }
}

/// So many messages, and next to nothing comes back.
fn messages(burst: u32) -> RateRule {
    RateRule::requests(limit(burst, 1))
}

fn tokens(burst: u32) -> RateRule {
    RateRule { tokens: Some(limit(burst, 1)), ..RateRule::default() }
}

fn parallel(most: u32) -> RateRule {
    RateRule { parallel: Some(most), ..RateRule::default() }
}

/// A call of somebody with one rule, which is remembered.
fn call(workspace: WorkspaceId, subject: RateSubject, rule: RateRule, tokens: u64) -> RateCall {
    RateCall { workspace: Some(workspace), id: Some(Uuid::now_v7()), limits: vec![(subject, rule)], tokens }
}

fn admitted(answers: &[Result<Taken, RateRefusal>]) -> usize {
    answers.iter().filter(|answer| answer.is_ok()).count()
}

async fn take_all(limiter: &RateLimiter, calls: &[RateCall]) -> usize {
    let takes = join_all(calls.iter().map(|call| limiter.take(call)));
    // A limit far above the patience: it shows a call that waits for ever, not a slow machine.
    admitted(&tokio::time::timeout(Duration::from_secs(60), takes).await.expect("bounded wait"))
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let seen = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect(what);
}

/// Buckets as one would draw them: a level that rises with time and falls by what is taken.
#[derive(Clone, Copy)]
struct Bucket {
    level: i64,
    limit: RateLimit,
}

const ONE: i64 = 60_000_000;

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        Self { level: i64::from(limit.burst) * ONE, limit }
    }

    fn fill(&mut self, micros: i64) {
        let full = i64::from(self.limit.burst) * ONE;
        self.level = (self.level + micros * i64::from(self.limit.per_minute)).min(full);
    }

    /// Microseconds until `cost` is there, rounded up.
    fn missing(&self, cost: i64) -> i64 {
        let missing = (cost * ONE - self.level).max(0);
        let rate = i64::from(self.limit.per_minute);
        (missing + rate - 1) / rate
    }
}

fn any_limit() -> impl Strategy<Value = RateLimit> {
    (1u32..6, 1u32..90).prop_map(|(burst, per_minute)| limit(burst, per_minute))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_limiter_is_a_bucket_per_subject_and_unit(
        rules in prop::array::uniform3(any_limit()), large in (8u32..40, 1u32..200),
        steps in prop::collection::vec((0i64..20_000_000, 0usize..2, 0usize..2, 0u64..9), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let clock = TestClock::at(noon());
            let limiter = RateLimiter::new(None, clock.clone(), Duration::from_secs(1));
            let workspace = workspace();
            let kinds = [RateSubjectKind::User, RateSubjectKind::Chat, RateSubjectKind::Bot];
            let large = limit(large.0, large.1);
            let mut model = rules.map(|rule| [Bucket::new(rule); 2]);
            let mut spent = Bucket::new(large);
            for (pause, who, place, tokens) in steps {
                clock.advance(TimeDelta::microseconds(pause));
                model.iter_mut().flatten().chain([&mut spent]).for_each(|bucket| bucket.fill(pause));
                let used = [(0, who), (1, place), (2, 0)];
                let mut limits: Vec<_> = used
                    .iter()
                    .map(|(scope, n)| (subject(kinds[*scope], *n), RateRule::requests(rules[*scope])))
                    .collect();
                limits[2].1.tokens = Some(large);
                let call = RateCall { workspace: Some(workspace), id: None, limits, tokens };
                let mut missing = used.map(|(scope, n)| model[scope][n].missing(1)).to_vec();
                missing.push(if tokens > 0 { spent.missing(i64::try_from(tokens).unwrap()) } else { 0 });
                let longest = *missing.iter().max().unwrap();
                match limiter.take(&call).await {
                    Ok(taken) => {
                        assert_eq!(longest, 0);
                        used.iter().for_each(|(scope, n)| model[*scope][*n].level -= ONE);
                        spent.level -= i64::try_from(tokens).unwrap() * ONE;
                        let left: Vec<_> = taken.limits.iter().map(|state| state.remaining).collect();
                        let mut expected: Vec<_> =
                            used.iter().map(|(scope, n)| (model[*scope][*n].level / ONE) as u64).collect();
                        expected.push((spent.level / ONE) as u64);
                        assert_eq!(left, expected);
                    }
                    Err(refusal) => {
                        let which = missing.iter().position(|wait| *wait == longest).unwrap();
                        assert_eq!(refusal.scope, ["user", "chat", "bot", "bot"][which]);
                        assert_eq!(refusal.unit == RateUnit::Tokens, which == 3);
                        assert_eq!(refusal.retry_at, clock.now() + TimeDelta::microseconds(longest));
                    }
                }
            }
        });
    }
}

/// What can be done with one of a few calls.
#[derive(Clone, Debug)]
enum Step {
    Take { call: usize, who: usize, tokens: u64 },
    Settle { call: usize, who: usize, tokens: u64 },
    Renew { call: usize, who: usize },
    Look { who: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (call, who) = (0usize..6, 0usize..2);
    prop_oneof![
        4 => (call.clone(), who.clone(), 0u64..40).prop_map(|(call, who, tokens)| Step::Take { call, who, tokens }),
        2 => (call.clone(), who.clone(), 0u64..60)
            .prop_map(|(call, who, tokens)| Step::Settle { call, who, tokens }),
        1 => (call, who.clone()).prop_map(|(call, who)| Step::Renew { call, who }),
        1 => who.prop_map(|who| Step::Look { who }),
    ]
}

/// What does not depend on the clock: nothing noticeable comes back within a test.
fn told(states: &[LimitState]) -> Vec<(RateUnit, u64, u64)> {
    states.iter().map(|state| (state.unit, state.limit, state.remaining)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn redis_and_the_process_decide_alike(
        rule in (1u32..5, 20u32..60, 1u32..4), steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let limiters = [patient(), limiter(None)];
            let workspace = workspace();
            let rule = RateRule {
                requests: Some(limit(rule.0, 1)),
                tokens: Some(limit(rule.1, 1)),
                parallel: Some(rule.2),
            };
            let ids: Vec<Uuid> = (0..6).map(|_| Uuid::now_v7()).collect();
            let make = |call: Option<usize>, who: usize, tokens| RateCall {
                workspace: Some(workspace),
                id: call.map(|call| ids[call]),
                limits: vec![(user(who), rule), (subject(RateSubjectKind::Bot, 0), rule)],
                tokens,
            };
            for step in steps {
                let mut answers = Vec::new();
                for limiter in &limiters {
                    answers.push(match step {
                        Step::Take { call, who, tokens } => {
                            match limiter.take(&make(Some(call), who, tokens)).await {
                                Ok(taken) => (told(&taken.limits), taken.repeated, None),
                                Err(full) => {
                                    (told(&full.limits), false, Some((full.scope, full.unit, full.never_fits)))
                                }
                            }
                        }
                        Step::Settle { call, who, tokens } => {
                            limiter.settle(&make(Some(call), who, 0), tokens).await;
                            (vec![], false, None)
                        }
                        Step::Renew { call, who } => {
                            (vec![], limiter.renew(&make(Some(call), who, 0)).await, None)
                        }
                        Step::Look { who } => (told(&limiter.look(&make(None, who, 0)).await), false, None),
                    });
                }
                assert_eq!(answers[0], answers[1], "{step:?}");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_admit_what_one_bucket_holds_and_not_one_more() {
    let limiters = [patient(), patient(), patient()];
    let mut redis = direct().await;
    let workspace = workspace();
    let rule = RateRule { requests: Some(limit(100, 600)), tokens: Some(limit(700, 3_000)), parallel: None };
    let mut now = async || {
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
        seconds * 1_000_000 + micros
    };
    let before = now().await;
    let calls: Vec<RateCall> = (0..3_000).map(|_| call(workspace, user(1), rule, 5)).collect();
    let answers =
        join_all(calls.iter().enumerate().map(|(n, call)| limiters[n % limiters.len()].take(call))).await;
    let elapsed = now().await - before;
    let passed = i64::try_from(admitted(&answers)).unwrap();
    // What both buckets let through: their burst, and what came back while it was asked for.
    let most = (100 + elapsed * 600 / ONE).min((700 + elapsed * 3_000 / ONE) / 5);
    assert!(passed >= 100 && passed <= most, "{passed} of at most {most} in {elapsed} microseconds");
}

#[tokio::test]
async fn who_is_refused_for_one_limit_takes_nothing_from_the_others() {
    let limiters = [patient(), patient()];
    let workspace = workspace();
    let of = |who: usize| RateCall {
        workspace: Some(workspace),
        id: None,
        limits: vec![(user(who), messages(5)), (subject(RateSubjectKind::Chat, 1), messages(8))],
        tokens: 0,
    };
    let (first, second) = (of(1), of(2));
    let answers = join_all((0..40).map(|n| limiters[n % 2].take(&first))).await;
    assert_eq!(admitted(&answers), 5);
    assert!(answers.iter().flat_map(|answer| answer.as_ref().err()).all(|full| full.scope == "user"));
    let answers = join_all((0..20).map(|n| limiters[n % 2].take(&second))).await;
    assert_eq!(admitted(&answers), 3);
    assert!(answers.iter().flat_map(|answer| answer.as_ref().err()).all(|full| full.scope == "chat"));
}

#[tokio::test]
async fn an_answer_tells_what_is_left_and_when_it_is_back() {
    let limiter = on_redis();
    let workspace = workspace();
    let rule = RateRule { tokens: Some(limit(100, 60)), parallel: Some(2), ..messages(3) };
    let before = SystemClock.now();
    let taken = limiter.take(&call(workspace, user(1), rule, 40)).await.unwrap();
    let after = SystemClock.now();
    let told: Vec<_> = taken.limits.iter().map(|s| (s.unit, s.limit, s.remaining, s.per_minute)).collect();
    assert_eq!(
        told,
        [
            (RateUnit::Requests, 3, 2, Some(1)),
            (RateUnit::Tokens, 100, 60, Some(60)),
            (RateUnit::Parallel, 2, 1, None)
        ]
    );
    let within = |state: &LimitState, seconds| {
        let end = TimeDelta::seconds(seconds);
        assert!(state.resets_at <= after + end && state.resets_at > before, "{state:?}");
    };
    within(&taken.limits[0], 60);
    within(&taken.limits[1], 40);
    let full = limiter.take(&call(workspace, user(1), rule, 61)).await.unwrap_err();
    assert_eq!((full.scope, full.unit, full.never_fits), ("user", RateUnit::Tokens, false));
    assert!(full.retry_at <= SystemClock.now() + TimeDelta::seconds(2), "{full:?}");
    assert_eq!(full.limits[0].remaining, 2);
    let larger = limiter.take(&call(workspace, user(1), rule, 101)).await.unwrap_err();
    assert!(larger.never_fits);
}

#[tokio::test]
async fn looking_takes_nothing() {
    for limiter in [on_redis(), limiter(None)] {
        let (workspace, rule) = (workspace(), RateRule { parallel: Some(1), ..messages(2) });
        let of = call(workspace, user(1), rule, 0);
        for _ in 0..5 {
            assert!(limiter.look(&of).await.iter().all(|state| state.remaining == state.limit));
        }
        assert!(limiter.take(&of).await.is_ok());
    }
}

#[tokio::test]
async fn a_step_that_is_repeated_anywhere_is_no_second_message() {
    let (one, other) = (on_redis(), on_redis());
    let of = call(workspace(), user(1), RateRule { tokens: Some(limit(100, 1)), ..messages(2) }, 0);
    assert!(!one.take(&of).await.unwrap().repeated);
    // The tokens are known later, and by another process: they come on top, once.
    let known = RateCall { tokens: 30, ..of.clone() };
    for limiter in [&other, &one, &other] {
        let taken = limiter.take(&known).await.unwrap();
        assert!(taken.repeated);
        assert_eq!(taken.limits.iter().map(|state| state.remaining).collect::<Vec<_>>(), [1, 70]);
    }
    // What it was in truth, once.
    for limiter in [&one, &other] {
        limiter.settle(&known, 10).await;
        assert_eq!(limiter.look(&known).await[1].remaining, 90);
    }
    assert_eq!(other.take(&known).await.unwrap().limits[1].remaining, 90);
}

#[tokio::test]
async fn what_was_used_beyond_the_worst_case_is_paid_back_first() {
    let limiter = on_redis();
    let workspace = workspace();
    let of = call(workspace, user(1), tokens(100), 60);
    limiter.take(&of).await.unwrap();
    limiter.settle(&of, 150).await;
    let full = limiter.take(&call(workspace, user(1), tokens(100), 1)).await.unwrap_err();
    assert_eq!(full.limits[0].remaining, 0);
    let wait = full.retry_at - SystemClock.now();
    assert!(wait > TimeDelta::minutes(50) && wait <= TimeDelta::minutes(51), "{wait}");
}

#[tokio::test]
async fn parallel_calls_have_so_many_places_over_all_processes() {
    let limiters = [patient(), patient()];
    let workspace = workspace();
    let calls: Vec<_> = (0..30).map(|_| call(workspace, user(1), parallel(4), 0)).collect();
    let answers = join_all(calls.iter().enumerate().map(|(n, call)| limiters[n % 2].take(call))).await;
    assert_eq!(admitted(&answers), 4);
    let full = answers.iter().find_map(|answer| answer.as_ref().err()).unwrap();
    assert_eq!(full.unit, RateUnit::Parallel);
    let inside = answers.iter().position(Result::is_ok).unwrap();
    let outside = answers.iter().position(Result::is_err).unwrap();
    // Who is inside is inside once, and who leaves makes room for one.
    assert!(limiters[0].take(&calls[inside]).await.is_ok());
    assert!(limiters[1].take(&calls[outside]).await.is_err());
    limiters[1].settle(&calls[inside], 0).await;
    assert!(!limiters[0].renew(&calls[inside]).await, "a late sign of life brings nobody back");
    assert!(limiters[0].take(&calls[outside]).await.is_ok());
    assert_eq!(limiters[0].look(&calls[outside]).await[0].remaining, 0);
}

#[tokio::test]
async fn a_process_that_died_gives_up_its_places() {
    let limiter = on_redis();
    let workspace = workspace();
    let (dead, alive) = (call(workspace, user(1), parallel(2), 0), call(workspace, user(1), parallel(2), 0));
    limiter.take(&dead).await.unwrap();
    limiter.take(&alive).await.unwrap();
    let next = call(workspace, user(1), parallel(2), 0);
    assert!(limiter.take(&next).await.is_err());
    // A minute later, of which the living one gave a sign of life.
    let mut redis = direct().await;
    let key = format!("bl:rl:{{{workspace}}}:user:1:calls");
    for member in [&dead, &alive] {
        let member = member.id.unwrap().to_string();
        let _: f64 = redis::cmd("ZINCRBY")
            .arg(&key)
            .arg(-60_000_001)
            .arg(member)
            .query_async(&mut redis)
            .await
            .unwrap();
    }
    assert!(limiter.renew(&alive).await);
    assert!(limiter.take(&next).await.is_ok());
    assert!(limiter.take(&call(workspace, user(1), parallel(2), 0)).await.is_err());
    let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
    assert!((1..=61_000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_kept_call_ends_with_what_keeps_it() {
    let limiter = on_redis();
    let of = call(workspace(), user(1), parallel(1), 0);
    limiter.take(&of).await.unwrap();
    drop(limiter.keep(of.clone()));
    limiter.settle(&of, 0).await;
    assert!(!limiter.renew(&of).await);
}

#[tokio::test]
async fn redis_forgets_full_buckets_and_keeps_all_of_a_workspace_together() {
    let limiter = on_redis();
    let workspace = workspace();
    let rule = RateRule { tokens: Some(limit(90, 30)), parallel: Some(1), ..messages(1) };
    limiter.take(&call(workspace, user(1), rule, 90)).await.unwrap();
    let mut redis = direct().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg(format!("bl:rl:{{{workspace}}}:*")).query_async(&mut redis).await.unwrap();
    assert_eq!(keys.len(), 3, "{keys:?}");
    let mut slots = Vec::new();
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.unwrap();
        assert!((1..=601_000).contains(&left), "{key} lives {left} ms");
        let tag = key.split_once('{').unwrap().1.split_once('}').unwrap().0.to_owned();
        slots.push(tag);
    }
    assert!(slots.iter().all(|tag| *tag == workspace.to_string()));
}

#[tokio::test]
async fn a_redis_that_lost_its_scripts_gets_them_again() {
    let limiter = on_redis();
    let workspace = workspace();
    let of = |n: usize| call(workspace, user(n), messages(1), 0);
    let mut redis = direct().await;
    for _ in 0..3 {
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        limiter.settle(&of(0), 0).await;
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        limiter.renew(&of(0)).await;
    }
    limiter.take(&of(1)).await.unwrap();
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
    assert!(limiter.take(&of(1)).await.is_err());
    // It was Redis that said so, not this process.
    assert!(on_redis().take(&of(1)).await.is_err());
}

#[tokio::test]
async fn what_has_another_type_under_our_names_is_an_empty_bucket() {
    let limiter = on_redis();
    let workspace = workspace();
    let of = call(workspace, user(1), RateRule { parallel: Some(1), ..messages(1) }, 0);
    let mut redis = direct().await;
    let id = of.id.unwrap();
    for key in ["user:1".to_owned(), "user:1:calls".to_owned(), format!("call:{id}")] {
        let key = format!("bl:rl:{{{workspace}}}:{key}");
        let _: () = redis::cmd("RPUSH").arg(&key).arg("nonsense").query_async(&mut redis).await.unwrap();
    }
    limiter.take(&of).await.unwrap();
    let other = call(workspace, user(1), RateRule { parallel: Some(1), ..messages(1) }, 0);
    assert!(on_redis().take(&other).await.is_err());
}

#[tokio::test]
async fn a_clock_that_goes_back_stops_nobody_for_long_and_opens_nothing() {
    let limiter = on_redis();
    let workspace = workspace();
    let rule = RateRule { parallel: Some(1), ..RateRule::requests(limit(2, 600)) };
    let of = || call(workspace, user(1), rule, 0);
    // Both were written by a Redis whose clock was a day ahead of the one that answers now.
    let mut redis = direct().await;
    let (seconds, _): (i64, i64) = redis::cmd("TIME").query_async(&mut redis).await.unwrap();
    let ahead = (seconds + 86_400) * 1_000_000;
    let bucket = format!("bl:rl:{{{workspace}}}:user:1");
    let _: () = redis::cmd("HSET")
        .arg(&bucket)
        .arg(&[("r", 120_000_000_i64), ("ra", ahead)])
        .query_async(&mut redis)
        .await
        .unwrap();
    let calls = format!("{bucket}:calls");
    let _: () = redis::cmd("ZADD").arg(&calls).arg(ahead).arg("ghost").query_async(&mut redis).await.unwrap();
    let full = limiter.take(&of()).await.unwrap_err();
    assert_eq!((full.unit, full.limits[1].remaining), (RateUnit::Requests, 1));
    let one = async || limiter.take(&of()).await.is_ok();
    until("time goes on", one).await;
}

#[tokio::test]
async fn without_redis_the_process_counts_itself() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = redis::Client::open(format!("redis://{nobody}")).unwrap();
    let limiter = RateLimiter::new(Some(redis_at(client)), Arc::new(SystemClock), Duration::from_millis(50));
    let workspace = workspace();
    let calls: Vec<_> = (0..12).map(|_| call(workspace, user(1), messages(4), 0)).collect();
    assert_eq!(take_all(&limiter, &calls).await, 4);
    assert_eq!(take_all(&limiter, &calls[..1]).await, 1, "a step that is repeated");
}

#[tokio::test]
async fn without_redis_a_process_lets_through_its_part_of_what_it_does_not_hold_alone() {
    let defaults = RateDefaults { processes: 4, ..RateDefaults::default() };
    let limiter = limiter(None).with_defaults(defaults);
    let workspace = workspace();
    for (kind, part) in [
        (RateSubjectKind::Workspace, 3),
        (RateSubjectKind::Ip, 3),
        (RateSubjectKind::User, 10),
        (RateSubjectKind::Bot, 10),
    ] {
        let calls: Vec<_> = (0..20).map(|_| call(workspace, subject(kind, 1), messages(10), 0)).collect();
        assert_eq!(take_all(&limiter, &calls).await, part, "{kind:?}");
    }
}

#[tokio::test]
async fn a_process_goes_on_from_what_redis_said_and_uses_it_again_when_it_answers() {
    let (address, frozen) = freezable_redis().await;
    let way = redis_client().get_connection_info().clone().set_addr(address);
    let redis = redis_at(redis::Client::open(way).unwrap());
    let limiter = RateLimiter::new(Some(redis), Arc::new(SystemClock), Duration::from_millis(100));
    let workspace = workspace();
    let rule = RateRule { tokens: Some(limit(50, 1)), parallel: Some(9), ..messages(5) };
    let calls: Vec<_> = (0..20).map(|_| call(workspace, user(1), rule, 10)).collect();
    until("Redis is reached", async || take_all(&limiter, &calls[..3]).await == 3).await;
    frozen.store(true, Ordering::SeqCst);
    assert_eq!(take_all(&limiter, &calls[3..]).await, 2);
    assert_eq!(take_all(&limiter, &calls[..3]).await, 3, "known from before");
    frozen.store(false, Ordering::SeqCst);
    // Somebody whose bucket is known to be empty by Redis only: who refuses has asked there.
    let direct = on_redis();
    let mut number = 100;
    until("Redis is used again", async || {
        number += 1;
        let of = || call(workspace, user(number), messages(1), 0);
        direct.take(&of()).await.unwrap();
        limiter.take(&of()).await.is_err()
    })
    .await;
}

async fn remaining(
    limiter: &RateLimiter,
    workspace: WorkspaceId,
    subject: RateSubject,
    rule: RateRule,
) -> u64 {
    let of = RateCall { workspace: Some(workspace), id: None, limits: vec![(subject, rule)], tokens: 0 };
    limiter.look(&of).await[0].remaining
}

#[sqlx::test(migrations = "../migrations")]
async fn an_override_is_in_force_everywhere_at_once_and_ends_by_itself(pool: PgPool) {
    let world = World::new(pool).await;
    let other = world.second_instance();
    let (here, there) = (world.app.rate_limits.limiter(), other.rate_limits.limiter());
    let person = RateSubject::user(world.bot, world.subject(7));
    let seen =
        async |limiter: &RateLimiter| remaining(limiter, world.workspace, person.clone(), messages(3)).await;
    assert_eq!((seen(here).await, seen(there).await), (3, 3));
    let admin = world.operator(Role::Admin);
    let end = noon() + TimeDelta::hours(1);
    let limits = &world.app.rate_limits;
    limits
        .set_override(&admin, world.workspace, person.clone(), messages(50), reason("press day"), Some(end))
        .await
        .unwrap();
    assert_eq!(seen(here).await, 50, "whoever set it sees it at once");
    until("the other process sees it", async || seen(there).await == 50).await;
    // Nobody else goes faster, and not in another workspace.
    let stranger = RateSubject::user(world.bot, world.subject(8));
    assert_eq!(remaining(here, world.workspace, stranger, messages(3)).await, 3);
    assert_eq!(remaining(here, workspace(), person.clone(), messages(3)).await, 3);
    // What an override does not speak of stays as it is.
    let rule = RateRule { tokens: Some(limit(9, 1)), ..messages(3) };
    let of = RateCall {
        workspace: Some(world.workspace),
        id: None,
        limits: vec![(person.clone(), rule)],
        tokens: 0,
    };
    assert_eq!(here.look(&of).await.iter().map(|s| s.limit).collect::<Vec<_>>(), [50, 9]);
    limits.remove_override(&admin, world.workspace, &person, reason("calm")).await.unwrap();
    assert_eq!(seen(here).await, 3);
    until("the other process sees that too", async || seen(there).await == 3).await;
    limits
        .set_override(&admin, world.workspace, person.clone(), messages(1), reason("loud"), Some(end))
        .await
        .unwrap();
    assert_eq!(seen(here).await, 1);
    world.clock.advance(TimeDelta::hours(1));
    assert_eq!(seen(here).await, 3);
    support::replays_to_the_same(&world.app, &world.pool).await;
}

#[sqlx::test(migrations = "../migrations")]
async fn who_may_set_the_pace_of_whom(pool: PgPool) {
    let world = World::new(pool).await;
    let limits = &world.app.rate_limits;
    let bot = RateSubject::bot(world.bot);
    let set = async |caller, workspace, subject, rule| {
        limits.set_override(&caller, workspace, subject, rule, reason("why"), None).await
    };
    for role in [Role::Moderator, Role::Auditor, Role::Analyst, Role::Member] {
        let refused = set(world.operator(role), world.workspace, bot.clone(), messages(1)).await;
        assert!(matches!(refused, Err(CommandError::Forbidden { .. })), "{role:?}");
    }
    let admin = world.operator(Role::Admin);
    let foreign = set(admin.clone(), workspace(), bot.clone(), messages(1)).await;
    assert!(matches!(foreign, Err(CommandError::NotFound { .. })));
    let empty = set(admin.clone(), world.workspace, bot, RateRule::default()).await;
    assert!(matches!(empty, Err(CommandError::Refused(RateOverrideError::Empty))));
    // An address is everybody's: only who runs the installation decides about it.
    let office = RateSubject::ip("192.0.2.1".parse().unwrap());
    let tenant = set(admin, world.workspace, office.clone(), messages(1)).await;
    assert_eq!(tenant.unwrap_err().code(), "RATE_OVERRIDE_OF_AN_ADDRESS");
    set(system(), world.workspace, office, messages(7)).await.unwrap();
    let door = RateCall::at_the_door("192.0.2.1".parse().unwrap(), messages(3));
    assert_eq!(limits.limiter().look(&door).await[0].limit, 7);
}

#[sqlx::test(migrations = "../migrations")]
async fn overrides_outlive_a_database_that_goes_away(pool: PgPool) {
    let world = World::new(pool).await;
    let limits = &world.app.rate_limits;
    let bot = RateSubject::bot(world.bot);
    limits
        .set_override(&system(), world.workspace, bot.clone(), messages(9), reason("fair"), None)
        .await
        .unwrap();
    sqlx::query("ALTER TABLE events RENAME TO gone").execute(&world.pool).await.unwrap();
    let begun = std::time::Instant::now();
    until("what was read is old", async || {
        assert_eq!(remaining(limits.limiter(), world.workspace, bot.clone(), messages(3)).await, 9);
        begun.elapsed() > Duration::from_millis(1_600)
    })
    .await;
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
