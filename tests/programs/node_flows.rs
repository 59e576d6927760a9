//! Flows between pods of different nodes: which path they take, and how `to_uplink`, `to_pod` and `from_uplink` keep both
//! directions on it.

use podnet_common::{
    address::Address,
    flow::{Flow, FlowKey},
    program_name::{FROM_UPLINK, TO_UPLINK},
    verdict::Verdict::{self, PassedKernelFlow, PassedUnsupported, RedirectedToNode, RedirectedToPod, SentByKernel},
};

use crate::{
    cluster::{POD_C, POD_D, UPLINK, arriving, arriving_v4, from_bridge, pod_of},
    fixture::{Expected, Node, POD_A, POD_B, Pod, Skb, describe},
    packets::{ACK, FRAGMENT, ICMP, IPV4, IPV6, SYN, TCP, UDP, echo, fragment, frame, ipv4, ipv4_with, ipv6, tcp, udp},
};

const CLIENT: u16 = 40_000;
const SERVER: u16 = 53;

/// The key of a flow from pod A, the first end, to pod C.
fn key(protocol: u8, server: u16, v6: bool) -> FlowKey {
    let (first, second): (Address, Address) =
        if v6 { (POD_A.v6.into(), POD_C.v6.into()) } else { (POD_A.v4.into(), POD_C.v4.into()) };
    let [first_port, second_port] = [CLIENT, server].map(u16::to_be_bytes);
    FlowKey { first, second, first_port, second_port, protocol, reserved: [0; 3] }
}

/// A datagram of pod A to pod C, and the answer as it arrives.
fn request() -> Vec<u8> {
    frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_C.v4, UDP, &udp(CLIENT, SERVER)))
}

fn reply() -> Vec<u8> {
    arriving(IPV4, &ipv4(POD_C.v4, POD_A.v4, UDP, &udp(SERVER, CLIENT)))
}

impl Node {
    fn owner(&self, key: &FlowKey) -> Option<u32> {
        self.datapath.maps().flow(key).unwrap().map(|flow| flow.state)
    }

    #[track_caller]
    fn verdict(&mut self, program: &str, skb: impl Into<Skb>, packet: &[u8], expected: Verdict) {
        let outcome = self.run(program, skb, packet);
        assert_eq!(outcome.decision, Expected::Verdict(expected), "{}", describe(packet, &outcome));
    }

    #[track_caller]
    fn sends(&mut self, packet: &[u8], expected: Verdict) {
        self.verdict(podnet_common::program_name::FROM_POD, POD_A.ifindex, packet, expected);
    }

    #[track_caller]
    fn receives(&mut self, packet: &[u8], expected: Verdict) {
        self.verdict(FROM_UPLINK, UPLINK, packet, expected);
    }

    /// The kernel path sends a packet out of the uplink. It is never changed or dropped.
    #[track_caller]
    fn kernel_sends(&mut self, packet: &[u8]) {
        let outcome = self.run(TO_UPLINK, from_bridge(UPLINK), packet);
        assert_eq!(outcome.decision, SentByKernel.into(), "{}", describe(packet, &outcome));
        assert_eq!(outcome.packet, packet);
    }
}

#[test]
fn untouched_pods_need_no_flow() {
    let mut node = Node::in_cluster();
    node.sends(&request(), RedirectedToNode);
    node.receives(&reply(), RedirectedToPod);
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
}

#[test]
fn a_flow_that_was_translated_on_the_clients_node_stays_with_the_kernel() {
    let mut node = Node::in_cluster();
    // Pod A sent to a service; the kernel translated to pod C, and sends it on.
    node.kernel_sends(&request());
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::OWNED_BY_KERNEL));
    assert_eq!((node.is_touched(POD_A), node.is_touched(POD_B)), ((true, false), (false, false)));
    node.receives(&reply(), PassedKernelFlow);
    node.receives(&reply(), PassedKernelFlow);
    node.sends(&request(), PassedKernelFlow);
    // Other flows of the pod prove themselves, and IPv6 is not touched.
    node.receives(&arriving(IPV6, &ipv6(POD_C.v6, POD_A.v6, UDP, &udp(SERVER, CLIENT))), RedirectedToPod);
    let syn = frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_C.v4, TCP, &tcp(CLIENT, 80, SYN)));
    node.sends(&syn, RedirectedToNode);
    assert_eq!(node.owner(&key(TCP, 80, false)), Some(Flow::OWNED_BY_EBPF));
    node.receives(&arriving(IPV4, &ipv4(POD_C.v4, POD_A.v4, TCP, &tcp(80, CLIENT, SYN | ACK))), RedirectedToPod);
}

#[test]
fn a_flow_that_leaves_as_it_was_sent_is_claimed() {
    let mut node = Node::in_cluster();
    node.touch_all();
    node.sends(&request(), PassedKernelFlow);
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::SEEN_FROM_FIRST));
    node.kernel_sends(&request());
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::OWNED_BY_EBPF | Flow::SEEN_FROM_FIRST));
    node.sends(&request(), RedirectedToNode);
    node.receives(&reply(), RedirectedToPod);
}

#[test]
fn a_flow_that_arrives_as_it_was_received_is_claimed() {
    let mut node = Node::in_cluster();
    node.touch_all();
    node.receives(&reply(), PassedKernelFlow);
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::SEEN_FROM_SECOND));
    node.deliver(POD_A, &reply());
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::OWNED_BY_EBPF | Flow::SEEN_FROM_SECOND));
    node.receives(&reply(), RedirectedToPod);
    node.sends(&request(), RedirectedToNode);
}

#[test]
fn a_flow_that_was_translated_on_the_servers_node_stays_with_the_kernel() {
    let mut node = Node::in_cluster();
    // Pod C sent to a port of this node, which the kernel translated to pod A.
    node.deliver(POD_A, &reply());
    assert_eq!(node.owner(&key(UDP, SERVER, false)), Some(Flow::OWNED_BY_KERNEL));
    assert_eq!(node.is_touched(POD_A), (true, false));
    node.sends(&request(), PassedKernelFlow);
    node.kernel_sends(&request());
    assert_eq!(node.owner(&key(UDP, SERVER, false)).unwrap() & Flow::OWNED_BY_KERNEL, Flow::OWNED_BY_KERNEL);
    node.receives(&reply(), PassedKernelFlow);
}

#[test]
fn a_syn_from_another_node_claims_at_once() {
    let mut node = Node::in_cluster();
    node.touch_all();
    let tcp_from_c = |flags| arriving(IPV4, &ipv4(POD_C.v4, POD_A.v4, TCP, &tcp(80, CLIENT, flags)));
    node.receives(&tcp_from_c(ACK), PassedKernelFlow);
    node.receives(&tcp_from_c(SYN | ACK), PassedKernelFlow);
    node.receives(&tcp_from_c(SYN), RedirectedToPod);
    assert_eq!(node.owner(&key(TCP, 80, false)), Some(Flow::OWNED_BY_EBPF));
    node.sends(&frame(POD_A, IPV4, &ipv4(POD_A.v4, POD_C.v4, TCP, &tcp(CLIENT, 80, ACK))), RedirectedToNode);
}

#[test]
fn a_lost_entry_costs_speed_only() {
    let mut node = Node::in_cluster();
    node.kernel_sends(&request());
    assert!(node.datapath.maps_mut().remove_flow(&key(UDP, SERVER, false)).unwrap());
    node.receives(&reply(), PassedKernelFlow);
    node.kernel_sends(&request());
    assert_eq!(
        node.owner(&key(UDP, SERVER, false)),
        Some(Flow::OWNED_BY_KERNEL | Flow::SEEN_FROM_SECOND),
        "only the reply was seen as it is"
    );
    node.receives(&reply(), PassedKernelFlow);
}

#[test]
fn fragments_of_touched_pods_are_the_kernels_both_ways() {
    let mut node = Node::in_cluster();
    let v4 = |from: Pod, to: Pod| ipv4_with(from.v4, to.v4, UDP, 0x2000, &[], &udp(CLIENT, SERVER));
    let v6 =
        |from: Pod, to: Pod| ipv6(from.v6, to.v6, FRAGMENT, &[fragment(UDP, 0, true), udp(CLIENT, SERVER)].concat());
    node.sends(&frame(POD_A, IPV4, &v4(POD_A, POD_C)), RedirectedToNode);
    node.receives(&arriving(IPV4, &v4(POD_C, POD_A)), RedirectedToPod);
    // The kernel fragments what is too big, and the pod is touched by that.
    node.kernel_sends(&frame(POD_A, IPV4, &v4(POD_A, POD_C)));
    node.kernel_sends(&frame(POD_A, IPV6, &v6(POD_A, POD_C)));
    assert_eq!(node.is_touched(POD_A), (true, true));
    for (ethertype, there, back) in
        [(IPV4, v4(POD_A, POD_C), v4(POD_C, POD_A)), (IPV6, v6(POD_A, POD_C), v6(POD_C, POD_A))]
    {
        node.sends(&frame(POD_A, ethertype, &there), PassedUnsupported);
        node.receives(&arriving(ethertype, &back), PassedUnsupported);
    }
    assert_eq!(node.datapath.maps().flows().unwrap(), [], "a fragment has no ports");
}

#[test]
fn the_uplinks_watcher_ignores_all_but_what_the_kernel_forwards_between_pods() {
    let mut node = Node::in_cluster();
    // Redirected by a program, sent by the node itself, forwarded from elsewhere.
    for ingress_ifindex in [POD_A.ifindex, 0, UPLINK] {
        node.check_ignored(TO_UPLINK, Skb { ingress_ifindex, ..UPLINK.into() }, &request());
    }
    let outside = Pod { v4: [203, 0, 113, 9].into(), v6: "2001:db8::9".parse().unwrap(), ..POD_C };
    for (from, to) in [(POD_A, outside), (outside, POD_C), (pod_of(1, 99), POD_C), (POD_A, pod_of(1, 99))] {
        for packet in [
            frame(POD_A, IPV4, &ipv4(from.v4, to.v4, UDP, &udp(1, 2))),
            frame(POD_A, IPV6, &ipv6(from.v6, to.v6, UDP, &udp(1, 2))),
        ] {
            node.check_ignored(TO_UPLINK, from_bridge(UPLINK), &packet);
        }
    }
    let mapped = frame(POD_A, IPV6, &ipv6(POD_A.v4.to_ipv6_mapped(), POD_C.v4.to_ipv6_mapped(), UDP, &udp(1, 2)));
    node.check_ignored(TO_UPLINK, from_bridge(UPLINK), &mapped);
    node.check_ignored(TO_UPLINK, from_bridge(UPLINK), &frame(POD_A, 0x88cc, &[0; 46]));
    assert_eq!(node.is_touched(POD_A), (false, false));
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
    // The overlay device is watched in the same way.
    let packet = frame(POD_A, IPV6, &ipv6(POD_A.v6, POD_D.v6, UDP, &udp(1, 2)));
    // (In its place the uplink: `BPF_PROG_TEST_RUN` wants an interface that exists, and the program does not ask.)
    node.verdict(TO_UPLINK, from_bridge(UPLINK), &packet, SentByKernel);
    assert_eq!(node.is_touched(POD_A), (false, true));
    // Without a bridge nothing came through it.
    drop(node);
    let settings = podnet_common::settings::Settings { bridge_ifindex: 0, ..crate::cluster::SETTINGS };
    let mut node = Node::in_cluster_with(settings);
    node.check_ignored(TO_UPLINK, UPLINK, &request());
}

#[test]
fn what_the_kernel_delivers_from_other_nodes_is_remembered_and_from_elsewhere_not() {
    let mut node = Node::in_cluster();
    node.deliver(POD_B, &frame(POD_A, IPV4, &ipv4([192, 168, 1, 12].into(), POD_B.v4, UDP, &udp(1, 2))));
    node.deliver(POD_B, &frame(POD_A, IPV4, &ipv4(pod_of(1, 1).v4, POD_B.v4, UDP, &udp(1, 2))));
    let mapped = frame(POD_A, IPV6, &ipv6(POD_C.v4.to_ipv6_mapped(), POD_B.v6, UDP, &udp(1, 2)));
    node.deliver(POD_B, &mapped);
    assert_eq!(node.is_touched(POD_B), (false, false));
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
    node.deliver(POD_B, &arriving_v4(POD_D, POD_B));
    assert_eq!(node.is_touched(POD_B), (true, false));
    // An error about a flow is none, but touches.
    node.deliver(POD_A, &arriving(IPV4, &ipv4(pod_of(4, 9).v4, POD_A.v4, ICMP, &echo(3, 1))));
    assert_eq!(node.is_touched(POD_A), (true, false));
    assert_eq!(node.datapath.maps().flows().unwrap().len(), 1);
}
