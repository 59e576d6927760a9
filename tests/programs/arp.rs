//! ARP: a pod speaks for itself only.

use std::net::Ipv4Addr;

use podnet_common::verdict::{
    DropReason::{Malformed, SpoofedArp, SpoofedMac},
    Verdict::PassedNotForwarded,
};

use crate::{
    fixture::{Node, POD_A, POD_B, Pod},
    packets::{ARP, arp, ethernet, frame},
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

#[test]
fn a_pod_may_ask_answer_announce_and_probe_for_itself() {
    let mut node = Node::new();
    let a = POD_A;
    for packet in [
        arp(REQUEST, a.mac, a.v4, GATEWAY),
        arp(REPLY, a.mac, a.v4, GATEWAY),
        arp(REQUEST, a.mac, a.v4, a.v4),
        arp(REPLY, a.mac, a.v4, a.v4),
        arp(REQUEST, a.mac, Ipv4Addr::UNSPECIFIED, a.v4),
    ] {
        node.check(a, &ethernet([0xff; 6], a.mac, ARP, &packet), PassedNotForwarded);
        node.check(a, &frame(a, ARP, &[packet, vec![0; 18]].concat()), PassedNotForwarded);
    }
}

#[test]
fn claims_for_others_are_dropped() {
    let mut node = Node::new();
    let a = POD_A;
    for operation in [REQUEST, REPLY] {
        for sender in [POD_B.v4, GATEWAY, Ipv4Addr::BROADCAST] {
            node.check(a, &frame(a, ARP, &arp(operation, a.mac, sender, sender)), SpoofedArp);
        }
        node.check(a, &frame(a, ARP, &arp(operation, POD_B.mac, a.v4, GATEWAY)), SpoofedArp);
        node.check(a, &frame(a, ARP, &arp(operation, [0; 6], Ipv4Addr::UNSPECIFIED, GATEWAY)), SpoofedArp);
        node.check(a, &ethernet([0xff; 6], POD_B.mac, ARP, &arp(operation, a.mac, a.v4, GATEWAY)), SpoofedMac);
    }
}

#[test]
fn only_ethernet_and_ipv4_can_be_checked() {
    let mut node = Node::new();
    for byte in 0..6 {
        let mut packet = arp(REQUEST, POD_A.mac, POD_A.v4, GATEWAY);
        packet[byte] ^= 1;
        node.check(POD_A, &frame(POD_A, ARP, &packet), SpoofedArp);
    }
}

#[test]
fn every_short_arp_is_malformed() {
    let mut node = Node::new();
    let packet = frame(POD_A, ARP, &arp(REQUEST, POD_A.mac, POD_A.v4, GATEWAY));
    for len in 14..packet.len() {
        node.check(POD_A, &packet[..len], Malformed);
    }
}

#[test]
fn a_pod_without_ipv4_can_only_probe() {
    let mut node = Node::new();
    let pod = Pod { v4: Ipv4Addr::UNSPECIFIED, ..POD_A };
    node.datapath.maps_mut().upsert_source(pod.ifindex, pod.source()).unwrap();
    node.check(pod, &frame(pod, ARP, &arp(REQUEST, pod.mac, POD_A.v4, GATEWAY)), SpoofedArp);
    node.check(pod, &frame(pod, ARP, &arp(REQUEST, pod.mac, Ipv4Addr::UNSPECIFIED, GATEWAY)), PassedNotForwarded);
}
