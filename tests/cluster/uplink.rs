//! The way out of a node goes and comes: the uplink is set down, deleted, made anew, given other addresses.

use std::time::Duration;

use harness::{
    Family, TestNode,
    command::{run, set_sysctl},
    interfaces, maps,
    peer::{self, PeerServer},
    tcp::{EchoServer, LiveConnection},
    wait_for,
};
use podnet::{api::DatapathMode, config::RoutingMode, lab::network::UPLINK, netns::Netns};

use crate::pair::Pair;

const PORT: u16 = 8080;
const TCP_PORT: u16 = 8081;

/// How soon pods reach each other after the uplink is usable again.
const RESUMED: Duration = Duration::from_secs(3);

fn ip(netns: &Netns, arguments: &str) {
    run(netns, "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
}

/// Two nodes, whose pods also echo.
struct Uplinks {
    pair: Pair,
    _servers: Vec<EchoServer>,
}

impl Uplinks {
    fn new(mode: RoutingMode, datapath: DatapathMode) -> Self {
        let pair = Pair::with(|options| {
            options.mode = mode;
            options.datapath = datapath;
        });
        let servers = pair.pods.iter().map(|pod| EchoServer::start(pod.netns(), TCP_PORT)).collect();
        Self { pair, _servers: servers }
    }

    /// The node whose uplink changes.
    fn node(&self) -> &TestNode {
        &self.pair.cluster.nodes()[1]
    }

    fn connections(&self) -> Vec<LiveConnection> {
        Family::ALL
            .map(|family| {
                let target = self.pair.pods[1].socket_address(family, TCP_PORT);
                LiveConnection::start_paced(self.pair.pods[0].netns(), target, Duration::from_millis(2))
            })
            .into()
    }

    /// Does something to the second node's uplink under running connections; they go on after.
    fn under_connections(&self, what: &str, change: impl FnOnce()) {
        let connections = self.connections();
        change();
        let elapsed = self.pair.check_pods();
        println!("{what}: pods reach each other after {elapsed:.0?}");
        assert!(elapsed < RESUMED, "{what}: {elapsed:?}");
        self.pair.cluster.wait_for_routes();
        for connection in connections {
            connection.wait_for_rounds(3);
            connection.finish();
        }
        wait_for("no warnings", || self.node().status().warnings.is_empty().then_some(()));
    }

    /// Checks that the maps lead to the uplink that is there now.
    fn check_maps(&self) {
        let node = self.node();
        let uplink = interfaces::links(node.netns()).into_iter().find(|link| link.ifname == UPLINK).unwrap();
        let overlay = interfaces::links(node.netns()).into_iter().find(|link| link.ifname == "podnet-vxlan");
        let expected = overlay.map_or(uplink.ifindex, |link| link.ifindex);
        for cidr in &self.pair.cluster.nodes()[0].node().pod_cidrs {
            wait_for(&format!("the entry of {cidr} to lead to link {expected}"), || {
                maps::node_of(node.node(), *cidr).filter(|entry| entry.ifindex == expected)
            });
        }
    }
}

fn default_routes(uplinks: &Uplinks) {
    for via in
        ["-4 route replace default via 192.168.1.1 dev eth0", "-6 route replace default via fd00:192:168:1::1 dev eth0"]
    {
        ip(uplinks.node().netns(), via);
    }
}

fn addresses(uplinks: &Uplinks) {
    for address in ["192.168.1.12/24", "fd00:192:168:1::12/64"] {
        ip(uplinks.node().netns(), &format!("address replace {address} dev eth0 nodad"));
    }
}

fn down_and_up(mode: RoutingMode, datapath: DatapathMode) {
    let uplinks = Uplinks::new(mode, datapath);
    let netns = uplinks.node().netns();
    for round in ["keeps its addresses", "loses its IPv6 addresses"] {
        let keeps = round.starts_with("keeps");
        // As the kernel does it: IPv6 addresses go with the link unless it is told otherwise.
        set_sysctl(netns, &format!("net.ipv6.conf.{UPLINK}.keep_addr_on_down"), if keeps { "1" } else { "0" });
        if keeps {
            // The setting concerns addresses that are added under it.
            addresses(&uplinks);
        }
        uplinks.under_connections(&format!("{mode}, {datapath}: uplink down and up, which {round}"), || {
            ip(netns, "link set eth0 down");
            wait_for("the daemon to notice", || {
                uplinks
                    .node()
                    .status()
                    .warnings
                    .iter()
                    .any(|warning| warning.contains("cannot be reached"))
                    .then_some(())
            });
            ip(netns, "link set eth0 up");
            if !keeps {
                addresses(&uplinks);
            }
            default_routes(&uplinks);
        });
        if datapath == DatapathMode::Ebpf {
            uplinks.check_maps();
        }
    }
}

#[test]
fn direct_by_ebpf_survives_an_uplink_down_and_up() {
    down_and_up(RoutingMode::Direct, DatapathMode::Ebpf);
}

#[test]
fn direct_by_the_kernel_survives_an_uplink_down_and_up() {
    down_and_up(RoutingMode::Direct, DatapathMode::Kernel);
}

#[test]
fn overlay_by_ebpf_survives_an_uplink_down_and_up() {
    down_and_up(RoutingMode::Overlay, DatapathMode::Ebpf);
}

#[test]
fn overlay_by_the_kernel_survives_an_uplink_down_and_up() {
    down_and_up(RoutingMode::Overlay, DatapathMode::Kernel);
}

#[test]
fn an_uplink_that_is_made_anew_is_taken() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let uplinks = Uplinks::new(mode, DatapathMode::Ebpf);
        let (node, switch) = (uplinks.node(), uplinks.pair.cluster.switch());
        let index =
            || interfaces::links(node.netns()).into_iter().find(|link| link.ifname == UPLINK).map(|link| link.ifindex);
        let before = index();
        let neighbors = interfaces::neighbors(uplinks.pair.cluster.nodes()[0].netns());
        let known = neighbors.into_iter().find(|(address, _)| *address == node.address(Family::V4));
        let (_, mac) = known.expect("the nodes have talked to each other");
        uplinks.under_connections(&format!("{mode}: uplink deleted and made anew"), || {
            ip(node.netns(), "link del eth0");
            wait_for("the daemon to notice", || node.status().cluster.uplinks.is_empty().then_some(()));
            let netns = node.netns().path().file_name().unwrap().to_str().unwrap();
            // With the same MAC, or the other node would have to find out that its neighbour has another.
            let peer = format!("name eth0 address {mac} netns {netns}");
            ip(switch, &format!("link add node2 master subnet1 type veth peer {peer}"));
            ip(switch, "link set node2 up");
            // A link-local address that is still being probed cannot ask for neighbours.
            set_sysctl(node.netns(), &format!("net.ipv6.conf.{UPLINK}.accept_dad"), "0");
            ip(node.netns(), "link set eth0 up");
            addresses(&uplinks);
            default_routes(&uplinks);
        });
        assert_ne!(index(), before, "the new uplink has another index");
        uplinks.check_maps();
        // Its programs are attached, too.
        let moved = node.counters();
        uplinks.pair.check_pods();
        let moved = node.counters().since(&moved);
        assert!(moved.verdict(podnet_common::verdict::Verdict::RedirectedToPod) > 0, "{moved:?}");
        assert_eq!(moved.all_dropped(), 0, "{moved:?}");
    }
}

#[test]
fn a_node_gets_other_addresses_under_its_connections() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let uplinks = Uplinks::new(mode, DatapathMode::Ebpf);
        for host in [61, 62] {
            uplinks.under_connections(&format!("{mode}: other addresses"), || uplinks.pair.cluster.readdress(1, host));
        }
        // What leaves the cluster is masqueraded behind the new ones.
        for family in Family::ALL {
            let outside = std::net::SocketAddr::new(uplinks.pair.cluster.outside_address(family), PORT);
            let _server = PeerServer::start(uplinks.pair.cluster.outside(), outside);
            let seen = peer::ask(uplinks.pair.pods[1].netns(), outside, 1).unwrap();
            assert_eq!(seen.ip(), uplinks.node().address(family));
        }
    }
}
