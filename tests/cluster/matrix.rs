//! Every pod reaches every pod, every node every pod and every pod every node and the outside: in each mode, by each
//! path, in both families. Between pods and nodes nobody translates addresses; towards the outside the node does.
//!
//! ```text
//!   a client asks a server; the server answers with the source address that it saw
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use harness::{
    Family, TestCluster, TestNode, TestPod,
    counters::Counters,
    crowd, icmp, interfaces,
    peer::{self, PeerServer},
    tcp,
};
use podnet::{config::RoutingMode, netns::Netns};
use podnet_common::verdict::Verdict;

use crate::paths::Paths;

const PORT: u16 = 8080;

/// Pods of each node.
const PODS: usize = 2;

/// How many pairs ask at a time.
const WIDTH: usize = 8;

/// Questions of each pair when the path is measured: together far more than [`NOISE`].
const QUESTIONS: usize = 20;

/// Packets of a node that are not of the pairs: what pods send by themselves while a test runs.
const NOISE: u64 = 40;

macro_rules! matrix {
    ($($name:ident: $mode:ident, $paths:ident;)*) => {
        $(#[test] fn $name() { full_matrix(RoutingMode::$mode, Paths::$paths); })*
    };
}

matrix! {
    direct_by_ebpf: Direct, Ebpf;
    direct_by_the_kernel: Direct, Kernel;
    direct_mixed: Direct, Mixed;
    overlay_by_ebpf: Overlay, Ebpf;
    overlay_by_the_kernel: Overlay, Kernel;
    overlay_mixed: Overlay, Mixed;
    auto_by_ebpf: Auto, Ebpf;
    auto_by_the_kernel: Auto, Kernel;
    auto_mixed: Auto, Mixed;
    router_by_ebpf: Router, Ebpf;
    router_by_the_kernel: Router, Kernel;
    router_mixed: Router, Mixed;
}

/// One client, one server, and which source addresses the server may see.
struct Pair<'a> {
    from: String,
    client: &'a Netns,
    target: IpAddr,
    sources: BTreeSet<IpAddr>,
}

impl Pair<'_> {
    fn check(&self, questions: usize) -> Result<(), String> {
        let seen = peer::ask(self.client, SocketAddr::new(self.target, PORT), questions)
            .map_err(|error| format!("{}: {error}", self.from))?;
        if self.sources.contains(&seen.ip()) {
            return Ok(());
        }
        Err(format!("{}: {} saw {}, not {:?}", self.from, self.target, seen.ip(), self.sources))
    }
}

/// Lets all pairs ask, several at a time; panics with all that went wrong.
#[track_caller]
fn check_all(what: &str, pairs: &[Pair<'_>], questions: usize) {
    assert!(!pairs.is_empty());
    let results = crowd::run(WIDTH, pairs.iter().collect(), |pair: &Pair<'_>| pair.check(questions)).results;
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{what}: {} of {} pairs fail:\n{}", failures.len(), pairs.len(), failures.join("\n"));
}

struct Matrix {
    cluster: TestCluster,
    mode: RoutingMode,
    pods: Vec<Vec<TestPod>>,
    _servers: Vec<PeerServer>,
}

impl Matrix {
    fn new(mode: RoutingMode, paths: Paths) -> Self {
        let cluster = paths.cluster(mode);
        let pods = cluster.add_pods(PODS);
        let mut servers = Vec::new();
        for family in Family::ALL {
            let start = |netns: &Netns, address| PeerServer::start(netns, SocketAddr::new(address, PORT));
            servers.extend(pods.iter().flatten().map(|pod| start(pod.netns(), pod.address(family))));
            servers.extend(cluster.nodes().iter().map(|node| start(node.netns(), node.address(family))));
            servers.push(start(cluster.outside(), cluster.outside_address(family)));
        }
        Self { cluster, mode, pods, _servers: servers }
    }

    /// Returns each pod with its node.
    fn pods(&self) -> impl Iterator<Item = (&TestNode, &TestPod)> {
        self.cluster.nodes().iter().zip(&self.pods).flat_map(|(node, pods)| pods.iter().map(move |pod| (node, pod)))
    }

    /// Returns the pairs of pods of different nodes, or of one node each.
    fn pod_pairs(&self, across: bool) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for family in Family::ALL {
            for (node, pod) in self.pods() {
                let others = self.pods().filter(|(_, other)| other.name() != pod.name());
                pairs.extend(others.filter(|(other, _)| (other.name() != node.name()) == across).map(|(_, other)| {
                    Pair {
                        from: pod.name().to_owned(),
                        client: pod.netns(),
                        target: other.address(family),
                        sources: [pod.address(family)].into(),
                    }
                }));
            }
        }
        pairs
    }

    fn node_to_pod(&self) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for family in Family::ALL {
            for node in self.cluster.nodes() {
                pairs.extend(self.pods().map(|(_, pod)| Pair {
                    from: node.name().to_owned(),
                    client: node.netns(),
                    target: pod.address(family),
                    sources: [node.address(family), node.gateway(family)].into(),
                }));
            }
        }
        pairs
    }

    fn pod_to_node(&self) -> Vec<Pair<'_>> {
        let mut pairs = Vec::new();
        for family in Family::ALL {
            for (_, pod) in self.pods() {
                pairs.extend(self.cluster.nodes().iter().map(|node| Pair {
                    from: pod.name().to_owned(),
                    client: pod.netns(),
                    target: node.address(family),
                    sources: [pod.address(family)].into(),
                }));
            }
        }
        pairs
    }

    fn pod_to_outside(&self) -> Vec<Pair<'_>> {
        let pair = |family: Family| {
            self.pods().map(move |(node, pod)| Pair {
                from: pod.name().to_owned(),
                client: pod.netns(),
                target: self.cluster.outside_address(family),
                sources: [node.address(family)].into(),
            })
        };
        Family::ALL.into_iter().flat_map(pair).collect()
    }

    fn counters(&self) -> Vec<Counters> {
        self.cluster.nodes().iter().map(TestNode::counters).collect()
    }

    /// Checks that every packet between pods of different nodes is carried by eBPF on the nodes that have it.
    fn check_path(&self, paths: Paths) {
        let pairs = self.pod_pairs(true);
        let before = self.counters();
        check_all("pods of different nodes, counted", &pairs, QUESTIONS);
        let after = self.counters();
        for ((node, before), after) in self.cluster.nodes().iter().zip(&before).zip(&after) {
            let attached = node.status().datapath.attached;
            assert_eq!(attached, paths.is_ebpf(node), "{}", node.name());
            if !attached {
                continue;
            }
            let moved = after.since(before);
            // A question and its answer pass each of two nodes; each node has a third of all clients and servers.
            let expected = (2 * pairs.len() * QUESTIONS / 3) as u64 - NOISE;
            assert!(moved.verdict(Verdict::RedirectedToPod) >= expected, "{}: {expected}: {moved:?}", node.name());
            let direct = moved.verdict(Verdict::RedirectedToNode);
            let overlay = moved.verdict(Verdict::RedirectedToOverlay);
            assert!(direct + overlay >= expected, "{}: {expected}: {moved:?}", node.name());
            match self.mode {
                RoutingMode::Direct | RoutingMode::Router => assert_eq!(overlay, 0, "{}: {moved:?}", node.name()),
                RoutingMode::Overlay => assert_eq!(direct, 0, "{}: {moved:?}", node.name()),
                // The third node is across the router; the others share a subnet.
                RoutingMode::Auto if node.name() == "node3" => assert_eq!(direct, 0, "{moved:?}"),
                RoutingMode::Auto => assert!(direct >= expected / 2 && overlay >= expected / 2, "{moved:?}"),
            }
            let by_kernel = moved.verdict(Verdict::DeliveredByKernel) + moved.verdict(Verdict::SentByKernel);
            assert!(by_kernel <= NOISE, "{}: {moved:?}", node.name());
        }
    }

    /// Sends much at once, between one pair of pods of each two nodes.
    fn check_streams(&self) {
        let clients: Vec<_> = self.pods.iter().map(|pods| &pods[0]).collect();
        let _servers: Vec<_> = clients.iter().map(|pod| tcp::EchoServer::start(pod.netns(), PORT)).collect();
        for family in Family::ALL {
            for (position, client) in clients.iter().enumerate() {
                for server in clients.iter().skip(position + 1) {
                    tcp::exchange(client.netns(), server.socket_address(family, PORT), 2_000_000);
                    icmp::ping(server.netns(), client.address(family), 3, 4000);
                }
            }
        }
    }
}

fn full_matrix(mode: RoutingMode, paths: Paths) {
    let matrix = Matrix::new(mode, paths);
    check_all("pods of different nodes", &matrix.pod_pairs(true), 1);
    matrix.check_path(paths);
    check_all("pods of one node", &matrix.pod_pairs(false), 1);
    check_all("nodes to pods", &matrix.node_to_pod(), 1);
    check_all("pods to nodes", &matrix.pod_to_node(), 1);
    check_all("pods to the outside, masqueraded", &matrix.pod_to_outside(), 1);
    matrix.check_streams();
    for (node, counters) in matrix.cluster.nodes().iter().zip(matrix.counters()) {
        assert_eq!(counters.all_dropped(), 0, "{}: {counters:?}", node.name());
    }
    for (_, pod) in matrix.pods() {
        assert_eq!(interfaces::checksum_errors(pod.netns()), [], "{}", pod.name());
    }
}
