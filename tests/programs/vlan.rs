//! Tagged frames: guarded, never redirected. `BPF_PROG_TEST_RUN` cannot give a packet a tag out of the frame, as the
//! kernel does with the outermost one, so these are tags within the frame.

use podnet_common::verdict::{
    DropReason::{Malformed, RogueRouter, SpoofedAddress, SpoofedArp, SpoofedMac},
    Verdict::PassedUnsupported,
};

use crate::{
    fixture::{GATEWAY_MAC, Node, POD_A, POD_B},
    packets::{ARP, ICMPV6, IPV4, IPV6, UDP, VLAN, arp, ethernet, frame, ipv4, ipv6, udp},
};

/// Puts a tag before a payload.
fn tagged(vlan: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&vlan.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat()
}

#[test]
fn what_is_behind_tags_is_guarded_but_not_redirected() {
    let mut node = Node::new();
    let (a, b) = (POD_A, POD_B);
    let good = [
        (IPV4, ipv4(a.v4, b.v4, UDP, &udp(1, 2))),
        (IPV6, ipv6(a.v6, b.v6, UDP, &udp(1, 2))),
        (ARP, arp(1, a.mac, a.v4, b.v4)),
        (0x88cc, vec![0; 40]),
    ];
    for (ethertype, payload) in good {
        let once = tagged(0, ethertype, &payload);
        node.check(a, &frame(a, VLAN, &once), PassedUnsupported);
        node.check(a, &frame(a, 0x88a8, &tagged(7, VLAN, &once)), PassedUnsupported);
        node.check(a, &ethernet(GATEWAY_MAC, b.mac, VLAN, &once), SpoofedMac);
    }
    let bad = [
        (IPV4, ipv4(b.v4, b.v4, UDP, &udp(1, 2)), SpoofedAddress),
        (IPV4, ipv4(a.v4, b.v4, UDP, &udp(1, 2))[..19].to_vec(), Malformed),
        (IPV6, ipv6(b.v6, b.v6, UDP, &udp(1, 2)), SpoofedAddress),
        (IPV6, ipv6(a.v6, b.v6, ICMPV6, &[134, 0, 0, 0]), RogueRouter),
        (ARP, arp(1, a.mac, b.v4, b.v4), SpoofedArp),
    ];
    for (ethertype, payload, reason) in bad {
        let once = tagged(0, ethertype, &payload);
        node.check(a, &frame(a, VLAN, &once), reason);
        node.check(a, &frame(a, VLAN, &tagged(0, VLAN, &once)), reason);
    }
}

#[test]
fn a_stack_of_tags_hides_nothing() {
    let mut node = Node::new();
    let packet = tagged(0, IPV4, &ipv4(POD_B.v4, POD_B.v4, UDP, &udp(1, 2)));
    let stack = tagged(0, VLAN, &tagged(0, VLAN, &packet));
    node.check(POD_A, &frame(POD_A, VLAN, &stack), Malformed);
    for len in 0..4 {
        node.check(POD_A, &frame(POD_A, VLAN, &stack[..len]), Malformed);
    }
}
