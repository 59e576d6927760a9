//! etcd restarts, forgets its history, loses its majority or everything; nodes are cut off for shorter and for longer
//! than their grace.

use std::time::{Duration, Instant};

use harness::wait_for;
use podnet::{
    cluster::{Cluster, ClusterNode, last_known},
    database::Database,
};

use crate::{
    server::{Etcd, Far, NEAR_ADDRESS, Options, watch_for},
    store::{LEASE, Node, Running},
};

#[test]
fn a_restart_of_etcd_is_told_once_and_survived() {
    let etcd = Etcd::new();
    let nodes = [Node::new(1, &etcd.urls()), Node::new(2, &etcd.urls())];
    let (one, two) = (nodes[0].start(etcd.netns()), nodes[1].start(etcd.netns()));
    one.wait_for_node("node2");
    two.wait_for_node("node1");
    let before = one.told(|told| told.cluster.clone());
    etcd.kill(0);
    let failure = one.wait_for_failure("Connection refused");
    assert!(failure.contains(&etcd.urls()[0]), "{failure}");
    // Many attempts, one message; and nobody is forgotten although every lease has run out.
    watch_for(Duration::from_secs(u64::from(LEASE) + 2), || {
        assert_eq!(one.told(|told| told.failures), 1, "{:?}", one.told(|told| told.failure.clone()));
        assert_eq!(one.told(|told| told.cluster.clone()), before);
    });
    etcd.start(0);
    let start = Instant::now();
    one.wait_until_well();
    two.wait_until_well();
    println!("well {:.1} s after etcd was started again", start.elapsed().as_secs_f32());
    assert_eq!(one.told(|told| told.cluster.clone()), before);
    let three = Node::new(3, &etcd.urls()).start(etcd.netns());
    three.pod_cidrs();
    one.wait_for_node("node3");

    // To leave without etcd is no error: the others release the node after its grace.
    etcd.kill(0);
    drop(two);
    assert!(nodes[1].config.state_dir.join("node-id").exists());
    nodes[1].leave(etcd.netns());
    assert!(!nodes[1].config.state_dir.join("node-id").exists());
}

/// A daemon that came up without etcd runs with what it knew last, and has pods of it: it must not be given another.
#[test]
fn a_node_that_started_without_etcd_takes_nothing_else() {
    let etcd = Etcd::new();
    let node = Node::new(1, &etcd.urls());
    let other = Node::new(2, &etcd.urls());
    let last_known = ClusterNode {
        name: "node1".into(),
        addresses: vec!["192.168.0.1".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/24".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()],
    };
    std::fs::create_dir_all(&node.config.state_dir).unwrap();
    last_known::store(&node.config.state_dir, &Cluster::new(vec![last_known.clone()]).unwrap()).unwrap();
    let owner = other.start(etcd.netns());
    assert_eq!(owner.pod_cidrs(), last_known.pod_cidrs);
    etcd.kill(0);
    let store = node.start(etcd.netns());
    store.wait_for_failure("Connection refused");
    etcd.start(0);
    store.wait_for_failure("pod CIDR 10.244.0.0/24 belongs to node node2");
    drop(store);
    // With etcd from the start, and without pods in its database, it is free to take others.
    drop(Database::open(&node.config.state_dir).unwrap());
    assert_ne!(node.start(etcd.netns()).pod_cidrs(), last_known.pod_cidrs);
}

#[test]
fn what_was_compacted_during_a_disconnection_is_read_anew() {
    let etcd = Etcd::with(Options { members: 1, address: Some(NEAR_ADDRESS.into()), ..Options::default() });
    // The servers' own URL is that of the veth, which is there now.
    let far = Far::new(&etcd);
    let near_urls = ["http://127.0.0.1:2379".to_owned()];
    let nodes = [Node::new(1, &etcd.urls()), Node::new(2, &near_urls), Node::new(3, &near_urls)];
    let away = nodes[0].start(far.netns());
    let near = nodes[1].start(etcd.netns());
    away.wait_for_node("node2");
    far.cut();
    away.wait_for_failure(NEAR_ADDRESS);
    // One goes, one comes, and the history is gone.
    drop(near);
    nodes[1].leave(etcd.netns());
    let third = nodes[2].start(etcd.netns());
    third.pod_cidrs();
    etcd.compact();
    assert!(away.knows("node2").is_some() && away.knows("node3").is_none());
    far.mend();
    away.wait_until_well();
    away.wait_for_node("node3");
    away.wait_without_node("node2");
}

#[test]
fn a_node_that_is_cut_off_keeps_its_pod_cidrs_for_its_grace_and_hears_who_has_them_later() {
    const GRACE: u32 = 6;
    let etcd = Etcd::with(Options { members: 1, address: Some(NEAR_ADDRESS.into()), ..Options::default() });
    let far = Far::new(&etcd);
    let near_urls = ["http://127.0.0.1:2379".to_owned()];
    let far_node = Node::with(1, &etcd.urls(), |_, store| store.grace_seconds = GRACE);
    let (near_node, heir_node) = (
        Node::new(2, &near_urls),
        Node::with(3, &near_urls, |config, _| config.pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()]),
    );
    let away = far_node.start(far.netns());
    let cidrs = away.pod_cidrs();
    assert_eq!(cidrs[0].to_string(), "10.244.0.0/24");
    let near = near_node.start(etcd.netns());
    near.wait_for_node("node1");
    away.wait_for_node("node2");

    // Longer than the lease, shorter than the grace: nobody notices.
    let registered = || !etcd.get("/podnet/alive/node1").is_empty();
    far.cut();
    let start = Instant::now();
    away.wait_for_failure(NEAR_ADDRESS);
    println!("a black hole was noticed after {:.1} s (lease of {LEASE} s)", start.elapsed().as_secs_f32());
    wait_for("the lease to run out", || (!registered()).then_some(()));
    assert!(near.knows("node1").is_some());
    assert!(near.knows("node2").is_some() && away.knows("node2").is_some());
    far.mend();
    away.wait_until_well();
    wait_for("node1 to register again", || registered().then_some(()));
    assert_eq!(away.pod_cidrs(), cidrs);
    assert_eq!(near.told(|told| (told.failures, told.cluster.as_ref().unwrap().nodes().len())), (0, 2));

    // Longer than both: the claim is honoured until the grace has passed, then another node gets it.
    far.cut();
    wait_for("the lease to run out", || (!registered()).then_some(()));
    let expired = Instant::now();
    let heir = heir_node.start(etcd.netns());
    heir.wait_for_failure("10.244.0.0/24 belongs to node node1");
    assert!(near.knows("node1").is_some());
    near.wait_without_node("node1");
    assert!(expired.elapsed() > Duration::from_secs(u64::from(GRACE) - 1), "{:?}", expired.elapsed());
    assert_eq!(heir.pod_cidrs()[0].to_string(), "10.244.0.0/24");
    println!(
        "given to another node {:.1} s after the lease ran out (grace of {GRACE} s)",
        expired.elapsed().as_secs_f32()
    );
    assert_eq!(away.pod_cidrs(), cidrs, "the last known state stays in force");

    far.mend();
    let failure = away.wait_for_failure("pod CIDR 10.244.0.0/24 belongs to node node3");
    assert!(failure.contains("remove them and start the daemon again"), "{failure}");
    assert_eq!(away.pod_cidrs(), cidrs);
    assert!(near.knows("node1").is_none(), "it is not registered with what it has not");
    // The other one gives it back; or the daemon is started again, without pods.
    drop(heir);
    heir_node.leave(etcd.netns());
    away.wait_until_well();
    assert_eq!(near.wait_for_node("node1").pod_cidrs, cidrs);
}

#[test]
fn a_lost_quorum_changes_nothing_and_one_member_less_is_borne() {
    let etcd = Etcd::with(Options { members: 3, ..Options::default() });
    let nodes: Vec<Node> = (1..=3).map(|number| Node::new(number, &etcd.urls())).collect();
    let (one, two) = (nodes[0].start(etcd.netns()), nodes[1].start(etcd.netns()));
    one.wait_for_node("node2");
    two.wait_for_node("node1");
    etcd.kill(0);
    let three = nodes[2].start(etcd.netns());
    let cidrs = three.pod_cidrs();
    one.wait_for_node("node3");
    two.wait_for_node("node3");
    let before = one.told(|told| told.cluster.clone());
    etcd.kill(1);
    let start = Instant::now();
    let failure = one.wait_for_failure(&etcd.urls()[2]);
    println!("a lost quorum was told after {:.1} s: {failure}", start.elapsed().as_secs_f32());
    two.wait_for_failure("http");
    watch_for(Duration::from_secs(u64::from(LEASE) + 1), || {
        assert_eq!(one.told(|told| told.cluster.clone()), before);
    });
    etcd.start(0);
    etcd.start(1);
    for store in [&one, &two, &three] {
        store.wait_until_well();
    }
    assert_eq!(one.told(|told| told.cluster.clone()), before);
    assert_eq!(three.pod_cidrs(), cidrs);
}

#[test]
fn an_etcd_that_lost_everything_is_filled_again_with_the_same_pod_cidrs() {
    let etcd = Etcd::new();
    let nodes: Vec<Node> = (1..=3).map(|number| Node::new(number, &etcd.urls())).collect();
    let running: Vec<_> = nodes.iter().map(|node| node.start(etcd.netns())).collect();
    let before: Vec<_> = running.iter().map(Running::pod_cidrs).collect();
    for store in &running {
        store.wait_for_nodes(&nodes);
    }
    etcd.kill(0);
    for store in &running {
        store.wait_for_failure("http");
    }
    etcd.wipe(0);
    etcd.start(0);
    for store in &running {
        store.wait_until_well();
        store.wait_for_nodes(&nodes);
    }
    assert_eq!(running.iter().map(Running::pod_cidrs).collect::<Vec<_>>(), before);
    assert_eq!(etcd.get("/podnet/cidrs/").len(), 6);
}
