//! Which IP packets go where, and what they look like afterwards.

use std::net::{Ipv4Addr, Ipv6Addr};

use podnet_common::verdict::{
    DropReason::{Malformed, SpoofedAddress, SpoofedMac, UnknownEndpoint},
    Verdict::{PassedNotForwarded, PassedNotPod, PassedUnsupported, RedirectedToPod},
};

use crate::{
    fixture::{GATEWAY_MAC, Node, POD_A, POD_B, Pod},
    packets::{
        ACK, AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, NO_NEXT, ROUTING, SYN, TCP,
        UDP, echo, ethernet, extension, fragment, frame, ipv4, ipv4_with, ipv6, jumbo, tcp, udp, udp_v4, udp_v6,
    },
};

#[test]
fn every_transport_is_redirected_and_only_the_macs_change() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    for packet in [
        frame(a, IPV4, &ipv4(a.v4, b.v4, TCP, &tcp(1, 80, SYN))),
        frame(a, IPV4, &ipv4(a.v4, b.v4, TCP, &tcp(1, 80, ACK))),
        frame(a, IPV4, &ipv4(a.v4, b.v4, UDP, &udp(1, 53))),
        frame(a, IPV4, &ipv4(a.v4, b.v4, UDP, &[])),
        frame(a, IPV4, &ipv4(a.v4, b.v4, ICMP, &echo(8, 1))),
        frame(a, IPV4, &ipv4(a.v4, b.v4, 47, &[1; 60])),
        frame(a, IPV6, &ipv6(a.v6, b.v6, TCP, &tcp(1, 80, SYN))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, UDP, &udp(1, 53))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, UDP, &[])),
        frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &echo(128, 1))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &echo(1, 1))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, NO_NEXT, &[])),
    ] {
        let output = node.check(a, &packet, RedirectedToPod);
        assert_eq!(output[..6], b.mac);
        assert_eq!(output[6..12], GATEWAY_MAC);
    }
}

#[test]
fn a_frame_for_the_peers_own_mac_is_redirected_and_a_group_frame_is_not() {
    let mut node = Node::new();
    let payload = ipv4(POD_A.v4, POD_B.v4, UDP, &udp(1, 2));
    node.check(POD_A, &ethernet(POD_B.mac, POD_A.mac, IPV4, &payload), RedirectedToPod);
    node.check(POD_A, &ethernet([0xff; 6], POD_A.mac, IPV4, &payload), PassedNotPod);
    node.check(POD_A, &ethernet([1, 0, 0x5e, 0, 0, 1], POD_A.mac, IPV4, &payload), PassedNotPod);
}

#[test]
fn other_destinations_are_passed() {
    let mut node = Node::new();
    let a = POD_A;
    for to in [a.v4, Ipv4Addr::new(10, 244, 1, 1), Ipv4Addr::new(10, 96, 0, 10), Ipv4Addr::BROADCAST] {
        node.check(a, &frame(a, IPV4, &ipv4(a.v4, to, UDP, &udp(1, 2))), PassedNotPod);
    }
    node.check(a, &frame(a, IPV4, &ipv4(a.v4, Ipv4Addr::new(224, 0, 0, 251), UDP, &udp(1, 2))), PassedNotPod);
    node.check(a, &frame(a, IPV4, &ipv4(a.v4, Ipv4Addr::UNSPECIFIED, UDP, &udp(1, 2))), PassedNotPod);
    for to in ["ff02::fb", "fd00:10:244:1::1", "2001:db8::1", "::", "::ffff:10.244.1.3", "fe80::1"] {
        // The v4-mapped form of pod B's address is its IPv4 key, but no IPv6 address that anybody has.
        node.check(a, &frame(a, IPV6, &ipv6(a.v6, to.parse().unwrap(), UDP, &udp(1, 2))), PassedNotPod);
    }
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, a.v6, UDP, &udp(1, 2))), PassedNotPod);
}

#[test]
fn other_protocols_are_passed_if_the_mac_is_right() {
    let mut node = Node::new();
    for ethertype in [0x88cc, 0x0000, 0x0026, 0x8863, 0xffff] {
        node.check(POD_A, &frame(POD_A, ethertype, &[0; 46]), PassedNotForwarded);
        node.check(POD_A, &ethernet(GATEWAY_MAC, POD_B.mac, ethertype, &[0; 46]), SpoofedMac);
    }
}

#[test]
fn an_unknown_interface_may_send_nothing() {
    let mut node = Node::new();
    node.datapath.maps_mut().remove_source(POD_A.ifindex).unwrap();
    node.check(POD_A, &udp_v4(POD_A, POD_B), UnknownEndpoint);
    node.publish(POD_A);
    node.check(POD_A, &udp_v4(POD_A, POD_B), RedirectedToPod);
    node.datapath.maps_mut().remove_endpoint(POD_B.v4.into()).unwrap();
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedNotPod);
    node.check(POD_A, &udp_v6(POD_A, POD_B), RedirectedToPod);
}

#[test]
fn every_bit_of_mac_and_address_counts() {
    let mut node = Node::new();
    for (packet, mac, address) in [(udp_v4(POD_A, POD_B), 6..12, 26..30), (udp_v6(POD_A, POD_B), 6..12, 22..38)] {
        for (range, reason) in [(mac, SpoofedMac), (address, SpoofedAddress)] {
            for bit in range.start * 8..range.end * 8 {
                let mut spoofed = packet.clone();
                spoofed[bit / 8] ^= 1 << (bit % 8);
                node.check(POD_A, &spoofed, reason);
            }
        }
    }
    node.check(POD_A, &udp_v4(POD_B, POD_A), SpoofedMac);
}

#[test]
fn spoofing_is_dropped_whatever_the_destination() {
    let mut node = Node::new();
    let a = POD_A;
    for to in [POD_B.v4, Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        for from in [POD_B.v4, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
            node.check(a, &frame(a, IPV4, &ipv4(from, to, UDP, &udp(1, 2))), SpoofedAddress);
        }
    }
    for to in [POD_B.v6, "ff02::1".parse().unwrap()] {
        for from in [POD_B.v6, Ipv6Addr::UNSPECIFIED, POD_B.link_local(), Ipv6Addr::LOCALHOST] {
            node.check(a, &frame(a, IPV6, &ipv6(from, to, UDP, &udp(1, 2))), SpoofedAddress);
            node.check(a, &frame(a, IPV6, &ipv6(from, to, ICMPV6, &echo(128, 2))), SpoofedAddress);
            node.check(a, &frame(a, IPV6, &ipv6(from, to, NO_NEXT, &[])), SpoofedAddress);
        }
    }
}

#[test]
fn a_pod_without_a_family_may_not_use_it() {
    let mut node = Node::new();
    let v6_only = Pod { v4: Ipv4Addr::UNSPECIFIED, ..POD_A };
    node.datapath.maps_mut().upsert_source(POD_A.ifindex, v6_only.source()).unwrap();
    node.check(POD_A, &udp_v4(POD_A, POD_B), SpoofedAddress);
    node.check(POD_A, &udp_v4(v6_only, POD_B), SpoofedAddress);
    node.check(POD_A, &udp_v6(POD_A, POD_B), RedirectedToPod);
    let v4_only = Pod { v6: Ipv6Addr::UNSPECIFIED, ..POD_A };
    node.datapath.maps_mut().upsert_source(POD_A.ifindex, v4_only.source()).unwrap();
    node.check(POD_A, &udp_v4(POD_A, POD_B), RedirectedToPod);
    node.check(POD_A, &udp_v6(POD_A, POD_B), SpoofedAddress);
    node.check(POD_A, &udp_v6(v4_only, POD_B), SpoofedAddress);
}

#[test]
fn a_link_local_source_stays_on_its_link() {
    let mut node = Node::new();
    let from = POD_A.link_local();
    let multicast = "ff02::fb".parse().unwrap();
    node.check(POD_A, &frame(POD_A, IPV6, &ipv6(from, multicast, UDP, &udp(5353, 5353))), PassedNotPod);
    node.check(POD_A, &frame(POD_A, IPV6, &ipv6(from, POD_B.v6, UDP, &udp(1, 2))), PassedNotForwarded);
}

#[test]
fn ip_options_are_for_the_kernel_but_guarded() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    let options = [0x94, 4, 0, 0, 1, 1, 1, 0];
    node.check(a, &frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, 0, &options, &udp(1, 2))), PassedUnsupported);
    node.check(a, &frame(a, IPV4, &ipv4_with(b.v4, b.v4, UDP, 0, &options, &udp(1, 2))), SpoofedAddress);
}

#[test]
fn bad_headers_are_malformed() {
    let mut node = Node::new();
    let packet = udp_v4(POD_A, POD_B);
    for (version_ihl, expected) in [(0x44, Malformed), (0x65, Malformed), (0x05, Malformed), (0x4f, Malformed)] {
        let mut bad = packet.clone();
        bad[14] = version_ihl;
        node.check(POD_A, &bad, expected);
    }
    let mut too_long = packet.clone();
    too_long[17] += 1;
    node.check(POD_A, &too_long, Malformed);
    let mut padded = packet;
    padded.extend([0; 18]);
    node.check(POD_A, &padded, RedirectedToPod);

    let packet = udp_v6(POD_A, POD_B);
    let mut bad = packet.clone();
    bad[14] = 0x40;
    node.check(POD_A, &bad, Malformed);
    let mut too_long = packet.clone();
    too_long[19] += 1;
    node.check(POD_A, &too_long, Malformed);
}

#[test]
fn fragments_are_redirected_by_address_alone() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    for field in [0x2000, 0x2001, 0x0005] {
        node.check(a, &frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, field, &[], &[0; 16])), RedirectedToPod);
        node.check(a, &frame(a, IPV4, &ipv4_with(b.v4, b.v4, UDP, field, &[], &[0; 16])), SpoofedAddress);
    }
    for (offset, more) in [(0, true), (3, true), (3, false), (0, false)] {
        let payload = [fragment(UDP, offset, more), udp(1, 2)].concat();
        node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, FRAGMENT, &payload)), RedirectedToPod);
        node.check(a, &frame(a, IPV6, &ipv6(b.v6, b.v6, FRAGMENT, &payload)), SpoofedAddress);
    }
}

#[test]
fn extension_headers_do_not_keep_a_packet_from_the_pod() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    for kind in [HOP_BY_HOP, ROUTING, DESTINATION] {
        let payload = [extension(TCP), tcp(1, 2, ACK)].concat();
        node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, kind, &payload)), RedirectedToPod);
    }
    let authenticated = [vec![TCP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1], tcp(1, 2, ACK)].concat();
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, AUTHENTICATION, &authenticated)), RedirectedToPod);

    let chain =
        [extension(DESTINATION), extension(ROUTING), extension(DESTINATION), extension(UDP), udp(1, 2)].concat();
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, HOP_BY_HOP, &chain)), RedirectedToPod);
    let endless = extension(DESTINATION).repeat(20);
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, DESTINATION, &endless)), Malformed);
    let mut cut = extension(UDP);
    cut[1] = 9;
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, DESTINATION, &[cut, udp(1, 2)].concat())), Malformed);
    let twice = [fragment(FRAGMENT, 0, true), fragment(UDP, 0, true), udp(1, 2)].concat();
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, FRAGMENT, &twice)), Malformed);
}

#[test]
fn big_tcp_packets_are_redirected() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    let payload = [jumbo(TCP, 70_000), tcp(1, 2, ACK), vec![0; 1000]].concat();
    let mut packet = frame(a, IPV6, &ipv6(a.v6, b.v6, HOP_BY_HOP, &payload));
    packet[18..20].copy_from_slice(&[0, 0]);
    node.check(a, &packet, RedirectedToPod);
    let mut packet = frame(a, IPV4, &ipv4(a.v4, b.v4, TCP, &tcp(1, 2, ACK)));
    packet[16..18].copy_from_slice(&[0, 0]);
    node.check(a, &packet, RedirectedToPod);
}
