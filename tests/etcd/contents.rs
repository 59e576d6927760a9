//! Somebody writes into etcd by hand, or deletes there: one record spoils nothing else, and the node's own come back.

use std::time::Duration;

use harness::wait_for;

use crate::{
    server::{Etcd, watch_for},
    store::Node,
};

#[test]
fn a_broken_record_is_left_out_alone() {
    let etcd = Etcd::new();
    etcd.ctl(&["put", "/podnet/nodes/torn", "{\"id\":"]);
    etcd.ctl(&["put", "/podnet/cidrs/nonsense", "{}"]);
    etcd.ctl(&["put", "/podnet/later/key", "?"]);
    let (node1, node2) = (Node::new(1, &etcd.urls()), Node::new(2, &etcd.urls()));
    let one = node1.start(etcd.netns());
    let cidr = one.pod_cidrs()[0];
    let claims_all = r#"{"id":"x","addresses":["10.1.1.1"],"podCIDRs":["10.244.0.0/16"],"graceSeconds":300}"#;
    etcd.ctl(&["put", "/podnet/nodes/greedy", claims_all]);
    let two = node2.start(etcd.netns());
    two.pod_cidrs();
    one.wait_for_node("node2");
    two.wait_for_node("node1");
    for store in [&one, &two] {
        assert!(store.knows("greedy").is_none() && store.knows("torn").is_none());
        assert_eq!(store.told(|told| told.failures), 0);
    }
    assert_eq!(one.pod_cidrs()[0], cidr);
    // Mended, it counts. It never reports, so that it counts for its grace.
    let mended = claims_all.replace("10.244.0.0/16", "10.244.200.0/24");
    etcd.ctl(&["put", "/podnet/nodes/torn", &mended.replace("10.1.1.1", "10.1.1.2")]);
    assert_eq!(one.wait_for_node("torn").pod_cidrs[0].to_string(), "10.244.200.0/24");
}

#[test]
fn what_somebody_deletes_of_a_node_that_reports_comes_back() {
    let etcd = Etcd::new();
    let (node1, node2) = (Node::new(1, &etcd.urls()), Node::new(2, &etcd.urls()));
    let (one, two) = (node1.start(etcd.netns()), node2.start(etcd.netns()));
    let cidrs = one.pod_cidrs();
    two.wait_for_node("node1");
    let all = etcd.get("/podnet/").len();
    for key in ["/podnet/alive/node1", "/podnet/nodes/node1", "/podnet/cidrs/", "/podnet/layout", "/podnet/"] {
        etcd.ctl(&["del", "--prefix", key]);
        wait_for(&format!("{key} to come back"), || (etcd.get("/podnet/").len() == all).then_some(()));
    }
    etcd.ctl(&["put", "/podnet/nodes/node1", "nonsense"]);
    wait_for("the own record to be mended", || etcd.get("/podnet/nodes/node1")[0].1.contains("podCIDRs").then_some(()));
    assert_eq!((one.pod_cidrs(), two.wait_for_node("node1").pod_cidrs), (cidrs.clone(), cidrs));
    assert_eq!(one.told(|told| told.failures), 0);
}

#[test]
fn many_changes_at_once_are_few_snapshots() {
    let etcd = Etcd::new();
    let node = Node::new(1, &etcd.urls());
    let store = node.start(etcd.netns());
    store.pod_cidrs();
    let before = store.told(|told| told.snapshots);
    let record = |number: u8| {
        let value = format!(
            r#"{{"id":"x","addresses":["172.16.0.{number}"],"podCIDRs":["10.245.{number}.0/24"],"graceSeconds":300}}"#
        );
        (format!("/podnet/nodes/n{number}"), value)
    };
    etcd.put_at_once(&(0..100).map(record).collect::<Vec<_>>());
    store.wait_for_node("n99");
    watch_for(Duration::from_millis(500), || ());
    let snapshots = store.told(|told| told.snapshots) - before;
    println!("100 nodes in one transaction: {snapshots} snapshots");
    assert!(snapshots <= 2, "{snapshots}");
}
