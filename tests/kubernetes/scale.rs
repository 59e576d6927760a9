//! Ten thousand Node objects of real size: how long until a daemon has them, and how much memory it takes.

use std::time::{Duration, Instant};

use harness::{TestNode, wait_for};
use podnet::{cluster::ClusterNode, config::RoutingMode};

use crate::{daemon::Setup, objects::FakeNode};

/// How many nodes there are besides the lab's two.
const NODES: u32 = 10_000;

/// How many images each node has: kubelet reports as many at most (`nodeStatusMaxImages`).
const IMAGES: usize = 50;

/// Most CPU time of the daemon from its start until it has all nodes; the rest is the server's.
const START: Duration = Duration::from_secs(6);

/// Most memory that the daemon may ever have had, in MiB.
const PEAK: f64 = 160.0;

/// Returns a field of the daemon's `/proc/PID/status` in MiB.
fn memory(node: &TestNode, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.status().pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Returns how much CPU time the daemon has used.
fn cpu_time(node: &TestNode) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.status().pid)).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    // utime and stime, the 14th and 15th field of proc_pid_stat(5), in ticks of 10 ms.
    Duration::from_millis(fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>() * 10)
}

/// Returns the node as the file of nodes has it.
fn in_a_file(node: &FakeNode) -> ClusterNode {
    ClusterNode {
        name: node.name.clone(),
        addresses: node.addresses.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: node.pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    }
}

#[test]
fn ten_thousand_nodes() {
    let setup = Setup::new(2, RoutingMode::Overlay);
    let nodes = (1..=NODES).map(|number| FakeNode { images: IMAGES, ..FakeNode::numbered(number + 10) });
    let nodes: Vec<FakeNode> = nodes.map(|node| FakeNode { name: format!("remote-{}", node.name), ..node }).collect();
    let size = nodes[0].item(1).to_string().len();
    let node = &setup.cluster.nodes()[0];
    let known = |count: usize| (node.status().cluster.nodes == count).then_some(());
    let all = NODES as usize + 2;

    // The same nodes out of a file: what remains is the store's.
    let mut file = setup.cluster.nodes_file().read().unwrap();
    file.extend(nodes.iter().map(in_a_file));
    setup.cluster.nodes_file().write(&file).unwrap();
    wait_for("all nodes of the file", || known(all));
    node.stop_daemon();
    node.start_daemon();
    wait_for("all nodes of the file", || known(all));
    let remaining: Vec<ClusterNode> = file.iter().filter(|node| node.name != "remote-node20").cloned().collect();
    setup.cluster.nodes_file().write(&remaining).unwrap();
    wait_for("one node less", || known(all - 1));
    let (peak, cpu) = (memory(node, "VmHWM"), cpu_time(node));
    println!("{NODES} nodes of a file, and a change: {peak:.0} MiB at most, {cpu:.1?} of CPU");

    setup.api.put(nodes);
    setup.configure(node);
    let begun = Instant::now();
    node.start_daemon();
    node.wait_for_log(&["the nodes are listed"]);
    wait_for("all nodes", || known(all));
    let (elapsed, cpu) = (begun.elapsed(), cpu_time(node));
    let (resident, peak) = (memory(node, "VmRSS"), memory(node, "VmHWM"));
    println!(
        "{NODES} nodes of {size} bytes, {} MB in all: ready after {elapsed:.1?}, {cpu:.1?} of CPU, {resident:.0} MiB resident, {peak:.0} MiB at most",
        size * NODES as usize / 1_000_000
    );

    // One of them leaves, while all of them beat their hearts once.
    setup.api.state(|state| {
        for number in 1..=NODES {
            state.change(&format!("remote-node{}", number + 10), |node| node.beats += 1);
        }
    });
    let begun = Instant::now();
    setup.api.state(|state| state.delete("remote-node20"));
    wait_for("one node less", || known(NODES as usize + 1));
    println!(
        "a change behind {NODES} heart-beats: {:.1?}, {:.1?} of CPU",
        begun.elapsed(),
        cpu_time(node).saturating_sub(cpu)
    );
    let begun = Instant::now();
    setup.api.state(|state| state.delete("remote-node21"));
    wait_for("another node less", || known(NODES as usize));
    println!("a change: {:.0?}; {:.0} MiB at most", begun.elapsed(), memory(node, "VmHWM"));
    assert!(cpu < START, "{cpu:?}");
    let peak = memory(node, "VmHWM");
    assert!(peak < PEAK, "{peak} MiB");
}
