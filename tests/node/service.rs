//! Service addresses, translated by iptables in the node as kube-proxy does it, while the eBPF path is active.
//!
//! ```text
//!   client --> 10.96.0.10, fd00:10:96::10 --(node: DNAT)--> backend
//!   client <--(node: translated back)---------------------- backend
//!   client <--(eBPF)--------------------------------------> backend, at its own address
//! ```

use std::net::SocketAddr;

use harness::{Family, TestLab, TestPod, command, maps, tcp, udp};
use podnet::api::DatapathMode;
use podnet_common::verdict::Verdict;

const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// Whether the bridge hands bridged packets to iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BridgeNetfilter {
    On,
    Off,
}

struct Service {
    lab: TestLab,
    client: TestPod,
    backend: TestPod,
    tcp: tcp::EchoServer,
    _udp: [udp::EchoServer; 2],
}

impl Service {
    fn new(datapath: DatapathMode, bridge_netfilter: BridgeNetfilter) -> Self {
        let lab = TestLab::with_datapath(datapath);
        let (client, backend) = (lab.add_pod("client"), lab.add_pod("backend"));
        let value = if bridge_netfilter == BridgeNetfilter::On { "1" } else { "0" };
        for table in ["iptables", "ip6tables"] {
            command::set_sysctl(lab.netns(), &format!("net.bridge.bridge-nf-call-{table}"), value);
        }
        for family in Family::ALL {
            add_rules(&lab, family, &backend);
        }
        let servers = Family::ALL
            .map(|family| udp::EchoServer::start(backend.netns(), backend.socket_address(family, BACKEND_PORT)));
        let tcp = tcp::EchoServer::start(backend.netns(), BACKEND_PORT);
        Self { lab, client, backend, tcp, _udp: servers }
    }

    fn address(family: Family) -> SocketAddr {
        let address = if family == Family::V4 { "10.96.0.10" } else { "fd00:10:96::10" };
        SocketAddr::new(address.parse().unwrap(), SERVICE_PORT)
    }

    fn direct(&self, family: Family) -> SocketAddr {
        self.backend.socket_address(family, BACKEND_PORT)
    }

    /// Returns by how much two verdicts move: redirected into a pod, delivered by the kernel.
    fn paths(&self, traffic: impl FnOnce()) -> (u64, u64) {
        let before = self.lab.counters();
        traffic();
        let moved = self.lab.counters().since(&before);
        (moved.verdict(Verdict::RedirectedToPod), moved.verdict(Verdict::DeliveredByKernel))
    }
}

/// Adds the rules that kube-proxy has for a service with one endpoint.
fn add_rules(lab: &TestLab, family: Family, backend: &TestPod) {
    let service = Service::address(family).ip();
    let target = backend.socket_address(family, BACKEND_PORT);
    let endpoint = target.ip();
    for protocol in ["tcp", "udp"] {
        command::iptables(
            lab.netns(),
            family,
            &format!(
                "-t nat -A PREROUTING -d {service} -p {protocol} --dport {SERVICE_PORT} -j DNAT --to-destination {target}"
            ),
        );
    }
    // A pod that reaches itself through the service must see another source than itself.
    command::iptables(lab.netns(), family, &format!("-t nat -A POSTROUTING -s {endpoint} -d {endpoint} -j MASQUERADE"));
}

fn reach_the_service(datapath: DatapathMode, bridge_netfilter: BridgeNetfilter) {
    let service = Service::new(datapath, bridge_netfilter);
    for family in Family::ALL {
        let target = Service::address(family);
        // The second round meets the flags and flows that the first one left.
        for _ in 0..2 {
            tcp::exchange(service.client.netns(), target, 500_000);
            assert_eq!(service.tcp.last_peer().unwrap().ip(), service.client.address(family), "source is kept");
            udp::exchange(service.client.netns(), target, 1000);
            tcp::exchange(service.client.netns(), service.direct(family), 500_000);
            udp::exchange(service.client.netns(), service.direct(family), 1000);
            // Hairpin: the backend is its own client.
            tcp::exchange(service.backend.netns(), target, 500_000);
            udp::exchange(service.backend.netns(), target, 1000);
        }
        udp::exchange(service.client.netns(), target, 8000);
    }
}

#[test]
fn a_service_is_reached_with_ebpf_and_bridge_netfilter() {
    reach_the_service(DatapathMode::Ebpf, BridgeNetfilter::On);
}

#[test]
fn a_service_is_reached_with_ebpf_without_bridge_netfilter() {
    reach_the_service(DatapathMode::Ebpf, BridgeNetfilter::Off);
}

#[test]
fn a_service_is_reached_without_ebpf_with_bridge_netfilter() {
    reach_the_service(DatapathMode::Kernel, BridgeNetfilter::On);
}

#[test]
fn a_service_is_reached_without_ebpf_and_bridge_netfilter() {
    reach_the_service(DatapathMode::Kernel, BridgeNetfilter::Off);
}

#[test]
fn direct_flows_to_a_backend_are_claimed_for_the_ebpf_path() {
    let service = Service::new(DatapathMode::Ebpf, BridgeNetfilter::On);
    let client = service.client.netns();
    for family in Family::ALL {
        // From here on, the programs look up the flows of both pods.
        let (_, kernel) = service.paths(|| {
            tcp::exchange(client, Service::address(family), 500_000);
            udp::exchange(client, Service::address(family), 1000);
        });
        assert!(kernel > 10, "{family:?}: the service is not on the kernel path");

        let (ebpf, kernel) = service.paths(|| tcp::exchange(client, service.direct(family), 5_000_000));
        assert!(ebpf > 100 && kernel < ebpf / 10, "{family:?}, TCP: eBPF {ebpf}, kernel {kernel}");

        let socket = udp::connect(client, service.direct(family));
        let (ebpf, kernel) = service.paths(|| (0..500).for_each(|_| udp::exchange_on(&socket, 1000)));
        assert!(ebpf >= 900 && kernel < 100, "{family:?}, UDP: eBPF {ebpf}, kernel {kernel}");
    }
}

#[test]
fn eviction_of_flows_breaks_nothing() {
    let service = Service::new(DatapathMode::Ebpf, BridgeNetfilter::On);
    let client = service.client.netns();
    for family in Family::ALL {
        let connections =
            [Service::address(family), service.direct(family)].map(|target| tcp::LiveConnection::start(client, target));
        let floods = [Service::address(family), service.direct(family)].map(|target| udp::Flood::start(client, target));
        for _ in 0..10 {
            maps::evict_kernel_flows(service.lab.node());
            for (connection, flood) in connections.iter().zip(&floods) {
                connection.wait_for_rounds(20);
                flood.wait_for_answers(100);
            }
        }
        for (connection, flood) in connections.into_iter().zip(floods) {
            connection.finish();
            let tally = flood.finish();
            assert_eq!(tally.lost(), 0, "{family:?}: {tally:?}");
        }
    }
}
