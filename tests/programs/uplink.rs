//! What an uplink receives: delivered to pods if another node's pod sent it, dropped if this node's pods are said to have
//! sent it, and no business of podnet's otherwise.

use std::net::{IpAddr, Ipv6Addr};

use podnet::datapath::events::PacketSummary;
use podnet_common::{
    endpoint::Endpoint,
    program_name::FROM_UPLINK,
    verdict::{
        DropReason::SpoofedNode,
        Verdict::{PassedTooBig, PassedTtlExpired, PassedUnsupported, RedirectedToPod},
    },
};

use crate::{
    cluster::{NODE2, PEER_MAC, POD_C, POD_D, UPLINK, UPLINK_MAC, arriving, arriving_v4, arriving_v6, pod_of},
    fixture::{Expected, GATEWAY_MAC, Node, POD_A, POD_B, Pod, Skb, describe, hex, is_runnable},
    packets::{
        ACK, ARP, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, TCP, UDP, VLAN, after_hop, arp, echo,
        ethernet, extension, fragment, ipv4, ipv4_with, ipv6, jumbo, tcp, udp, with_macs, with_ttl,
    },
};

impl Node {
    /// Runs what the uplink received, and compares with what must reach pod A.
    #[track_caller]
    fn check_received(&mut self, skb: impl Into<Skb>, packet: &[u8], expected: impl Into<Expected>) {
        let outcome = self.run(FROM_UPLINK, skb, packet);
        let expected = expected.into();
        assert_eq!(outcome.decision, expected, "{}", describe(packet, &outcome));
        let bytes = if expected == RedirectedToPod.into() {
            with_macs(&after_hop(packet), POD_A.mac, GATEWAY_MAC)
        } else {
            packet.to_vec()
        };
        assert_eq!(hex(&outcome.packet), hex(&bytes), "{}", describe(packet, &outcome));
    }
}

fn v4(from: Pod, protocol: u8, payload: &[u8]) -> Vec<u8> {
    arriving(IPV4, &ipv4(from.v4, POD_A.v4, protocol, payload))
}

fn v6(from: Pod, next: u8, payload: &[u8]) -> Vec<u8> {
    arriving(IPV6, &ipv6(from.v6, POD_A.v6, next, payload))
}

#[test]
fn packets_of_other_nodes_pods_are_delivered_one_hop_older() {
    let mut node = Node::in_cluster();
    // How this node would reach the sender does not matter.
    for from in [POD_C, POD_D, pod_of(4, 7), pod_of(2, 1)] {
        for packet in [
            v4(from, TCP, &tcp(1, 80, ACK)),
            v4(from, UDP, &udp(1, 53)),
            v4(from, ICMP, &echo(8, 1)),
            v4(from, 47, &[1; 60]),
            v6(from, TCP, &tcp(1, 80, ACK)),
            v6(from, UDP, &udp(1, 53)),
            v6(from, ICMPV6, &echo(128, 1)),
            v6(from, HOP_BY_HOP, &[extension(TCP), tcp(1, 2, ACK)].concat()),
            v6(from, FRAGMENT, &[fragment(UDP, 3, true), vec![0; 16]].concat()),
            arriving(IPV4, &ipv4_with(from.v4, POD_A.v4, UDP, 0x2004, &[], &[0; 16])),
        ] {
            node.check_received(UPLINK, &packet, RedirectedToPod);
        }
    }
    for ttl in 2..=255 {
        node.check_received(UPLINK, &with_ttl(&arriving_v4(POD_C, POD_A), ttl), RedirectedToPod);
        node.check_received(UPLINK, &with_ttl(&arriving_v6(POD_C, POD_A), ttl), RedirectedToPod);
    }
    // Padded to the least length of a frame.
    let padded = [arriving_v4(POD_C, POD_A), vec![0; 14]].concat();
    node.check_received(UPLINK, &padded, RedirectedToPod);
}

#[test]
fn addresses_of_this_nodes_pods_cannot_come_from_outside() {
    let mut node = Node::in_cluster();
    for from in [POD_B, POD_A, pod_of(1, 1), pod_of(1, 99)] {
        node.check_received(UPLINK, &arriving_v4(from, POD_A), SpoofedNode);
        node.check_received(UPLINK, &arriving_v6(from, POD_A), SpoofedNode);
    }
    // A pod with an address outside of the pod CIDR.
    let odd = Pod { v4: [10, 99, 0, 1].into(), v6: "fd00:99::1".parse().unwrap(), ..POD_B };
    node.publish(odd);
    node.check_received(UPLINK, &arriving_v4(odd, POD_A), SpoofedNode);
    node.check_received(UPLINK, &arriving_v6(odd, POD_A), SpoofedNode);
    let mut events = node.events();
    let event = std::iter::from_fn(|| events.next_event()).last().unwrap();
    assert_eq!((event.hook_name(), event.reason_name(), event.ifindex), ("from_uplink", "spoofed_node", UPLINK));
    assert_eq!(event.data, arriving_v6(odd, POD_A));
}

#[test]
fn what_is_not_for_a_pod_or_not_from_one_is_ignored() {
    let mut node = Node::in_cluster();
    let outside = Pod { v4: [203, 0, 113, 9].into(), v6: "2001:db8::9".parse().unwrap(), ..POD_C };
    let host = Pod { v4: NODE2, v6: "fd00:1::12".parse().unwrap(), ..POD_C };
    let gateway = pod_of(1, 1);
    for (from, to) in [(POD_C, gateway), (POD_B, gateway), (outside, POD_A), (host, POD_A), (outside, host)] {
        node.check_ignored(FROM_UPLINK, UPLINK, &arriving_v4(from, to));
        node.check_ignored(FROM_UPLINK, UPLINK, &arriving_v6(from, to));
    }
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(ARP, &arp(1, PEER_MAC, POD_C.v4, POD_A.v4)));
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(0x88cc, &[0; 46]));
    // For other machines, or for all.
    let payload = ipv4(POD_C.v4, POD_A.v4, UDP, &udp(1, 2));
    for to in [PEER_MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        node.check_ignored(FROM_UPLINK, UPLINK, &ethernet(to, PEER_MAC, IPV4, &payload));
    }
    let tagged = [&[0, 5, 8, 0][..], &payload].concat();
    node.check_ignored(FROM_UPLINK, UPLINK, &ethernet(UPLINK_MAC, PEER_MAC, VLAN, &tagged));
    // Link-local and mapped addresses.
    for from in ["fe80::1", "::", "::ffff:10.244.2.7", "::ffff:10.244.1.3"] {
        node.check_ignored(
            FROM_UPLINK,
            UPLINK,
            &arriving(IPV6, &ipv6(from.parse().unwrap(), POD_A.v6, UDP, &udp(1, 2))),
        );
    }
    let mapped = POD_A.v4.to_ipv6_mapped();
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(IPV6, &ipv6(POD_C.v6, mapped, UDP, &udp(1, 2))));
}

#[test]
fn what_a_router_must_answer_is_the_kernels() {
    let mut node = Node::in_cluster();
    for ttl in [0, 1] {
        node.check_received(UPLINK, &with_ttl(&arriving_v4(POD_C, POD_A), ttl), PassedTtlExpired);
        node.check_received(UPLINK, &with_ttl(&arriving_v6(POD_C, POD_A), ttl), PassedTtlExpired);
    }
    for address in [POD_A.v4.into(), POD_A.v6.into()] {
        node.datapath.maps_mut().upsert_endpoint(address, Endpoint { mtu: 1300, ..POD_A.endpoint() }).unwrap();
    }
    for (len, expected) in [(1300, RedirectedToPod), (1301, PassedTooBig), (1500, PassedTooBig)] {
        node.check_received(UPLINK, &v4(POD_C, UDP, &vec![0; len - 20]), expected);
        node.check_received(UPLINK, &v6(POD_C, UDP, &vec![0; len - 40]), expected);
    }
    // GRO puts together what was small on the wire.
    let payload = [tcp(1, 2, ACK), vec![0; 3000]].concat();
    for (packet, headers) in [(v4(POD_C, TCP, &payload), 40), (v6(POD_C, TCP, &payload), 60)] {
        let skb = |gso_size| Skb { gso_size, ..UPLINK.into() };
        node.check_received(skb(1300 - headers), &packet, RedirectedToPod);
        node.check_received(skb(1301 - headers), &packet, PassedTooBig);
    }
    let options = [0x94, 4, 0, 0, 1, 1, 1, 0];
    let packet = arriving(IPV4, &ipv4_with(POD_C.v4, POD_A.v4, UDP, 0, &options, &udp(1, 2)));
    node.check_received(UPLINK, &packet, PassedUnsupported);
    let packet = arriving(IPV4, &ipv4_with(POD_B.v4, POD_A.v4, UDP, 0, &options, &udp(1, 2)));
    node.check_received(UPLINK, &packet, SpoofedNode);
}

#[test]
fn malformed_packets_are_the_kernels_to_judge() {
    let mut node = Node::in_cluster();
    for packet in [
        arriving_v4(POD_C, POD_A),
        arriving_v6(POD_C, POD_A),
        v4(POD_C, TCP, &tcp(1, 2, ACK)),
        v6(POD_C, TCP, &tcp(1, 2, ACK)),
        v6(POD_C, HOP_BY_HOP, &[extension(TCP), tcp(1, 2, ACK)].concat()),
        v6(POD_C, HOP_BY_HOP, &[jumbo(TCP, 9), tcp(1, 2, ACK)].concat()),
    ] {
        for len in 14..packet.len() {
            if is_runnable(&packet[..len]) {
                node.check_ignored(FROM_UPLINK, UPLINK, &packet[..len]);
            }
        }
        node.check_received(UPLINK, &packet, RedirectedToPod);
    }
    for version_ihl in [0x44, 0x65, 0x05, 0x4f] {
        let mut bad = arriving_v4(POD_C, POD_A);
        bad[14] = version_ihl;
        node.check_ignored(FROM_UPLINK, UPLINK, &bad);
    }
    let endless = extension(DESTINATION).repeat(20);
    node.check_ignored(FROM_UPLINK, UPLINK, &v6(POD_C, DESTINATION, &endless));
}

#[test]
fn random_packets_only_reach_pods_from_other_nodes() {
    let mut node = Node::in_cluster();
    let mut random = crate::malformed::Random(0x0075_706c_696e_6b31);
    let seeds = [
        arriving_v4(POD_C, POD_A),
        arriving_v6(POD_C, POD_A),
        v6(POD_C, DESTINATION, &[extension(UDP), udp(1, 2)].concat()),
        arriving(IPV4, &ipv4_with(POD_C.v4, POD_A.v4, UDP, 0x2000, &[], &udp(1, 2))),
    ];
    for round in 0..40_000 {
        if round == 20_000 {
            node.touch_all();
        }
        let mut packet = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(3) {
            let at = 12 + random.below(packet.len() - 12);
            packet[at] = if random.below(2) == 0 { random.next() as u8 } else { packet[at] ^ (1 << random.below(8)) };
        }
        if random.below(10) == 0 {
            packet.truncate(14 + random.below(packet.len() - 13));
        }
        if !is_runnable(&packet) {
            continue;
        }
        let (action, output) = node.run_program(FROM_UPLINK, UPLINK, &packet);
        let summary = PacketSummary::parse(&packet);
        match action {
            7 => {
                let (from, to) = (summary.source.unwrap(), summary.destination.unwrap());
                let pod = [POD_A, POD_B].into_iter().find(|pod| to == pod.v4 || to == pod.v6).unwrap();
                assert!((2..=4).contains(&node_of(from).unwrap()), "{summary} {}", hex(&packet));
                assert_eq!(hex(&output), hex(&with_macs(&changed_hop(&packet, &output), pod.mac, GATEWAY_MAC)));
            }
            -1 => assert_eq!(hex(&output), hex(&packet), "a passed packet is what it was"),
            2 => assert_eq!(node_of(summary.source.unwrap()), Some(1), "{summary} {}", hex(&packet)),
            other => panic!("action {other} for {}", hex(&packet)),
        }
    }
}

/// The node whose pod CIDR has an address.
fn node_of(address: IpAddr) -> Option<u16> {
    let (node, start) = match address {
        IpAddr::V4(v4) => (v4.octets()[2].into(), pod_of(v4.octets()[2], v4.octets()[3]).v4.into()),
        IpAddr::V6(v6) => {
            let node = v6.segments()[3];
            let start = pod_of(node as u8, 0).v6.segments();
            (node, if v6.segments()[..4] == start[..4] { address } else { Ipv6Addr::UNSPECIFIED.into() })
        }
    };
    (address == start).then_some(node)
}

/// The packet one hop older. Its checksum may have been wrong before, so that it is taken from the output.
fn changed_hop(packet: &[u8], output: &[u8]) -> Vec<u8> {
    let mut changed = packet.to_vec();
    if packet[12..14] == IPV4.to_be_bytes() {
        changed[22] -= 1;
        changed[24..26].copy_from_slice(&output[24..26]);
    } else {
        changed[21] -= 1;
    }
    changed
}
