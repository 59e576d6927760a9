//! What a program run costs, in nanoseconds: printed (`--nocapture`), not judged. Other load makes it more, so the best
//! of several series counts; it includes the kernel's own loop.

use podnet::datapath::logs::LogLevel;
use podnet_common::{
    endpoint::Endpoint,
    flow::{Flow, FlowKey},
    node::Node as Far,
    program_name::{ALL, FROM_OVERLAY, FROM_POD, FROM_UPLINK, TO_POD, TO_UPLINK},
    settings::Settings,
};

use crate::{
    cluster::{POD_C, POD_D, UPLINK, arriving_v4, arriving_v6, from_bridge, network, overlay},
    fixture::{Node, POD_A, POD_B},
    packets::{
        ACK, ARP, HOP_BY_HOP, ICMPV6, IPV4, IPV6, SYN, TCP, UDP, arp, frame, ipv4, ipv6, jumbo, neighbor, tcp, udp,
        udp_v4, udp_v6, with_ttl,
    },
};

#[test]
fn cost_of_a_run() {
    let (a, b) = (POD_A, POD_B);
    let tcp_packet = frame(a, IPV4, &ipv4(a.v4, b.v4, TCP, &tcp(1, 2, ACK)));
    let print = |name: &str, nanoseconds: u128| println!("{nanoseconds:5} ns  {name}");

    let mut node = Node::new();
    repeatable(&mut node);
    print("from_pod, IPv4 TCP, redirected", node.nanoseconds(FROM_POD, a.ifindex, &tcp_packet));
    print("from_pod, IPv4 UDP, redirected", node.nanoseconds(FROM_POD, a.ifindex, &udp_v4(a, b)));
    print("from_pod, IPv6 UDP, redirected", node.nanoseconds(FROM_POD, a.ifindex, &udp_v6(a, b)));
    let big = frame(a, IPV6, &ipv6(a.v6, b.v6, HOP_BY_HOP, &[jumbo(TCP, 99), tcp(1, 2, ACK)].concat()));
    print("from_pod, IPv6 hop-by-hop TCP, redirected", node.nanoseconds(FROM_POD, a.ifindex, &big));
    let outside = frame(a, IPV4, &ipv4(a.v4, [8, 8, 8, 8].into(), UDP, &udp(1, 2)));
    print("from_pod, IPv4, not to a pod", node.nanoseconds(FROM_POD, a.ifindex, &outside));
    let request = frame(a, ARP, &arp(1, a.mac, a.v4, b.v4));
    print("from_pod, ARP", node.nanoseconds(FROM_POD, a.ifindex, &request));
    let solicitation = frame(a, IPV6, &ipv6(a.v6, b.v6, ICMPV6, &neighbor(135, b.v6, &[])));
    print("from_pod, neighbour solicitation", node.nanoseconds(FROM_POD, a.ifindex, &solicitation));
    let spoofed = frame(a, IPV4, &ipv4(b.v4, b.v4, UDP, &udp(1, 2)));
    print("from_pod, spoofed, dropped", node.nanoseconds(FROM_POD, a.ifindex, &spoofed));
    let to_b = frame(b, IPV4, &ipv4([8, 8, 8, 8].into(), b.v4, UDP, &udp(1, 2)));
    print("to_pod, IPv4 from outside", node.nanoseconds(TO_POD, b.ifindex, &to_b));
    print("to_pod, IPv4 from a pod", node.nanoseconds(TO_POD, b.ifindex, &udp_v4(a, b)));

    node.touch_all();
    let key = FlowKey {
        first: a.v4.into(),
        second: b.v4.into(),
        first_port: 1u16.to_be_bytes(),
        second_port: 2u16.to_be_bytes(),
        protocol: TCP,
        reserved: [0; 3],
    };
    node.datapath.maps_mut().set_flow(&key, Flow { state: Flow::OWNED_BY_EBPF, last_seen: 0 }).unwrap();
    print("from_pod, IPv4 TCP, flow looked up, redirected", node.nanoseconds(FROM_POD, a.ifindex, &tcp_packet));
    node.datapath.maps_mut().set_flow(&key, Flow { state: Flow::OWNED_BY_KERNEL, last_seen: 0 }).unwrap();
    print("from_pod, IPv4 TCP, flow of the kernel, passed", node.nanoseconds(FROM_POD, a.ifindex, &tcp_packet));
    drop(node);

    let mut lean =
        Node::with_settings(Settings { events_per_tick: 0, count_verdicts: 0, ..Settings::DEFAULT }, LogLevel::Off);
    repeatable(&mut lean);
    print("from_pod, IPv4 TCP, redirected, not counted", lean.nanoseconds(FROM_POD, a.ifindex, &tcp_packet));
}

#[test]
fn cost_of_a_run_between_nodes() {
    let (a, c) = (POD_A, POD_C);
    let print = |name: &str, nanoseconds: u128| println!("{nanoseconds:5} ns  {name}");
    let mut node = Node::in_cluster();
    for program in ALL {
        let info = node.datapath.program(program).unwrap().info().unwrap();
        println!("{program}: the verifier walked {:?} instructions of 1,000,000", info.verified_instruction_count());
    }
    repeatable(&mut node);
    // The inner source is the pod's MAC again; see `repeatable`.
    let far = Far { own_mac: a.mac, ..overlay() };
    for v6 in [false, true] {
        node.datapath.maps_mut().upsert_node(network(3, v6), far).unwrap();
    }
    let skb = a.ifindex;
    print("from_pod, IPv4 UDP, to a pod of this node", node.nanoseconds_of_hops(FROM_POD, skb, &udp_v4(a, POD_B)));
    print("from_pod, IPv4 UDP, to a node, direct", node.nanoseconds_of_hops(FROM_POD, skb, &udp_v4(a, c)));
    print("from_pod, IPv6 UDP, to a node, direct", node.nanoseconds_of_hops(FROM_POD, skb, &udp_v6(a, c)));
    print("from_pod, IPv4 UDP, to a node, overlay", node.nanoseconds_of_hops(FROM_POD, skb, &udp_v4(a, POD_D)));
    print("from_pod, IPv6 UDP, to a node, overlay", node.nanoseconds_of_hops(FROM_POD, skb, &udp_v6(a, POD_D)));
    let outside = frame(a, IPV4, &ipv4(a.v4, [8, 8, 8, 8].into(), UDP, &udp(1, 2)));
    print("from_pod, IPv4, not to a pod", node.nanoseconds(FROM_POD, skb, &outside));
    print("from_uplink, IPv4 UDP, delivered", node.nanoseconds_of_hops(FROM_UPLINK, UPLINK, &arriving_v4(c, a)));
    print("from_uplink, IPv6 UDP, delivered", node.nanoseconds_of_hops(FROM_UPLINK, UPLINK, &arriving_v6(c, a)));
    print("from_uplink, not for a pod", node.nanoseconds(FROM_UPLINK, UPLINK, &arriving_v4(a, c)));
    print("to_uplink, redirected before", node.nanoseconds(TO_UPLINK, UPLINK, &udp_v4(a, c)));
    print("to_uplink, sent by the kernel", node.nanoseconds(TO_UPLINK, from_bridge(UPLINK), &udp_v4(a, c)));
    print("from_overlay, without a tunnel key, dropped", node.nanoseconds(FROM_OVERLAY, UPLINK, &udp_v4(a, c)));

    node.touch_all();
    let tcp_to_c = frame(a, IPV4, &ipv4(a.v4, c.v4, TCP, &tcp(1, 2, SYN)));
    let flow = "from_pod, IPv4 TCP, to a node, flow looked up";
    print(flow, node.nanoseconds_of_hops(FROM_POD, skb, &tcp_to_c));
}

impl Node {
    /// As [`Node::nanoseconds`], for a program that takes one from the TTL at each run: many short series, of which the
    /// median counts.
    fn nanoseconds_of_hops(&self, program: &str, skb: u32, packet: &[u8]) -> u128 {
        let packet = with_ttl(packet, 255);
        let mut series: Vec<u128> = (0..401).map(|_| self.series(program, skb, &packet, 250)).collect();
        series.sort_unstable();
        series[200]
    }
}

/// A series runs the same packet over and over, so it must be what it was after a redirect: the gateway gets the MAC of
/// the sender.
fn repeatable(node: &mut Node) {
    for address in [POD_B.v4.into(), POD_B.v6.into()] {
        let endpoint = Endpoint { gateway_mac: POD_A.mac, ..POD_B.endpoint() };
        node.datapath.maps_mut().upsert_endpoint(address, endpoint).unwrap();
    }
}
