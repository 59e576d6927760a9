//! Packets of pods to addresses outside of the node: masqueraded behind it, unless they go to pods or nodes.
//!
//! ```text
//!   pod --- v-net-0 [node] up0 203.0.113.1 ------ eth0 203.0.113.2 [outside]    has a route to the pod if a test asks
//!                          2001:db8:ff::1         2001:db8:ff::2
//!                                                 10.244.2.5, fd00:10:244:2::5: plays a pod of another node
//!                                                 192.168.1.12, fd00:192:168:1::12: plays another node
//! ```

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use harness::{Family, TestLab, TestPod, command, icmp, pod::OwnedNetns, tcp, udp, wait_for};
use ipnetwork::IpNetwork;
use podnet::{
    config,
    netns::Netns,
    nft::{self, Rules},
};

const PORT: u16 = 8080;

const BOTH: [config::Family; 2] = [config::Family::Ipv4, config::Family::Ipv6];

/// Whether the outside knows the way to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WayBack {
    Unknown,
    Known,
}

/// An address that the outside has.
#[derive(Clone, Copy, Debug)]
enum Target {
    Outside,
    Pod,
    Node,
}

struct Uplink {
    lab: TestLab,
    pod: TestPod,
    outside: OwnedNetns,
    server: tcp::EchoServer,
}

impl Uplink {
    fn new(way_back: WayBack) -> Self {
        let lab = TestLab::new();
        let pod = lab.add_pod("pod");
        let name = lab.netns_name("outside");
        let outside = OwnedNetns::new(name.clone());
        ip(lab.netns(), &format!("link add up0 type veth peer name eth0 netns {name}"));
        ip(lab.netns(), "link set up0 up");
        ip(&outside.netns, "link set eth0 up");
        for family in Family::ALL {
            let length = if family == Family::V4 { 24 } else { 64 };
            let node = node_address(family);
            ip(lab.netns(), &format!("address add {node}/{length} dev up0{}", nodad(family)));
            ip(
                &outside.netns,
                &format!("address add {}/{length} dev eth0{}", address(Target::Outside, family), nodad(family)),
            );
            for target in [Target::Pod, Target::Node] {
                let address = address(target, family);
                ip(&outside.netns, &format!("address add {address} dev eth0{}", nodad(family)));
                ip(lab.netns(), &format!("route add {address} via {} dev up0", self::address(Target::Outside, family)));
            }
            if way_back == WayBack::Known {
                ip(&outside.netns, &format!("route add {} via {node}", pod.address(family)));
            }
        }
        let server = tcp::EchoServer::start(&outside.netns, PORT);
        Self { lab, pod, outside, server }
    }

    /// Ends the daemon, so that nobody mends the table; returns the rules that it made.
    fn take_over(&self) -> Rules {
        self.lab.stop_daemon();
        let config = self.lab.node().config();
        let rules = Rules::new(&config, &config.pod_cidrs, None);
        assert!(self.is_installed(&rules), "the daemon's table is not as it should be");
        rules
    }

    fn in_node<T: Send>(&self, call: impl FnOnce() -> anyhow::Result<T> + Send) -> T {
        self.lab.netns().run(call).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn is_installed(&self, rules: &Rules) -> bool {
        self.in_node(|| nft::is_installed(rules))
    }

    fn update(&self, old: &Rules, new: &Rules) {
        self.in_node(|| nft::update(old, new));
        assert!(self.is_installed(new), "not as it should be after an update");
    }

    /// Connects from the pod, and returns the address that the target sees.
    fn source_seen(&self, target: Target, family: Family) -> IpAddr {
        tcp::exchange(self.pod.netns(), SocketAddr::new(address(target, family), PORT), 100_000);
        self.server.last_peer().unwrap().ip()
    }

    fn assert_masqueraded(&self, target: Target, family: Family) {
        assert_eq!(self.source_seen(target, family), node_address(family), "{target:?}");
    }

    fn assert_kept(&self, target: Target, family: Family) {
        assert_eq!(self.source_seen(target, family), self.pod.address(family), "{target:?}");
    }
}

fn ip(netns: &Netns, arguments: &str) {
    command::run(netns, "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
}

fn nft_in(netns: &Netns, arguments: &str) {
    command::run(netns, "nft", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
}

fn nodad(family: Family) -> &'static str {
    if family == Family::V6 { " nodad" } else { "" }
}

fn node_address(family: Family) -> IpAddr {
    if family == Family::V4 { "203.0.113.1" } else { "2001:db8:ff::1" }.parse().unwrap()
}

fn address(target: Target, family: Family) -> IpAddr {
    let text = match (target, family) {
        (Target::Outside, Family::V4) => "203.0.113.2",
        (Target::Outside, Family::V6) => "2001:db8:ff::2",
        (Target::Pod, Family::V4) => "10.244.2.5",
        (Target::Pod, Family::V6) => "fd00:10:244:2::5",
        (Target::Node, Family::V4) => "192.168.1.12",
        (Target::Node, Family::V6) => "fd00:192:168:1::12",
    };
    text.parse().unwrap()
}

fn networks<'a>(texts: &[&'a str]) -> impl Iterator<Item = IpNetwork> + use<'a> {
    texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>().into_iter()
}

/// Returns the rules of a node that knows the other node.
fn with_neighbor(rules: &Rules) -> Rules {
    let mut rules = rules.clone();
    rules.pods.extend(networks(&["10.244.2.0/24", "fd00:10:244:2::/64"]));
    rules.nodes.extend(Family::ALL.map(|family| address(Target::Node, family)));
    rules
}

#[test]
fn pods_reach_the_outside_behind_the_node() {
    let uplink = Uplink::new(WayBack::Unknown);
    for family in Family::ALL {
        let target = address(Target::Outside, family);
        uplink.assert_masqueraded(Target::Outside, family);
        let _udp = udp::EchoServer::start(&uplink.outside.netns, SocketAddr::new(target, PORT));
        udp::exchange(uplink.pod.netns(), SocketAddr::new(target, PORT), 1000);
        udp::exchange(uplink.pod.netns(), SocketAddr::new(target, PORT), 8000);
        icmp::ping(uplink.pod.netns(), target, 3, 56);
    }
}

#[test]
fn pods_and_nodes_of_the_cluster_see_the_pod_itself() {
    let uplink = Uplink::new(WayBack::Known);
    let alone = uplink.take_over();
    let neighbor = with_neighbor(&alone);
    for _ in 0..2 {
        for family in Family::ALL {
            uplink.assert_masqueraded(Target::Pod, family);
            uplink.assert_masqueraded(Target::Node, family);
        }
        uplink.update(&alone, &neighbor);
        for family in Family::ALL {
            uplink.assert_kept(Target::Pod, family);
            uplink.assert_kept(Target::Node, family);
            uplink.assert_masqueraded(Target::Outside, family);
        }
        uplink.update(&neighbor, &alone);
    }
    // The ranges of the configuration do as well as the node's own.
    let mut ranges = alone.clone();
    ranges.pods.extend(networks(&["10.244.0.0/16", "fd00:10:244::/48"]));
    uplink.update(&alone, &ranges);
    for family in Family::ALL {
        uplink.assert_kept(Target::Pod, family);
    }
}

#[test]
fn scattered_pod_cidrs_are_known_as_well() {
    let uplink = Uplink::new(WayBack::Known);
    let alone = uplink.take_over();
    let mut scattered = alone.clone();
    for number in 0..2000_u32 {
        scattered.pods.insert(IpNetwork::new(IpAddr::V4((0x0a00_0000 + number * 512).into()), 24).unwrap());
        scattered.pods.insert(IpNetwork::new(format!("fd00:11:0:{:x}::", number * 2).parse().unwrap(), 64).unwrap());
    }
    let neighbor = with_neighbor(&scattered);
    uplink.update(&alone, &scattered);
    for _ in 0..2 {
        for family in Family::ALL {
            uplink.assert_masqueraded(Target::Pod, family);
        }
        uplink.update(&scattered, &neighbor);
        for family in Family::ALL {
            uplink.assert_kept(Target::Pod, family);
            uplink.assert_masqueraded(Target::Outside, family);
        }
        uplink.update(&neighbor, &scattered);
    }
}

#[test]
fn each_family_is_switched_by_itself() {
    let uplink = Uplink::new(WayBack::Known);
    let mut rules = uplink.take_over();
    for masquerade in [&BOTH[..1], &BOTH[1..], &[], &BOTH] {
        let old = std::mem::replace(&mut rules.masquerade, masquerade.to_vec());
        let old = Rules { masquerade: old, ..rules.clone() };
        uplink.update(&old, &rules);
        for (family, setting) in Family::ALL.into_iter().zip(BOTH) {
            if masquerade.contains(&setting) {
                uplink.assert_masqueraded(Target::Outside, family);
            } else {
                uplink.assert_kept(Target::Outside, family);
            }
        }
    }
}

#[test]
fn established_connections_survive_every_change_of_the_table() {
    let uplink = Uplink::new(WayBack::Unknown);
    let alone = uplink.take_over();
    let neighbor = with_neighbor(&alone);
    for family in Family::ALL {
        let target = SocketAddr::new(address(Target::Outside, family), PORT);
        let udp_target = SocketAddr::new(target.ip(), PORT + 1);
        let _udp = udp::EchoServer::start(&uplink.outside.netns, udp_target);
        let connection = tcp::LiveConnection::start(uplink.pod.netns(), target);
        let flood = udp::Flood::start(uplink.pod.netns(), udp_target);
        for _ in 0..20 {
            uplink.in_node(|| nft::install(&alone));
            flood.wait_for_answers(20);
            uplink.update(&alone, &neighbor);
            uplink.update(&neighbor, &alone);
            connection.wait_for_rounds(2);
        }
        connection.finish();
        let tally = flood.finish();
        assert_eq!(tally.lost(), 0, "{family:?}: {tally:?}");
    }
}

#[test]
fn translations_of_others_work_beside_it() {
    let uplink = Uplink::new(WayBack::Known);
    let alone = uplink.take_over();
    uplink.update(&alone, &with_neighbor(&alone));
    for family in Family::ALL {
        let node = uplink.lab.netns();
        let rule = |rule: String| command::iptables(node, family, &format!("-t nat {rule}"));
        let (service, port) = (if family == Family::V4 { "10.96.0.10" } else { "fd00:10:96::10" }, PORT + 7);
        let remote = SocketAddr::new(address(Target::Pod, family), PORT);
        // kube-proxy: a service address of a pod on another node. That pod sees the client.
        rule(format!("-A PREROUTING -d {service} -p tcp --dport 80 -j DNAT --to-destination {remote}"));
        tcp::exchange(uplink.pod.netns(), SocketAddr::new(service.parse().unwrap(), 80), 100_000);
        assert_eq!(uplink.server.last_peer().unwrap().ip(), uplink.pod.address(family), "through a service");
        // kube-proxy: marked packets are masqueraded, although they go to a pod.
        rule("-A PREROUTING -p tcp --dport 8080 -j MARK --set-mark 0x4000".into());
        rule("-A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE --random-fully".into());
        uplink.assert_masqueraded(Target::Pod, family);
        rule("-F PREROUTING".into());
        uplink.assert_kept(Target::Pod, family);
        // An administrator's own source address for a destination counts before podnet's.
        let source: IpAddr = if family == Family::V4 { "203.0.113.77" } else { "2001:db8:ff::77" }.parse().unwrap();
        let length = if family == Family::V4 { 24 } else { 64 };
        ip(node, &format!("address add {source}/{length} dev up0{}", nodad(family)));
        let outside = address(Target::Outside, family);
        rule(format!("-A POSTROUTING -s {} -d {outside} -j SNAT --to-source {source}", uplink.pod.address(family)));
        assert_eq!(uplink.source_seen(Target::Outside, family), source);
        // portmap: a port of the node leads to the pod, which sees the client.
        let server = tcp::EchoServer::start(uplink.pod.netns(), port);
        let pod = uplink.pod.socket_address(family, port);
        rule(format!("-A PREROUTING -d {} -p tcp --dport {port} -j DNAT --to-destination {pod}", node_address(family)));
        tcp::exchange(&uplink.outside.netns, SocketAddr::new(node_address(family), port), 100_000);
        assert_eq!(server.last_peer().unwrap().ip(), outside, "through a port of the node");
    }
}

#[test]
fn what_is_missing_from_the_table_is_noticed() {
    let uplink = Uplink::new(WayBack::Known);
    let rules = uplink.take_over();
    let netns = uplink.lab.netns();
    for damage in [
        "flush chain inet podnet outside",
        "flush chain inet podnet prerouting",
        "flush set inet podnet own4",
        "add element inet podnet pods6 { fd77::/64 }",
        "add element inet podnet nodes4 { 192.0.2.1 }",
        "add chain inet podnet other",
        "flush table inet podnet",
        "delete table inet podnet",
        "flush ruleset",
    ] {
        nft_in(netns, damage);
        assert!(!uplink.is_installed(&rules), "nobody noticed `nft {damage}`");
        uplink.in_node(|| nft::install(&rules));
        assert!(uplink.is_installed(&rules));
    }
    assert!(!uplink.is_installed(&with_neighbor(&rules)));
    // What an update does not find as it was left is made anew.
    nft_in(netns, "delete table inet podnet");
    uplink.update(&rules, &with_neighbor(&rules));
    uplink.in_node(nft::remove);
    uplink.in_node(nft::remove);
    assert!(!uplink.is_installed(&rules));
    // The daemon mends by itself.
    uplink.lab.start_daemon();
    wait_for("the table", || uplink.is_installed(&rules).then_some(()));
    uplink.assert_masqueraded(Target::Outside, Family::V4);
}

#[test]
fn updates_at_random_end_where_installing_anew_does() {
    let lab = OwnedNetns::new(format!("pt-{}-nft", std::process::id()));
    let run = |call: &(dyn Fn() -> anyhow::Result<()> + Sync)| {
        lab.netns.run(call).unwrap_or_else(|error| panic!("{error:#}"));
    };
    let mut random = harness::random::Random::new(7);
    let mut draw = || {
        let mut rules = Rules { bridge: "v-net-0".into(), masquerade: BOTH.to_vec(), ..Rules::default() };
        rules.own = networks(&["10.244.1.0/24", "fd00:10:244:1::/64"]).collect();
        // Crowded, so that ranges merge, split, shrink and grow.
        for _ in 0..random.below(40) {
            let (position, size) = (random.below(64) as u8, random.below(4) as u8);
            rules.pods.insert(IpNetwork::new(IpAddr::from([10, 244, position, 0]), 24 - size).unwrap());
            let v6: IpAddr = format!("fd00:10:244:{position:x}::").parse().unwrap();
            rules.pods.insert(IpNetwork::new(v6, 64 - size).unwrap());
            rules.nodes.insert(IpAddr::from([192, 168, 1, random.below(64) as u8]));
        }
        rules
    };
    let mut rules = draw();
    run(&|| nft::install(&rules));
    for step in 0..60 {
        let new = draw();
        // In place: a failure must not be covered by making the table anew, which would empty this set.
        nft_in(&lab.netns, "add element inet podnet hairpin4 { 192.0.2.1 . 192.0.2.1 }");
        run(&|| nft::update(&rules, &new));
        let updated = sets(&lab.netns);
        assert!(updated.iter().any(|line| line.contains("192.0.2.1 . 192.0.2.1")), "step {step}: made anew");
        run(&|| nft::install(&new));
        let expected = sets(&lab.netns);
        let without_hairpin = |lines: &BTreeSet<String>| -> Vec<String> {
            lines.iter().filter(|line| !line.contains("192.0.2.1")).cloned().collect()
        };
        assert_eq!(without_hairpin(&updated), without_hairpin(&expected), "step {step}");
        rules = new;
    }
}

/// Returns the elements of all sets, each with its set's name.
fn sets(netns: &Netns) -> BTreeSet<String> {
    let text = command::run(netns, "nft", &["-j", "list", "sets", "inet"]);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sets = answer["nftables"].as_array().unwrap().iter().filter(|object| object["set"].is_object());
    sets.flat_map(|object| {
        let elements = object["set"]["elem"].as_array().cloned().unwrap_or_default();
        let name = object["set"]["name"].as_str().unwrap().to_owned();
        elements.into_iter().map(move |element| match element["elem"]["val"]["concat"].as_array() {
            Some(pair) => format!("{name} {} . {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => format!("{name} {element}"),
        })
    })
    .collect()
}

#[test]
fn ten_thousand_nodes_are_installed_and_updated_quickly() {
    let lab = OwnedNetns::new(format!("pt-{}-nft", std::process::id()));
    let timed = |what: &str, call: &(dyn Fn() -> anyhow::Result<()> + Sync)| {
        let best = (0..3)
            .map(|_| {
                let start = std::time::Instant::now();
                lab.netns.run(call).unwrap_or_else(|error| panic!("{error:#}"));
                start.elapsed()
            })
            .min()
            .unwrap();
        println!("{what}: {:.1} ms", best.as_secs_f64() * 1000.0);
        best
    };
    for (kind, step) in [("side by side", 1), ("every second one", 2)] {
        let number = |number: u32| (number * step, IpAddr::from((0xac10_0000 + number * 2).to_be_bytes()));
        let mut rules = Rules { bridge: "v-net-0".into(), masquerade: BOTH.to_vec(), ..Rules::default() };
        rules.own = networks(&["10.0.0.0/25", "fd00:10::/64"]).collect();
        for (position, address) in (0..10_000).map(number) {
            rules.pods.insert(IpNetwork::new(IpAddr::from((0x0a00_0000 + position * 128).to_be_bytes()), 25).unwrap());
            rules.pods.insert(IpNetwork::new(format!("fd00:10:0:{position:x}::").parse().unwrap(), 64).unwrap());
            rules.nodes.insert(address);
        }
        let mut other = rules.clone();
        let (position, address) = number(5000);
        assert!(
            other.pods.remove(&IpNetwork::new(IpAddr::from((0x0a00_0000 + position * 128).to_be_bytes()), 25).unwrap())
        );
        assert!(other.pods.remove(&IpNetwork::new(format!("fd00:10:0:{position:x}::").parse().unwrap(), 64).unwrap()));
        assert!(other.nodes.remove(&address));
        timed(&format!("10,000 nodes, pod CIDRs {kind}: install"), &|| nft::install(&rules));
        let update = timed("  update without a node, and another with it", &|| {
            nft::update(&rules, &other)?;
            nft::update(&other, &rules)
        }) / 2;
        timed("  check", &|| {
            anyhow::ensure!(nft::is_installed(&rules)?);
            Ok(())
        });
        assert!(update < std::time::Duration::from_millis(50), "{kind}: {update:?}");
    }
}
