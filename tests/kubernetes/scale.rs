//! Ten thousand Node objects of real size: how long until a daemon has them, and how much memory it takes.

use std::time::{Duration, Instant};

use harness::{TestNode, wait_for};
use podnet::config::RoutingMode;

use crate::{daemon::Setup, objects::FakeNode};

/// How many nodes there are besides the lab's two.
const NODES: u32 = 10_000;

/// How many images each node has: kubelet reports as many at most (`nodeStatusMaxImages`).
const IMAGES: usize = 50;

/// Longest time from the daemon's start until it has all nodes, on a machine that does other things, too.
const START: Duration = Duration::from_secs(30);

/// Most memory that the daemon may ever have had, in MiB.
const PEAK: f64 = 160.0;

/// Returns a field of the daemon's `/proc/PID/status` in MiB.
fn memory(node: &TestNode, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.status().pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
fn ten_thousand_nodes() {
    let setup = Setup::new(2, RoutingMode::Overlay);
    let nodes = (1..=NODES).map(|number| FakeNode { images: IMAGES, ..FakeNode::numbered(number + 10) });
    let nodes: Vec<FakeNode> = nodes.map(|node| FakeNode { name: format!("remote-{}", node.name), ..node }).collect();
    let size = nodes[0].item(1).to_string().len();
    setup.api.put(nodes);
    let node = &setup.cluster.nodes()[0];
    println!("before, with 2 nodes: {:.0} MiB", memory(node, "VmRSS"));
    setup.configure(node);
    let begun = Instant::now();
    node.start_daemon();
    let known = |count: usize| (node.status().cluster.nodes == count).then_some(());
    wait_for("all nodes", || known(NODES as usize + 2));
    let elapsed = begun.elapsed();
    let (resident, peak) = (memory(node, "VmRSS"), memory(node, "VmHWM"));
    println!(
        "{NODES} nodes of {size} bytes, {} MB in all: ready after {elapsed:.1?}, {resident:.0} MiB resident, {peak:.0} MiB at most",
        size * NODES as usize / 1_000_000
    );
    let list = node.wait_for_log(&["the nodes are listed"]);
    println!("{list}");

    // One of them leaves, while all of them beat their hearts once.
    setup.api.state(|state| {
        for number in 1..=NODES {
            state.change(&format!("remote-node{}", number + 10), |node| node.beats += 1);
        }
    });
    let begun = Instant::now();
    setup.api.state(|state| state.delete("remote-node20"));
    wait_for("one node less", || known(NODES as usize + 1));
    println!("a change behind {NODES} heart-beats: {:.1?}", begun.elapsed());
    let begun = Instant::now();
    setup.api.state(|state| state.delete("remote-node21"));
    wait_for("another node less", || known(NODES as usize));
    println!("a change: {:.0?}; {:.0} MiB at most", begun.elapsed(), memory(node, "VmHWM"));
    assert!(elapsed < START, "{elapsed:?}");
    let peak = memory(node, "VmHWM");
    assert!(cfg!(debug_assertions) || peak < PEAK, "{peak} MiB");
}
