//! Places that are shared out: nobody gets all of them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use botledger_domain::OperatorId;

use crate::auth::Identity;

/// Whose share it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Nobody known, from this network.
    Stranger(Option<IpAddr>),
    Operator(OperatorId),
}

impl Who {
    pub(crate) fn of(identity: Option<&Identity>, peer: Option<IpAddr>) -> Self {
        match identity {
            Some(identity) => Self::Operator(identity.operator),
            None => Self::Stranger(peer.map(network)),
        }
    }
}

/// What one household has: an IPv4 address, or the /64 in which it may choose its IPv6 addresses.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

/// Counts what everybody has taken.
pub(crate) struct Shares {
    most: usize,
    taken: Mutex<HashMap<Who, usize>>,
}

impl Shares {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// A place, until it is dropped; nothing when they have as many as anybody gets.
    pub(crate) fn take(self: &Arc<Self>, who: Who) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(who).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), who })
    }
}

/// A place that somebody has.
pub(crate) struct Share {
    shares: Arc<Shares>,
    who: Who,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            // Who has nothing is forgotten.
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(address: &str) -> Who {
        Who::of(None, Some(address.parse().expect("an address")))
    }

    #[test]
    fn one_takes_no_more_than_a_share_and_gives_it_back() {
        let shares = Shares::new(2);
        let held = [shares.take(stranger("192.0.2.1")), shares.take(stranger("::ffff:192.0.2.1"))];
        assert!(held.iter().all(Option::is_some));
        assert!(shares.take(stranger("192.0.2.1")).is_none());
        assert!(shares.take(stranger("192.0.2.2")).is_some(), "others have theirs");
        drop(held);
        assert!(shares.take(stranger("192.0.2.1")).is_some());
        assert!(shares.taken.lock().expect("no panic").is_empty(), "who has nothing is forgotten");
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        assert_eq!(stranger("2001:db8:1:2::1"), stranger("2001:db8:1:2:ffff::9"));
        assert_ne!(stranger("2001:db8:1:2::1"), stranger("2001:db8:1:3::1"));
    }
}
