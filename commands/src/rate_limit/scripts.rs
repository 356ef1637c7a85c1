//! The scripts that decide in Redis. Each is one call, so nothing comes between looking and taking.
//!
//! Keys of a call all carry the same hash tag: a Redis cluster has them in one slot. Times are those of
//! Redis, so that processes need not agree on theirs. A bucket is a hash of the parts used and when that
//! was (`r`, `ra` of requests, `t`, `ta` of tokens), and vanishes when it would be full; calls under way
//! are a sorted set of their ids by when they lapse. All numbers are whole and below 2^53.

use std::{sync::LazyLock, time::Duration};

use botledger_domain::rate_limit::{RateLimit, RateRule};
use redis::{Script, ScriptInvocation};

use super::level;

/// How long a call is remembered that nobody settled or renewed: a repeated step is no second call.
pub(super) const MEMORY: Duration = Duration::from_secs(600);
/// How long a settled call is remembered.
pub(super) const SETTLED_MEMORY: Duration = Duration::from_secs(60);
/// How long a call counts as under way without being renewed: a process that died gives up its places
/// after that.
pub(super) const LEASE: Duration = Duration::from_secs(60);

/// What all scripts begin with.
const COMMON: &str = r"
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local ONE = 60000000

local function whole(number)
    return string.format('%.0f', number)
end

-- What has another type under our names is nobody's: it goes, and counts as empty.
local function ask(name, key, ...)
    local answer = redis.pcall(name, key, ...)
    if type(answer) == 'table' and answer.err then
        if not string.find(answer.err, 'WRONGTYPE', 1, true) then
            return error(answer.err)
        end
        redis.call('DEL', key)
        answer = redis.call(name, key, ...)
    end
    return answer
end

-- A clock that went back gives nothing back, and time goes on from there: also for who is refused.
local function level(bucket, used, name, at, rate)
    at = tonumber(at) or now
    if at > now then
        redis.call('HSET', bucket, name, whole(now))
    end
    return math.max(0, (tonumber(used) or 0) - math.max(0, now - at) * rate)
end

local function lease(key, id, length)
    redis.call('ZADD', key, whole(now + length), id)
    redis.call('PEXPIRE', key, whole(length / 1000 + 1000))
end
";

/// KEYS: the call's memory; per subject its bucket and its calls under way.
/// ARGV: id (or empty), tokens, lease in microseconds, memory in milliseconds, 1 to look only; per subject
/// burst and rate of requests, burst and rate of tokens, parallel calls, each 0 where not limited.
/// Returns: admitted, counted before, tokens asked for now; per subject parts of requests and of tokens
/// used, calls under way, whether this is one of them.
pub(super) static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COMMON}{}",
        r"
local id, tokens, length = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local look = ARGV[5] == '1'
local counted = id ~= '' and ask('GET', KEYS[1])
local settled = counted == 'settled'
local before = tonumber(counted) or 0
local one, more = 1, math.max(0, tokens - before)
if counted or look then one = 0 end
if settled or look then more = 0 end
local stays = id ~= '' and not settled and not look
local admitted = 1
local answer = { 1, counted and 1 or 0, more }
for i = 1, (#KEYS - 1) / 2 do
    local bucket, calls, at = KEYS[2 * i], KEYS[2 * i + 1], 5 * i
    local r_burst, r_rate = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local t_burst, t_rate, parallel = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    local r, t, live, own = 0, 0, 0, false
    if r_burst > 0 or t_burst > 0 then
        local held = ask('HMGET', bucket, 'r', 'ra', 't', 'ta')
        if r_burst > 0 then r = level(bucket, held[1], 'ra', held[2], r_rate) end
        if t_burst > 0 then t = level(bucket, held[3], 'ta', held[4], t_rate) end
    end
    if parallel > 0 then
        ask('ZREMRANGEBYSCORE', calls, '-inf', whole(now))
        -- Nothing lapses that late, unless the clock went back: who still runs will renew.
        redis.call('ZREMRANGEBYSCORE', calls, '(' .. whole(now + length), '+inf')
        live = redis.call('ZCARD', calls)
        own = id ~= '' and redis.call('ZSCORE', calls, id)
    end
    if r_burst > 0 and one > 0 and r + ONE > r_burst * ONE
        or t_burst > 0 and more > 0 and t + more * ONE > t_burst * ONE
        or parallel > 0 and stays and not own and live >= parallel then
        admitted = 0
    end
    answer[4 * i], answer[4 * i + 1], answer[4 * i + 2], answer[4 * i + 3] = r, t, live, own and 1 or 0
end
answer[1] = admitted
if look or admitted == 0 then
    return answer
end
for i = 1, (#KEYS - 1) / 2 do
    local bucket, calls, at = KEYS[2 * i], KEYS[2 * i + 1], 5 * i
    local r_rate, t_rate, parallel = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
    if r_rate > 0 then answer[4 * i] = answer[4 * i] + one * ONE end
    if t_rate > 0 then answer[4 * i + 1] = answer[4 * i + 1] + more * ONE end
    local r, t, at_now = answer[4 * i], answer[4 * i + 1], whole(now)
    local rest = math.max(r_rate > 0 and r / r_rate or 0, t_rate > 0 and t / t_rate or 0)
    if one + more > 0 and rest > 0 then
        if t_rate == 0 then
            redis.call('HSET', bucket, 'r', whole(r), 'ra', at_now)
        elseif r_rate == 0 then
            redis.call('HSET', bucket, 't', whole(t), 'ta', at_now)
        else
            redis.call('HSET', bucket, 'r', whole(r), 'ra', at_now, 't', whole(t), 'ta', at_now)
        end
        redis.call('PEXPIRE', bucket, whole(math.ceil(rest / 1000) + 1000))
    end
    if parallel > 0 and stays then
        lease(calls, id, length)
        if answer[4 * i + 3] == 0 then
            answer[4 * i + 2], answer[4 * i + 3] = answer[4 * i + 2] + 1, 1
        end
    end
end
if stays then
    redis.call('SET', KEYS[1], whole(before + more), 'PX', ARGV[4])
end
return answer
"
    ))
});

/// KEYS as above. ARGV: id, tokens in truth, memory in milliseconds; per subject the rate of tokens, 0
/// where not limited. Returns whether the call was known and not settled before.
pub(super) static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COMMON}{}",
        r"
local id, tokens = ARGV[1], tonumber(ARGV[2])
local counted = ask('GET', KEYS[1])
local known = counted and counted ~= 'settled'
for i = 1, (#KEYS - 1) / 2 do
    local bucket, rate = KEYS[2 * i], tonumber(ARGV[3 + i])
    if known and rate > 0 then
        local held = ask('HMGET', bucket, 't', 'ta')
        local t = math.max(0, level(bucket, held[1], 'ta', held[2], rate) + (tokens - tonumber(counted)) * ONE)
        redis.call('HSET', bucket, 't', whole(t), 'ta', whole(now))
        -- Requests may have to be remembered for longer.
        local rest = math.ceil(t / rate / 1000) + 1000
        if redis.call('PTTL', bucket) < rest then
            redis.call('PEXPIRE', bucket, whole(rest))
        end
    end
    ask('ZREM', KEYS[2 * i + 1], id)
end
redis.call('SET', KEYS[1], 'settled', 'PX', ARGV[3])
return known and 1 or 0
"
    ))
});

/// KEYS as above. ARGV: id, tokens, lease in microseconds, memory in milliseconds; per subject 1 where
/// parallel calls are limited. Returns whether the call goes on.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COMMON}{}",
        r"
local counted = ask('GET', KEYS[1])
if counted == 'settled' then
    return 0
end
redis.call('SET', KEYS[1], counted or ARGV[2], 'PX', ARGV[4])
for i = 1, (#KEYS - 1) / 2 do
    if ARGV[4 + i] == '1' then
        ask('ZCARD', KEYS[2 * i + 1])
        lease(KEYS[2 * i + 1], ARGV[1], tonumber(ARGV[3]))
    end
end
return 1
"
    ))
});

/// Burst and rate, or zeros.
pub(super) fn numbers(call: &mut ScriptInvocation<'_>, limit: Option<RateLimit>) {
    let (burst, rate) = limit.map_or((0, 0), |limit| (level::burst(limit), level::per_minute(limit)));
    call.arg(burst).arg(rate);
}

pub(super) fn rule(call: &mut ScriptInvocation<'_>, rule: RateRule) {
    numbers(call, rule.requests);
    numbers(call, rule.tokens);
    call.arg(rule.parallel.unwrap_or(0));
}
