//! What a pod sends to pods of other nodes: the way, the bytes, and what only a router's kernel can do.

use std::net::Ipv6Addr;

use podnet_common::{
    address::Address,
    endpoint::Endpoint,
    node::{Node as Far, NodePrefix},
    program_name::FROM_POD,
    settings::Settings,
    verdict::{
        DropReason::SpoofedAddress,
        Verdict::{
            self, PassedNotForwarded, PassedNotPod, PassedTooBig, PassedTtlExpired, PassedUnsupported,
            RedirectedToNode, RedirectedToOverlay, RedirectedToPod,
        },
    },
};

use crate::{
    cluster::{DIRECT_MTU, NODE3_MAC, OVERLAY_MTU, POD_C, POD_D, SETTINGS, direct, network, pod_of, unreachable},
    fixture::{Expected, GATEWAY_MAC, Node, POD_A, POD_B, Pod, Skb, describe, hex},
    packets::{
        ACK, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, SYN, TCP, UDP, after_hop, echo, ethernet, extension,
        fragment, frame, ipv4, ipv4_with, ipv6, jumbo, tcp, udp, udp_v4, udp_v6, with_checksum, with_macs, with_ttl,
    },
};

impl Node {
    /// Runs what pod A sends, and compares with what must leave.
    #[track_caller]
    fn check_sent(&mut self, skb: impl Into<Skb>, packet: &[u8], verdict: Verdict) {
        let outcome = self.run(FROM_POD, skb, packet);
        assert_eq!(outcome.decision, Expected::Verdict(verdict), "{}", describe(packet, &outcome));
        let expected = match verdict {
            RedirectedToNode => after_hop(packet),
            RedirectedToOverlay => with_macs(&after_hop(packet), NODE3_MAC, GATEWAY_MAC),
            RedirectedToPod => with_macs(packet, POD_B.mac, GATEWAY_MAC),
            _ => packet.to_vec(),
        };
        assert_eq!(hex(&outcome.packet), hex(&expected), "{}", describe(packet, &outcome));
    }
}

fn to_v4(to: Pod, protocol: u8, payload: &[u8]) -> Vec<u8> {
    with_checksum(&frame(POD_A, IPV4, &ipv4(POD_A.v4, to.v4, protocol, payload)))
}

fn to_v6(to: Pod, next: u8, payload: &[u8]) -> Vec<u8> {
    frame(POD_A, IPV6, &ipv6(POD_A.v6, to.v6, next, payload))
}

#[test]
fn packets_go_to_the_node_of_their_destination_one_hop_older() {
    let mut node = Node::in_cluster();
    for (to, verdict) in [(POD_C, RedirectedToNode), (POD_D, RedirectedToOverlay)] {
        for packet in [
            to_v4(to, TCP, &tcp(1, 80, SYN)),
            to_v4(to, TCP, &tcp(1, 80, ACK)),
            to_v4(to, UDP, &udp(1, 53)),
            to_v4(to, ICMP, &echo(8, 1)),
            to_v4(to, 47, &[1; 60]),
            to_v6(to, TCP, &tcp(1, 80, SYN)),
            to_v6(to, UDP, &udp(1, 53)),
            to_v6(to, ICMPV6, &echo(128, 1)),
            to_v6(to, HOP_BY_HOP, &[extension(TCP), tcp(1, 2, ACK)].concat()),
            to_v6(to, FRAGMENT, &[fragment(UDP, 3, true), vec![0; 16]].concat()),
            with_checksum(&frame(POD_A, IPV4, &ipv4_with(POD_A.v4, to.v4, UDP, 0x2004, &[], &[0; 16]))),
        ] {
            node.check_sent(POD_A.ifindex, &packet, verdict);
        }
    }
}

#[test]
fn the_checksum_stays_right_for_every_ttl() {
    let mut node = Node::in_cluster();
    for ttl in 2..=255 {
        node.check_sent(POD_A.ifindex, &with_ttl(&to_v4(POD_C, UDP, &udp(1, 53)), ttl), RedirectedToNode);
        node.check_sent(POD_A.ifindex, &with_ttl(&to_v6(POD_C, UDP, &udp(1, 53)), ttl), RedirectedToNode);
    }
}

#[test]
fn what_is_no_other_nodes_pod_is_passed() {
    let mut node = Node::in_cluster();
    let a = POD_A;
    // Of this node's own pod CIDR, but no pod; of a node that cannot be reached; of nobody.
    for far in [pod_of(1, 99), pod_of(1, 1), pod_of(4, 7), pod_of(5, 7)] {
        node.check_sent(a.ifindex, &to_v4(far, UDP, &udp(1, 2)), PassedNotPod);
        node.check_sent(a.ifindex, &to_v6(far, UDP, &udp(1, 2)), PassedNotPod);
    }
    for to in ["192.168.1.12", "10.96.0.10", "0.0.0.0", "255.255.255.255", "224.0.0.251", "8.8.8.8"] {
        node.check_sent(
            a.ifindex,
            &with_checksum(&frame(a, IPV4, &ipv4(a.v4, to.parse().unwrap(), UDP, &udp(1, 2)))),
            PassedNotPod,
        );
    }
    for to in ["ff02::fb", "fe80::1", "::", "2001:db8::1", "::ffff:10.244.2.7", "::ffff:10.244.1.3"] {
        node.check_sent(a.ifindex, &frame(a, IPV6, &ipv6(a.v6, to.parse().unwrap(), UDP, &udp(1, 2))), PassedNotPod);
    }
}

#[test]
fn without_a_cluster_nothing_leaves() {
    let mut node = Node::in_cluster_with(Settings::DEFAULT);
    node.check_sent(POD_A.ifindex, &to_v4(POD_C, UDP, &udp(1, 2)), PassedNotPod);
    node.check_sent(POD_A.ifindex, &to_v6(POD_C, UDP, &udp(1, 2)), PassedNotPod);
}

#[test]
fn a_node_that_leaves_or_changes_is_followed() {
    let mut node = Node::in_cluster();
    let packet = to_v4(POD_C, UDP, &udp(1, 2));
    node.check_sent(POD_A.ifindex, &packet, RedirectedToNode);
    node.datapath.maps_mut().upsert_node(network(2, false), crate::cluster::overlay()).unwrap();
    node.check_sent(POD_A.ifindex, &packet, RedirectedToOverlay);
    node.datapath.maps_mut().upsert_node(network(2, false), unreachable(2)).unwrap();
    node.check_sent(POD_A.ifindex, &packet, PassedNotPod);
    node.datapath.maps_mut().remove_node(network(2, false)).unwrap();
    node.check_sent(POD_A.ifindex, &packet, PassedNotPod);
    node.check_sent(POD_A.ifindex, &to_v6(POD_C, UDP, &udp(1, 2)), RedirectedToNode);
}

#[test]
fn odd_sizes_of_pod_cidrs_are_found_by_their_prefix() {
    let mut node = Node::in_cluster_with(Settings { nodes_lpm: 1, ..SETTINGS });
    let maps = node.datapath.maps_mut();
    maps.upsert_node_prefix(
        NodePrefix { prefix_len: 96 + 22, address: Address::from_v4_octets([10, 245, 4, 0]) },
        direct(false),
    )
    .unwrap();
    let v6: Ipv6Addr = "fd00:20::".parse().unwrap();
    maps.upsert_node_prefix(NodePrefix { prefix_len: 60, address: v6.into() }, direct(true)).unwrap();
    let mut check = |to: &str, verdict| {
        let packet = match to.parse().unwrap() {
            std::net::IpAddr::V4(to) => with_checksum(&frame(POD_A, IPV4, &ipv4(POD_A.v4, to, UDP, &udp(1, 2)))),
            std::net::IpAddr::V6(to) => frame(POD_A, IPV6, &ipv6(POD_A.v6, to, UDP, &udp(1, 2))),
        };
        node.check_sent(POD_A.ifindex, &packet, verdict);
    };
    check("10.245.4.1", RedirectedToNode);
    check("10.245.7.255", RedirectedToNode);
    check("10.245.8.0", PassedNotPod);
    check("10.245.3.255", PassedNotPod);
    check("fd00:20::1", RedirectedToNode);
    check("fd00:20:0:f::1", RedirectedToNode);
    check("fd00:20:0:10::1", PassedNotPod);
    check("::ffff:10.245.4.1", PassedNotPod);
    // The usual size is still found exactly.
    check("10.244.2.7", RedirectedToNode);
    check("10.244.3.7", RedirectedToOverlay);
    check("10.244.1.3", RedirectedToPod);

    // Only odd sizes.
    let odd_only = Settings { nodes_lpm: 1, node_mask_v4: [0; 4], node_mask_v6: [0; 16], ..SETTINGS };
    let mut node = Node::in_cluster_with(odd_only);
    node.check_sent(POD_A.ifindex, &to_v4(POD_C, UDP, &udp(1, 2)), PassedNotPod);
    let prefix = NodePrefix { prefix_len: 96 + 24, address: network(2, false) };
    node.datapath.maps_mut().upsert_node_prefix(prefix, direct(false)).unwrap();
    node.check_sent(POD_A.ifindex, &to_v4(POD_C, UDP, &udp(1, 2)), RedirectedToNode);
}

#[test]
fn an_expired_packet_is_the_kernels_to_answer() {
    let mut node = Node::in_cluster();
    for to in [POD_C, POD_D] {
        for ttl in [0, 1] {
            node.check_sent(POD_A.ifindex, &with_ttl(&to_v4(to, UDP, &udp(1, 2)), ttl), PassedTtlExpired);
            node.check_sent(POD_A.ifindex, &with_ttl(&to_v6(to, UDP, &udp(1, 2)), ttl), PassedTtlExpired);
        }
    }
    // A pod of this node is no hop away.
    node.check_sent(POD_A.ifindex, &with_ttl(&to_v4(POD_B, UDP, &udp(1, 2)), 1), RedirectedToPod);
}

#[test]
fn a_packet_that_is_too_big_is_the_kernels_to_answer_or_fragment() {
    let mut node = Node::in_cluster();
    for address in [POD_B.v4.into(), POD_B.v6.into()] {
        node.datapath.maps_mut().upsert_endpoint(address, Endpoint { mtu: 1300, ..POD_B.endpoint() }).unwrap();
    }
    for (to, verdict, mtu) in [
        (POD_C, RedirectedToNode, DIRECT_MTU),
        (POD_D, RedirectedToOverlay, OVERLAY_MTU),
        (POD_B, RedirectedToPod, 1300),
    ] {
        let mtu = mtu as usize;
        for (len, expected) in [(mtu, verdict), (mtu + 1, PassedTooBig), (1500, PassedTooBig)] {
            node.check_sent(POD_A.ifindex, &to_v4(to, UDP, &vec![0; len - 20]), expected);
            node.check_sent(POD_A.ifindex, &to_v6(to, UDP, &vec![0; len - 40]), expected);
        }
    }
}

#[test]
fn a_gso_packet_is_as_big_as_its_segments() {
    let mut node = Node::in_cluster();
    for address in [POD_B.v4.into(), POD_B.v6.into()] {
        node.datapath.maps_mut().upsert_endpoint(address, Endpoint { mtu: 1300, ..POD_B.endpoint() }).unwrap();
    }
    let payload = [tcp(1, 2, ACK), vec![0; 3000]].concat();
    let big = [jumbo(TCP, 3020), payload.clone()].concat();
    for (to, verdict, mtu) in [
        (POD_C, RedirectedToNode, DIRECT_MTU),
        (POD_D, RedirectedToOverlay, OVERLAY_MTU),
        (POD_B, RedirectedToPod, 1300),
    ] {
        let mut big_tcp = to_v6(to, HOP_BY_HOP, &big);
        big_tcp[18..20].copy_from_slice(&[0, 0]);
        // The segments of a BIG TCP packet do not have its hop-by-hop header.
        for (packet, headers) in [(to_v4(to, TCP, &payload), 40), (to_v6(to, TCP, &payload), 60), (big_tcp, 60)] {
            let skb = |gso_size| Skb { gso_size, ..POD_A.ifindex.into() };
            node.check_sent(skb(mtu - headers), &packet, verdict);
            node.check_sent(skb(mtu - headers + 1), &packet, PassedTooBig);
            node.check_sent(skb(0), &packet, PassedTooBig);
        }
        let datagrams = to_v4(to, UDP, &[udp(1, 2), vec![0; 2000]].concat());
        let gso_size = mtu - 28 + 1;
        node.check_sent(Skb { gso_size, ..POD_A.ifindex.into() }, &datagrams, PassedTooBig);
    }
}

#[test]
fn what_stays_on_its_link_does_not_leave() {
    let mut node = Node::in_cluster();
    let a = POD_A;
    node.check_sent(a.ifindex, &frame(a, IPV6, &ipv6(a.link_local(), POD_C.v6, UDP, &udp(1, 2))), PassedNotForwarded);
    let group = ethernet([0xff; 6], a.mac, IPV4, &ipv4(a.v4, POD_C.v4, UDP, &udp(1, 2)));
    node.check_sent(a.ifindex, &group, PassedNotPod);
    let options = [0x94, 4, 0, 0, 1, 1, 1, 0];
    let with_options = frame(a, IPV4, &ipv4_with(a.v4, POD_C.v4, UDP, 0, &options, &udp(1, 2)));
    node.check_sent(a.ifindex, &with_options, PassedUnsupported);
    for to in [POD_C, POD_D] {
        node.check(a, &frame(a, IPV4, &ipv4(POD_B.v4, to.v4, UDP, &udp(1, 2))), SpoofedAddress);
        node.check(a, &frame(a, IPV4, &ipv4(POD_C.v4, to.v4, UDP, &udp(1, 2))), SpoofedAddress);
        node.check(a, &frame(a, IPV6, &ipv6(POD_C.v6, to.v6, UDP, &udp(1, 2))), SpoofedAddress);
    }
}

#[test]
fn a_node_with_both_families_may_go_two_ways() {
    let mut node = Node::in_cluster();
    let v6 = Far { flags: Far::OVERLAY, mtu: 1280, ..crate::cluster::overlay() };
    node.datapath.maps_mut().upsert_node(network(2, true), v6).unwrap();
    node.check_sent(POD_A.ifindex, &to_v4(POD_C, UDP, &udp(1, 2)), RedirectedToNode);
    node.check_sent(POD_A.ifindex, &to_v6(POD_C, UDP, &udp(1, 2)), RedirectedToOverlay);
}

#[test]
fn pods_of_this_node_are_reached_as_without_a_cluster() {
    let mut node = Node::in_cluster();
    node.check(POD_A, &udp_v4(POD_A, POD_B), RedirectedToPod);
    node.check(POD_A, &udp_v6(POD_A, POD_B), RedirectedToPod);
}
