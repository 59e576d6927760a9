//! What others do to the ways between nodes is repaired, and counted; what is others' is left alone.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::programs::TcAttachType;
use harness::{Family, TestNode, command::run, interfaces, maps, wait_for};
use podnet::{
    cluster::ClusterNode,
    config::{RoutingMode, UplinkAttach},
    lab::network::UPLINK,
};
use podnet_common::{
    address::Address,
    node::{Node as NodeEntry, NodeAddress},
};

use crate::pair::Pair;

/// Longer than a repair takes that a notification of the kernel causes; shorter than the 30 s between two resyncs.
const SOON: Duration = Duration::from_secs(10);

/// A repair that the next resync makes, at one a second.
const RESYNCED: Duration = Duration::from_secs(15);

fn ip(node: &TestNode, arguments: &str) -> String {
    run(node.netns(), "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>())
}

fn nft(node: &TestNode, arguments: &str) -> String {
    run(node.netns(), "nft", &arguments.split_ascii_whitespace().collect::<Vec<_>>())
}

fn index_of(node: &TestNode, name: &str) -> Option<u32> {
    interfaces::links(node.netns()).into_iter().find(|link| link.ifname == name).map(|link| link.ifindex)
}

fn route(node: &TestNode, family: Family, destination: &str) -> Option<String> {
    interfaces::route_of(node.netns(), family, destination)
}

fn pair(mode: RoutingMode) -> Pair {
    Pair::with(|options| options.mode = mode)
}

impl Pair {
    fn node(&self) -> &TestNode {
        &self.cluster.nodes()[0]
    }

    fn other(&self) -> &TestNode {
        &self.cluster.nodes()[1]
    }

    /// Breaks something of the first node; waits until it is whole again, the repair is counted and pods reach each
    /// other.
    fn breaks(
        &self,
        what: &str,
        within: Duration,
        breakage: impl FnOnce(&TestNode),
        is_whole: impl Fn(&TestNode) -> bool,
    ) {
        let node = self.node();
        assert!(is_whole(node), "{what}: it is broken already");
        let before = node.status().repairs;
        let start = Instant::now();
        breakage(node);
        wait_for(&format!("the repair of: {what}"), || {
            (node.status().repairs > before && is_whole(node)).then_some(())
        });
        let elapsed = start.elapsed();
        self.check_pods();
        println!("{what}: whole after {elapsed:.0?}");
        assert!(elapsed < within, "{what}: {elapsed:?}");
        assert_eq!(node.status().warnings, Vec::<String>::new(), "{what}");
    }

    fn cidr(&self, family: Family) -> ipnetwork::IpNetwork {
        let cidrs = &self.other().node().pod_cidrs;
        cidrs.iter().copied().find(|cidr| Family::of(cidr.ip()) == family).unwrap()
    }

    /// Restarts the first node's daemon so that it compares every second.
    fn resync_often(&self) {
        self.node().restart_with(|config| config.resync_seconds = 1);
    }
}

fn delete_routes(pair: &Pair) {
    for family in Family::ALL {
        let cidr = pair.cidr(family).to_string();
        let option = if family == Family::V4 { "-4" } else { "-6" };
        let before = route(pair.node(), family, &cidr);
        pair.breaks(
            &format!("route to {cidr} deleted"),
            SOON,
            |node| drop(ip(node, &format!("{option} route del {cidr}"))),
            |node| route(node, family, &cidr) == before,
        );
    }
}

#[test]
fn direct_routes_are_restored_at_once() {
    let pair = pair(RoutingMode::Direct);
    delete_routes(&pair);
    let cidrs = Family::ALL.map(|family| pair.cidr(family).to_string());
    pair.breaks(
        "all of podnet's routes flushed",
        SOON,
        |node| {
            ip(node, "-4 route flush proto 112");
            ip(node, "-6 route flush proto 112");
        },
        |node| Family::ALL.iter().zip(&cidrs).all(|(family, cidr)| route(node, *family, cidr).is_some()),
    );
}

#[test]
fn the_overlay_is_restored_at_once() {
    let pair = pair(RoutingMode::Overlay);
    delete_routes(&pair);
    let device = "podnet-vxlan";
    let cidrs = Family::ALL.map(|family| pair.cidr(family).to_string());
    let whole = |node: &TestNode| {
        Family::ALL.iter().zip(&cidrs).all(|(family, cidr)| route(node, *family, cidr).is_some())
            && pair.node().status().cluster.overlay.is_some()
    };
    pair.breaks("overlay device set down", SOON, |node| drop(ip(node, "link set podnet-vxlan down")), whole);
    pair.breaks(
        "overlay device deleted",
        SOON,
        |node| drop(ip(node, "link del podnet-vxlan")),
        |node| whole(node) && index_of(node, device).is_some() && is_guarded(node, device),
    );
}

/// Returns whether podnet's programs are on both sides of an interface, by TCX.
fn is_guarded(node: &TestNode, device: &str) -> bool {
    let has = |direction, program: &str| {
        let names = interfaces::tcx_programs(node.netns(), device, direction);
        names.iter().any(|name| name.starts_with(program))
    };
    has(TcAttachType::Ingress, "from_") && has(TcAttachType::Egress, "to_uplink")
}

#[test]
fn clsact_filters_are_restored_at_once() {
    let pair = pair(RoutingMode::Direct);
    pair.node().restart_with(|config| config.uplink_attach = UplinkAttach::Clsact);
    let has_filters = |node: &TestNode| {
        let show = |direction| run(node.netns(), "tc", &["filter", "show", "dev", UPLINK, direction]);
        show("ingress").contains("from_uplink") && show("egress").contains("to_uplink")
    };
    let tc = |node: &TestNode, arguments: &str| {
        drop(run(node.netns(), "tc", &arguments.split_ascii_whitespace().collect::<Vec<_>>()));
    };
    pair.breaks("qdisc clsact deleted", SOON, |node| tc(node, "qdisc del dev eth0 clsact"), has_filters);
    pair.breaks("filter deleted", SOON, |node| tc(node, "filter del dev eth0 egress"), has_filters);
}

#[test]
fn links_of_programs_are_restored_by_the_resync() {
    let pair = pair(RoutingMode::Overlay);
    pair.resync_often();
    let links = maps::pins(pair.node().node()).join("links");
    let pins: Vec<_> = [(UPLINK, "from_uplink"), (UPLINK, "to_uplink"), ("podnet-vxlan", "from_overlay")]
        .into_iter()
        .map(|(device, hook)| links.join(format!("{hook}-{}", index_of(pair.node(), device).unwrap())))
        .collect();
    let is_whole = |node: &TestNode| {
        [UPLINK, "podnet-vxlan"].iter().all(|device| is_guarded(node, device)) && pins.iter().all(|pin| pin.exists())
    };
    let detach = |node: &TestNode| {
        for pin in &pins {
            run(node.netns(), "bpftool", &["link", "detach", "pinned", pin.to_str().unwrap()]);
        }
    };
    pair.breaks("links of programs detached", RESYNCED, detach, is_whole);
    let remove = |_: &TestNode| pins.iter().for_each(|pin| std::fs::remove_file(pin).unwrap());
    pair.breaks("pins of links removed", RESYNCED, remove, is_whole);
}

#[test]
fn entries_of_the_maps_are_restored_by_the_resync() {
    let pair = pair(RoutingMode::Direct);
    pair.resync_often();
    let state = |node: &TestNode| {
        let nodes: BTreeMap<_, _> =
            maps::nodes(node.node()).iter().map(|entry| entry.map(|(key, node)| (key.octets, node)).unwrap()).collect();
        let owners: BTreeMap<_, _> = maps::node_addresses(node.node())
            .iter()
            .map(|entry| entry.map(|(key, owner)| (key.octets, owner)).unwrap())
            .collect();
        (nodes, owners)
    };
    let before = state(pair.node());
    assert_eq!((before.0.len(), before.1.len()), (4, 4));
    let is_whole = |node: &TestNode| state(node) == before;
    let keys = Family::ALL.map(|family| Address::from(pair.cidr(family).network()));
    let owners = Family::ALL.map(|family| Address::from(pair.other().address(family)));
    let delete = |node: &TestNode| {
        for (key, owner) in keys.iter().zip(&owners) {
            maps::nodes(node.node()).remove(key).unwrap();
            maps::node_addresses(node.node()).remove(owner).unwrap();
        }
    };
    pair.breaks("entries of another node deleted", RESYNCED, delete, is_whole);
    let change = |node: &TestNode| {
        for (key, owner) in keys.iter().zip(&owners) {
            let elsewhere = NodeEntry { next_hop: *key, ..before.0[&key.octets] };
            maps::nodes(node.node()).insert(key, elsewhere, 0).unwrap();
            maps::node_addresses(node.node()).insert(owner, NodeAddress { id: 7 }, 0).unwrap();
        }
    };
    pair.breaks("entries of another node changed", RESYNCED, change, is_whole);
    let add = |node: &TestNode| {
        for stranger in ["203.0.113.0", "2001:db8::"] {
            let stranger = Address::from(stranger.parse::<IpAddr>().unwrap());
            maps::nodes(node.node()).insert(stranger, before.0[&keys[0].octets], 0).unwrap();
            maps::node_addresses(node.node()).insert(stranger, NodeAddress { id: 7 }, 0).unwrap();
        }
    };
    pair.breaks("entries of nobody added", RESYNCED, add, is_whole);
}

#[test]
fn neighbours_and_nftables_are_restored_by_the_resync() {
    let pair = pair(RoutingMode::Overlay);
    pair.resync_often();
    let show = |node: &TestNode| ip(node, "neighbour show dev podnet-vxlan nud permanent");
    let before = show(pair.node());
    let gateways: Vec<_> = before.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(gateways.len(), 2, "one of each family: {before}");
    for (what, command) in [("deleted", "del"), ("changed", "replace")] {
        let breakage = |node: &TestNode| {
            for gateway in &gateways {
                ip(node, &format!("neighbour {command} {gateway} lladdr 02:00:00:00:00:99 dev podnet-vxlan"));
            }
        };
        pair.breaks(&format!("neighbours {what}"), RESYNCED, breakage, |node| show(node) == before);
    }
    let table = |node: &TestNode| nft(node, "list ruleset");
    let before = table(pair.node());
    for breakage in ["delete table inet podnet", "flush table inet podnet", "flush set inet podnet nodes4"] {
        pair.breaks(breakage, RESYNCED, |node| drop(nft(node, breakage)), |node| table(node) == before);
    }
}

/// A node that is nowhere, in the first subnet.
fn stranger() -> ClusterNode {
    ClusterNode {
        name: "node9".into(),
        addresses: vec!["192.168.1.19".parse().unwrap(), "fd00:192:168:1::19".parse().unwrap()],
        pod_cidrs: vec!["10.244.9.0/24".parse().unwrap(), "fd00:10:244:9::/64".parse().unwrap()],
    }
}

fn is_podnets(route: Option<String>) -> bool {
    route.is_some_and(|route| route.contains("proto 112"))
}

#[test]
fn a_foreign_route_stays_until_its_owner_removes_it() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let pair = pair(mode);
        let node = pair.node();
        for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let stranger = stranger();
            let cidr = stranger.pod_cidrs.iter().find(|cidr| Family::of(cidr.ip()) == family).unwrap().to_string();
            let via = pair.other().address(family);
            ip(node, &format!("{option} route add {cidr} via {via} dev eth0 proto static"));
            let foreign = route(node, family, &cidr);
            pair.cluster.nodes_file().add(stranger.clone()).unwrap();
            let warning = || node.status().warnings.into_iter().find(|warning| warning.contains(&cidr));
            let warning = wait_for("a warning", warning);
            assert!(warning.contains("another route"), "{warning}");
            assert_eq!(route(node, family, &cidr), foreign, "the route of another");
            let listed = node.cli(&["nodes"]);
            let line = listed.lines().find(|line| line.contains(&cidr)).unwrap_or_else(|| panic!("{listed}"));
            assert!(line.contains("another route"), "{line}");
            // Neither a resync nor another start takes it.
            node.restart_with(|config| config.resync_seconds = 1);
            assert!(node.status().warnings.iter().any(|warning| warning.contains(&cidr)));
            assert_eq!(route(node, family, &cidr), foreign);

            ip(node, &format!("{option} route del {cidr}"));
            wait_for("podnet's own route", || is_podnets(route(node, family, &cidr)).then_some(()));
            wait_for("no warning", || node.status().warnings.is_empty().then_some(()));
            assert!(node.cluster().iter().flat_map(|node| &node.pod_cidrs).all(|cidr| cidr.problem.is_none()));

            // One that comes and goes with the node, while the foreign one stays.
            pair.cluster.nodes_file().remove(&stranger.name).unwrap();
            wait_for("the route to go", || route(node, family, &cidr).is_none().then_some(()));
        }
    }
}

#[test]
fn routes_of_others_are_never_touched() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay, RoutingMode::Auto] {
        let Pair { cluster, pods, .. } = pair(mode);
        drop(pods);
        let node = &cluster.nodes()[0];
        node.stop_daemon();
        node.run_cleanup();
        // Inside of pod CIDRs of other nodes, around them, and beside them.
        for route in [
            "-4 route add 10.244.2.128/25 via 192.168.1.12",
            "-4 route add 10.244.0.0/16 via 192.168.1.1 proto bird",
            "-4 route add 10.244.2.0/24 via 192.168.1.1 metric 500",
            "-4 route add 10.244.2.0/24 via 192.168.1.12 table 77",
            "-4 route add blackhole 10.9.0.0/16",
            "-4 rule add to 10.9.0.0/16 table 77",
            "-6 route add fd00:10:244:2::/80 via fd00:192:168:1::12",
            "-6 route add fd00:10:244:2::/64 via fd00:192:168:1::1 dev eth0 metric 500",
            "-6 route add fd00:10:244:2::/64 via fd00:192:168:1::12 dev eth0 table 77",
            "-6 route add unreachable fd00:9::/32",
        ] {
            ip(node, route);
        }
        let others = || {
            let lines = |option| ip(node, &format!("{option} -details route show table all"));
            let text = lines("-4") + &lines("-6") + &ip(node, "-4 rule") + &ip(node, "-6 rule");
            let mut lines: Vec<String> = text
                .lines()
                .filter(|line| !line.contains("proto 112"))
                // What the kernel makes with the addresses of podnet's own interfaces.
                .filter(|line| !["dev v-net-0", "dev podnet-vxlan"].iter().any(|device| line.contains(device)))
                .map(|line| line.trim_end().to_owned())
                .collect();
            lines.sort();
            lines
        };
        let before = others();
        assert!(before.len() > 12, "{before:?}");
        let expect = |what: &str| {
            let now = others();
            let gone: Vec<_> = before.iter().filter(|line| !now.contains(line)).collect();
            let new: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
            assert!(gone.is_empty() && new.is_empty(), "{mode}, {what}: gone {gone:?}, new {new:?}");
        };
        node.start_daemon();
        cluster.wait_for_routes();
        expect("after the start");
        cluster.nodes_file().add(stranger()).unwrap();
        wait_for("the route of a node", || is_podnets(route(node, Family::V4, "10.244.9.0/24")).then_some(()));
        cluster.nodes_file().remove("node9").unwrap();
        wait_for("the route to go", || route(node, Family::V4, "10.244.9.0/24").is_none().then_some(()));
        expect("after a change");
        node.stop_daemon();
        expect("after the stop");
        node.run_cleanup();
        expect("after the cleanup");
        for family in Family::ALL {
            assert_eq!(
                interfaces::own_destinations(node.netns(), family),
                <[String; 0]>::default(),
                "podnet's own routes are gone"
            );
        }
        node.start_daemon();
    }
}
