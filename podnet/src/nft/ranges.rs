//! Ranges of addresses as nftables' interval sets hold them: disjoint, and as few as possible. Pod CIDRs side by side,
//! or inside of a cluster CIDR, become one range; nft reads all intervals of a set to change one of them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

/// First and last address of a range, both of one family.
pub(super) type Range = (IpAddr, IpAddr);

/// Returns the fewest ranges that hold the same addresses as networks of one family.
pub(super) fn merge(networks: impl IntoIterator<Item = IpNetwork>) -> BTreeSet<Range> {
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
