//! Neighbour discovery and MLD: a pod speaks for itself only, wherever in the packet it does so.

use std::net::Ipv6Addr;

use podnet_common::verdict::{
    DropReason::{Malformed, RogueRouter, SpoofedAddress, SpoofedNeighbor},
    Verdict::{PassedNotForwarded, PassedNotPod},
};

use crate::{
    fixture::{Expected, Node, POD_A, POD_B},
    packets::{
        DESTINATION, FRAGMENT, HOP_BY_HOP, ICMPV6, IPV6, ROUTING, extension, fragment, frame, ipv6, link_layer,
        neighbor, router_solicitation,
    },
};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1);

#[track_caller]
fn check(node: &mut Node, from: Ipv6Addr, message: &[u8], expected: impl Into<Expected>) {
    let expected = expected.into();
    node.check(POD_A, &frame(POD_A, IPV6, &ipv6(from, ALL_NODES, ICMPV6, message)), expected);
    // The same behind extension headers, which must not hide it.
    for kind in [HOP_BY_HOP, DESTINATION, ROUTING] {
        let hidden = [extension(ICMPV6), message.to_vec()].concat();
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(from, ALL_NODES, kind, &hidden)), expected);
    }
    let hidden = [extension(DESTINATION), extension(ICMPV6), message.to_vec()].concat();
    node.check(POD_A, &frame(POD_A, IPV6, &ipv6(from, ALL_NODES, HOP_BY_HOP, &hidden)), expected);
}

#[test]
fn a_pod_may_solicit() {
    let mut node = Node::new();
    for from in [POD_A.v6, POD_A.link_local()] {
        for options in
            [vec![], link_layer(1, POD_A.mac), [vec![14, 1, 0, 0, 0, 0, 0, 0], link_layer(1, POD_A.mac)].concat()]
        {
            check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &options), PassedNotForwarded);
            check(&mut node, from, &router_solicitation(&options), PassedNotForwarded);
        }
    }
    check(&mut node, UNSPECIFIED, &router_solicitation(&[]), PassedNotForwarded);
}

#[test]
fn a_pod_may_advertise_itself() {
    let mut node = Node::new();
    for target in [POD_A.v6, POD_A.link_local()] {
        for options in [vec![], link_layer(2, POD_A.mac)] {
            check(&mut node, POD_A.v6, &neighbor(ADVERTISEMENT, target, &options), PassedNotForwarded);
            check(&mut node, POD_A.link_local(), &neighbor(ADVERTISEMENT, target, &options), PassedNotForwarded);
        }
    }
}

#[test]
fn a_pod_may_detect_duplicates_of_its_own_addresses() {
    let mut node = Node::new();
    for target in [POD_A.v6, POD_A.link_local()] {
        check(&mut node, UNSPECIFIED, &neighbor(SOLICITATION, target, &[]), PassedNotForwarded);
    }
    for target in [POD_B.v6, POD_B.link_local(), GATEWAY] {
        check(&mut node, UNSPECIFIED, &neighbor(SOLICITATION, target, &[]), SpoofedNeighbor);
    }
}

#[test]
fn claims_for_others_are_dropped() {
    let mut node = Node::new();
    let from = POD_A.v6;
    for target in [POD_B.v6, POD_B.link_local(), GATEWAY, UNSPECIFIED] {
        check(&mut node, from, &neighbor(ADVERTISEMENT, target, &link_layer(2, POD_A.mac)), SpoofedNeighbor);
    }
    check(&mut node, from, &neighbor(ADVERTISEMENT, from, &link_layer(2, POD_B.mac)), SpoofedNeighbor);
    check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &link_layer(1, POD_B.mac)), SpoofedNeighbor);
    check(&mut node, from, &router_solicitation(&link_layer(1, POD_B.mac)), SpoofedNeighbor);
    // Behind other options, too.
    let nonce = [14, 1, 0, 0, 0, 0, 0, 0];
    for lead in 1..4 {
        let options = [nonce.repeat(lead), link_layer(1, POD_B.mac)].concat();
        check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &options), SpoofedNeighbor);
    }
    let two = [link_layer(1, POD_A.mac), link_layer(1, POD_B.mac)].concat();
    check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &two), SpoofedNeighbor);
    check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &nonce.repeat(5)), Malformed);
    check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &nonce.repeat(4)), PassedNotForwarded);
}

#[test]
fn no_pod_is_a_router() {
    let mut node = Node::new();
    for kind in [134, 137] {
        for from in [POD_A.v6, POD_A.link_local()] {
            check(&mut node, from, &[kind, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], RogueRouter);
            check(&mut node, from, &[kind], RogueRouter);
        }
        let first = [fragment(ICMPV6, 0, true), vec![kind, 0, 0, 0, 0, 0, 0, 0]].concat();
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(POD_A.v6, ALL_NODES, FRAGMENT, &first)), RogueRouter);
    }
}

#[test]
fn fragmented_discovery_is_malformed() {
    let mut node = Node::new();
    let message = neighbor(SOLICITATION, GATEWAY, &link_layer(1, POD_A.mac));
    for more in [false, true] {
        let payload = [fragment(ICMPV6, 0, more), message.clone()].concat();
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(POD_A.v6, ALL_NODES, FRAGMENT, &payload)), Malformed);
        // The type in a second fragment is not to be seen: so the first one must not leave it out.
        let empty = fragment(ICMPV6, 0, more);
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(POD_A.v6, ALL_NODES, FRAGMENT, &empty)), Malformed);
        let cut = [fragment(DESTINATION, 0, more), extension(ICMPV6)].concat();
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(POD_A.v6, ALL_NODES, FRAGMENT, &cut)), Malformed);
    }
}

#[test]
fn truncated_discovery_is_malformed() {
    let mut node = Node::new();
    let message = neighbor(SOLICITATION, GATEWAY, &link_layer(1, POD_A.mac));
    for len in 0..message.len() {
        let expected: Expected = if len == 24 { PassedNotForwarded.into() } else { Malformed.into() };
        check(&mut node, POD_A.v6, &message[..len], expected);
    }
    let zero = neighbor(SOLICITATION, GATEWAY, &[1, 0, 0, 0, 0, 0, 0, 0]);
    check(&mut node, POD_A.v6, &zero, Malformed);
    let long = neighbor(SOLICITATION, GATEWAY, &[14, 2, 0, 0, 0, 0, 0, 0]);
    check(&mut node, POD_A.v6, &long, Malformed);
}

#[test]
fn the_source_address_counts_first() {
    let mut node = Node::new();
    for from in [POD_B.v6, POD_B.link_local(), GATEWAY] {
        check(&mut node, from, &neighbor(SOLICITATION, GATEWAY, &[]), SpoofedAddress);
        check(&mut node, from, &neighbor(ADVERTISEMENT, POD_A.v6, &[]), SpoofedAddress);
    }
    check(&mut node, UNSPECIFIED, &neighbor(ADVERTISEMENT, POD_A.v6, &[]), SpoofedAddress);
    check(&mut node, UNSPECIFIED, &[128, 0, 0, 0, 0, 0, 0, 0], SpoofedAddress);
}

#[test]
fn multicast_listeners_may_have_no_address_yet() {
    let mut node = Node::new();
    for kind in [131, 132, 143] {
        for from in [UNSPECIFIED, POD_A.link_local(), POD_A.v6] {
            check(&mut node, from, &[kind, 0, 0, 0, 0, 0, 0, 0], PassedNotPod);
        }
        // To a pod it would be a packet with a source that nobody can answer.
        let payload = [kind, 0, 0, 0, 0, 0, 0, 0];
        node.check(POD_A, &frame(POD_A, IPV6, &ipv6(UNSPECIFIED, POD_B.v6, ICMPV6, &payload)), PassedNotForwarded);
    }
}
