//! The same buckets in this process, for when Redis does not answer. They go on from what Redis said
//! last, as far as it said it to this process.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use botledger_domain::rate_limit::{RateLimit, RateRule};
use moka::sync::Cache;
use uuid::Uuid;

use super::{
    Answer, Found, Keys,
    level::{Level, ONE, capacity},
    scripts::{LEASE, MEMORY},
};

/// Subjects remembered.
const MOST: u64 = 200_000;

#[derive(Clone, Debug, Default)]
struct Bucket {
    requests: Level,
    tokens: Level,
    /// Calls under way, by when they lapse.
    calls: BTreeMap<Uuid, i64>,
}

/// What is known of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Tokens(u64),
    Settled,
}

pub(super) struct Local {
    buckets: Cache<String, Bucket>,
    calls: Cache<String, Counted>,
    /// One decision at a time, so that subjects are taken together.
    deciding: Mutex<()>,
}

impl Local {
    pub(super) fn new() -> Self {
        let hour = Duration::from_secs(3_600);
        Self {
            buckets: Cache::builder().max_capacity(MOST).time_to_idle(hour).build(),
            calls: Cache::builder().max_capacity(MOST).time_to_live(MEMORY).build(),
            deciding: Mutex::default(),
        }
    }

    /// What the script does. Time is that of this process, in microseconds.
    pub(super) fn take(
        &self,
        keys: &Keys,
        rules: &[RateRule],
        id: Option<Uuid>,
        tokens: u64,
        look: bool,
        now: i64,
    ) -> Answer {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = id.and_then(|_| self.calls.get(&keys.call));
        let settled = counted == Some(Counted::Settled);
        let before = match counted {
            Some(Counted::Tokens(before)) => before,
            _ => 0,
        };
        let requests = u64::from(counted.is_none() && !look);
        let more = if settled || look { 0 } else { tokens.saturating_sub(before) };
        let stays = id.filter(|_| !settled && !look);
        let mut buckets: Vec<Bucket> = keys
            .subjects
            .iter()
            .map(|subject| self.buckets.get(&subject.bucket).unwrap_or_default())
            .collect();
        let mut admitted = true;
        let mut found = Vec::with_capacity(rules.len());
        for (bucket, rule) in buckets.iter_mut().zip(rules) {
            let over = |level: &mut Level, limit: Option<RateLimit>, cost: u64| {
                let Some(limit) = limit else { return (0, false) };
                *level = level.at(now, limit);
                (level.used, cost > 0 && level.used + cost * ONE > capacity(limit))
            };
            let (requests, slow) = over(&mut bucket.requests, rule.requests, requests);
            let (tokens, large) = over(&mut bucket.tokens, rule.tokens, more);
            bucket.calls.retain(|_, lapses| (now..=now + lease()).contains(lapses));
            let own = id.is_some_and(|id| bucket.calls.contains_key(&id));
            let live = u32::try_from(bucket.calls.len()).unwrap_or(u32::MAX);
            let crowded = rule.parallel.is_some_and(|most| stays.is_some() && !own && live >= most.max(1));
            admitted &= !(slow || large || crowded);
            found.push(Found { requests, tokens, live, own });
        }
        let taken = admitted && !look;
        for (((mut bucket, found), rule), subject) in
            buckets.into_iter().zip(&mut found).zip(rules).zip(&keys.subjects)
        {
            if taken && rule.requests.is_some() {
                bucket.requests.used += requests * ONE;
                found.requests = bucket.requests.used;
            }
            if taken && rule.tokens.is_some() {
                bucket.tokens.used += more * ONE;
                found.tokens = bucket.tokens.used;
            }
            if let Some(id) = stays.filter(|_| taken && rule.parallel.is_some()) {
                bucket.calls.insert(id, now + lease());
                found.live += u32::from(!found.own);
                found.own = true;
            }
            // Also for who is refused: a clock that went back goes on from here.
            self.buckets.insert(subject.bucket.clone(), bucket);
        }
        if taken && stays.is_some() {
            self.calls.insert(keys.call.clone(), Counted::Tokens(before + more));
        }
        Answer { admitted, repeated: counted.is_some(), more, found }
    }

    /// Keeps what Redis said.
    pub(super) fn note(&self, keys: &Keys, rules: &[RateRule], id: Option<Uuid>, answer: &Answer, now: i64) {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        for ((subject, rule), found) in keys.subjects.iter().zip(rules).zip(&answer.found) {
            let mut bucket = self.buckets.get(&subject.bucket).unwrap_or_default();
            if rule.requests.is_some() {
                bucket.requests = Level { used: found.requests, at: now };
            }
            if rule.tokens.is_some() {
                bucket.tokens = Level { used: found.tokens, at: now };
            }
            if let Some(id) = id.filter(|_| answer.admitted && rule.parallel.is_some()) {
                bucket.calls.retain(|_, lapses| *lapses >= now);
                bucket.calls.insert(id, now + lease());
            }
            self.buckets.insert(subject.bucket.clone(), bucket);
        }
        if id.is_some() && answer.admitted && !self.calls.contains_key(&keys.call) {
            self.calls.insert(keys.call.clone(), Counted::Tokens(answer.more));
        }
    }

    pub(super) fn settle(
        &self,
        keys: &Keys,
        rules: &[RateRule],
        id: Uuid,
        tokens: u64,
        now: i64,
        away: bool,
    ) {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = self.calls.get(&keys.call);
        for (subject, rule) in keys.subjects.iter().zip(rules) {
            let mut bucket = self.buckets.get(&subject.bucket).unwrap_or_default();
            bucket.calls.remove(&id);
            // Redis tells its own levels with the next answer.
            if let (Some(limit), Some(Counted::Tokens(before)), true) = (rule.tokens, counted, away) {
                let level = bucket.tokens.at(now, limit);
                let used = (level.used + tokens * ONE).saturating_sub(before * ONE);
                bucket.tokens = Level { used, at: now };
            }
            self.buckets.insert(subject.bucket.clone(), bucket);
        }
        self.calls.insert(keys.call.clone(), Counted::Settled);
    }

    pub(super) fn renew(&self, keys: &Keys, rules: &[RateRule], id: Uuid, tokens: u64, now: i64) -> bool {
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        match self.calls.get(&keys.call) {
            Some(Counted::Settled) => return false,
            // Whoever renews it has taken it, here or elsewhere.
            counted => self.calls.insert(keys.call.clone(), counted.unwrap_or(Counted::Tokens(tokens))),
        }
        for (subject, rule) in keys.subjects.iter().zip(rules) {
            if rule.parallel.is_some() {
                let mut bucket = self.buckets.get(&subject.bucket).unwrap_or_default();
                bucket.calls.insert(id, now + lease());
                self.buckets.insert(subject.bucket.clone(), bucket);
            }
        }
        true
    }
}

/// Microseconds.
fn lease() -> i64 {
    i64::try_from(LEASE.as_micros()).unwrap_or(i64::MAX)
}
