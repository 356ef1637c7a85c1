//! Token buckets per person, chat and bot, in Redis: one script call a decision, all scopes or none.
//!
//! The script is an integer GCRA on Redis's own clock: a bucket is one number, the time at which it
//! would be full again. Without Redis the same arithmetic runs on numbers in this process. A bot is
//! run by one instance at a time (L6), so the limits hold there too; what is lost with Redis is only
//! the memory of the last minutes. Never open to all.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use botledger_domain::{
    BotId, ConversationId, SharedClock, SubjectId,
    bot::{BotRateLimits, RateLimit},
};
use chrono::{DateTime, TimeDelta, Utc};
use moka::sync::Cache;
use redis::{Script, aio::ConnectionManager};

/// KEYS: one a scope. ARGV: emission interval and burst of each, microseconds and count.
/// Returns 0, or the number of the scope that refuses longest and the microseconds to wait.
static SCRIPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        local full = {}
        local refuses, longest = 0, 0
        for i = 1, #KEYS do
            local interval, burst = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
            local at = math.max(tonumber(redis.call('GET', KEYS[i]) or 0), now) + interval
            local wait = at - now - interval * burst
            if wait > longest then
                refuses, longest = i, wait
            end
            full[i] = at
        end
        if refuses > 0 then
            return { refuses, longest }
        end
        for i = 1, #KEYS do
            redis.call('SET', KEYS[i], string.format('%.0f', full[i]), 'PX', math.ceil((full[i] - now) / 1000) + 1000)
        end
        return { 0, 0 }
        ",
    )
});

/// Which bucket is empty, and until when; of several the one that stays empty longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateRefusal {
    /// `user`, `chat` or `bot`.
    pub scope: &'static str,
    /// When one message will fit again.
    pub retry_at: DateTime<Utc>,
}

const SCOPES: [&str; 3] = ["user", "chat", "bot"];

/// Decides whether a message is within all rate limits.
#[derive(Clone)]
pub struct RateLimiter {
    redis: Option<ConnectionManager>,
    local: Cache<String, i64>,
    /// One decision at a time in the local buckets, so that scopes are taken together.
    deciding: Arc<std::sync::Mutex<()>>,
    clock: SharedClock,
    patience: Duration,
}

impl RateLimiter {
    /// A limiter on Redis; without a connection it always counts in this process.
    #[must_use]
    pub fn new(redis: Option<ConnectionManager>, clock: SharedClock, patience: Duration) -> Self {
        let local = Cache::builder().max_capacity(200_000).time_to_idle(Duration::from_secs(3_600)).build();
        Self { redis, local, deciding: Arc::default(), clock, patience }
    }

    /// Takes one message from every bucket, or from none.
    ///
    /// # Errors
    /// The bucket that refuses.
    pub async fn take(
        &self,
        bot: BotId,
        subject: SubjectId,
        chat: ConversationId,
        limits: BotRateLimits,
    ) -> Result<(), RateRefusal> {
        // The braces keep all keys of a bot in one slot of a Redis cluster.
        let keys = [
            format!("bl:rate:{{{bot}}}:user:{subject}"),
            format!("bl:rate:{{{bot}}}:chat:{chat}"),
            format!("bl:rate:{{{bot}}}:bot"),
        ];
        let limits = [limits.user, limits.chat, limits.bot];
        let answer = match self.ask_redis(&keys, limits).await {
            Some(answer) => answer,
            None => {
                metrics::counter!("botledger_rate_limit_fallbacks_total").increment(1);
                self.ask_locally(&keys, limits)
            }
        };
        match answer {
            (0, _) => Ok(()),
            (scope, wait) => {
                let scope = SCOPES[usize::try_from(scope - 1).unwrap_or(0).min(SCOPES.len() - 1)];
                metrics::counter!("botledger_rate_limited_total", "scope" => scope).increment(1);
                Err(RateRefusal { scope, retry_at: self.clock.now() + TimeDelta::microseconds(wait) })
            }
        }
    }

    async fn ask_redis(&self, keys: &[String; 3], limits: [RateLimit; 3]) -> Option<(i64, i64)> {
        let mut redis = self.redis.clone()?;
        let mut call = SCRIPT.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for limit in limits {
            call.arg(interval(limit)).arg(limit.burst.max(1));
        }
        match tokio::time::timeout(self.patience, call.invoke_async(&mut redis)).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "Redis gave no answer, counting here");
                None
            }
            Err(_) => None,
        }
    }

    fn ask_locally(&self, keys: &[String; 3], limits: [RateLimit; 3]) -> (i64, i64) {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = self.clock.now().timestamp_micros();
        let mut full = [0i64; 3];
        let mut refusal = (0, 0);
        for (i, (key, limit)) in keys.iter().zip(limits).enumerate() {
            let interval = interval(limit);
            full[i] = self.local.get(key).unwrap_or(0).max(now) + interval;
            let wait = full[i] - now - interval * i64::from(limit.burst.max(1));
            if wait > refusal.1 {
                refusal = (i64::try_from(i + 1).unwrap_or(1), wait);
            }
        }
        if refusal.0 > 0 {
            return refusal;
        }
        for (key, at) in keys.iter().zip(full) {
            self.local.insert(key.clone(), at);
        }
        (0, 0)
    }
}

/// Microseconds a message takes to refill.
fn interval(limit: RateLimit) -> i64 {
    60_000_000 / i64::from(limit.per_minute.max(1))
}
