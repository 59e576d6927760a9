//! Ten thousand other nodes in etcd: the first snapshot, one change, memory. Prints what it measures.

use std::time::{Duration, Instant};

use harness::wait_for;

use crate::{server::Etcd, store::Node};

const NODES: u32 = 10_000;

/// Start until the first snapshot is told: two thousand keys a tenth of a second, and registering.
const START: Duration = Duration::from_secs(15);

/// Returns what the daemon of a node would have written; it reports for ever.
fn keys(number: u32) -> [(String, String); 4] {
    let [_, _, high, low] = number.to_be_bytes();
    let (v4, v6) = (format!("10.{high}.{low}.0/24"), format!("fd00:10:{high:x}:{low:x}::/64"));
    let v6 = v6.parse::<ipnetwork::IpNetwork>().unwrap().to_string();
    let (name, id) = (format!("remote{number:05}"), format!("0e984725-c51c-4bf4-9960-{number:012}"));
    let record =
        format!(r#"{{"id":"{id}","addresses":["172.16.{high}.{low}"],"podCIDRs":["{v4}","{v6}"],"graceSeconds":300}}"#);
    let owner = format!(r#"{{"node":"{name}","id":"{id}"}}"#);
    [
        (format!("/podnet/nodes/{name}"), record),
        (format!("/podnet/alive/{name}"), format!(r#"{{"id":"{id}"}}"#)),
        (format!("/podnet/cidrs/{v4}"), owner.clone()),
        (format!("/podnet/cidrs/{v6}"), owner),
    ]
}

/// Returns the resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_nodes() {
    let etcd = Etcd::new();
    etcd.put_at_once(&(0..NODES).flat_map(keys).collect::<Vec<_>>());
    let before = resident();
    let node = Node::with(1, &etcd.urls(), |config, _| {
        config.cluster_cidrs = vec!["10.0.0.0/8".parse().unwrap(), "fd00:10::/32".parse().unwrap()];
    });
    let start = Instant::now();
    let store = node.start(etcd.netns());
    let cidrs = store.pod_cidrs();
    let first = start.elapsed();
    assert_eq!(store.told(|told| told.cluster.as_ref().unwrap().nodes().len()), NODES as usize + 1);
    let memory = resident().saturating_sub(before) / 1024;
    // The first ranges that are free, behind all the others.
    assert_eq!(cidrs[0].to_string(), format!("10.{}.{}.0/24", NODES >> 8, NODES & 0xff));

    let gone = Instant::now();
    etcd.ctl(&["del", "/podnet/nodes/remote00007"]);
    wait_for("one node less", || store.knows("remote00007").is_none().then_some(()));
    let change = gone.elapsed();
    println!(
        "{NODES} nodes: first snapshot and own pod CIDRs after {} ms, one change told after {} ms (etcdctl included), {memory} MiB in this process",
        first.as_millis(),
        change.as_millis()
    );
    assert!(first < START, "{first:?}");
    assert!(change < Duration::from_secs(3), "{change:?}");
    assert!(memory < 100, "{memory} MiB");
}
