//! Address pools: hands out the addresses of a pod CIDR. Pure: no I/O, no clock.
//!
//! Allocation is next-fit: the search for a free address goes on behind the one given last, so that a released
//! address is not given again at once and a late packet does not meet a new owner.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

/// Why an address could not be leased.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No address is free.
    #[error(
        "no free address: all {capacity} pod addresses of {cidr} are in use; remove pods or give the node a larger pod CIDR"
    )]
    Exhausted {
        /// The pod CIDR.
        cidr: IpNetwork,
        /// How many addresses it has for pods.
        capacity: u64,
    },
    /// The requested address is leased.
    #[error("address {address} is already in use by another pod of {cidr}")]
    InUse {
        /// The requested address.
        address: IpAddr,
        /// The pod CIDR.
        cidr: IpNetwork,
    },
    /// The requested address lies outside the pool, or is one that no pod can have.
    #[error("address {address} cannot be given to a pod: {reason}")]
    Unusable {
        /// The requested address.
        address: IpAddr,
        /// Why not.
        reason: String,
    },
}

/// The pool of one pod CIDR. The network address, the gateway (the address after it) and, for IPv4, the broadcast
/// address are never given.
#[derive(Clone, Debug)]
pub struct Pool {
    cidr: IpNetwork,
    /// Leased addresses, as offsets from the network address.
    leased: BTreeSet<u128>,
    /// Offset at which the search for a free address starts.
    next: u128,
}

/// Offset of the first address that a pod can have: behind the network address and the gateway.
const FIRST: u128 = 2;

impl Pool {
    /// Makes an empty pool. The CIDR must hold at least one address besides those never given
    /// (`Config` sees to that).
    #[must_use]
    pub const fn new(cidr: IpNetwork) -> Self {
        Self { cidr, leased: BTreeSet::new(), next: FIRST }
    }

    /// Returns the pod CIDR.
    #[must_use]
    pub const fn cidr(&self) -> IpNetwork {
        self.cidr
    }

    /// Returns how many addresses pods can have; saturates at `u64::MAX`.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::try_from(self.last() - FIRST + 1).unwrap_or(u64::MAX)
    }

    /// Returns how many addresses are leased.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.leased.len() as u64
    }

    /// Leases the next free address.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`].
    pub fn lease_next(&mut self) -> Result<IpAddr, Error> {
        let last = self.last();
        let offset = self
            .first_free(self.next, last)
            .or_else(|| self.first_free(FIRST, self.next.saturating_sub(1)))
            .ok_or(Error::Exhausted { cidr: self.cidr, capacity: self.capacity() })?;
        self.leased.insert(offset);
        self.next = if offset == last { FIRST } else { offset + 1 };
        Ok(self.address(offset))
    }

    /// Leases a requested address.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] or [`Error::Unusable`].
    pub fn lease(&mut self, address: IpAddr) -> Result<(), Error> {
        let unusable = |reason: String| Error::Unusable { address, reason };
        let offset = self
            .offset(address)
            .ok_or_else(|| unusable(format!("it lies outside the node's pod CIDR {}", self.cidr)))?;
        if offset < FIRST {
            return Err(unusable(format!("it is the network address or the gateway of {}", self.cidr)));
        }
        if offset > self.last() {
            return Err(unusable(format!("it is the broadcast address of {}", self.cidr)));
        }
        if self.leased.insert(offset) { Ok(()) } else { Err(Error::InUse { address, cidr: self.cidr }) }
    }

    /// Releases an address; returns whether it was leased.
    pub fn release(&mut self, address: IpAddr) -> bool {
        self.offset(address).is_some_and(|offset| self.leased.remove(&offset))
    }

    /// Lets the search go on behind an address: the one given last before a restart.
    pub fn resume_after(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.next = if offset >= self.last() { FIRST } else { (offset + 1).max(FIRST) };
        }
    }

    /// Returns the smallest free offset in `from..=to`.
    fn first_free(&self, from: u128, to: u128) -> Option<u128> {
        if from > to {
            return None;
        }
        let mut candidate = from;
        for leased in self.leased.range(from..=to) {
            if *leased != candidate {
                break;
            }
            candidate += 1;
        }
        (candidate <= to).then_some(candidate)
    }

    /// Returns the last offset that a pod can have.
    fn last(&self) -> u128 {
        match self.cidr {
            // The broadcast address comes after it.
            IpNetwork::V4(v4) => (1u128 << (32 - v4.prefix())) - 2,
            IpNetwork::V6(v6) => (1u128 << (128 - u32::from(v6.prefix()))) - 1,
        }
    }

    fn address(&self, offset: u128) -> IpAddr {
        match self.cidr {
            IpNetwork::V4(v4) => IpAddr::V4((u32::from(v4.network()) + offset as u32).into()),
            IpNetwork::V6(v6) => IpAddr::V6((u128::from(v6.network()) + offset).into()),
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        if !self.cidr.contains(address) {
            return None;
        }
        match (self.cidr, address) {
            (IpNetwork::V4(v4), IpAddr::V4(address)) => Some(u128::from(u32::from(address) - u32::from(v4.network()))),
            (IpNetwork::V6(v6), IpAddr::V6(address)) => Some(u128::from(address) - u128::from(v6.network())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_come_in_order_and_are_not_reused_at_once() {
        let mut pool = pool("10.244.1.0/24");
        assert_eq!(pool.lease_next().unwrap(), ip("10.244.1.2"));
        assert_eq!(pool.lease_next().unwrap(), ip("10.244.1.3"));
        assert!(pool.release(ip("10.244.1.2")));
        assert_eq!(pool.lease_next().unwrap(), ip("10.244.1.4"));
    }

    #[test]
    fn the_search_wraps_round() {
        let mut pool = pool("10.0.0.0/29");
        let given: Vec<_> = (0..5).map(|_| pool.lease_next().unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let error = pool.lease_next().unwrap_err();
        assert_eq!(error, Error::Exhausted { cidr: "10.0.0.0/29".parse().unwrap(), capacity: 5 });
        assert!(error.to_string().contains("all 5 pod addresses of 10.0.0.0/29"));
        pool.release(ip("10.0.0.4"));
        assert_eq!(pool.lease_next().unwrap(), ip("10.0.0.4"));
    }

    #[test]
    fn requested_addresses_are_honoured_or_refused() {
        let mut pool = pool("fd00:10:244:1::/64");
        pool.lease(ip("fd00:10:244:1::99")).unwrap();
        assert!(matches!(pool.lease(ip("fd00:10:244:1::99")), Err(Error::InUse { .. })));
        for (address, reason) in [
            ("fd00:10:244:1::", "network address or the gateway"),
            ("fd00:10:244:1::1", "network address or the gateway"),
            ("fd00:10:244:2::5", "outside the node's pod CIDR fd00:10:244:1::/64"),
            ("10.244.1.5", "outside"),
        ] {
            assert!(pool.lease(ip(address)).unwrap_err().to_string().contains(reason), "{address}");
        }
        let mut v4 = self::pool("10.244.1.0/24");
        assert!(v4.lease(ip("10.244.1.255")).unwrap_err().to_string().contains("broadcast"));
        // IPv6 has no broadcast address.
        pool.lease(ip("fd00:10:244:1:ffff:ffff:ffff:ffff")).unwrap();
    }

    #[test]
    fn a_restart_goes_on_behind_the_last_address() {
        let mut pool = pool("10.0.0.0/29");
        pool.resume_after(ip("10.0.0.4"));
        assert_eq!(pool.lease_next().unwrap(), ip("10.0.0.5"));
        pool.resume_after(ip("10.0.0.6"));
        assert_eq!(pool.lease_next().unwrap(), ip("10.0.0.2"));
        pool.resume_after(ip("192.0.2.1"));
        assert_eq!(pool.lease_next().unwrap(), ip("10.0.0.3"));
    }

    #[test]
    fn capacity_of_a_large_pool_saturates() {
        assert_eq!(pool("10.244.1.0/24").capacity(), 253);
        assert_eq!(pool("10.0.0.0/30").capacity(), 1);
        assert_eq!(pool("fd00::/48").capacity(), u64::MAX);
    }

    proptest! {
        /// Whatever is leased and released: no address is given twice, none that no pod can have, and the pool is
        /// exhausted exactly when all are in use.
        #[test]
        fn leases_stay_unique(steps in prop::collection::vec(any::<(bool, u8)>(), 1..400)) {
            let mut pool = pool("10.0.0.0/28");
            let mut held: Vec<IpAddr> = Vec::new();
            for (lease, pick) in steps {
                if lease {
                    if let Ok(address) = pool.lease_next() {
                        prop_assert!(!held.contains(&address));
                        prop_assert!(!["10.0.0.0", "10.0.0.1", "10.0.0.15"].contains(&address.to_string().as_str()));
                        held.push(address);
                    } else {
                        prop_assert_eq!(held.len() as u64, pool.capacity());
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(usize::from(pick) % held.len());
                    prop_assert!(pool.release(address));
                    prop_assert!(!pool.release(address));
                }
                prop_assert_eq!(pool.used(), held.iter().collect::<HashSet<_>>().len() as u64);
            }
        }
    }
}
