//! The cluster around the node of the fixture, as the maps tell it.
//!
//! ```text
//!   node1: this one      10.244.1.0/24  fd00:10:244:1::/64   pods A and B
//!   node2: direct        10.244.2.0/24  fd00:10:244:2::/64   next hops 192.168.1.12, fd00:1::12
//!   node3: overlay       10.244.3.0/24  fd00:10:244:3::/64   192.168.2.13
//!   node4: unreachable   10.244.4.0/24  fd00:10:244:4::/64
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podnet::datapath::logs::LogLevel;
use podnet_common::{
    address::Address,
    node::{Node as Far, NodeAddress},
    settings::Settings,
};

use crate::{
    fixture::{GATEWAY_MAC, Node, Pod, Skb, ip, mac},
    packets::{IPV4, IPV6, UDP, ethernet, ipv4, ipv6, udp, with_checksum},
};

/// Index of the bridge, which needs not exist for the programs.
pub(crate) const BRIDGE: u32 = 5;
/// An uplink.
pub(crate) const UPLINK: u32 = 30;
pub(crate) const UPLINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 11];
/// The overlay device.
pub(crate) const OVERLAY: u32 = 31;
/// The MAC of node2 and of its router.
pub(crate) const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 12];
/// MAC of the overlay device of node3.
pub(crate) const NODE3_MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0xf4, 3, 1];
/// MTU of the way to node2, and to node3.
pub(crate) const DIRECT_MTU: u32 = 1400;
pub(crate) const OVERLAY_MTU: u32 = 1350;

pub(crate) const NODE2: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
pub(crate) const NODE3: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 13);

/// Settings of a node in this cluster.
pub(crate) const SETTINGS: Settings = Settings {
    node_mask_v4: [255, 255, 255, 0],
    node_mask_v6: [255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0],
    bridge_ifindex: BRIDGE,
    vni: 1,
    ..Settings::DEFAULT
};

/// A pod of a node: `node` is also its place in the pod CIDRs.
pub(crate) const fn pod_of(node: u8, number: u8) -> Pod {
    Pod {
        ifindex: 0,
        v4: Ipv4Addr::new(10, 244, node, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, number as u16),
        mac: PEER_MAC,
    }
}

pub(crate) const POD_C: Pod = pod_of(2, 7);
pub(crate) const POD_D: Pod = pod_of(3, 7);

/// A node that is known, and no more.
pub(crate) fn unreachable(id: u64) -> Far {
    let none = Address { octets: [0; 16] };
    Far { id, address: none, next_hop: none, ifindex: 0, flags: 0, mtu: 0, mac: [0; 6], own_mac: [0; 6] }
}

/// Node2 as the entry of its pod CIDR of a family says.
pub(crate) fn direct(v6: bool) -> Far {
    let next_hop: IpAddr = if v6 { "fd00:1::12".parse().unwrap() } else { NODE2.into() };
    Far {
        address: NODE2.into(),
        next_hop: next_hop.into(),
        ifindex: UPLINK,
        flags: Far::DIRECT,
        mtu: DIRECT_MTU,
        ..unreachable(2)
    }
}

pub(crate) fn overlay() -> Far {
    Far {
        address: NODE3.into(),
        ifindex: OVERLAY,
        flags: Far::OVERLAY,
        mtu: OVERLAY_MTU,
        mac: NODE3_MAC,
        own_mac: GATEWAY_MAC,
        ..unreachable(3)
    }
}

/// Network address of the pod CIDR of a node.
pub(crate) fn network(node: u8, v6: bool) -> Address {
    let network = pod_of(node, 0);
    if v6 { network.v6.into() } else { network.v4.into() }
}

impl Node {
    /// A node in the cluster.
    pub(crate) fn in_cluster() -> Self {
        Self::in_cluster_with(SETTINGS)
    }

    pub(crate) fn in_cluster_with(settings: Settings) -> Self {
        let mut node = Self::with_settings(settings, LogLevel::Off);
        ip(&format!("link add name uplink index {UPLINK} address {} type veth peer name wire", mac(UPLINK_MAC)));
        node.publish_cluster();
        node
    }

    pub(crate) fn publish_cluster(&mut self) {
        let maps = self.datapath.maps_mut();
        for v6 in [false, true] {
            let local = Far { flags: Far::LOCAL, ..unreachable(1) };
            for (number, far) in [(1, local), (2, direct(v6)), (3, overlay()), (4, unreachable(4))] {
                maps.upsert_node(network(number, v6), far).unwrap();
            }
        }
        let addresses: [(IpAddr, u64); 4] = [
            (Ipv4Addr::new(192, 168, 1, 11).into(), 1),
            (NODE2.into(), 2),
            ("fd00:1::12".parse().unwrap(), 2),
            (NODE3.into(), 3),
        ];
        for (address, id) in addresses {
            maps.upsert_node_address(address.into(), NodeAddress { id }).unwrap();
        }
    }
}

/// A frame from the wire to the uplink.
pub(crate) fn arriving(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let frame = ethernet(UPLINK_MAC, PEER_MAC, ethertype, payload);
    if ethertype == IPV4 { with_checksum(&frame) } else { frame }
}

/// A frame with a UDP datagram from another node's pod to one of this node.
pub(crate) fn arriving_v4(from: Pod, to: Pod) -> Vec<u8> {
    arriving(IPV4, &ipv4(from.v4, to.v4, UDP, &udp(40_000, 53)))
}

/// As [`arriving_v4`], over IPv6.
pub(crate) fn arriving_v6(from: Pod, to: Pod) -> Vec<u8> {
    arriving(IPV6, &ipv6(from.v6, to.v6, UDP, &udp(40_000, 53)))
}

/// A packet that the kernel path sends out of an interface.
pub(crate) fn from_bridge(ifindex: u32) -> Skb {
    Skb { ifindex, ingress_ifindex: BRIDGE, gso_size: 0 }
}
