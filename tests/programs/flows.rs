//! Who owns a flow: claims, the kernel's ownership, ports that are used again, and lost entries.

use std::net::{IpAddr, Ipv4Addr};

use podnet_common::{
    address::Address,
    flow::{Flow, FlowKey},
    verdict::Verdict::{PassedKernelFlow, PassedUnsupported, RedirectedToPod},
};

use crate::{
    fixture::{Node, POD_A, POD_B},
    packets::{
        ACK, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, SYN, TCP, UDP, echo, fragment, frame, ipv4, ipv4_with,
        ipv6, jumbo, tcp, udp, udp_v4, udp_v6,
    },
};

const CLIENT: u16 = 40_000;
const SERVER: u16 = 53;

/// The key of a flow from pod A (the first end) to pod B.
fn key(protocol: u8, first_port: u16, second_port: u16, v6: bool) -> FlowKey {
    let (first, second): (Address, Address) =
        if v6 { (POD_A.v6.into(), POD_B.v6.into()) } else { (POD_A.v4.into(), POD_B.v4.into()) };
    FlowKey {
        first,
        second,
        first_port: first_port.to_be_bytes(),
        second_port: second_port.to_be_bytes(),
        protocol,
        reserved: [0; 3],
    }
}

fn udp_key() -> FlowKey {
    key(UDP, CLIENT, SERVER, false)
}

fn reply_v4() -> Vec<u8> {
    frame(POD_B, IPV4, &ipv4(POD_B.v4, POD_A.v4, UDP, &udp(SERVER, CLIENT)))
}

fn tcp_v4(flags: u8) -> Vec<u8> {
    frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_B.v4, TCP, &tcp(CLIENT, 80, flags)))
}

fn tcp_key() -> FlowKey {
    key(TCP, CLIENT, 80, false)
}

impl Node {
    fn state(&self, key: &FlowKey) -> Option<u32> {
        self.datapath.maps().flow(key).unwrap().map(|flow| flow.state)
    }

    fn set_state(&mut self, key: &FlowKey, state: u32, age: u32) {
        self.datapath.maps_mut().set_flow(key, Flow { state, last_seen: tick().wrapping_sub(age) }).unwrap();
    }

    fn last_seen(&self, key: &FlowKey) -> u32 {
        self.datapath.maps().flow(key).unwrap().unwrap().last_seen
    }
}

fn tick() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let nanoseconds = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    (nanoseconds >> Flow::TICK_SHIFT) as u32
}

#[test]
fn without_the_flags_no_flow_is_looked_up() {
    let mut node = Node::new();
    node.set_state(&udp_key(), Flow::OWNED_BY_KERNEL, 0);
    node.check(POD_A, &udp_v4(POD_A, POD_B), RedirectedToPod);
    node.check(POD_B, &reply_v4(), RedirectedToPod);
    node.datapath.maps_mut().remove_flow(&udp_key()).unwrap();
    node.check(POD_A, &tcp_v4(SYN), RedirectedToPod);
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
}

#[test]
fn a_translated_flow_stays_with_the_kernel_in_both_directions() {
    let mut node = Node::new();
    // Pod A sent to a service; the kernel translated, and delivers to pod B.
    assert_eq!((node.is_touched(POD_A), node.is_touched(POD_B)), ((false, false), (false, false)));
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert_eq!((node.is_touched(POD_A), node.is_touched(POD_B)), ((false, false), (true, false)));
    assert_eq!(node.state(&udp_key()), Some(Flow::OWNED_BY_KERNEL));
    node.check(POD_B, &reply_v4(), PassedKernelFlow);
    assert_eq!(node.state(&udp_key()), Some(Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_SECOND));
    // What pod A sends to the same tuple directly cannot be told apart.
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedKernelFlow);
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert_eq!(node.state(&udp_key()).unwrap() & Flow::OWNED_BY_KERNEL, Flow::OWNED_BY_KERNEL);
    // IPv6 of the same pods is not touched.
    node.check(POD_A, &udp_v6(POD_A, POD_B), RedirectedToPod);
    node.deliver(POD_B, &udp_v6(POD_A, POD_B));
    assert_eq!(node.is_touched(POD_B), (true, true));
    assert_eq!(node.state(&key(UDP, CLIENT, SERVER, true)), Some(Flow::OWNED_BY_KERNEL));
}

#[test]
fn a_flow_that_arrives_as_it_was_sent_is_claimed() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedKernelFlow);
    assert_eq!(node.state(&udp_key()), Some(Flow::SEEN_FROM_FIRST));
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert_eq!(node.state(&udp_key()), Some(Flow::SEEN_FROM_FIRST | Flow::OWNED_BY_EBPF));
    node.check(POD_A, &udp_v4(POD_A, POD_B), RedirectedToPod);
    node.check(POD_B, &reply_v4(), RedirectedToPod);
}

#[test]
fn both_directions_on_the_kernel_path_are_noted() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_B, &reply_v4(), PassedKernelFlow);
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedKernelFlow);
    assert_eq!(node.state(&udp_key()), Some(Flow::SEEN_FROM_FIRST | Flow::SEEN_FROM_SECOND));
    node.deliver(POD_A, &reply_v4());
    assert_eq!(node.state(&udp_key()), Some(Flow::OWNED_BY_EBPF | Flow::SEEN_FROM_FIRST | Flow::SEEN_FROM_SECOND));
}

#[test]
fn a_packet_that_was_only_seen_the_other_way_was_translated() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_B, &reply_v4(), PassedKernelFlow);
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert_eq!(node.state(&udp_key()), Some(Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_SECOND));
    node.check(POD_B, &reply_v4(), PassedKernelFlow);
}

#[test]
fn a_syn_claims_at_once_and_nothing_else_of_tcp_does() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_A, &tcp_v4(ACK), PassedKernelFlow);
    node.check(POD_A, &tcp_v4(SYN | ACK), PassedKernelFlow);
    assert_eq!(node.state(&tcp_key()), Some(Flow::SEEN_FROM_FIRST));
    node.check(POD_A, &tcp_v4(SYN), RedirectedToPod);
    assert_eq!(node.state(&tcp_key()), Some(Flow::OWNED_BY_EBPF));
    node.check(POD_A, &tcp_v4(ACK), RedirectedToPod);
    let answer = frame(POD_B, IPV4, &ipv4(POD_B.v4, POD_A.v4, TCP, &tcp(80, CLIENT, SYN | ACK)));
    node.check(POD_B, &answer, RedirectedToPod);
}

#[test]
fn a_syn_respects_a_live_flow_of_the_kernel_and_takes_over_an_idle_one() {
    let mut node = Node::new();
    node.touch_all();
    node.set_state(&tcp_key(), Flow::OWNED_BY_KERNEL, 119);
    node.check(POD_A, &tcp_v4(SYN), PassedKernelFlow);
    assert!(tick().wrapping_sub(node.last_seen(&tcp_key())) <= 1, "the SYN makes the flow live again");
    node.set_state(&tcp_key(), Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_FIRST, 122);
    node.check(POD_A, &tcp_v4(ACK), PassedKernelFlow);
    node.set_state(&tcp_key(), Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_FIRST, 122);
    node.check(POD_A, &tcp_v4(SYN), RedirectedToPod);
    assert_eq!(node.state(&tcp_key()), Some(Flow::OWNED_BY_EBPF));
}

#[test]
fn a_tuple_that_a_translated_flow_uses_again_goes_to_the_kernel() {
    let mut node = Node::new();
    node.touch_all();
    // Packets that were under way before the claim change nothing.
    node.check(POD_A, &tcp_v4(SYN), RedirectedToPod);
    node.deliver(POD_B, &tcp_v4(ACK));
    assert_eq!(node.state(&tcp_key()), Some(Flow::OWNED_BY_EBPF));
    // Later ones are of another flow.
    node.set_state(&tcp_key(), Flow::OWNED_BY_EBPF | Flow::SEEN_FROM_FIRST, 4);
    node.deliver(POD_B, &tcp_v4(SYN));
    assert_eq!(node.state(&tcp_key()), Some(Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_FIRST));
    node.check(POD_A, &tcp_v4(ACK), PassedKernelFlow);
}

#[test]
fn the_kernel_keeps_a_flow_alive() {
    let mut node = Node::new();
    node.touch_all();
    node.set_state(&udp_key(), Flow::OWNED_BY_KERNEL, 50);
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert!(tick().wrapping_sub(node.last_seen(&udp_key())) <= 1);
    node.set_state(&udp_key(), Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_FIRST, 50);
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedKernelFlow);
    assert!(tick().wrapping_sub(node.last_seen(&udp_key())) <= 1);
}

#[test]
fn a_lost_entry_costs_speed_only() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_A, &tcp_v4(SYN), RedirectedToPod);
    assert!(node.datapath.maps_mut().remove_flow(&tcp_key()).unwrap());
    node.check(POD_A, &tcp_v4(ACK), PassedKernelFlow);
    node.deliver(POD_B, &tcp_v4(ACK));
    node.check(POD_A, &tcp_v4(ACK), RedirectedToPod);
    // A lost entry of the kernel's is made again by the next packet that it delivers.
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert!(node.datapath.maps_mut().remove_flow(&udp_key()).unwrap());
    node.check(POD_B, &reply_v4(), PassedKernelFlow);
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    assert_eq!(node.state(&udp_key()), Some(Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_SECOND));
}

#[test]
fn either_end_that_is_touched_makes_the_flow_looked_up() {
    let mut node = Node::new();
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    let other = frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_B.v4, UDP, &udp(1, 2)));
    node.check(POD_A, &other, PassedKernelFlow);
    let other = frame(POD_B, IPV4, &ipv4(POD_B.v4, POD_A.v4, UDP, &udp(3, 4)));
    node.check(POD_B, &other, PassedKernelFlow);
    assert_eq!(node.state(&key(UDP, 1, 2, false)), Some(Flow::SEEN_FROM_FIRST));
    assert_eq!(node.state(&key(UDP, 4, 3, false)), Some(Flow::SEEN_FROM_SECOND));
}

#[test]
fn fragments_of_looked_up_flows_are_for_the_kernel() {
    let mut node = Node::new();
    node.touch_all();
    let (a, b) = (POD_A, POD_B);
    let v4 = |field| frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, field, &[], &udp(CLIENT, SERVER)));
    let v6 = |offset, more| {
        frame(a, IPV6, &ipv6(a.v6, b.v6, FRAGMENT, &[fragment(UDP, offset, more), udp(CLIENT, SERVER)].concat()))
    };
    for packet in [v4(0x2000), v4(0x2004), v4(0x0004), v6(0, true), v6(2, true), v6(2, false)] {
        node.check(a, &packet, PassedUnsupported);
        node.deliver(b, &packet);
    }
    assert_eq!(node.datapath.maps().flows().unwrap(), [], "a fragment has no ports");
}

#[test]
fn fragments_and_errors_that_the_kernel_delivers_touch_the_pod() {
    let (a, b) = (POD_A, POD_B);
    for (packet, touched) in [
        (frame(a, IPV4, &ipv4_with(a.v4, b.v4, UDP, 0x2000, &[], &udp(1, 2))), (true, false)),
        (frame(a, IPV4, &ipv4(a.v4, b.v4, ICMP, &echo(3, 0))), (true, false)),
        (frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &echo(1, 0))), (false, true)),
    ] {
        let mut node = Node::new();
        node.deliver(b, &packet);
        assert_eq!(node.is_touched(b), touched);
        assert_eq!(node.datapath.maps().flows().unwrap(), []);
    }
}

#[test]
fn only_pods_open_flows() {
    let mut node = Node::new();
    let outside = Ipv4Addr::new(8, 8, 8, 8);
    node.deliver(POD_B, &frame(POD_A, IPV4, &ipv4(outside, POD_B.v4, UDP, &udp(53, 1))));
    // Nor does a packet that is not for this pod.
    node.deliver(POD_B, &frame(POD_A, IPV4, &ipv4(POD_A.v4, outside, UDP, &udp(53, 1))));
    assert_eq!((node.is_touched(POD_A), node.is_touched(POD_B)), ((false, false), (false, false)));
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
}

#[test]
fn echo_is_a_flow_by_its_identifier_and_errors_are_none() {
    let mut node = Node::new();
    node.touch_all();
    let (a, b) = (POD_A, POD_B);
    let request = frame(a, IPV4, &ipv4(a.v4, b.v4, ICMP, &echo(8, 77)));
    let reply = frame(b, IPV4, &ipv4(b.v4, a.v4, ICMP, &echo(0, 77)));
    node.check(a, &request, PassedKernelFlow);
    node.deliver(b, &request);
    node.check(a, &request, RedirectedToPod);
    node.check(b, &reply, RedirectedToPod);
    assert_eq!(node.state(&key(ICMP, 77, 77, false)).unwrap() & Flow::OWNED_BY_EBPF, Flow::OWNED_BY_EBPF);
    let request = frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &echo(128, 78)));
    node.check(a, &request, PassedKernelFlow);
    node.deliver(b, &request);
    node.check(a, &request, RedirectedToPod);
    assert!(node.state(&key(ICMPV6, 78, 78, true)).is_some());
    for (ethertype, payload) in
        [(IPV4, ipv4(a.v4, b.v4, ICMP, &echo(3, 77))), (IPV6, ipv6(a.v6, b.v6, ICMPV6, &echo(1, 78)))]
    {
        node.check(a, &frame(a, ethertype, &payload), PassedKernelFlow);
    }
    assert_eq!(node.datapath.maps().flows().unwrap().len(), 2);
}

#[test]
fn other_protocols_are_flows_without_ports() {
    let mut node = Node::new();
    node.touch_all();
    let packet = frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_B.v4, 47, &[9; 30]));
    node.check(POD_A, &packet, PassedKernelFlow);
    node.deliver(POD_B, &packet);
    node.check(POD_A, &packet, RedirectedToPod);
    assert!(node.state(&key(47, 0, 0, false)).is_some());
    let sctp = frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_B.v4, 132, &tcp(5, 6, 0)));
    node.check(POD_A, &sctp, PassedKernelFlow);
    assert!(node.state(&key(132, 5, 6, false)).is_some());
}

#[test]
fn big_tcp_packets_of_a_claimed_flow_are_redirected() {
    let mut node = Node::new();
    node.touch_all();
    let (a, b) = (POD_A, POD_B);
    node.check(a, &frame(a, IPV6, &ipv6(a.v6, b.v6, TCP, &tcp(CLIENT, 80, SYN))), RedirectedToPod);
    let payload = [jumbo(TCP, 70_000), tcp(CLIENT, 80, ACK)].concat();
    let mut packet = frame(a, IPV6, &ipv6(a.v6, b.v6, HOP_BY_HOP, &payload));
    packet[18..20].copy_from_slice(&[0, 0]);
    node.check(a, &packet, RedirectedToPod);
    assert_eq!(node.datapath.maps().flows().unwrap().len(), 1);
}

#[test]
fn keys_are_addresses_as_people_read_them() {
    let mut node = Node::new();
    node.touch_all();
    node.check(POD_A, &udp_v4(POD_A, POD_B), PassedKernelFlow);
    let [(key, _)] = node.datapath.maps().flows().unwrap()[..] else { panic!("one flow") };
    assert_eq!((key.first.to_ip(), key.second.to_ip()), (IpAddr::V4(POD_A.v4), IpAddr::V4(POD_B.v4)));
}
