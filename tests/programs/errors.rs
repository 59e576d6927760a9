//! ICMP errors: they take the path of the flow that they are about, whoever sends them, and change no flow.

use std::net::IpAddr;

use podnet_common::{
    flow::Flow,
    program_name::{FROM_POD, FROM_UPLINK},
    verdict::Verdict::{PassedKernelFlow, PassedUnsupported, RedirectedToNode, RedirectedToPod},
};

use crate::{
    cluster::{POD_C, UPLINK, arriving, arriving_v4, pod_of},
    fixture::{Expected, Node, POD_A, POD_B, Pod, describe},
    packets::{ACK, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, SYN, TCP, UDP, echo, frame, ipv4, ipv4_with, ipv6, tcp, udp},
};

const CLIENT: u16 = 40_000;
const SERVER: u16 = 80;

/// A router between the nodes.
const ROUTER: (&str, &str) = ("192.168.1.1", "fd00:1::1");

/// An error that quotes a packet: too big, of either family.
fn error(from: IpAddr, to: Pod, quoted: &[u8]) -> (u16, Vec<u8>) {
    match from {
        IpAddr::V4(from) => (IPV4, ipv4(from, to.v4, ICMP, &[&[3, 4, 0, 0, 0, 0, 5, 20][..], quoted].concat())),
        IpAddr::V6(from) => (IPV6, ipv6(from, to.v6, ICMPV6, &[&[2, 0, 0, 0, 0, 0, 5, 20][..], quoted].concat())),
    }
}

fn routers_error(v6: bool, to: Pod, quoted: &[u8]) -> Vec<u8> {
    let from = if v6 { ROUTER.1 } else { ROUTER.0 };
    let (ethertype, packet) = error(from.parse().unwrap(), to, quoted);
    arriving(ethertype, &packet)
}

/// What pod A sent to a pod.
fn sent(to: Pod, v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if v6 { ipv6(POD_A.v6, to.v6, protocol, payload) } else { ipv4(POD_A.v4, to.v4, protocol, payload) }
}

#[track_caller]
fn arrives(node: &mut Node, packet: &[u8], expected: impl Into<Expected>) {
    let outcome = node.run(FROM_UPLINK, UPLINK, packet);
    assert_eq!(outcome.decision, expected.into(), "{}", describe(packet, &outcome));
}

#[test]
fn a_router_reaches_the_pod_that_sent_the_packet() {
    let mut node = Node::in_cluster();
    for v6 in [false, true] {
        for (protocol, payload) in [(TCP, tcp(CLIENT, SERVER, ACK)), (UDP, udp(CLIENT, SERVER))] {
            arrives(&mut node, &routers_error(v6, POD_A, &sent(POD_C, v6, protocol, &payload)), RedirectedToPod);
        }
    }
    assert_eq!(node.datapath.maps().flows().unwrap(), []);
}

#[test]
fn what_no_pod_sent_to_a_pod_is_the_kernels() {
    let mut node = Node::in_cluster();
    let payload = udp(CLIENT, SERVER);
    let outside = Pod { v4: "203.0.113.2".parse().unwrap(), v6: "2001:db8::2".parse().unwrap(), ..POD_C };
    for v6 in [false, true] {
        let ignored = [
            // To somebody outside, translated perhaps, and to a pod of this node.
            routers_error(v6, POD_A, &sent(outside, v6, UDP, &payload)),
            routers_error(v6, POD_A, &sent(POD_B, v6, UDP, &payload)),
            // Sent by another pod than the one that is told.
            routers_error(v6, POD_B, &sent(POD_C, v6, UDP, &payload)),
            // Cut within the quoted ports.
            routers_error(v6, POD_A, &sent(POD_C, v6, UDP, &payload)[..if v6 { 47 } else { 27 }]),
        ];
        for packet in ignored {
            node.check_ignored(FROM_UPLINK, UPLINK, &packet);
        }
    }
    // No errors, and an error within IP options or in fragments.
    let [a, b]: [std::net::Ipv4Addr; 2] = [ROUTER.0.parse().unwrap(), POD_A.v4];
    let (_, packet) = error(a.into(), POD_A, &sent(POD_C, false, UDP, &payload));
    let message = &packet[20..];
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(IPV4, &ipv4(a, b, ICMP, &echo(0, 1))));
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(IPV4, &ipv4(a, b, UDP, message)));
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(IPV4, &ipv4_with(a, b, ICMP, 0, &[1, 1, 1, 0], message)));
    node.check_ignored(FROM_UPLINK, UPLINK, &arriving(IPV4, &ipv4_with(a, b, ICMP, 0x2000, &[], message)));
    // A quoted IPv6 fragment may belong to any flow.
    let quoted = sent(POD_C, true, FRAGMENT, &payload);
    node.check_ignored(FROM_UPLINK, UPLINK, &routers_error(true, POD_A, &quoted));
}

#[test]
fn no_error_comes_from_an_address_that_stays_where_it_is() {
    let mut node = Node::in_cluster();
    let payload = udp(CLIENT, SERVER);
    let from_v4 = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.0.1", "255.255.255.255"];
    let from_v6 = ["::", "::1", "fe80::1", "ff02::1", "ff0e::1", "::ffff:192.168.1.1"];
    // The last one of the node itself.
    for from in from_v4.into_iter().chain(from_v6).chain(["192.168.1.11"]) {
        let from: IpAddr = from.parse().unwrap();
        let (ethertype, packet) = error(from, POD_A, &sent(POD_C, from.is_ipv6(), UDP, &payload));
        node.check_ignored(FROM_UPLINK, UPLINK, &arriving(ethertype, &packet));
    }
    // Of another node, and of a router's interface between nodes.
    for from in ["192.168.1.12", "169.254.1.1", "2001:db8::1"] {
        let from: IpAddr = from.parse().unwrap();
        let (ethertype, packet) = error(from, POD_A, &sent(POD_C, from.is_ipv6(), UDP, &payload));
        arrives(&mut node, &arriving(ethertype, &packet), RedirectedToPod);
    }
}

#[test]
fn an_error_takes_the_path_of_its_flow() {
    let mut node = Node::in_cluster();
    node.touch_all();
    for v6 in [false, true] {
        let ethertype = if v6 { IPV6 } else { IPV4 };
        let syn = sent(POD_C, v6, TCP, &tcp(CLIENT, SERVER, SYN));
        let later = sent(POD_C, v6, TCP, &tcp(CLIENT, SERVER, ACK));
        let back = if v6 {
            ipv6(POD_C.v6, POD_A.v6, TCP, &tcp(SERVER, CLIENT, ACK))
        } else {
            ipv4(POD_C.v4, POD_A.v4, TCP, &tcp(SERVER, CLIENT, ACK))
        };
        // Nobody has seen the flow yet: the kernel may have.
        node.check_ignored(FROM_UPLINK, UPLINK, &routers_error(v6, POD_A, &later));
        let pods_error = |from: IpAddr, to: Pod, quoted: &[u8]| error(from, to, quoted).1;
        let far: IpAddr = if v6 { POD_C.v6.into() } else { POD_C.v4.into() };
        let near: IpAddr = if v6 { POD_A.v6.into() } else { POD_A.v4.into() };
        let from_far = arriving(ethertype, &pods_error(far, POD_A, &later));
        let to_far = frame(POD_A, ethertype, &pods_error(near, POD_C, &back));
        arrives(&mut node, &from_far, PassedKernelFlow);
        assert_eq!(node.run(FROM_POD, POD_A.ifindex, &to_far).decision, PassedKernelFlow.into());
        let flows = node.datapath.maps().flows().unwrap().len();

        node.run(FROM_POD, POD_A.ifindex, &frame(POD_A, ethertype, &syn));
        arrives(&mut node, &routers_error(v6, POD_A, &later), RedirectedToPod);
        arrives(&mut node, &from_far, RedirectedToPod);
        assert_eq!(node.run(FROM_POD, POD_A.ifindex, &to_far).decision, RedirectedToNode.into());
        let after = node.datapath.maps().flows().unwrap();
        assert_eq!(after.len(), flows + 1, "{after:?}");
        assert_eq!(after.iter().filter(|(_, flow)| flow.state == Flow::OWNED_BY_EBPF).count(), 1 + usize::from(v6));
    }
}

#[test]
fn pods_of_one_node_tell_each_other() {
    let mut node = Node::in_cluster();
    node.touch_all();
    let datagram = ipv4(POD_A.v4, POD_B.v4, UDP, &udp(CLIENT, 53));
    let unreachable = ipv4(POD_B.v4, POD_A.v4, ICMP, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &datagram].concat());
    node.check(POD_B, &frame(POD_B, IPV4, &unreachable), PassedKernelFlow);
    // The kernel delivers the datagram as it was sent: the flow is proven.
    node.check(POD_A, &frame(POD_A, IPV4, &datagram), PassedKernelFlow);
    node.deliver(POD_B, &frame(POD_A, IPV4, &datagram));
    node.check(POD_B, &frame(POD_B, IPV4, &unreachable), RedirectedToPod);
}

#[test]
fn an_echo_is_told_by_its_identifier() {
    let mut node = Node::in_cluster();
    node.touch_all();
    let request = |identifier| ipv4(POD_A.v4, POD_C.v4, ICMP, &echo(8, identifier));
    node.run(FROM_POD, POD_A.ifindex, &frame(POD_A, IPV4, &request(7)));
    let reply = arriving(IPV4, &ipv4(POD_C.v4, POD_A.v4, ICMP, &echo(0, 7)));
    arrives(&mut node, &reply, PassedKernelFlow);
    node.deliver(POD_A, &reply);
    arrives(&mut node, &routers_error(false, POD_A, &request(7)), RedirectedToPod);
    node.check_ignored(FROM_UPLINK, UPLINK, &routers_error(false, POD_A, &request(8)));
}

#[test]
fn a_spent_error_is_the_kernels() {
    let mut node = Node::in_cluster();
    let packet = routers_error(false, POD_A, &sent(POD_C, false, UDP, &udp(CLIENT, SERVER)));
    node.check_ignored(FROM_UPLINK, UPLINK, &crate::packets::with_ttl(&packet, 1));
    // Packets of pods still are as they were.
    arrives(&mut node, &arriving_v4(pod_of(2, 9), POD_A), RedirectedToPod);
    let options = ipv4_with(POD_C.v4, POD_A.v4, UDP, 0, &[1, 1, 1, 0], &udp(1, 2));
    arrives(&mut node, &arriving(IPV4, &options), PassedUnsupported);
}
