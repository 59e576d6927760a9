//! Pod CIDRs: one of each family for each node, never one for two, and the same for as long as the node is there.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use harness::wait_for;
use ipnetwork::IpNetwork;
use podnet::cluster::Cluster;

use crate::{
    server::{Etcd, watch_for},
    store::{Node, Running},
};

const CROWD: u16 = 50;

#[test]
fn fifty_nodes_that_start_at_once_claim_fifty_pod_cidrs() {
    let etcd = Etcd::new();
    let nodes: Vec<Node> = (1..=CROWD).map(|number| Node::new(number, &etcd.urls())).collect();
    let start = Instant::now();
    let running: Vec<Running> = nodes.iter().map(|node| node.start(etcd.netns())).collect();
    for store in &running {
        store.pod_cidrs();
    }
    let registered = start.elapsed();
    // Each sees all others, and all see the same.
    for store in &running {
        wait_for("all to know all", || {
            store.told(|told| {
                told.cluster.as_ref().is_some_and(|it| it.nodes().len() == usize::from(CROWD)).then_some(())
            })
        });
    }
    let agreed = start.elapsed();
    let clusters: Vec<_> = running.iter().map(|store| store.told(|told| told.cluster.clone())).collect();
    assert!(clusters.iter().all(|cluster| *cluster == clusters[0]));
    let cidrs: BTreeSet<IpNetwork> =
        clusters[0].iter().flat_map(Cluster::nodes).flat_map(|node| node.pod_cidrs.clone()).collect();
    assert_eq!(cidrs.len(), 2 * usize::from(CROWD), "{cidrs:?}");
    assert_eq!(etcd.get("/podnet/cidrs/").len(), cidrs.len());
    assert!(running.iter().all(|store| store.told(|told| told.failures == 0)));
    let snapshots: usize = running.iter().map(|store| store.told(|told| told.snapshots)).sum();
    println!(
        "{CROWD} nodes at once: each has its pod CIDRs after {} ms, all know all after {} ms, {} snapshots per node",
        registered.as_millis(),
        agreed.as_millis(),
        snapshots / usize::from(CROWD)
    );
    assert!(agreed < Duration::from_secs(30), "{agreed:?}");

    // All end and start again: nothing is claimed anew.
    drop(running);
    let again: Vec<Running> = nodes.iter().rev().map(|node| node.start(etcd.netns())).collect();
    for (store, node) in again.iter().zip(nodes.iter().rev()) {
        let before = clusters[0].as_ref().unwrap().node(node.name()).unwrap().pod_cidrs.clone();
        assert_eq!(store.pod_cidrs(), before);
    }
    assert_eq!(etcd.get("/podnet/cidrs/").len(), cidrs.len());
}

#[test]
fn a_range_that_is_exhausted_is_said_and_a_node_that_leaves_makes_room() {
    let etcd = Etcd::new();
    let small = |number| {
        Node::with(number, &etcd.urls(), |config, _| config.cluster_cidrs = vec!["10.9.0.0/23".parse().unwrap()])
    };
    let nodes = [small(1), small(2), small(3)];
    let first = nodes[0].start(etcd.netns());
    assert_eq!(first.pod_cidrs()[0].to_string(), "10.9.0.0/24");
    let second = nodes[1].start(etcd.netns());
    assert_eq!(second.pod_cidrs()[0].to_string(), "10.9.1.0/24");
    let third = nodes[2].start(etcd.netns());
    third.wait_for_failure("no pod CIDR is free: all 2 of size /24 in 10.9.0.0/23");
    drop(first);
    nodes[0].leave(etcd.netns());
    assert_eq!(third.pod_cidrs()[0].to_string(), "10.9.0.0/24");
    second.wait_without_node("node1");
    // It comes back as a new node, and there is no room.
    nodes[0].start(etcd.netns()).wait_for_failure("no pod CIDR is free");
}

#[test]
fn pod_cidrs_of_the_configuration_are_claimed_or_their_owner_is_named() {
    let etcd = Etcd::new();
    let exact = |number, cidr: &str| {
        Node::with(number, &etcd.urls(), |config, _| config.pod_cidrs = vec![cidr.parse().unwrap()])
    };
    let one = exact(1, "10.244.7.0/24").start(etcd.netns());
    assert_eq!(one.pod_cidrs()[0].to_string(), "10.244.7.0/24");
    let other = exact(2, "10.244.7.0/24").start(etcd.netns());
    other.wait_for_failure("pod CIDR 10.244.7.0/24 belongs to node node1");
    // Another size would overlap.
    let odd = Node::with(3, &etcd.urls(), |config, store| {
        config.cluster_cidrs.truncate(1);
        store.node_prefix_ipv4 = 25;
    });
    odd.start(etcd.netns()).wait_for_failure("the other nodes have node-prefix-ipv4 = 24");
}

#[test]
fn two_machines_of_one_name_are_told_apart() {
    let etcd = Etcd::new();
    let (one, other) = (Node::new(1, &etcd.urls()), Node::new(1, &etcd.urls()));
    let first = one.start(etcd.netns());
    let cidrs = first.pod_cidrs();
    let second = other.start(etcd.netns());
    second.wait_for_failure("another machine is registered as node1 (192.168.0.1)");
    watch_for(Duration::from_secs(1), || assert_eq!(first.told(|told| told.failures), 0));
    // The first is away for good, and the second is it, installed anew: with pod CIDRs of its own, since the first may
    // still run pods somewhere.
    drop(first);
    assert_ne!(second.pod_cidrs(), cidrs);
    assert_eq!(etcd.get("/podnet/cidrs/").len(), 4);
    one.start(etcd.netns()).wait_for_failure("another machine is registered as node1");
}
