//! The traffic that an upgrade must not disturb.
//!
//! ```text
//!   node1: a --(iperf3, UDP, 500 connections)--> b of node1
//!          a --(iperf3, UDP, 500 connections)--> c of node2
//! ```
//!
//! Half of the connections go to service addresses that iptables translates on node1: they are the kernel's.

use std::net::{SocketAddr, TcpListener};

use harness::{Family, TestCluster, TestNode, TestPod, command, counters::Counters, herd::Herd, iperf, tcp, udp};
use podnet::config::{RoutingMode, UplinkAttach};
use podnet_common::verdict::Verdict;

const PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;
const SERVICE_PORT: u16 = 80;
/// Where services lead: another port than [`PORT`], since a client may use one of its own ports for both at a time, and the
/// node's conntrack, which would tell them apart, does not know what goes by eBPF.
const BACKEND_PORT: u16 = 8081;

/// Connections to each target: two pods, straight and by service addresses.
const CONNECTIONS: usize = 250;

/// Seconds that iperf3 sends for: the time of an upgrade of two nodes, with room.
const SECONDS: u64 = 10;

/// Two nodes, with pods a and b on the first, and c on the second.
pub(crate) struct Site {
    pub(crate) cluster: TestCluster,
    pub(crate) pods: Vec<TestPod>,
    listeners: Vec<TcpListener>,
    _echo: Vec<udp::EchoServer>,
}

impl Site {
    pub(crate) fn new(mode: RoutingMode, attach: UplinkAttach) -> Self {
        let cluster = TestCluster::with(|options| {
            options.mode = mode;
            options.nodes = 2;
        });
        cluster.wait_for_routes();
        let [first, second] = cluster.nodes() else { panic!("two nodes") };
        if attach != UplinkAttach::Auto {
            for node in cluster.nodes() {
                node.restart_with(|config| config.uplink_attach = attach);
            }
        }
        let pods = vec![first.add_pod("a"), first.add_pod("b"), second.add_pod("c")];
        let servers = &pods[1..];
        for (number, server) in servers.iter().enumerate() {
            let rule = format!(
                "-t nat -A PREROUTING -d {} -p tcp --dport {SERVICE_PORT} -j DNAT --to-destination {}",
                service(number).ip(),
                server.socket_address(Family::V4, BACKEND_PORT)
            );
            command::iptables(first.netns(), Family::V4, &rule);
        }
        let ports = [PORT, BACKEND_PORT];
        let listeners =
            ports.iter().flat_map(|port| servers.iter().map(|server| tcp::listen(server.netns(), *port))).collect();
        let echo = servers
            .iter()
            .flat_map(|pod| {
                Family::ALL.map(|family| udp::EchoServer::start(pod.netns(), pod.socket_address(family, PORT)))
            })
            .collect();
        Self { cluster, pods, listeners, _echo: echo }
    }

    pub(crate) fn nodes(&self) -> &[TestNode] {
        self.cluster.nodes()
    }

    fn servers(&self) -> &[TestPod] {
        &self.pods[1..]
    }

    /// Runs all the traffic while something happens, and checks that nothing of it suffered.
    pub(crate) fn under_traffic(&self, what: &str, happens: impl FnOnce()) {
        let client = self.pods[0].netns();
        let straight = self.servers().iter().map(|pod| pod.socket_address(Family::V4, PORT));
        let targets: Vec<_> = straight.chain([service(0), service(1)]).zip(&self.listeners).collect();
        let herd = Herd::start(client, &targets, CONNECTIONS);
        assert_eq!(herd.len(), 1000);
        let _servers: Vec<_> = self.servers().iter().map(|pod| iperf::Server::start(pod.netns(), IPERF_PORT)).collect();
        let streams: Vec<_> = self
            .servers()
            .iter()
            // Two cores carry all of it, and no socket's buffer overflows.
            .map(|pod| {
                let target = pod.socket_address(Family::V4, IPERF_PORT);
                iperf::Client::start(client, target, SECONDS, &["-b", "300M"])
            })
            .collect();
        let floods: Vec<_> = self
            .servers()
            .iter()
            .flat_map(|pod| Family::ALL.map(|family| pod.socket_address(family, PORT)))
            .map(|target| udp::Flood::start_paced(client, target, std::time::Duration::from_micros(200)))
            .collect();
        herd.wait_for_rounds(2);
        let start = std::time::Instant::now();
        happens();
        let elapsed = start.elapsed();
        herd.wait_for_rounds(3);
        let reports: Vec<_> = streams.into_iter().map(iperf::Client::finish).collect();
        let tallies: Vec<_> = floods.into_iter().map(udp::Flood::finish).collect();
        let rounds = herd.finish();
        for tally in &tallies {
            assert_eq!(tally.lost(), 0, "{what}: {tallies:?}");
        }
        let (sent, retransmits): (u64, Vec<u64>) =
            (tallies.iter().map(|tally| tally.sent).sum(), reports.iter().map(|report| report.retransmits).collect());
        println!(
            "{what}: took {elapsed:.1?}; 1000 connections kept, asked {rounds} times each; {sent} UDP requests, none lost; \
             iperf3 retransmits {retransmits:?}, Gbit/s {:?}",
            reports.iter().map(iperf::Report::gigabits).collect::<Vec<_>>()
        );
        for node in self.nodes() {
            assert_eq!(node.counters().all_dropped(), 0, "{what}: {}: {:?}", node.name(), node.counters());
        }
    }

    /// Checks that straight packets go by eBPF again.
    pub(crate) fn check_ebpf_path(&self) {
        let client = self.pods[0].netns();
        for pod in self.servers() {
            for family in Family::ALL {
                let socket = udp::connect(client, pod.socket_address(family, PORT));
                let before = self.counters();
                (0..200).for_each(|_| udp::exchange_on(&socket, 1000));
                let redirected: u64 = self
                    .counters()
                    .iter()
                    .zip(&before)
                    .map(|(now, before)| now.since(before).verdict(Verdict::RedirectedToPod))
                    .sum();
                assert!(redirected >= 390, "{}, {family:?}: {redirected} of 400 packets by eBPF", pod.name());
            }
        }
    }

    fn counters(&self) -> Vec<Counters> {
        self.nodes().iter().map(TestNode::counters).collect()
    }
}

/// The service address of b or c.
fn service(number: usize) -> SocketAddr {
    SocketAddr::new(format!("10.96.0.{}", number + 1).parse().unwrap(), SERVICE_PORT)
}
