//! Rate decisions against a bare command to the same Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use botledger_commands::{RateCall, RateLimiter, SystemClock};
use botledger_domain::WorkspaceId;
use botledger_domain::rate_limit::{RateLimit, RateRule, RateSubject, RateSubjectKind};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{Effort, Row, median, told};

/// Decisions under way at once.
const AT_ONCE: usize = 64;

pub(crate) fn redis() -> Result<ConnectionManager> {
    let url = std::env::var("REDIS_URL").context("run it as ops/bench, which starts what it needs")?;
    let patience = Some(Duration::from_secs(5));
    let settings = ConnectionManagerConfig::new().set_response_timeout(patience);
    Ok(ConnectionManager::new_lazy_with_config(redis::Client::open(url)?, settings)?)
}

/// A message of one of many people, in one of as many chats, to one bot of one workspace.
fn message(workspace: WorkspaceId, number: usize) -> RateCall {
    let rule = RateRule {
        requests: Some(RateLimit { burst: 1_000_000, per_minute: 1_000_000 }),
        tokens: Some(RateLimit { burst: 100_000_000, per_minute: 100_000_000 }),
        parallel: None,
    };
    let subject = |kind, number: usize| {
        (RateSubject::parse(kind, &number.to_string()).expect("digits are a plain id"), rule)
    };
    RateCall {
        workspace: Some(workspace),
        id: Some(Uuid::now_v7()),
        limits: vec![
            subject(RateSubjectKind::User, number % 1_000),
            subject(RateSubjectKind::Chat, number % 1_000),
            subject(RateSubjectKind::Bot, 1),
            subject(RateSubjectKind::Workspace, 1),
        ],
        tokens: 1_000,
    }
}

/// Calls a second, so many at once.
async fn speed<F>(round: Duration, call: impl Fn(usize) -> F + Clone + Send + 'static) -> Result<f64>
where
    F: Future<Output = ()> + Send + 'static,
{
    let begun = Instant::now();
    let mut lanes = JoinSet::new();
    for lane in 0..AT_ONCE {
        let call = call.clone();
        lanes.spawn(async move {
            let mut done = 0usize;
            while begun.elapsed() < round {
                call(done * AT_ONCE + lane).await;
                done += 1;
            }
            done
        });
    }
    let mut done = 0;
    while let Some(lane) = lanes.join_next().await {
        done += lane?;
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

pub(crate) async fn rows(effort: Effort) -> Result<Vec<Row>> {
    told("rate decisions");
    let limiter = RateLimiter::new(Some(redis()?), Arc::new(SystemClock), Duration::from_secs(5));
    let bare = redis()?;
    let workspace = WorkspaceId(Uuid::now_v7());
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let bare = bare.clone();
        let set = move |number: usize| {
            let mut redis = bare.clone();
            async move {
                let key = format!("bench:{}", number % 1_000);
                let set: redis::RedisResult<()> = redis::cmd("SET")
                    .arg(key)
                    .arg(number)
                    .arg("PX")
                    .arg(60_000)
                    .query_async(&mut redis)
                    .await;
                set.expect("Redis answers");
            }
        };
        base.push(speed(effort.round, set).await?);
        let limiter = limiter.clone();
        let take = move |number: usize| {
            let (limiter, call) = (limiter.clone(), message(workspace, number));
            async move {
                limiter.take(&call).await.expect("within the limits");
            }
        };
        ours.push(speed(effort.round, take).await?);
    }
    let (ours, base) = (median(ours), median(base));
    Ok(vec![Row {
        what: format!("rate decisions, 4 subjects in messages and tokens, {AT_ONCE} at once (base: one SET)"),
        ours: format!("{ours:.0}/s"),
        base: format!("{base:.0}/s"),
        ratio: ours / base,
        aim: "",
    }])
}
