//! What routers tell of packets that they do not forward: traceroute shows the nodes, and senders learn how large packets
//! may be. With it, packets that must be cut into fragments.
//!
//! ```text
//!   pod --- node1 --- (router: 1300 bytes) --- node3 --- pod
//! ```

use std::{collections::BTreeSet, net::IpAddr};

use harness::{
    Family, TestCluster, TestNode, TestPod, command,
    counters::Counters,
    probe::{self, Answer, Kind, Probe, Report},
    tcp, udp,
};
use podnet::{api::DatapathRequest, config::RoutingMode, netns::Netns};
use podnet_common::verdict::Verdict;

use crate::paths::Paths;

const PORT: u16 = 8080;

/// MTU of the uplinks where the way is narrower than the pods' interfaces.
const NARROW: u32 = 1400;

/// MTU between the router's subnets where it is narrower than everything else.
const MIDDLE: u32 = 1300;

/// What VXLAN costs: outer IPv4 and UDP headers, its own, and the inner Ethernet header.
const OVERHEAD: u32 = 50;

macro_rules! tests {
    ($($name:ident: $function:ident($mode:ident, $paths:ident);)*) => {
        $(#[test] fn $name() { $function(RoutingMode::$mode, Paths::$paths); })*
    };
}

tests! {
    traces_direct_by_ebpf: trace(Direct, Ebpf);
    traces_direct_by_the_kernel: trace(Direct, Kernel);
    traces_overlay_by_ebpf: trace(Overlay, Ebpf);
    traces_overlay_by_the_kernel: trace(Overlay, Kernel);
    traces_overlay_mixed: trace(Overlay, Mixed);
    traces_router_by_ebpf: trace(Router, Ebpf);
    too_big_direct_by_ebpf: find_mtu_of_the_uplink(Direct, Ebpf);
    too_big_direct_by_the_kernel: find_mtu_of_the_uplink(Direct, Kernel);
    too_big_overlay_by_ebpf: find_mtu_of_the_uplink(Overlay, Ebpf);
    too_big_overlay_by_the_kernel: find_mtu_of_the_uplink(Overlay, Kernel);
    too_big_router_by_ebpf: find_mtu_of_the_uplink(Router, Ebpf);
    narrow_middle_direct_by_ebpf: find_mtu_of_the_middle(Direct, Ebpf);
    narrow_middle_direct_by_the_kernel: find_mtu_of_the_middle(Direct, Kernel);
    narrow_middle_overlay_by_ebpf: pass_the_middle_wrapped_up(Overlay, Ebpf);
    narrow_middle_overlay_by_the_kernel: pass_the_middle_wrapped_up(Overlay, Kernel);
    traces_direct_beside_kube_proxy: trace_beside_kube_proxy(Direct, Ebpf);
    traces_overlay_beside_kube_proxy: trace_beside_kube_proxy(Overlay, Ebpf);
    traces_router_beside_kube_proxy: trace_beside_kube_proxy(Router, Ebpf);
    narrow_middle_beside_kube_proxy: find_mtu_beside_kube_proxy(Direct, Ebpf);
    fragments_direct_by_ebpf: exchange_fragments(Direct, Ebpf);
    fragments_overlay_by_ebpf: exchange_fragments(Overlay, Ebpf);
    fragments_auto_mixed: exchange_fragments(Auto, Mixed);
    fragments_router_by_ebpf: exchange_fragments(Router, Ebpf);
}

/// A pod on each node.
struct Hosts {
    cluster: TestCluster,
    pods: Vec<TestPod>,
}

impl Hosts {
    fn new(cluster: TestCluster) -> Self {
        let pods: Vec<_> = cluster.add_pods(1).into_iter().flatten().collect();
        let all = cluster.nodes().iter().map(TestNode::netns).chain([cluster.router()]);
        for netns in all.chain(pods.iter().map(TestPod::netns)) {
            // A host tells one and the same sender of six errors, then of one each second.
            command::set_sysctl(netns, "net.ipv4.icmp_ratelimit", "0");
            command::set_sysctl(netns, "net.ipv6.icmp.ratelimit", "0");
        }
        Self { cluster, pods }
    }

    /// Returns the pairs of pods of different nodes, by position.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.pods.len();
        all.clone().flat_map(|from| all.clone().map(move |to| (from, to))).filter(|(from, to)| from != to).collect()
    }

    fn node_addresses(&self, node: usize, family: Family) -> BTreeSet<IpAddr> {
        let node = &self.cluster.nodes()[node];
        [node.address(family), node.gateway(family)].into()
    }

    fn probe(&self, (from, to): (usize, usize), family: Family, kind: Kind) -> Probe {
        Probe::open(self.pods[from].netns(), self.pods[to].address(family), kind)
    }

    fn counters(&self) -> Vec<Counters> {
        self.cluster.nodes().iter().map(TestNode::counters).collect()
    }

    /// Sends much from each pod to each pod of another node, and datagrams that no link carries in one piece.
    fn check_streams(&self) {
        let _tcp: Vec<_> = self.pods.iter().map(|pod| tcp::EchoServer::start(pod.netns(), PORT)).collect();
        for family in Family::ALL {
            let _udp: Vec<_> = self
                .pods
                .iter()
                .map(|pod| udp::EchoServer::start(pod.netns(), pod.socket_address(family, PORT)))
                .collect();
            for (from, to) in self.pairs() {
                let (client, target) = (self.pods[from].netns(), self.pods[to].socket_address(family, PORT));
                tcp::exchange(client, target, 2_000_000);
                udp::exchange(client, target, 8000);
            }
        }
    }

    /// Makes the nodes drop what conntrack calls invalid, as kube-proxy does on each node.
    fn drop_invalid(&self) {
        for node in self.cluster.nodes() {
            for family in Family::ALL {
                command::iptables(node.netns(), family, "-A FORWARD -m conntrack --ctstate INVALID -j DROP");
            }
        }
    }

    /// Returns how many packets those rules have dropped.
    fn dropped_as_invalid(&self) -> u64 {
        let of = |node: &TestNode, family| {
            let rules = command::iptables(node.netns(), family, "-L FORWARD -v -n -x");
            let rule = rules.lines().find(|line| line.contains("INVALID")).unwrap();
            rule.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap()
        };
        self.cluster.nodes().iter().flat_map(|node| Family::ALL.map(|family| of(node, family))).sum()
    }

    /// Makes every flow one that is looked up: after a gap, the kernel may have translated it.
    fn touch(&self) {
        for node in self.cluster.nodes() {
            for request in [DatapathRequest::Detach, DatapathRequest::Attach] {
                node.set_datapath(request);
            }
        }
    }

    /// Checks that no program dropped anything.
    fn check_drops(&self) {
        for (node, counters) in self.cluster.nodes().iter().zip(self.counters()) {
            assert_eq!(counters.all_dropped(), 0, "{}: {counters:?}", node.name());
        }
    }
}

/// Returns the router's address on the subnet of all nodes.
fn router_address(family: Family) -> IpAddr {
    if family == Family::V4 { "192.168.1.1" } else { "fd00:192:168:1::1" }.parse().unwrap()
}

/// Traceroute shows the nodes, and the router if there is one between them.
fn trace(mode: RoutingMode, paths: Paths) {
    let hosts = Hosts::new(paths.cluster(mode));
    let before = hosts.counters();
    trace_in(&hosts, mode);
    for ((node, before), after) in hosts.cluster.nodes().iter().zip(&before).zip(hosts.counters()) {
        if paths.is_ebpf(node) {
            // At each end of two ways, in two families and two kinds, one packet ends.
            let expired = after.since(before).verdict(Verdict::PassedTtlExpired);
            assert!(expired >= 16, "{}: {expired}", node.name());
        }
    }
}

/// So it does where the nodes drop what conntrack has not seen, and for flows that are looked up.
fn trace_beside_kube_proxy(mode: RoutingMode, paths: Paths) {
    let hosts = Hosts::new(paths.cluster(mode));
    hosts.drop_invalid();
    trace_in(&hosts, mode);
    hosts.touch();
    trace_in(&hosts, mode);
    assert_eq!(hosts.dropped_as_invalid(), 0);
}

fn trace_in(hosts: &Hosts, mode: RoutingMode) {
    for family in Family::ALL {
        for kind in Kind::ALL {
            for (from, to) in hosts.pairs() {
                let target = hosts.pods[to].address(family);
                let hops = probe::trace(hosts.pods[from].netns(), target, kind);
                let mut expected = vec![hosts.node_addresses(from, family), hosts.node_addresses(to, family)];
                expected.push([target].into());
                if mode == RoutingMode::Router {
                    expected.insert(1, [router_address(family)].into());
                }
                let right =
                    hops.len() == expected.len() && hops.iter().zip(&expected).all(|(hop, any)| any.contains(hop));
                assert!(right, "{kind:?} from node{} to node{}: {hops:?}, not {expected:?}", from + 1, to + 1);
            }
        }
    }
    hosts.check_drops();
}

/// Pods that believe in larger packets than their node's uplink carries learn better.
fn find_mtu_of_the_uplink(mode: RoutingMode, paths: Paths) {
    let hosts = Hosts::new(paths.cluster_with(mode, |options| {
        options.mtu = Some(1500);
        options.uplink_mtu = NARROW;
    }));
    let mtu = if mode == RoutingMode::Overlay { NARROW - OVERHEAD } else { NARROW };
    for pod in &hosts.pods {
        for family in Family::ALL {
            let option = if family == Family::V4 { "-4" } else { "-6" };
            // In an overlay pods know from their node what it carries.
            command::ip(pod.netns(), &format!("{option} route replace default via {} dev eth0", pod.gateway(family)));
        }
    }
    hosts.check_streams();
    let before = hosts.counters();
    for family in Family::ALL {
        for pair in hosts.pairs() {
            for kind in Kind::ALL {
                let probe = hosts.probe(pair, family, kind);
                for length in [mtu + 1, 1500] {
                    let report = probe.sized(length as usize);
                    let answered = report.is_some_and(|Report { from, answer }| {
                        hosts.node_addresses(pair.0, family).contains(&from) && answer == Answer::TooBig(mtu)
                    });
                    assert!(answered, "{family:?} {kind:?}, {length} bytes: {report:?}");
                }
                assert_arrives(&probe, mtu, hosts.pods[pair.1].address(family));
            }
        }
    }
    for ((node, before), after) in hosts.cluster.nodes().iter().zip(&before).zip(hosts.counters()) {
        if paths.is_ebpf(node) {
            let too_big = after.since(before).verdict(Verdict::PassedTooBig);
            assert!(too_big >= 2 * 2 * 2 * 2, "{}: {too_big}", node.name());
        }
    }
    hosts.check_drops();
}

/// Checks that a packet of so many bytes reaches its destination.
#[track_caller]
fn assert_arrives(probe: &Probe, length: u32, destination: IpAddr) {
    let report = probe.sized(length as usize);
    let arrived = report.is_some_and(|Report { from, answer }| {
        from == destination && matches!(answer, Answer::PortUnreachable | Answer::Reply)
    });
    assert!(arrived, "{length} bytes to {destination}: {report:?}");
}

/// Makes the router send no larger packets than [`MIDDLE`] from subnet to subnet and to pods.
fn narrow(router: &Netns) {
    for option in ["-4", "-6"] {
        let table = command::ip(router, &format!("{option} route show"));
        let inner = table.lines().filter(|route| {
            route.starts_with("192.168.") || route.starts_with("10.244.") || route.starts_with("fd00:")
        });
        for route in inner {
            command::ip(router, &format!("{option} route change {route} mtu {MIDDLE}"));
        }
    }
}

/// Returns a cluster whose third node is across a router that carries less than the links.
fn narrow_cluster(mode: RoutingMode, paths: Paths) -> Hosts {
    let hosts = Hosts::new(paths.cluster_with(mode, |options| options.second_subnet = Some(vec!["node3".into()])));
    narrow(hosts.cluster.router());
    hosts
}

/// Errors of a router in the middle reach the pod that sent the packet.
fn find_mtu_of_the_middle(mode: RoutingMode, paths: Paths) {
    find_mtu_of_the_middle_in(&narrow_cluster(mode, paths));
}

/// So they do where the nodes drop what conntrack has not seen, and for flows that are looked up.
fn find_mtu_beside_kube_proxy(mode: RoutingMode, paths: Paths) {
    let hosts = narrow_cluster(mode, paths);
    hosts.drop_invalid();
    find_mtu_of_the_middle_in(&hosts);
    hosts.touch();
    for family in Family::ALL {
        for kind in Kind::ALL {
            let (target, probe) = (hosts.pods[2].address(family), hosts.probe((0, 2), family, kind));
            // By the kernel, which thereby proves the flow, and then by eBPF.
            for _ in 0..3 {
                assert_arrives(&probe, MIDDLE, target);
            }
            let invalid = hosts.dropped_as_invalid();
            let expected = Report { from: router_address(family), answer: Answer::TooBig(MIDDLE) };
            assert_eq!(probe.sized(1500), Some(expected), "{family:?} {kind:?}");
            assert_arrives(&probe, MIDDLE, target);
            assert_eq!(hosts.dropped_as_invalid(), invalid, "{family:?} {kind:?}");
        }
    }
    find_mtu_of_the_middle_in(&hosts);
}

fn find_mtu_of_the_middle_in(hosts: &Hosts) {
    hosts.check_streams();
    for family in Family::ALL {
        for pair in [(0, 2), (1, 2)] {
            for kind in Kind::ALL {
                let probe = hosts.probe(pair, family, kind);
                let expected = Report { from: router_address(family), answer: Answer::TooBig(MIDDLE) };
                assert_eq!(probe.sized(1500), Some(expected), "{family:?} {kind:?}");
                assert_arrives(&probe, MIDDLE, hosts.pods[pair.1].address(family));
            }
        }
    }
    hosts.check_drops();
}

/// Wrapped up, a packet may be cut into fragments on its way; the pods notice nothing.
fn pass_the_middle_wrapped_up(mode: RoutingMode, paths: Paths) {
    let hosts = narrow_cluster(mode, paths);
    hosts.check_streams();
    for family in Family::ALL {
        for pair in [(0, 2), (2, 1)] {
            assert_arrives(&hosts.probe(pair, family, Kind::Udp), 1500 - OVERHEAD, hosts.pods[pair.1].address(family));
        }
    }
    hosts.check_drops();
}

/// Fragments are forwarded as they are; nobody puts them together before the pod does.
fn exchange_fragments(mode: RoutingMode, paths: Paths) {
    let hosts = Hosts::new(paths.cluster(mode));
    let sizes = [1473, 8000, 60_000];
    let before = hosts.counters();
    for family in Family::ALL {
        let _servers: Vec<_> = hosts
            .pods
            .iter()
            .map(|pod| udp::EchoServer::start(pod.netns(), pod.socket_address(family, PORT)))
            .collect();
        for (from, to) in hosts.pairs() {
            let socket = udp::connect(hosts.pods[from].netns(), hosts.pods[to].socket_address(family, PORT));
            for size in sizes {
                udp::exchange_on(&socket, size);
            }
        }
    }
    for ((node, before), after) in hosts.cluster.nodes().iter().zip(&before).zip(hosts.counters()) {
        if paths.is_ebpf(node) {
            let moved = after.since(before);
            // To and from two pods, requests and answers, in two families; 49 fragments of those three datagrams.
            let least = 2 * 2 * 2 * 49;
            assert!(moved.verdict(Verdict::RedirectedToPod) >= least, "{}: {moved:?}", node.name());
            let sent = moved.verdict(Verdict::RedirectedToNode) + moved.verdict(Verdict::RedirectedToOverlay);
            assert!(sent >= least, "{}: {moved:?}", node.name());
        }
    }
    hosts.check_drops();
}
