//! How often somebody may try to get in.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use botledger_domain::OperatorId;
use chrono::{DateTime, TimeDelta, Utc};

use crate::shares::network;

const WINDOW: TimeDelta = TimeDelta::minutes(1);
/// Entries remembered. When all of them are in use, the one with the fewest tries makes room: who
/// guesses is remembered, and the map does not grow.
const REMEMBERED: usize = 10_000;

/// Against what tries are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Against {
    /// Logins from a network.
    Logins(Option<IpAddr>),
    /// One-time links from a network.
    Links(Option<IpAddr>),
    /// A login's fingerprint, from wherever.
    Login(u64),
    /// A refresh token's fingerprint. Many clients may share an address, and nobody guesses 256 bits.
    Token(u64),
    /// Rows in the audit table about somebody who asks from an address that their workspace denies.
    Denied(OperatorId),
}

impl Against {
    /// Tries in a window. A login has more than an address, so that nobody keeps its owner out alone.
    const fn most(self) -> u32 {
        match self {
            Self::Login(_) => 60,
            Self::Denied(_) => 5,
            Self::Logins(_) | Self::Links(_) | Self::Token(_) => 20,
        }
    }
}

/// Counts tries in this process. Passwords are slow to check already; this keeps the queue short.
#[derive(Default)]
pub(crate) struct Attempts {
    windows: Mutex<HashMap<Against, (DateTime<Utc>, u32)>>,
    /// Keyed at random: nobody outside can tell which texts share a fingerprint.
    fingerprints: RandomState,
}

impl Attempts {
    /// Counts a login, by where it comes from and by whose it is.
    pub(crate) fn login(&self, from: Option<IpAddr>, login: &str, now: DateTime<Utc>) -> Result<(), u64> {
        self.take(Against::Logins(from.map(network)), now)?;
        self.take(Against::Login(self.fingerprints.hash_one(login.trim().to_lowercase())), now)
    }

    /// Counts a use of a one-time link.
    pub(crate) fn link(&self, from: Option<IpAddr>, now: DateTime<Utc>) -> Result<(), u64> {
        self.take(Against::Links(from.map(network)), now)
    }

    /// Counts a use of a refresh token.
    pub(crate) fn refresh(&self, token: &str, now: DateTime<Utc>) -> Result<(), u64> {
        self.take(Against::Token(self.fingerprints.hash_one(token)), now)
    }

    /// Whether it is worth another row that this operator asks from an address that their workspace denies.
    pub(crate) fn denied(&self, operator: OperatorId, now: DateTime<Utc>) -> bool {
        self.take(Against::Denied(operator), now).is_ok()
    }

    /// Counts a try, or says how many milliseconds to wait.
    fn take(&self, against: Against, now: DateTime<Utc>) -> Result<(), u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= REMEMBERED && !windows.contains_key(&against) {
            windows.retain(|_, (began, _)| now - *began < WINDOW);
            let least =
                windows.iter().min_by_key(|(_, (began, tries))| (*tries, *began)).map(|(key, _)| *key);
            if let Some(least) = least.filter(|_| windows.len() >= REMEMBERED) {
                windows.remove(&least);
            }
        }
        let (began, tries) = windows.entry(against).or_insert((now, 0));
        if now - *began >= WINDOW {
            (*began, *tries) = (now, 0);
        }
        if *tries >= against.most() {
            let left = WINDOW - (now - *began);
            return Err(u64::try_from(left.num_milliseconds()).unwrap_or(1_000));
        }
        *tries += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:00:00Z".parse().expect("a time")
    }

    fn address(number: u32) -> Option<IpAddr> {
        Some(Ipv4Addr::from_bits(number).into())
    }

    #[test]
    fn tries_run_out_and_come_back() {
        let attempts = Attempts::default();
        for _ in 0..20 {
            assert_eq!(attempts.link(address(1), now()), Ok(()));
        }
        assert_eq!(attempts.link(address(1), now() + TimeDelta::seconds(59)), Err(1_000));
        assert_eq!(attempts.link(address(2), now()), Ok(()));
        assert_eq!(attempts.login(address(1), "ada", now()), Ok(()), "logging in is another matter");
        assert_eq!(attempts.link(address(1), now() + WINDOW), Ok(()));
    }

    #[test]
    fn an_account_is_not_tried_from_everywhere() {
        let attempts = Attempts::default();
        for number in 0..60 {
            assert_eq!(attempts.login(address(number), "ada", now()), Ok(()));
        }
        assert!(attempts.login(address(60), " ADA", now()).is_err());
        assert_eq!(attempts.login(address(60), "grace", now()), Ok(()));
    }

    #[test]
    fn a_network_has_one_count_however_many_addresses_it_has() {
        let attempts = Attempts::default();
        let at = |host: u128| Some(IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | host)));
        for host in 0..20 {
            assert_eq!(attempts.login(at(host), &format!("login-{host}"), now()), Ok(()));
        }
        assert!(attempts.login(at(20), "another", now()).is_err());
        assert_eq!(attempts.login(at(1 << 64), "another", now()), Ok(()));
    }

    #[test]
    fn a_refresh_counts_against_its_token_only() {
        let attempts = Attempts::default();
        for _ in 0..20 {
            assert_eq!(attempts.refresh("one", now()), Ok(()));
        }
        assert!(attempts.refresh("one", now()).is_err());
        assert_eq!(attempts.refresh("two", now()), Ok(()));
    }

    #[test]
    fn a_crowd_neither_fills_the_memory_nor_hides_who_guesses() {
        let attempts = Attempts::default();
        for _ in 0..20 {
            assert_eq!(attempts.link(address(0), now()), Ok(()));
        }
        let crowd = u32::try_from(REMEMBERED).expect("fits") + 50;
        for number in 1..crowd {
            assert_eq!(attempts.link(address(number), now()), Ok(()));
        }
        assert_eq!(attempts.windows.lock().expect("no panic").len(), REMEMBERED);
        assert!(attempts.link(address(0), now()).is_err());
    }

    #[test]
    fn who_goes_on_asking_from_a_denied_address_does_not_fill_the_audit_table() {
        let (attempts, now) = (Attempts::default(), DateTime::UNIX_EPOCH);
        let (one, other) = (OperatorId(uuid::Uuid::from_u128(1)), OperatorId(uuid::Uuid::from_u128(2)));
        assert_eq!((0..100).filter(|_| attempts.denied(one, now)).count(), 5);
        assert!(attempts.denied(other, now), "somebody else");
        assert!(attempts.denied(one, now + WINDOW), "a minute later");
    }
}
