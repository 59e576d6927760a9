//! Pods of one node reach each other and the node, in both families, by each path.
//!
//! ```text
//!   node: v-net-0 10.244.1.1, fd00:10:244:1::1
//!     | veth            | veth
//!   a: eth0           b: eth0       addresses of 10.244.1.0/24, fd00:10:244:1::/64
//! ```

use std::collections::BTreeSet;

use harness::{
    Family, TestLab, TestPod,
    counters::Counters,
    frames::FrameSocket,
    icmp,
    interfaces::{self, Statistics},
    tcp, udp,
};
use podnet::{api::DatapathMode, lab::Families};
use podnet_common::verdict::Verdict;

/// Packets that pods send by themselves while a test runs, and that the bridge carries: router solicitations,
/// multicast listener reports.
const NOISE: u64 = 40;

/// Echo requests of a count that cannot be mistaken for noise.
const MANY: u16 = 200;

const PORT: u16 = 8080;

/// What a node counted at one moment.
struct Snapshot {
    counters: Counters,
    bridge: Statistics,
    veths: Vec<Statistics>,
}

impl Snapshot {
    fn take(lab: &TestLab, pods: &[&TestPod]) -> Self {
        let mut statistics = interfaces::statistics(lab.netns());
        let mut of = |ifname: &str| statistics.remove(ifname).unwrap_or_else(|| panic!("the node has no {ifname}"));
        Self {
            counters: lab.counters(),
            bridge: of("v-net-0"),
            veths: pods.iter().map(|pod| of(pod.host_ifname())).collect(),
        }
    }
}

/// Sends traffic of each kind from one pod to an address of another namespace, where servers are started.
fn exchange_all(from: &TestPod, to: &TestPod) {
    let _tcp = tcp::EchoServer::start(to.netns(), PORT);
    for family in Family::ALL {
        let target = to.socket_address(family, PORT);
        let _udp = udp::EchoServer::start(to.netns(), target);
        tcp::exchange(from.netns(), target, 2_000_000);
        udp::exchange(from.netns(), target, 1);
        udp::exchange(from.netns(), target, 1400);
        icmp::ping(from.netns(), target.ip(), MANY, 56);
    }
}

fn assert_clean(lab: &TestLab, before: &Counters, pods: &[&TestPod]) {
    let moved = lab.counters().since(before);
    assert_eq!(moved.all_dropped(), 0, "{moved:?}");
    for pod in pods {
        assert_eq!(interfaces::checksum_errors(pod.netns()), [], "{}", pod.name());
    }
}

#[test]
fn addresses_are_unique_and_of_the_pod_cidrs() {
    let lab = TestLab::new();
    let pods: Vec<_> = (1..=5).map(|number| lab.add_pod(&format!("pod{number}"))).collect();
    let mut seen = BTreeSet::new();
    for pod in &pods {
        assert_eq!(pod.added.addresses.len(), 2, "{pod:?}");
        for (address, cidr) in pod.added.addresses.iter().zip(&lab.node().pod_cidrs) {
            assert!(cidr.contains(address.ip()) && address.prefix() == cidr.prefix(), "{address} of {cidr}");
            assert!(address.ip() != cidr.network() && address.ip() != podnet::config::Config::gateway(*cidr));
            assert!(seen.insert(address.ip()), "{address} was given twice");
        }
    }
    let macs: BTreeSet<_> = pods.iter().map(TestPod::mac).collect();
    assert_eq!(macs.len(), pods.len(), "{macs:?}");
    assert_eq!(lab.status().pods, pods.len());
}

#[test]
fn pods_reach_each_other_by_the_ebpf_path_alone() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let before = Snapshot::take(&lab, &[&a, &b]);
    exchange_all(&a, &b);
    let after = Snapshot::take(&lab, &[&a, &b]);
    let moved = after.counters.since(&before.counters);
    // Each request and each reply, in both families, besides TCP and UDP.
    assert!(moved.verdict(Verdict::RedirectedToPod) >= 4 * u64::from(MANY), "{moved:?}");
    assert!(moved.verdict(Verdict::DeliveredByKernel) <= NOISE, "{moved:?}");
    let bridge = after.bridge - before.bridge;
    assert!(bridge.rx_packets <= NOISE && bridge.tx_packets <= NOISE, "v-net-0 carried {bridge:?}");
    for (after, before) in after.veths.iter().zip(&before.veths) {
        // redirect_peer delivers past the host-side veth, whose sending side only the kernel path uses.
        let veth = *after - *before;
        assert!(veth.tx_packets <= NOISE, "a host-side veth sent {veth:?}");
    }
    assert_clean(&lab, &before.counters, &[&a, &b]);
}

#[test]
fn pods_reach_each_other_by_the_kernel_path_alone() {
    let lab = TestLab::with_datapath(DatapathMode::Kernel);
    assert!(!lab.status().datapath.attached);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let before = Snapshot::take(&lab, &[&a, &b]);
    exchange_all(&a, &b);
    let after = Snapshot::take(&lab, &[&a, &b]);
    let bridge = after.bridge - before.bridge;
    assert!(bridge.rx_packets >= 4 * u64::from(MANY), "v-net-0 carried {bridge:?}");
    assert_clean(&lab, &before.counters, &[&a, &b]);
}

#[test]
fn node_and_pods_reach_each_other() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        let lab = TestLab::with_datapath(datapath);
        let pod = lab.add_pod("a");
        let before = lab.counters();
        let _in_pod = tcp::EchoServer::start(pod.netns(), PORT);
        let _in_node = tcp::EchoServer::start(lab.netns(), PORT);
        for family in Family::ALL {
            let gateway = std::net::SocketAddr::new(pod.gateway(family), PORT);
            let address = pod.socket_address(family, PORT);
            for (client, target) in [(lab.netns(), address), (pod.netns(), gateway)] {
                let server = if target == gateway { lab.netns() } else { pod.netns() };
                let _udp = udp::EchoServer::start(server, target);
                tcp::exchange(client, target, 1_000_000);
                udp::exchange(client, target, 1400);
                icmp::ping(client, target.ip(), 10, 56);
            }
        }
        let moved = lab.counters().since(&before);
        if datapath == DatapathMode::Ebpf {
            assert!(moved.verdict(Verdict::DeliveredByKernel) >= 40, "{moved:?}");
            assert!(moved.verdict(Verdict::PassedNotPod) >= 40, "{moved:?}");
            assert_eq!(moved.verdict(Verdict::RedirectedToPod), 0, "{moved:?}");
        }
        assert_clean(&lab, &before, &[&pod]);
    }
}

#[test]
fn gso_segments_arrive_whole() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        let lab = TestLab::with_datapath(datapath);
        let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
        let _tcp = tcp::EchoServer::start(b.netns(), PORT);
        for family in Family::ALL {
            let frames = FrameSocket::open(b.netns(), "eth0");
            tcp::exchange(a.netns(), b.socket_address(family, PORT), 20_000_000);
            let mut longest = 0;
            frames.drain(|frame| {
                if frame.starts_with(&b.mac().0) {
                    longest = longest.max(frame.len());
                }
            });
            assert!(longest > 20_000, "{datapath}, {family:?}: the longest frame had {longest} bytes: no GSO");
        }
    }
}

#[test]
fn fragments_arrive() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        let lab = TestLab::with_datapath(datapath);
        let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
        interfaces::wait_for_carriers(lab.netns());
        for family in Family::ALL {
            let target = b.socket_address(family, PORT);
            let _udp = udp::EchoServer::start(b.netns(), target);
            for length in [1600, 8000, 60_000] {
                udp::exchange(a.netns(), target, length);
            }
            icmp::ping(a.netns(), target.ip(), 5, 5000);
        }
    }
}

#[test]
fn the_mtu_is_kept() {
    for (mtu, fits, too_long) in [(1500, 1400, 1600), (9000, 8900, 9100)] {
        let lab = TestLab::with(|options| options.mtu = Some(mtu));
        let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
        let links = interfaces::links(a.netns());
        assert_eq!(links.iter().find(|link| link.ifname == "eth0").unwrap().mtu, mtu);
        for family in Family::ALL {
            let target = b.socket_address(family, PORT);
            let _udp = udp::EchoServer::start(b.netns(), target);
            let socket = udp::connect(a.netns(), target);
            udp::set_dont_fragment(&socket);
            udp::exchange_on(&socket, fits);
            let error = socket.send(&vec![0; too_long]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "MTU {mtu}, {family:?}: {error}");
        }
    }
}

#[test]
fn a_node_without_ipv6_gives_pods_ipv4_alone() {
    let lab = TestLab::with(|options| options.families = Families::V4);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    assert_eq!(a.added.addresses.len(), 1);
    let _tcp = tcp::EchoServer::start(b.netns(), PORT);
    tcp::exchange(a.netns(), b.socket_address(Family::V4, PORT), 1_000_000);
    assert!(interfaces::routes(a.netns(), Family::V6).iter().all(|route| route["dst"] != "default"));
}

#[test]
fn a_pod_is_not_led_off_the_routed_path() {
    // On the kernel path a packet leaves the node by the interface it came from. A router may answer that with a
    // redirect (RFC 792; RFC 4861, section 8); a pod that obeyed would look for its neighbour on the link, where its
    // neighbour's answers do not find back.
    let lab = TestLab::with_datapath(DatapathMode::Kernel);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    interfaces::wait_for_carriers(lab.netns());
    for family in Family::ALL {
        // From the very first packet on: no address may still be tentative.
        icmp::ping(a.netns(), b.address(family), MANY, 56);
        let route = interfaces::route_to(a.netns(), b.address(family));
        assert_eq!(route["gateway"], a.gateway(family).to_string(), "{route}");
    }
    let known: Vec<_> = interfaces::neighbors(a.netns()).into_iter().map(|(address, _)| address).collect();
    assert!(Family::ALL.iter().all(|family| !known.contains(&b.address(*family))), "{known:?}");
}
