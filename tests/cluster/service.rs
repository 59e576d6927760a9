//! Service addresses and ports of nodes, translated by iptables in the nodes as kube-proxy does it, whose pods are on other
//! nodes; while the same clients talk to the same pods straight.
//!
//! ```text
//!   client --> 10.96.0.2:80 --(its node: DNAT)--------------------------> backend of node2
//!   client --> node2:30002 --(node2: DNAT)------------------------------> backend of node2
//!   client --> node2:30003 --(node2: DNAT, masquerade)------------------> backend of node3
//!   client <--(eBPF)----------------------------------------------------> backend, at its own address
//! ```

use std::net::SocketAddr;

use harness::{Family, TestCluster, TestNode, TestPod, command, counters::Counters, crowd, maps, tcp, udp};
use podnet::config::RoutingMode;
use podnet_common::verdict::Verdict;

use crate::paths::Paths;

const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// Connections that each client opens to each service.
const CONNECTIONS: usize = 40;

/// How many clients connect at a time.
const WIDTH: usize = 8;

/// Packets of a node that are not of the traffic: what pods send by themselves while a test runs.
const NOISE: u64 = 40;

macro_rules! services {
    ($($name:ident: $mode:ident, $paths:ident;)*) => {
        $(#[test] fn $name() { reach_services(RoutingMode::$mode, Paths::$paths); })*
    };
}

services! {
    services_direct_by_ebpf: Direct, Ebpf;
    services_direct_by_the_kernel: Direct, Kernel;
    services_direct_mixed: Direct, Mixed;
    services_overlay_by_ebpf: Overlay, Ebpf;
    services_overlay_mixed: Overlay, Mixed;
}

struct Services {
    cluster: TestCluster,
    mode: RoutingMode,
    /// One of each node.
    clients: Vec<TestPod>,
    /// Likewise; each is the only one of its service.
    backends: Vec<TestPod>,
    tcp: Vec<tcp::EchoServer>,
    _udp: Vec<udp::EchoServer>,
}

impl Services {
    fn new(mode: RoutingMode, paths: Paths) -> Self {
        let cluster = paths.cluster(mode);
        let (clients, backends): (Vec<_>, Vec<_>) = cluster
            .add_pods(2)
            .into_iter()
            .map(|pods| {
                let [client, backend] = <[TestPod; 2]>::try_from(pods).unwrap();
                (client, backend)
            })
            .unzip();
        let tcp = backends.iter().map(|backend| tcp::EchoServer::start(backend.netns(), BACKEND_PORT)).collect();
        let udp = backends.iter().flat_map(|backend| {
            Family::ALL.map(|family| udp::EchoServer::start(backend.netns(), direct(backend, family)))
        });
        let services = Self { _udp: udp.collect(), tcp, mode, clients, backends, cluster };
        for node in services.cluster.nodes() {
            for family in Family::ALL {
                services.add_rules(node, family);
            }
        }
        services
    }

    /// Adds the rules that kube-proxy has on each node for services with one endpoint and a port of the nodes.
    fn add_rules(&self, node: &TestNode, family: Family) {
        let rule = |rule: &str| command::iptables(node.netns(), family, rule);
        for (number, backend) in self.backends.iter().enumerate() {
            let (address, endpoint) = (service(number, family), direct(backend, family));
            let (node_address, node_port) = (node.address(family), node_port(number));
            for protocol in ["tcp", "udp"] {
                let to = format!("-j DNAT --to-destination {endpoint}");
                rule(&format!("-t nat -A PREROUTING -d {} -p {protocol} --dport {SERVICE_PORT} {to}", address.ip()));
                // What enters the cluster by a node shall leave it there, too.
                let at_node = format!("-t nat -A PREROUTING -d {node_address} -p {protocol} --dport {node_port}");
                rule(&format!("{at_node} -j MARK --set-mark 0x4000"));
                rule(&format!("{at_node} {to}"));
            }
        }
        rule("-t nat -A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE --random-fully");
        // What has no connection might be the untranslated half of one.
        rule("-A FORWARD -m conntrack --ctstate INVALID -j DROP");
    }

    /// Returns the pairs of a client and a service whose backend is on another node.
    fn remote(&self) -> Vec<(usize, usize)> {
        let all = 0..self.clients.len();
        all.clone()
            .flat_map(|client| all.clone().map(move |backend| (client, backend)))
            .filter(|(a, b)| a != b)
            .collect()
    }

    fn counters(&self) -> Vec<Counters> {
        self.cluster.nodes().iter().map(TestNode::counters).collect()
    }

    /// Checks that the packets between a client and a backend take the eBPF path on a node.
    fn check_path(&self, node: usize, before: &Counters, packets: u64) {
        let moved = self.cluster.nodes()[node].counters().since(before);
        let sent = match self.mode {
            RoutingMode::Overlay => moved.verdict(Verdict::RedirectedToOverlay),
            _ => moved.verdict(Verdict::RedirectedToNode),
        };
        let received = moved.verdict(Verdict::RedirectedToPod);
        let by_kernel = moved.verdict(Verdict::DeliveredByKernel) + moved.verdict(Verdict::SentByKernel);
        assert!(sent >= packets && received >= packets && by_kernel <= NOISE, "node {node}: {packets}: {moved:?}");
    }
}

fn service(number: usize, family: Family) -> SocketAddr {
    let prefix = if family == Family::V4 { "10.96.0." } else { "fd00:10:96::" };
    SocketAddr::new(format!("{prefix}{}", number + 1).parse().unwrap(), SERVICE_PORT)
}

fn node_port(number: usize) -> u16 {
    30_001 + number as u16
}

fn direct(backend: &TestPod, family: Family) -> SocketAddr {
    backend.socket_address(family, BACKEND_PORT)
}

fn reach_services(mode: RoutingMode, paths: Paths) {
    let services = Services::new(mode, paths);
    for family in Family::ALL {
        reach(&services, family);
        go_on_beside_untouched_flows(&services, family);
        stay_on_the_ebpf_path(&services, family, paths);
        reach_ports_of_nodes(&services, family);
    }
    for (node, counters) in services.cluster.nodes().iter().zip(services.counters()) {
        assert_eq!(counters.all_dropped(), 0, "{}: {counters:?}", node.name());
    }
}

/// Every client reaches the services of all other nodes, many times at once, and is seen as itself.
fn reach(services: &Services, family: Family) {
    for (client, backend) in services.remote() {
        let (pod, target) = (&services.clients[client], service(backend, family));
        // What answers by another address than it was asked at is not read by a connected socket.
        tcp::exchange(pod.netns(), target, 200_000);
        assert_eq!(services.tcp[backend].last_peer().unwrap().ip(), pod.address(family), "{target}: source is kept");
        udp::exchange(pod.netns(), target, 1000);
        udp::exchange(pod.netns(), target, 8000);
    }
    let jobs = services.remote().into_iter().flat_map(|pair| vec![pair; CONNECTIONS]).collect();
    crowd::run(WIDTH, jobs, |(client, backend): (usize, usize)| {
        let client = services.clients[client].netns();
        tcp::exchange(client, service(backend, family), 3000);
        udp::exchange(client, service(backend, family), 500);
    });
}

/// Flows to a service and straight ones of the same two pods do not disturb one another, whatever is forgotten of them.
fn go_on_beside_untouched_flows(services: &Services, family: Family) {
    let traffic: Vec<_> = services
        .remote()
        .into_iter()
        .map(|(client, backend)| {
            let client = services.clients[client].netns();
            let targets = [service(backend, family), direct(&services.backends[backend], family)];
            (
                targets.map(|target| tcp::LiveConnection::start(client, target)),
                targets.map(|target| udp::Flood::start(client, target)),
            )
        })
        .collect();
    for _ in 0..3 {
        for node in services.cluster.nodes().iter().filter(|node| node.status().datapath.attached) {
            maps::evict_kernel_flows(node.node());
        }
        for (connections, floods) in &traffic {
            for (connection, flood) in connections.iter().zip(floods) {
                connection.wait_for_rounds(2);
                flood.wait_for_answers(20);
            }
        }
    }
    for (connections, floods) in traffic {
        for connection in connections {
            connection.finish();
        }
        for tally in floods.map(udp::Flood::finish) {
            assert_eq!(tally.lost(), 0, "{family:?}: {tally:?}");
        }
    }
}

/// Straight flows are redirected, although their ends have services on the kernel path; flows to services are not.
fn stay_on_the_ebpf_path(services: &Services, family: Family, paths: Paths) {
    for (client, backend) in services.remote() {
        let netns = services.clients[client].netns();
        let straight = direct(&services.backends[backend], family);
        let on_ebpf: Vec<usize> =
            [client, backend].into_iter().filter(|node| paths.is_ebpf(&services.cluster.nodes()[*node])).collect();
        let before = services.counters();
        for _ in 0..10 {
            tcp::exchange(netns, straight, 3000);
        }
        let socket = udp::connect(netns, straight);
        (0..100).for_each(|_| udp::exchange_on(&socket, 1000));
        // A connection takes three packets of each end, or more.
        for node in &on_ebpf {
            services.check_path(*node, &before[*node], 10 * 3 + 100 - 10);
        }

        let before = services.counters();
        let socket = udp::connect(netns, service(backend, family));
        (0..100).for_each(|_| udp::exchange_on(&socket, 1000));
        if on_ebpf.contains(&client) {
            let moved = services.cluster.nodes()[client].counters().since(&before[client]);
            assert!(moved.verdict(Verdict::SentByKernel) >= 100, "{moved:?}");
            assert!(moved.verdict(Verdict::DeliveredByKernel) >= 100, "{moved:?}");
        }
    }
}

/// A port of a node leads to a pod of that node, or of another one, or back to the client's node.
fn reach_ports_of_nodes(services: &Services, family: Family) {
    for (position, client) in services.clients.iter().enumerate() {
        for entry in services.cluster.nodes() {
            for backend in 0..services.backends.len() {
                let target = SocketAddr::new(entry.address(family), node_port(backend));
                tcp::exchange(client.netns(), target, 50_000);
                udp::exchange(client.netns(), target, 1000);
                udp::exchange(client.netns(), target, 8000);
                let seen = services.tcp[backend].last_peer().unwrap().ip();
                assert_ne!(seen, client.address(family), "node{} by {target}: not masqueraded", position + 1);
            }
        }
    }
}
