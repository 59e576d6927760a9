//! Packets that are cut, mutated or plainly random: never redirected with a wrong source, never a surprise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podnet::datapath::events::PacketSummary;
use podnet_common::{
    program_name,
    verdict::{DropReason::Malformed, Verdict::RedirectedToPod},
};

use crate::{
    fixture::{Node, Outcome, POD_A, POD_B, assert_untouched, describe, is_runnable},
    packets::{
        ACK, ARP, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, SYN, TCP, UDP, VLAN, arp, echo,
        extension, fragment, frame, ipv4, ipv4_with, ipv6, link_layer, neighbor, tcp, udp, udp_v4, udp_v6,
    },
};

#[test]
fn every_truncation_is_malformed() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    for packet in [
        udp_v4(a, b),
        udp_v6(a, b),
        frame(a, IPV4, &ipv4(a.v4, b.v4, TCP, &tcp(1, 2, SYN))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, TCP, &tcp(1, 2, SYN))),
        frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, 0, &[1; 40], &udp(1, 2))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, HOP_BY_HOP, &[extension(TCP), tcp(1, 2, ACK)].concat())),
    ] {
        for len in 14..packet.len() {
            if is_runnable(&packet[..len]) {
                node.check(a, &packet[..len], Malformed);
            }
        }
    }
}

/// xorshift64*: enough for test packets, and the same on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Whatever the packet, a redirected one is pod A's own, and for pod B.
#[track_caller]
fn assert_rightful(packet: &[u8], outcome: &Outcome) {
    assert_untouched(packet, outcome);
    if outcome.decision != RedirectedToPod.into() {
        return;
    }
    let summary = PacketSummary::parse(packet);
    let message = describe(packet, outcome);
    assert_eq!(packet[6..12], POD_A.mac, "{message}");
    assert!([IpAddr::V4(POD_A.v4), IpAddr::V6(POD_A.v6)].contains(&summary.source.unwrap()), "{message}");
    let destination = match summary.destination.unwrap() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    };
    assert!([IpAddr::V4(POD_B.v4), IpAddr::V6(POD_B.v6)].contains(&destination), "{message}");
    assert_eq!(outcome.packet[..6], POD_B.mac, "{message}");
    // The program dropped no neighbour discovery by redirecting it.
    let discovery =
        summary.protocol == Some(ICMPV6) && summary.icmp_type.is_some_and(|kind| (133..=137).contains(&kind));
    assert!(!discovery, "{message}");
}

/// Random bytes; every second packet has the headers that get it further.
fn random_packet(random: &mut Random) -> Vec<u8> {
    let len = 14 + random.below(180);
    let mut packet: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    if random.below(8) != 0 {
        packet[6..12].copy_from_slice(&POD_A.mac);
    }
    let ethertype = [IPV4, IPV6, IPV6, ARP, VLAN, 0x88a8][random.below(6)];
    packet[12..14].copy_from_slice(&ethertype.to_be_bytes());
    if random.below(2) == 0 {
        let (at, start): (usize, Vec<u8>) = match ethertype {
            IPV4 => (14, ipv4(POD_A.v4, POD_B.v4, UDP, &[])),
            IPV6 => (14, ipv6(POD_A.v6, POD_B.v6, [0, 6, 43, 44, 51, 58, 60][random.below(7)], &[])),
            _ => (16, [IPV4.to_be_bytes().to_vec(), ipv4(POD_A.v4, POD_B.v4, UDP, &[])].concat()),
        };
        for (to, from) in packet.iter_mut().skip(at).zip(start) {
            *to = from;
        }
        if ethertype == IPV6 && len > 54 {
            packet[18..20].copy_from_slice(&((len - 54) as u16).to_be_bytes());
        }
    }
    packet
}

#[test]
fn random_packets_are_never_redirected_with_a_wrong_source() {
    let mut node = Node::new();
    let mut random = Random(0x0070_6f64_6e65_7431);
    for round in 0..40_000 {
        if round == 20_000 {
            node.touch_all();
        }
        let packet = random_packet(&mut random);
        if !is_runnable(&packet) {
            continue;
        }
        let outcome = node.run_from_pod(POD_A, &packet);
        assert_rightful(&packet, &outcome);
        if round % 8 == 0 {
            node.deliver(POD_B, &packet);
        }
    }
}

#[test]
fn mutated_packets_are_never_redirected_with_a_wrong_source() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    let solicitation = neighbor(135, b.v6, &link_layer(1, a.mac));
    let seeds = [
        udp_v4(a, b),
        udp_v6(a, b),
        frame(a, IPV4, &ipv4(a.v4, b.v4, ICMP, &echo(8, 7))),
        frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, 0x2000, &[], &udp(1, 2))),
        frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &solicitation)),
        frame(a, IPV6, &ipv6(a.v6, b.v6, DESTINATION, &[extension(ICMPV6), solicitation].concat())),
        frame(a, IPV6, &ipv6(a.v6, b.v6, FRAGMENT, &[fragment(TCP, 0, true), tcp(1, 2, SYN)].concat())),
        frame(a, ARP, &arp(1, a.mac, a.v4, b.v4)),
        frame(a, VLAN, &[&[0, 0, 8, 0][..], &ipv4(a.v4, b.v4, UDP, &udp(1, 2))].concat()),
    ];
    let mut random = Random(0x6d75_7461_7465);
    for round in 0..40_000 {
        if round == 20_000 {
            node.touch_all();
        }
        let mut packet = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(3) {
            // Mostly behind the MACs, where more happens.
            let at =
                if random.below(10) == 0 { random.below(packet.len()) } else { 12 + random.below(packet.len() - 12) };
            packet[at] = if random.below(2) == 0 { random.next() as u8 } else { packet[at] ^ (1 << random.below(8)) };
        }
        if random.below(10) == 0 {
            packet.truncate(14 + random.below(packet.len() - 13));
        }
        if !is_runnable(&packet) {
            continue;
        }
        let outcome = node.run_from_pod(a, &packet);
        assert_rightful(&packet, &outcome);
    }
}

#[test]
fn to_pod_passes_everything() {
    let mut node = Node::new();
    let mut random = Random(0x746f_5f70_6f64);
    let foreign = Ipv4Addr::new(8, 8, 8, 8);
    let foreign_v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    for packet in [
        frame(POD_A, IPV4, &ipv4(foreign, POD_B.v4, UDP, &udp(53, 1))),
        frame(POD_A, IPV6, &ipv6(foreign_v6, POD_B.v6, UDP, &udp(53, 1))),
        frame(POD_A, ARP, &arp(1, POD_A.mac, POD_A.v4, POD_B.v4)),
    ] {
        for len in 14..=packet.len() {
            if is_runnable(&packet[..len]) {
                node.deliver(POD_B, &packet[..len]);
            }
        }
    }
    for _ in 0..5_000 {
        let packet = random_packet(&mut random);
        if is_runnable(&packet) {
            node.deliver(POD_B, &packet);
        }
    }
    let (action, _) = node.run_program(program_name::TO_POD, 1, &udp_v4(POD_A, POD_B));
    assert_eq!(action, -1, "an interface that is no endpoint's");
}
