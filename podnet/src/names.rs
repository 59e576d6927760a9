//! Names and numbers that follow from others: veth names, MACs, settings.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha2::{Digest as _, Sha256};

use crate::{
    api::{AttachmentKey, Mac},
    plan::VETH_PREFIX,
};

/// Returns the name of an attachment's host-side veth: a hash, since container IDs share prefixes.
pub(crate) fn host_ifname(key: &AttachmentKey) -> String {
    let digest = Sha256::new()
        .chain_update(key.container_id.as_bytes())
        .chain_update([0])
        .chain_update(key.ifname.as_bytes())
        .finalize();
    let number = u64::from_be_bytes(first(&digest));
    format!("{VETH_PREFIX}{:011x}", number >> 20)
}

/// Returns the MAC of an interface with these addresses: locally administered, made of the IPv4 address where there is
/// one and of a hash of the IPv6 address otherwise, so that the same address always has the same MAC.
pub(crate) fn mac_for(addresses: &[IpAddr]) -> Mac {
    let tail = addresses
        .iter()
        .find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        })
        .unwrap_or_else(|| {
            let digest = Sha256::digest(addresses.first().map(ToString::to_string).unwrap_or_default());
            first(&digest)
        });
    let [a, b, c, d] = tail;
    Mac([0x0a, 0x58, a, b, c, d])
}

/// Returns a MAC that no interface has by [`mac_for`].
pub(crate) fn substitute_mac(addresses: &[IpAddr], attempt: u8) -> Mac {
    let text = addresses.first().map(ToString::to_string).unwrap_or_default();
    let [a, b, c, d] = first(&Sha256::new().chain_update([attempt]).chain_update(text).finalize());
    Mac([0x0a, 0x59, a, b, c, d])
}

/// Returns the number of a node: the same on every node, and before and after a restart. Of ten thousand nodes, two have
/// the same number with a chance of one in 10^11.
pub(crate) fn node_id(name: &str) -> u64 {
    u64::from_be_bytes(first(&Sha256::digest(name)))
}

/// Returns the name of the setting that holds the address which a pool gave last.
pub(crate) fn cursor_setting(cidr: IpNetwork) -> String {
    format!("last-address {cidr}")
}

/// Returns the first bytes of a digest, which has more.
fn first<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&digest[..N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::is_veth_name;

    #[test]
    fn veth_names_are_valid_and_differ() {
        let key = |container_id: &str, ifname: &str| AttachmentKey {
            container_id: container_id.into(),
            ifname: ifname.into(),
        };
        let names: std::collections::HashSet<String> =
            (0..1000).map(|number| host_ifname(&key(&format!("0123456789abcdef{number}"), "eth0"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| is_veth_name(name) && name.len() <= 15));
        assert_ne!(host_ifname(&key("a", "eth0")), host_ifname(&key("aeth", "0")));
    }

    #[test]
    fn macs_follow_the_address() {
        assert_eq!(mac_for(&["10.244.1.2".parse().unwrap()]).to_string(), "0a:58:0a:f4:01:02");
        let v6 = ["fd00::2".parse().unwrap()];
        assert_eq!(mac_for(&v6), mac_for(&v6));
        assert_ne!(mac_for(&v6), mac_for(&["fd00::3".parse().unwrap()]));
    }
}
