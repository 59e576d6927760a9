//! The MTU follows the uplinks while connections run: pods, host-side veths, bridge, routes, overlay device and maps.

use std::time::{Duration, Instant};

use harness::{
    Family, TestCluster, TestNode, TestPod, command::run, icmp, interfaces, maps, pod::Unattached, tcp,
    traffic::Steady, wait_for,
};
use ipnetwork::IpNetwork;
use podnet::{api::DatapathMode, config::RoutingMode, netns::Netns};
use podnet_common::address::Address;

const PORT: u16 = 8080;

/// How soon everything follows: a second, and some for the questions of the test.
const FOLLOWED: Duration = Duration::from_secs(2);

/// Bytes that VXLAN over IPv4 adds.
const OVERHEAD: u32 = 50;

fn ip(netns: &Netns, arguments: &str) {
    run(netns, "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
}

/// Gives every link between the nodes another MTU; nothing on the way ever carries less than the nodes send.
fn set_mtu(cluster: &TestCluster, from: u32, to: u32) {
    let nodes = || cluster.nodes().iter().for_each(|node| ip(node.netns(), &format!("link set eth0 mtu {to}")));
    if to < from {
        nodes();
    }
    for netns in [cluster.switch(), cluster.router(), cluster.outside()] {
        // Ports before their bridges, which take the MTU of the smallest.
        for link in interfaces::links(netns).into_iter().rev().filter(|link| link.ifname != "lo") {
            ip(netns, &format!("link set {} mtu {to}", link.ifname));
        }
    }
    if to > from {
        nodes();
    }
}

fn mtu_of(netns: &Netns, name: &str) -> Option<u32> {
    interfaces::links(netns).into_iter().find(|link| link.ifname == name).map(|link| link.mtu)
}

fn route_mtu(netns: &Netns, family: Family, destination: &str) -> Option<u32> {
    let route = interfaces::route_of(netns, family, destination)?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().unwrap())
}

/// What a node and its pods should have.
#[derive(Clone, Copy, Debug)]
struct Expected {
    pod: u32,
    /// MTU of what goes to other nodes.
    way: u32,
    overlay: bool,
}

/// Lists what differs from what should be.
fn differences(node: &TestNode, pods: &[&TestPod], others: &[IpNetwork], expected: Expected) -> Vec<String> {
    let mut differences = Vec::new();
    let mut check = |what: String, is: Option<u32>, should: u32| {
        if is != Some(should) {
            differences.push(format!("{what} is {is:?}, not {should}"));
        }
    };
    let ebpf = node.status().datapath.attached;
    check("bridge".into(), mtu_of(node.netns(), "v-net-0"), expected.pod);
    for pod in pods {
        check(format!("eth0 of {}", pod.name()), mtu_of(pod.netns(), "eth0"), expected.pod);
        check(format!("veth of {}", pod.name()), mtu_of(node.netns(), pod.host_ifname()), expected.pod);
        for family in Family::ALL {
            if ebpf {
                let entry = maps::endpoints(node.node()).get(&Address::from(pod.address(family)), 0).unwrap();
                check(format!("ENDPOINTS of {}", pod.name()), Some(entry.mtu), expected.pod);
            }
            if expected.overlay {
                let default = route_mtu(pod.netns(), family, "default");
                check(format!("{family:?} default route of {}", pod.name()), default, expected.way);
                let cidrs = node.node().pod_cidrs.iter();
                let own = cidrs.copied().find(|cidr| Family::of(cidr.ip()) == family).unwrap();
                let own = route_mtu(pod.netns(), family, &own.to_string());
                check(format!("own route of {}", pod.name()), own.or(Some(expected.pod)), expected.pod);
            }
        }
    }
    for cidr in others {
        if ebpf {
            check(format!("NODES of {cidr}"), maps::node_of(node.node(), *cidr).map(|entry| entry.mtu), expected.way);
        }
        if expected.overlay {
            let mtu = route_mtu(node.netns(), Family::of(cidr.ip()), &cidr.to_string());
            check(format!("route to {cidr}"), mtu, expected.way);
        }
    }
    if expected.overlay {
        check("overlay device".into(), mtu_of(node.netns(), "podnet-vxlan"), expected.way);
    }
    check("MTU in the status".into(), Some(node.status().mtu), expected.pod);
    check("route MTU in the status".into(), Some(node.status().cluster.pod_route_mtu), expected.way);
    differences
}

fn check_all(cluster: &TestCluster, pods: &[Vec<TestPod>], expected: Expected) {
    for (node, own) in cluster.nodes().iter().zip(pods) {
        let others: Vec<_> = cluster
            .nodes()
            .iter()
            .filter(|other| other.name() != node.name())
            .flat_map(|other| other.node().pod_cidrs.clone())
            .collect();
        let own: Vec<_> = own.iter().collect();
        let mut last = Vec::new();
        let all = podnet::lab::poll::until(harness::DEADLINE / 4, || {
            last = differences(node, &own, &others, expected);
            Ok(last.is_empty().then_some(()))
        });
        assert!(all.unwrap().is_some(), "{}, {expected:?}: {last:#?}", node.name());
    }
}

/// Sends packets of full size between pods of different nodes and of one node, from the last pod of each: one that sent
/// while only one of two nodes had its new MTU keeps what it was told of the way for ten minutes (RFC 8201).
fn check_packets(pods: &[Vec<TestPod>], expected: Expected) {
    for family in Family::ALL {
        let headers = if family == Family::V4 { 28 } else { 48 };
        let last = pods[0].len() - 1;
        let across = (&pods[0][last], &pods[1][last], expected.way);
        let within = (&pods[0][last], &pods[0][0], expected.pod);
        for (client, server, mtu) in [across, within] {
            let socket = harness::udp::connect(client.netns(), server.socket_address(family, 9));
            harness::udp::set_dont_fragment(&socket);
            socket.send(&vec![0; (mtu - headers) as usize]).unwrap_or_else(|error| panic!("{mtu} bytes: {error}"));
            let too_long = harness::udp::connect(client.netns(), server.socket_address(family, 9));
            harness::udp::set_dont_fragment(&too_long);
            let error = too_long.send(&vec![0; (mtu + 1 - headers) as usize]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{family:?}, {mtu}: {error}");
            // Echoes of full size, not fragmented.
            icmp::ping(client.netns(), server.address(family), 2, (mtu - headers) as usize);
        }
    }
}

fn follow(mode: RoutingMode, datapath: DatapathMode) {
    let overlay = mode == RoutingMode::Overlay;
    let cluster = TestCluster::with(|options| {
        options.mode = mode;
        options.datapath = datapath;
        options.nodes = 2;
    });
    cluster.wait_for_routes();
    let pods = cluster.add_pods(3);
    let expected = |mtu| Expected { pod: mtu, way: if overlay { mtu - OVERHEAD } else { mtu }, overlay };
    check_all(&cluster, &pods, expected(1500));
    check_packets(&pods, expected(1500));
    let traffic = Steady::start(&[(&pods[0][0], &pods[1][0]), (&pods[1][1], &pods[0][1]), (&pods[0][0], &pods[0][1])]);
    let mut mtu = 1500;
    for next in [1400, 9000, 1500] {
        set_mtu(&cluster, mtu, next);
        let start = Instant::now();
        check_all(&cluster, &pods, expected(next));
        let elapsed = start.elapsed();
        println!("{mode}, {datapath}: MTU {mtu} -> {next}: everything follows within {elapsed:.0?}");
        assert!(elapsed < FOLLOWED, "{elapsed:?}");
        mtu = next;
        traffic.wait_for_progress();
        check_packets(&pods, expected(mtu));
    }
    traffic.finish_without_loss();
    // A restart changes nothing.
    for node in cluster.nodes() {
        node.stop_daemon();
        node.start_daemon();
        assert_eq!(node.status().repairs, 0, "{}", node.name());
    }
    check_all(&cluster, &pods, expected(1500));
    assert!(cluster.nodes().iter().all(|node| node.status().repairs == 0), "a change of the MTU is no repair");
}

#[test]
fn direct_by_ebpf_follows_the_uplinks() {
    follow(RoutingMode::Direct, DatapathMode::Ebpf);
}

#[test]
fn direct_by_the_kernel_follows_the_uplinks() {
    follow(RoutingMode::Direct, DatapathMode::Kernel);
}

#[test]
fn overlay_by_ebpf_follows_the_uplinks() {
    follow(RoutingMode::Overlay, DatapathMode::Ebpf);
}

#[test]
fn overlay_by_the_kernel_follows_the_uplinks() {
    follow(RoutingMode::Overlay, DatapathMode::Kernel);
}

#[test]
fn a_pod_that_asked_for_less_keeps_it() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let cluster = TestCluster::with(|options| {
            options.mode = mode;
            options.nodes = 2;
        });
        cluster.wait_for_routes();
        let (node, other) = (&cluster.nodes()[0], &cluster.nodes()[1]);
        let mut small = Unattached::new(node, "small");
        small.request.netconf.insert("mtu".into(), 1400.into());
        let small = small.add().unwrap();
        let usual = node.add_pod("usual");
        let far = other.add_pod("far");
        let _server = tcp::EchoServer::start(far.netns(), PORT);
        let is = |pod: &TestPod, mtu: u32| {
            let veth = mtu_of(node.netns(), pod.host_ifname());
            let entry = maps::endpoints(node.node()).get(&Address::from(pod.address(Family::V4)), 0).unwrap();
            mtu_of(pod.netns(), "eth0") == Some(mtu) && veth == Some(mtu) && entry.mtu == mtu
        };
        let mut from = 1500;
        for (to, smalls) in [(1500, 1400), (9000, 1400), (1350, 1350), (1500, 1400)] {
            set_mtu(&cluster, from, to);
            from = to;
            wait_for(&format!("{mode}: MTU {to}"), || (is(&small, smalls) && is(&usual, to)).then_some(()));
            if mode == RoutingMode::Overlay {
                let way = (to - OVERHEAD).min(smalls);
                let default = route_mtu(small.netns(), Family::V6, "default").unwrap_or(smalls);
                assert_eq!(default, way, "default route of the small pod at {to}");
            }
            for (pod, family) in [(&small, Family::V4), (&small, Family::V6), (&usual, Family::V4)] {
                tcp::exchange(pod.netns(), far.socket_address(family, PORT), 300_000);
            }
            small.check().unwrap();
        }
        node.stop_daemon();
        node.start_daemon();
        assert!(is(&small, 1400) && is(&usual, 1500));
        assert_eq!(node.status().repairs, 0);
    }
}

#[test]
fn the_configuration_overrides_the_uplinks() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let overlay = mode == RoutingMode::Overlay;
        let cluster = TestCluster::with(|options| {
            options.mode = mode;
            options.nodes = 2;
            options.mtu = Some(1360);
        });
        cluster.wait_for_routes();
        let pods = cluster.add_pods(2);
        let way = |uplink: u32| if overlay { (uplink - OVERHEAD).min(1360) } else { 1360 };
        let is = |mtu: u32, way: u32| {
            cluster.nodes().iter().zip(&pods).all(|(node, pods)| {
                let status = node.status();
                status.mtu == mtu
                    && status.cluster.pod_route_mtu == way
                    && pods.iter().all(|pod| mtu_of(pod.netns(), "eth0") == Some(mtu))
            })
        };
        assert!(is(1360, way(1500)));
        set_mtu(&cluster, 1500, 1400);
        wait_for("the way", || is(1360, way(1400)).then_some(()));
        // Another configuration, after a restart; the pods that are there follow it.
        for node in cluster.nodes() {
            node.restart_with(|config| config.mtu = None);
        }
        wait_for("the uplinks' MTU", || is(1400, if overlay { 1400 - OVERHEAD } else { 1400 }).then_some(()));
        check_packets(&pods, Expected { pod: 1400, way: if overlay { 1350 } else { 1400 }, overlay });
    }
}
