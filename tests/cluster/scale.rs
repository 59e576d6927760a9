//! Ten thousand other nodes: start, one change, memory, the cost of a resync. Prints what it measures.
//!
//! The goals are those of a release build of the daemon; a debug build is only watched.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use harness::{Family, TestCluster, TestNode, command::run, interfaces, maps, wait_for};
use ipnetwork::IpNetwork;
use podnet::{cluster::ClusterNode, config::RoutingMode, netns::Netns};

/// How many nodes there are besides the lab's two.
const NODES: u32 = 10_000;

/// Start until ready.
const START: Duration = Duration::from_secs(2);

/// From a new file of nodes until the route of a node that changed is there.
const CHANGE: Duration = Duration::from_millis(100);

/// For how long the cost of resyncs is measured.
const MEASURED: Duration = Duration::from_secs(5);

/// How much longer than its goal something may take on a machine that does other things, too.
const SLACK: u32 = 3;

/// A node that is nowhere: on the link in mode `direct`, so that each is its own next hop, and else beyond the router.
fn remote(number: u32) -> ClusterNode {
    let [_, _, high, low] = number.to_be_bytes();
    let (high6, low6) = (u16::from(high), u16::from(low));
    ClusterNode {
        name: format!("remote{number:05}"),
        addresses: vec![
            Ipv4Addr::new(172, 16, high, low).into(),
            Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, high6, low6 + 1).into(),
        ],
        pod_cidrs: vec![
            IpNetwork::new(Ipv4Addr::new(10, high, low, 0).into(), 24).unwrap(),
            IpNetwork::new(Ipv6Addr::new(0xfd00, 0x10, high6, low6, 0, 0, 0, 0).into(), 64).unwrap(),
        ],
    }
}

/// The kernel's news of routes, as they come.
struct RouteMonitor {
    process: Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl RouteMonitor {
    /// Returns when it sees changes.
    fn start(netns: &Netns) -> Self {
        let mut command = Command::new("ip");
        command.args(["monitor", "route"]).stdout(Stdio::piped());
        let mut process = netns.run(|| Ok(command.spawn()?)).unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                seen.lock().unwrap().push((Instant::now(), line));
            }
        });
        let monitor = Self { process, lines };
        // A route of the kernel's is no news to the daemon.
        wait_for("the monitor of routes", || {
            for change in ["add", "del"] {
                run(netns, "ip", &["route", change, "blackhole", "198.51.100.1", "proto", "kernel"]);
            }
            monitor.lines.lock().unwrap().pop()
        });
        monitor
    }

    fn lines(&self) -> Vec<(Instant, String)> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|(_, line)| !line.contains("198.51.100.1 ")).cloned().collect()
    }

    /// Waits for so many changes, and a while for what must not come after them; forgets them. Returns when the last
    /// came, and all.
    fn take(&self, count: usize) -> (Instant, Vec<String>) {
        wait_for(&format!("{count} changes of routes"), || (self.lines().len() >= count).then_some(()));
        std::thread::sleep(harness::QUIET);
        let lines = self.lines();
        self.lines.lock().unwrap().clear();
        (lines[count - 1].0, lines.into_iter().map(|(_, line)| line).collect())
    }
}

impl Drop for RouteMonitor {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Returns the resident memory of the daemon in MiB.
fn resident(node: &TestNode) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.status().pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Returns how much CPU time a process has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<i64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    // utime and stime, the 14th and 15th field of proc_pid_stat(5), in ticks of 10 ms.
    Duration::from_millis((fields[10] + fields[11]) as u64 * 10)
}

fn start(node: &TestNode, what: &str) {
    let begun = Instant::now();
    node.start_daemon();
    let elapsed = begun.elapsed();
    println!("{what}: ready after {elapsed:.0?}");
    check_goal(what, elapsed, START);
}

fn check_goal(what: &str, elapsed: Duration, goal: Duration) {
    if cfg!(debug_assertions) {
        return;
    }
    assert!(elapsed < goal * SLACK, "{what}: {elapsed:?}, the goal is {goal:?}");
    if elapsed > goal {
        println!("{what}: {elapsed:?} is more than the goal of {goal:?}");
    }
}

/// Checks that routes and maps hold all nodes.
fn check_complete(node: &TestNode, others: usize) {
    for family in Family::ALL {
        assert_eq!(interfaces::own_destinations(node.netns(), family).len(), others, "{family:?} routes");
    }
    let entries = maps::nodes(node.node()).keys().count();
    assert_eq!(entries, 2 * (others + 1), "entries of NODES, the node's own included");
    assert_eq!(maps::node_addresses(node.node()).keys().count(), 2 * (others + 1), "entries of NODE_ADDRESSES");
    let status = node.status();
    assert_eq!((status.cluster.nodes, status.repairs), (others + 1, 0));
    assert_eq!(status.warnings, Vec::<String>::new());
}

fn ten_thousand_nodes(mode: RoutingMode) {
    let cluster = TestCluster::with(|options| {
        options.mode = mode;
        options.nodes = 2;
        options.log = "info".into();
    });
    cluster.wait_for_routes();
    let node = &cluster.nodes()[0];
    node.stop_daemon();
    cluster.nodes()[1].stop_daemon();
    if mode == RoutingMode::Direct {
        for address in ["172.16.255.254/16", "fd00:172::ffff:ffff/64"] {
            run(node.netns(), "ip", &["address", "add", address, "dev", "eth0", "nodad"]);
        }
    }
    let own = cluster.nodes_file().read().unwrap();
    let all: Vec<ClusterNode> = own.iter().cloned().chain((0..NODES).map(remote)).collect();
    cluster.nodes_file().write(&all).unwrap();
    let others = NODES as usize + 1;

    start(node, &format!("{mode}, {NODES} new nodes"));
    check_complete(node, others);
    println!("{mode}: the daemon has {:.1} MiB resident", resident(node));
    node.stop_daemon();
    start(node, &format!("{mode}, {NODES} known nodes"));
    check_complete(node, others);
    // What the daemon does right after its start shall not be taken for the cost of a change.
    wait_for_idle(node);

    let monitor = RouteMonitor::start(node.netns());
    let last = all.len() - 1;
    let moved = ClusterNode {
        addresses: vec!["192.168.1.200".parse().unwrap(), "fd00:192:168:1::200".parse().unwrap()],
        ..all[last].clone()
    };
    let with = |node: &ClusterNode| [&all[..last], std::slice::from_ref(node)].concat();
    for (what, nodes) in [
        ("one node removed", all[..last].to_vec()),
        ("one node added", all.clone()),
        ("one node moved", with(&moved)),
        ("one node moved back", with(&all[last])),
    ] {
        let text = podnet::cluster::file::to_text(&nodes).unwrap();
        let path = cluster.nodes_file().path;
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        let begun = Instant::now();
        std::fs::rename(&beside, &path).unwrap();
        let (last_change, lines) = monitor.take(2);
        let elapsed = last_change - begun;
        println!("{mode}, {what} of {NODES}: its routes have changed after {elapsed:.1?}");
        let cidrs: Vec<_> = all[last].pod_cidrs.iter().map(ToString::to_string).collect();
        let is_its = |line: &String| cidrs.iter().any(|cidr| line.contains(cidr.as_str()));
        assert!(lines.len() == 2 && lines.iter().all(is_its), "{what}: only its two routes change: {lines:?}");
        check_goal(what, elapsed, CHANGE);
    }
    check_complete(node, others);
    println!("{mode}: the daemon has {:.1} MiB resident after {} changes", resident(node), 4);

    node.restart_with(|config| config.resync_seconds = 1);
    wait_for_idle(node);
    let pid = node.status().pid;
    let (before, begun) = (cpu_time(pid), Instant::now());
    std::thread::sleep(MEASURED);
    let (cpu, elapsed) = (cpu_time(pid).saturating_sub(before), begun.elapsed());
    println!(
        "{mode}: {NODES} nodes, one resync a second: {:.1?} CPU time a second",
        cpu.div_f64(elapsed.as_secs_f64())
    );
    assert_eq!(node.status().repairs, 0, "there is nothing to repair");
    check_complete(node, others);
}

/// Waits until the daemon has done nothing for a moment.
fn wait_for_idle(node: &TestNode) {
    let pid = node.status().pid;
    let mut before = cpu_time(pid);
    let mut since = Instant::now();
    wait_for("the daemon to be idle", || {
        let now = cpu_time(pid);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() > harness::QUIET).then_some(())
    });
}

#[test]
fn ten_thousand_nodes_directly() {
    ten_thousand_nodes(RoutingMode::Direct);
}

#[test]
fn ten_thousand_nodes_through_the_overlay() {
    ten_thousand_nodes(RoutingMode::Overlay);
}
