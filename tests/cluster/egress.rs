//! Ways out of a node: ports of the node that lead to a pod, by the reference plugin `portmap` behind podnet's; addresses
//! outside of the cluster; and a second uplink.
//!
//! ```text
//!   outside, pods, nodes --> node1:30080 --(portmap: DNAT)--> pod of node1
//!
//!   node1 ------ eth0 ------- node3
//!     \ eth1                  / eth0
//!      `----- node2 ---------'
//! ```

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use harness::{Family, TestCluster, TestNode, TestPod, command, interfaces, pod::Unattached, tcp, udp, wait_for};
use podnet::{
    config::RoutingMode,
    lab::runtime::{IFNAME, Request},
    netns::Netns,
};
use podnet_common::verdict::Verdict;
use serde_json::{Value, json};

use crate::paths::Paths;

/// Where the reference plugins are.
const PLUGINS: &str = "/usr/lib/cni";

/// The newest version of the CNI specification that reference plugins of this time know.
const CNI_VERSION: &str = "1.0.0";

const HOST_PORT: u16 = 30_080;
const POD_PORT: u16 = 8080;

/// Packets of a node that are not of the traffic: what pods send by themselves, and what claims a flow for eBPF.
const NOISE: u64 = 40;

macro_rules! tests {
    ($($name:ident: $function:ident($mode:ident, $paths:ident);)*) => {
        $(#[test] fn $name() { $function(RoutingMode::$mode, Paths::$paths); })*
    };
}

tests! {
    host_port_direct_by_ebpf: reach_host_port(Direct, Ebpf);
    host_port_direct_by_the_kernel: reach_host_port(Direct, Kernel);
    host_port_overlay_by_ebpf: reach_host_port(Overlay, Ebpf);
    host_port_overlay_mixed: reach_host_port(Overlay, Mixed);
    host_port_router_by_ebpf: reach_host_port(Router, Ebpf);
    reverse_path_overlay_by_ebpf: reach_nodes_with_reverse_path_filters(Overlay, Ebpf);
    reverse_path_auto_mixed: reach_nodes_with_reverse_path_filters(Auto, Mixed);
    second_uplink_direct: use_second_uplink(Direct, Ebpf);
    second_uplink_overlay: use_second_uplink(Overlay, Ebpf);
}

/// Calls `portmap` for a pod as a runtime does after the plugin before it in the chain.
fn portmap(verb: &str, node: &TestNode, request: &Request, result: &Value) {
    let mappings = ["tcp", "udp"]
        .map(|protocol| json!({ "hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": protocol }));
    let netconf = json!({
        "cniVersion": CNI_VERSION, "name": "podnet", "type": "portmap", "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings }, "prevResult": result,
    });
    let call = || {
        let mut plugin = Command::new(format!("{PLUGINS}/portmap"));
        plugin
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &request.container_id)
            .env("CNI_NETNS", request.netns.as_ref().unwrap())
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = plugin
            .spawn()
            .unwrap_or_else(|error| panic!("start portmap: {error}: install the package containernetworking-plugins"));
        let written = child.stdin.take().unwrap().write_all(netconf.to_string().as_bytes());
        let output = child.wait_with_output()?;
        written?;
        Ok(output)
    };
    let output = node.netns().run(call).unwrap();
    assert!(output.status.success(), "portmap {verb}: {output:?}");
}

fn reach_host_port(mode: RoutingMode, paths: Paths) {
    let cluster = paths.cluster(mode);
    let pods: Vec<TestPod> = cluster.add_pods(1).into_iter().flatten().collect();
    let node = &cluster.nodes()[0];
    let mut unattached = Unattached::new(node, "server");
    unattached.request.netconf.insert("cniVersion".into(), CNI_VERSION.into());
    let request = unattached.request.clone();
    let server = unattached.add().unwrap_or_else(|error| panic!("{error:#}"));
    portmap("ADD", node, &request, &server.added.result);

    let echo = tcp::EchoServer::start(server.netns(), POD_PORT);
    for family in Family::ALL {
        let _udp = udp::EchoServer::start(server.netns(), server.socket_address(family, POD_PORT));
        let target = SocketAddr::new(node.address(family), HOST_PORT);
        // Each with the source that the server must see, where nobody needs to translate it.
        let mut clients: Vec<(&Netns, Option<IpAddr>)> = vec![
            (cluster.outside(), Some(cluster.outside_address(family))),
            (server.netns(), None),
            (node.netns(), None),
        ];
        clients.extend(
            pods.iter()
                .zip(cluster.nodes())
                .map(|(pod, on)| (pod.netns(), (on.name() != node.name()).then(|| pod.address(family)))),
        );
        clients.extend(cluster.nodes()[1..].iter().map(|other| (other.netns(), None)));
        for (client, source) in clients {
            tcp::exchange(client, target, 200_000);
            let seen = echo.last_peer().unwrap().ip();
            assert!(source.is_none_or(|source| source == seen), "{source:?} was seen as {seen}");
            udp::exchange(client, target, 1000);
            udp::exchange(client, target, 8000);
        }
        // The pod's own address goes on being reached straight.
        for pod in &pods {
            tcp::exchange(pod.netns(), server.socket_address(family, POD_PORT), 200_000);
            assert_eq!(echo.last_peer().unwrap().ip(), pod.address(family));
        }
    }
    reach_the_outside(&cluster, &pods);

    portmap("DEL", node, &request, &server.added.result);
    let target = SocketAddr::new(node.address(Family::V4), HOST_PORT);
    let refused = tcp::try_connect(cluster.outside(), target, Duration::from_secs(5)).unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    for node in cluster.nodes() {
        let counters = node.counters();
        assert_eq!(counters.all_dropped(), 0, "{}: {counters:?}", node.name());
    }
}

/// Pods reach addresses outside of the cluster, behind their node.
fn reach_the_outside(cluster: &TestCluster, pods: &[TestPod]) {
    let echo = tcp::EchoServer::start(cluster.outside(), POD_PORT);
    for family in Family::ALL {
        let target = SocketAddr::new(cluster.outside_address(family), POD_PORT);
        let _udp = udp::EchoServer::start(cluster.outside(), target);
        for (pod, node) in pods.iter().zip(cluster.nodes()) {
            tcp::exchange(pod.netns(), target, 500_000);
            assert_eq!(echo.last_peer().unwrap().ip(), node.address(family), "{}", pod.name());
            udp::exchange(pod.netns(), target, 8000);
        }
    }
}

/// Connects the first two nodes by a link of their own, by which they reach one another's addresses.
fn add_second_uplink(cluster: &TestCluster, mtu: u32) {
    let [first, second] = [0, 1].map(|position: usize| &cluster.nodes()[position]);
    let peer = &second.node().netns;
    command::ip(first.netns(), &format!("link add eth1 mtu {mtu} type veth peer name eth1 mtu {mtu} netns {peer}"));
    for (node, own, other, number, other_number) in [(first, first, second, 11, 12), (second, second, first, 12, 11)] {
        command::ip(node.netns(), "link set eth1 up");
        for family in Family::ALL {
            let (link, length, nodad) =
                if family == Family::V4 { ("172.31.0.", 24, "") } else { ("fd00:172:31::", 64, " nodad") };
            command::ip(node.netns(), &format!("address add {link}{number}/{length} dev eth1{nodad}"));
            command::ip(
                node.netns(),
                &format!(
                    "route add {} via {link}{other_number} dev eth1 src {}",
                    other.address(family),
                    own.address(family)
                ),
            );
        }
    }
}

/// Waits until nodes use these uplinks and their pods have the smallest MTU of them.
fn wait_for_uplinks(nodes: &[TestNode], pods: &[TestPod], uplinks: &[&str], mtu: u32) {
    for (node, pod) in nodes.iter().zip(pods) {
        wait_for(&format!("{} to use {uplinks:?}", node.name()), || {
            (node.status().cluster.uplinks == uplinks).then_some(())
        });
        wait_for(&format!("MTU {mtu} in {}", pod.name()), || {
            interfaces::links(pod.netns()).iter().any(|link| link.ifname == "eth0" && link.mtu == mtu).then_some(())
        });
    }
}

fn sent(node: &TestNode, ifname: &str) -> u64 {
    interfaces::statistics(node.netns())[ifname].tx_packets
}

fn use_second_uplink(mode: RoutingMode, paths: Paths) {
    const QUESTIONS: u64 = 200;
    let cluster = paths.cluster(mode);
    let pods: Vec<TestPod> = cluster.add_pods(1).into_iter().flatten().collect();
    let _tcp: Vec<_> = pods.iter().map(|pod| tcp::EchoServer::start(pod.netns(), POD_PORT)).collect();
    let target = |pod: usize, family: Family| pods[pod].socket_address(family, POD_PORT);
    let connection = tcp::LiveConnection::start(pods[0].netns(), target(1, Family::V4));

    add_second_uplink(&cluster, 1400);
    wait_for_uplinks(&cluster.nodes()[..2], &pods[..2], &["eth0", "eth1"], 1400);
    connection.wait_for_rounds(5);
    connection.finish();
    for family in Family::ALL {
        let _udp: Vec<_> = [1, 2].map(|pod| udp::EchoServer::start(pods[pod].netns(), target(pod, family))).into();
        for (server, by, not_by) in [(1, "eth1", "eth0"), (2, "eth0", "eth1")] {
            let node = &cluster.nodes()[0];
            let (before, sent_before) = (node.counters(), [by, not_by].map(|ifname| sent(node, ifname)));
            let socket = udp::connect(pods[0].netns(), target(server, family));
            (0..QUESTIONS).for_each(|_| udp::exchange_on(&socket, 1000));
            tcp::exchange(pods[0].netns(), target(server, family), 2_000_000);
            let moved = node.counters().since(&before);
            let redirected = match mode {
                RoutingMode::Overlay => moved.verdict(Verdict::RedirectedToOverlay),
                _ => moved.verdict(Verdict::RedirectedToNode),
            };
            assert!(redirected >= QUESTIONS, "{moved:?}");
            assert!(moved.verdict(Verdict::RedirectedToPod) >= QUESTIONS, "{moved:?}");
            let by_kernel = moved.verdict(Verdict::DeliveredByKernel) + moved.verdict(Verdict::SentByKernel);
            assert!(by_kernel <= NOISE, "{moved:?}");
            let [right, wrong] = [sent(node, by) - sent_before[0], sent(node, not_by) - sent_before[1]];
            assert!(right >= QUESTIONS && wrong <= NOISE, "to node{}: {right} by {by}, {wrong} not", server + 1);
        }
    }

    // The link goes, and with it the routes: the first uplink takes over.
    let connection = tcp::LiveConnection::start(pods[0].netns(), target(1, Family::V6));
    command::ip(cluster.nodes()[1].netns(), "link delete eth1");
    wait_for_uplinks(&cluster.nodes()[..2], &pods[..2], &["eth0"], 1500);
    connection.wait_for_rounds(5);
    connection.finish();
    for family in Family::ALL {
        tcp::exchange(pods[0].netns(), target(1, family), 2_000_000);
    }
    for node in cluster.nodes() {
        let counters = node.counters();
        assert_eq!(counters.all_dropped(), 0, "{}: {counters:?}", node.name());
    }
}

/// Where nodes filter by the reverse path, as distributions have it, their pods reach other nodes' addresses and are reached
/// from there, although the overlay makes two ways of it.
fn reach_nodes_with_reverse_path_filters(mode: RoutingMode, paths: Paths) {
    let cluster = paths.cluster(mode);
    let pods: Vec<TestPod> = cluster.add_pods(1).into_iter().flatten().collect();
    // Strict for all; strict for each; loose for each, as systemd has it.
    for settings in [["1", "1"], ["0", "1"], ["0", "2"]] {
        for node in cluster.nodes() {
            for (interfaces, value) in [["all", "all"], ["eth0", "podnet-vxlan"]].into_iter().zip(settings) {
                for interface in interfaces {
                    command::set_sysctl(node.netns(), &format!("net.ipv4.conf.{interface}.rp_filter"), value);
                }
            }
            // Or the next resync would do.
            node.stop_daemon();
            node.start_daemon();
        }
        reach_nodes(&cluster, &pods);
    }
}

/// Nodes and pods reach all nodes and pods.
fn reach_nodes(cluster: &TestCluster, pods: &[TestPod]) {
    let hosts: Vec<_> = cluster.nodes().iter().map(TestNode::netns).chain(pods.iter().map(TestPod::netns)).collect();
    let _servers: Vec<_> = hosts.iter().map(|netns| tcp::EchoServer::start(netns, POD_PORT)).collect();
    for family in Family::ALL {
        for client in &hosts {
            for (node, pod) in cluster.nodes().iter().zip(pods) {
                tcp::exchange(client, SocketAddr::new(node.address(family), POD_PORT), 10_000);
                tcp::exchange(client, pod.socket_address(family, POD_PORT), 10_000);
            }
        }
    }
}
