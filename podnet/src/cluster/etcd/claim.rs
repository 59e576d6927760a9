//! Choosing a free pod CIDR. Pure.
//!
//! A range of the cluster is cut into blocks of one size, numbered from zero. All nodes cut alike, so two pod CIDRs are
//! equal or disjoint, and one key per block is enough to keep two nodes from the same addresses.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// A range of the cluster, and how long the prefixes of its nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The range.
    pub(super) cidr: IpNetwork,
    /// Prefix length of each node's pod CIDR.
    pub(super) node_prefix: u8,
}

/// By how much the first blocks among which a node chooses become more with each attempt that failed.
const SPREAD_BITS: u32 = 2;

impl Range {
    /// Returns whether a CIDR is one of the blocks.
    pub(super) fn has(&self, cidr: IpNetwork) -> bool {
        self.number(cidr).is_some()
    }

    /// Returns how many blocks there are.
    pub(super) fn blocks(&self) -> u128 {
        1_u128.checked_shl(u32::from(self.node_prefix.saturating_sub(self.cidr.prefix()))).unwrap_or(u128::MAX)
    }

    /// Returns a free block: the first, as long as nobody else was faster. After `attempt` conflicts it is any of the
    /// first 4, 16, 64, ... free ones, so that many nodes that start at once soon choose different ones.
    pub(super) fn choose(
        &self,
        taken: impl Iterator<Item = IpNetwork>,
        attempt: u32,
        random: u64,
    ) -> Option<IpNetwork> {
        let taken: BTreeSet<u128> = taken.filter_map(|cidr| self.number(cidr)).collect();
        let free = self.blocks() - taken.len() as u128;
        if free == 0 {
            return None;
        }
        let spread = 1_u128.checked_shl(attempt.saturating_mul(SPREAD_BITS).min(63)).unwrap_or(1).min(free);
        let mut number = u128::from(random) % spread;
        for taken in taken {
            if taken > number {
                break;
            }
            number += 1;
        }
        self.block(number)
    }

    fn number(&self, cidr: IpNetwork) -> Option<u128> {
        let is_block = cidr.is_ipv4() == self.cidr.is_ipv4()
            && cidr.prefix() == self.node_prefix
            && cidr.ip() == cidr.network()
            && self.cidr.contains(cidr.network());
        is_block.then(|| (bits(cidr.network()) - bits(self.cidr.network())) >> self.block_bits())
    }

    fn block(&self, number: u128) -> Option<IpNetwork> {
        let bits = bits(self.cidr.network()) + (number << self.block_bits());
        let address = match self.cidr {
            IpNetwork::V4(_) => IpAddr::V4(Ipv4Addr::from(bits as u32)),
            IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::from(bits)),
        };
        IpNetwork::new(address, self.node_prefix).ok()
    }

    fn block_bits(&self) -> u8 {
        let width = if self.cidr.is_ipv4() { 32 } else { 128 };
        width - self.node_prefix
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(cidr: &str, node_prefix: u8) -> Range {
        Range { cidr: cidr.parse().unwrap(), node_prefix }
    }

    fn choose(range: Range, taken: &[&str], attempt: u32, random: u64) -> Option<String> {
        let taken = taken.iter().map(|text| text.parse().unwrap());
        range.choose(taken, attempt, random).map(|cidr| cidr.to_string())
    }

    #[test]
    fn the_first_free_block_is_chosen_first() {
        let v4 = range("10.244.0.0/16", 24);
        assert_eq!(choose(v4, &[], 0, 99).unwrap(), "10.244.0.0/24");
        assert_eq!(choose(v4, &["10.244.1.0/24", "10.244.0.0/24"], 0, 7).unwrap(), "10.244.2.0/24");
        // What is no block of this range counts for nothing.
        assert_eq!(choose(v4, &["10.245.0.0/24", "10.244.0.0/25", "fd00::/64"], 0, 7).unwrap(), "10.244.0.0/24");
        let v6 = range("fd00:10:244::/48", 64);
        assert_eq!(choose(v6, &["fd00:10:244::/64"], 0, 7).unwrap(), "fd00:10:244:1::/64");
        assert_eq!(v6.blocks(), 65_536);
    }

    #[test]
    fn an_exhausted_range_has_none() {
        let small = range("10.0.0.0/23", 24);
        assert_eq!(choose(small, &["10.0.0.0/24"], 9, 12_345).unwrap(), "10.0.1.0/24");
        assert_eq!(choose(small, &["10.0.0.0/24", "10.0.1.0/24"], 0, 0), None);
        assert_eq!(choose(range("10.0.0.0/24", 24), &[], 3, 8).unwrap(), "10.0.0.0/24");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_choice_is_free_and_inside(
            taken in prop::collection::btree_set(0_u8..64, 0..64), attempt in 0_u32..100, random in any::<u64>(),
        ) {
            let range = range("10.7.0.0/18", 24);
            let taken: Vec<IpNetwork> =
                taken.iter().map(|number| format!("10.7.{number}.0/24").parse().unwrap()).collect();
            let chosen = range.choose(taken.iter().copied(), attempt, random);
            prop_assert_eq!(chosen.is_none(), taken.len() == 64);
            prop_assert!(chosen.is_none_or(|cidr| range.has(cidr) && !taken.contains(&cidr)));
        }
    }
}
