//! Networks as nftables' sets hold them. To change one range of a set, nft reads all of them; so they are merged until
//! few are left: pod CIDRs side by side, or inside of a cluster CIDR, become one range. Where that leaves too many, the
//! networks of the most frequent size become single addresses of a hash, which nft changes without reading it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

/// First and last address of a range, both of one family.
pub(super) type Range = (IpAddr, IpAddr);

/// Most ranges of a set: nft reads and changes it in a few milliseconds.
const MAX_RANGES: usize = 1024;

/// Networks of one family, in two sets. An address is in one of the networks if it is in one of the ranges, or if its
/// network of that prefix length is among the sized ones.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Ranges.
    pub(super) ranges: BTreeSet<Range>,
    /// Networks of one prefix length, if there are many.
    pub(super) sized: Option<(u8, BTreeSet<IpNetwork>)>,
}

/// Splits networks of one family into sets that are quick to change.
pub(super) fn split(networks: &[IpNetwork]) -> Split {
    let ranges = merge(networks.iter().copied());
    if ranges.len() <= MAX_RANGES {
        return Split { ranges, sized: None };
    }
    let mut lengths: BTreeMap<u8, usize> = BTreeMap::new();
    for network in networks {
        *lengths.entry(network.prefix()).or_default() += 1;
    }
    let frequent = lengths.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(length, _)| length);
    let (sized, others): (Vec<IpNetwork>, Vec<IpNetwork>) =
        networks.iter().partition(|network| network.prefix() == frequent);
    Split { ranges: merge(others), sized: Some((frequent, sized.into_iter().collect())) }
}

/// Returns the fewest ranges that hold the same addresses as networks of one family.
fn merge(networks: impl IntoIterator<Item = IpNetwork>) -> BTreeSet<Range> {
    let mut sorted: Vec<Range> = networks.into_iter().map(|network| (network.network(), network.broadcast())).collect();
    sorted.sort_unstable();
    let mut merged = BTreeSet::new();
    let mut current: Option<Range> = None;
    for (start, end) in sorted {
        current = Some(match current {
            Some((from, to)) if start <= to || follows(to) == Some(start) => (from, to.max(end)),
            other => {
                merged.extend(other);
                (start, end)
            }
        });
    }
    merged.extend(current);
    merged
}

/// Returns the address after one.
fn follows(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(networks: &[&str]) -> Vec<String> {
        let networks = networks.iter().map(|text| text.parse().unwrap());
        merge(networks).into_iter().map(|(start, end)| format!("{start}-{end}")).collect()
    }

    #[test]
    fn neighbours_and_what_is_inside_become_one_range() {
        assert_eq!(merged(&[]), [""; 0]);
        assert_eq!(
            merged(&["10.0.1.0/24", "10.0.0.0/24", "10.0.3.0/24"]),
            ["10.0.0.0-10.0.1.255", "10.0.3.0-10.0.3.255"]
        );
        assert_eq!(merged(&["10.0.0.0/16", "10.0.7.0/24", "10.0.255.0/24"]), ["10.0.0.0-10.0.255.255"]);
        assert_eq!(merged(&["fd00:0:0:1::/64", "fd00::/64"]), ["fd00::-fd00::1:ffff:ffff:ffff:ffff"]);
        assert_eq!(merged(&["255.255.255.255/32", "0.0.0.0/0"]), ["0.0.0.0-255.255.255.255"]);
        assert_eq!(merged(&["::/0", "ffff::/16"]), ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }

    #[test]
    fn many_scattered_networks_are_held_by_size() {
        let scattered = |count: u32, step: u32| -> Vec<IpNetwork> {
            let address = |number: u32| IpAddr::V4((0x0a00_0000 + number * step * 256).into());
            (0..count).map(|number| IpNetwork::new(address(number), 24).unwrap()).collect()
        };
        assert_eq!(split(&scattered(10_000, 1)).ranges.len(), 1);
        assert_eq!(split(&scattered(1024, 2)).sized, None);
        let other: IpNetwork = "172.16.0.0/20".parse().unwrap();
        let mut networks = scattered(2000, 2);
        networks.push(other);
        let split = split(&networks);
        assert_eq!(split.ranges, merge([other]));
        let (prefix, sized) = split.sized.unwrap();
        assert_eq!((prefix, sized.len()), (24, 2000));
        assert!(!sized.contains(&other));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ranges_hold_what_the_networks_hold(pieces in prop::collection::vec((0_u8..64, 0_u8..5), 0..12)) {
            let networks: Vec<IpNetwork> = pieces
                .iter()
                .map(|(host, size)| IpNetwork::new(IpAddr::from([10, 0, 0, *host]), 32 - size).unwrap())
                .collect();
            let ranges = merge(networks.iter().copied());
            for host in 0..=96 {
                let address = IpAddr::from([10, 0, 0, host]);
                let wanted = networks.iter().any(|network| network.contains(address));
                prop_assert_eq!(ranges.iter().any(|(from, to)| (*from..=*to).contains(&address)), wanted);
            }
            let mut pairs = ranges.iter().zip(ranges.iter().skip(1));
            prop_assert!(pairs.all(|(a, b)| follows(a.1) < Some(b.0)), "{:?} can be merged further", ranges);
        }
    }
}
