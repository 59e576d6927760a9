//! The file of nodes breaks, vanishes, is mended, changes while nobody looks, and contradicts the configuration.

use std::path::PathBuf;

use harness::{
    Family, TestCluster, TestNode, TestPod, interfaces, maps,
    peer::{self, PeerServer},
    traffic::Steady,
    wait_for,
};
use ipnetwork::IpNetwork;
use podnet::{cluster::ClusterNode, config::RoutingMode};

const PORT: u16 = 8080;

/// A comma too many, in line 3.
const BROKEN: &str = "{\n  \"nodes\": [\n    ,\n  ]\n}\n";

fn cluster(mode: RoutingMode) -> TestCluster {
    let cluster = TestCluster::with(|options| {
        options.mode = mode;
        options.nodes = 2;
    });
    cluster.wait_for_routes();
    cluster
}

/// A node that is nowhere, in the first subnet.
fn stranger(number: u8) -> ClusterNode {
    ClusterNode {
        name: format!("node{number}"),
        addresses: vec![
            format!("192.168.1.{number}").parse().unwrap(),
            format!("fd00:192:168:1::{number}").parse().unwrap(),
        ],
        pod_cidrs: vec![
            format!("10.244.{number}.0/24").parse().unwrap(),
            format!("fd00:10:244:{number}::/64").parse().unwrap(),
        ],
    }
}

fn path(cluster: &TestCluster) -> PathBuf {
    cluster.nodes_file().path
}

/// Returns the destinations of podnet's routes.
fn routes(node: &TestNode) -> Vec<String> {
    Family::ALL.into_iter().flat_map(|family| interfaces::own_destinations(node.netns(), family)).collect()
}

fn knows(node: &TestNode, other: &ClusterNode) -> bool {
    let routes = routes(node);
    let known = |cidr: &IpNetwork| routes.contains(&cidr.to_string()) && maps::node_of(node.node(), *cidr).is_some();
    other.pod_cidrs.iter().all(known)
}

fn forgot(node: &TestNode, other: &ClusterNode) -> bool {
    let routes = routes(node);
    let known = |cidr: &IpNetwork| routes.contains(&cidr.to_string()) || maps::node_of(node.node(), *cidr).is_some();
    !other.pod_cidrs.iter().any(known)
}

fn check_pods(one: &TestPod, two: &TestPod) {
    for family in Family::ALL {
        for (client, server) in [(one, two), (two, one)] {
            let target = server.socket_address(family, PORT);
            let _server = PeerServer::start(server.netns(), target);
            let seen = peer::ask(client.netns(), target, 1).unwrap();
            assert_eq!(seen.ip(), client.address(family));
        }
    }
}

/// Writes the file of nodes, or removes it.
fn set_content(cluster: &TestCluster, content: Option<&str>) {
    match content {
        Some(content) => std::fs::write(path(cluster), content).unwrap(),
        None => std::fs::remove_file(path(cluster)).unwrap(),
    }
}

fn pods(cluster: &TestCluster) -> Vec<TestPod> {
    cluster.add_pods(1).into_iter().flatten().collect()
}

#[test]
fn a_broken_file_changes_nothing_and_is_reported() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let cluster = cluster(mode);
        let pods = pods(&cluster);
        let node = &cluster.nodes()[0];
        let traffic = Steady::start(&[(&pods[0], &pods[1])]);
        let nodes = cluster.nodes_file().read().unwrap();
        let before = routes(node);
        let overlapping = {
            let mut nodes = nodes.clone();
            nodes.push(ClusterNode { pod_cidrs: nodes[1].pod_cidrs.clone(), ..stranger(9) });
            podnet::cluster::file::to_text(&nodes).unwrap()
        };
        for (content, words) in [
            (Some(BROKEN), vec!["line 3 column 5", "nodes.json"]),
            (Some(overlapping.as_str()), vec!["node2", "node9", "overlap"]),
            (Some(""), vec!["EOF"]),
            (None, vec!["No such file"]),
        ] {
            set_content(&cluster, content);
            let failure = wait_for(&format!("the status to say {words:?}"), || {
                node.status().cluster.failure.filter(|failure| words.iter().all(|word| failure.contains(word)))
            });
            let text = node.cli(&["status"]);
            assert!(text.contains("2 nodes, STALE for ") && text.contains(&failure), "{text}");
            let status = node.status();
            assert!(status.ready && status.cluster.nodes == 2, "{status:?}");
            assert!(status.warnings.iter().any(|warning| warning.contains("last known 2 nodes stay")), "{status:?}");
            assert_eq!(routes(node), before);
            traffic.wait_for_progress();
        }
        // It counts from the first failure, and a mended file ends it.
        wait_for("a second to pass", || node.status().cluster.stale_seconds.filter(|seconds| *seconds > 0));
        let mut mended = nodes.clone();
        mended.push(stranger(9));
        cluster.nodes_file().write(&mended).unwrap();
        wait_for("the mended file", || knows(node, &stranger(9)).then_some(()));
        let status = node.status();
        assert_eq!((status.cluster.failure, status.cluster.stale_seconds, status.repairs), (None, None, 0));
        assert_eq!(status.warnings, Vec::<String>::new());
        assert!(!node.cli(&["status"]).contains("STALE"));
        traffic.wait_for_progress();
        traffic.finish_without_loss();
    }
}

#[test]
fn a_daemon_that_starts_without_the_file_keeps_the_last_known_nodes() {
    for mode in [RoutingMode::Direct, RoutingMode::Overlay] {
        let cluster = cluster(mode);
        let pods = pods(&cluster);
        let node = &cluster.nodes()[0];
        let traffic = Steady::start(&[(&pods[0], &pods[1])]);
        let nodes = cluster.nodes_file().read().unwrap();
        let before = routes(node);
        for content in [Some(BROKEN), None] {
            node.stop_daemon();
            set_content(&cluster, content);
            node.start_daemon();
            let status = node.status();
            assert_eq!((status.cluster.nodes, status.repairs), (2, 0), "{status:?}");
            assert!(status.cluster.failure.is_some() && status.cluster.stale_seconds.is_some(), "{status:?}");
            assert_eq!(routes(node), before, "nothing is removed");
            assert!(knows(node, &nodes[1]));
            check_pods(&pods[0], &pods[1]);
        }
        traffic.wait_for_progress();
        cluster.nodes_file().write(&[&nodes[..], &[stranger(9)]].concat()).unwrap();
        wait_for("the mended file", || knows(node, &stranger(9)).then_some(()));
        traffic.finish_without_loss();
    }
}

#[test]
fn a_daemon_that_starts_follows_what_changed_meanwhile() {
    let cluster = cluster(RoutingMode::Direct);
    let pods = pods(&cluster);
    let node = &cluster.nodes()[0];
    let nodes = cluster.nodes_file().read().unwrap();
    cluster.nodes_file().add(stranger(8)).unwrap();
    wait_for("node8", || knows(node, &stranger(8)).then_some(()));
    let traffic = Steady::start(&[(&pods[0], &pods[1])]);
    node.stop_daemon();
    cluster.nodes_file().write(&[&nodes[..], &[stranger(9)]].concat()).unwrap();
    node.start_daemon();
    assert!(knows(node, &stranger(9)), "new");
    assert!(forgot(node, &stranger(8)), "gone");
    assert!(knows(node, &nodes[1]), "the same");
    assert_eq!(node.status().repairs, 0);
    // What it learned at its start it knows at the next, too.
    node.kill_daemon();
    std::fs::remove_file(path(&cluster)).unwrap();
    node.start_daemon();
    assert!(knows(node, &stranger(9)) && forgot(node, &stranger(8)));
    traffic.finish_without_loss();
}

#[test]
fn a_node_takes_its_pod_cidrs_from_the_store() {
    let cluster = cluster(RoutingMode::Overlay);
    let node = &cluster.nodes()[0];
    let before = node.status().pools;
    node.restart_with(|config| config.pod_cidrs = Vec::new());
    assert_eq!(node.status().pools, before);
    let pods = pods(&cluster);
    check_pods(&pods[0], &pods[1]);
    // Also from what it knew last.
    node.stop_daemon();
    std::fs::write(path(&cluster), BROKEN).unwrap();
    node.start_daemon();
    assert_eq!(node.status().pools.len(), 2);
    check_pods(&pods[0], &pods[1]);

    // One that nobody ever told anything says why it cannot start.
    node.stop_daemon();
    node.run_cleanup();
    let error = format!("{:#}", node.try_start_daemon().unwrap_err());
    assert!(error.contains("no pod-cidrs") && error.contains("line 3 column 5"), "{error}");
    cluster.nodes_file().write(&[stranger(9)]).unwrap();
    let error = format!("{:#}", node.try_start_daemon().unwrap_err());
    assert!(error.contains("the store has no pod CIDRs for node node1"), "{error}");
}

#[test]
fn a_store_that_contradicts_the_configuration_is_refused_at_start() {
    let cluster = cluster(RoutingMode::Direct);
    let node = &cluster.nodes()[0];
    node.stop_daemon();
    let right = node.node().pod_cidrs.clone();
    node.edit_config(|config| config.pod_cidrs = vec!["10.244.77.0/24".parse().unwrap()]);
    let before = routes(node);
    let error = format!("{:#}", node.try_start_daemon().unwrap_err());
    assert!(
        error.contains(
            "pod-cidrs: the configuration gives node1 [10.244.77.0/24], the store [10.244.1.0/24, fd00:10:244:1::/64]"
        ),
        "{error}"
    );
    assert_eq!(routes(node), before, "it has touched nothing");
    node.edit_config(|config| config.pod_cidrs = right);
    node.start_daemon();
}

#[test]
fn a_node_that_the_store_does_not_know_is_warned() {
    let cluster = cluster(RoutingMode::Direct);
    let pods = pods(&cluster);
    let (node, other) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let own = cluster.nodes_file().remove("node1").unwrap();
    let warns = |text: &str| node.status().warnings.iter().any(|warning| warning.contains(text));
    wait_for("a warning", || warns("does not know node1").then_some(()));
    wait_for("node2 to forget node1", || forgot(other, &own).then_some(()));
    assert!(!other.status().warnings.iter().any(|warning| warning.contains("does not know")));
    // At start, too.
    node.stop_daemon();
    node.start_daemon();
    assert!(warns("does not know node1"));

    // The store changes its mind about the running node's pod CIDRs.
    let moved = ClusterNode { pod_cidrs: stranger(9).pod_cidrs, ..own.clone() };
    cluster.nodes_file().add(moved).unwrap();
    wait_for("another warning", || warns("but it runs with").then_some(()));
    cluster.nodes_file().remove("node1").unwrap();
    cluster.nodes_file().add(own.clone()).unwrap();
    wait_for("no warning", || node.status().warnings.is_empty().then_some(()));
    wait_for("node2 to know node1", || knows(other, &own).then_some(()));
    check_pods(&pods[0], &pods[1]);
}

#[test]
fn pod_cidrs_that_became_anothers_are_given_out_no_more() {
    let cluster = cluster(RoutingMode::Direct);
    let node = &cluster.nodes()[0];
    node.restart_with(|config| config.pod_cidrs = Vec::new());
    let pods = ["one", "two"].map(|name| node.add_pod(name));
    check_pods(&pods[0], &pods[1]);
    let before = node.status().pools;
    let nodes = cluster.nodes_file().read().unwrap();
    let swapped = [
        ClusterNode { pod_cidrs: stranger(9).pod_cidrs, ..nodes[0].clone() },
        ClusterNode { pod_cidrs: nodes[0].pod_cidrs.clone(), ..stranger(9) },
        nodes[1].clone(),
    ];
    cluster.nodes_file().write(&swapped).unwrap();
    let is_denied = || node.status().not_ready_reason.filter(|reason| reason.contains("is node node9's now"));
    let check_denied = || {
        wait_for("the node to be not ready", is_denied);
        let error = format!("{:#}", node.try_add_pod("late").unwrap_err());
        assert!(error.contains("no pod is added") && error.contains("node9"), "{error}");
        assert_eq!(node.status().pools, before, "{:?}", node.status());
        check_pods(&pods[0], &pods[1]);
    };
    check_denied();
    // A start does not take the ground from under running pods.
    node.stop_daemon();
    node.start_daemon_by(&harness::binary());
    check_denied();

    for pod in pods {
        drop(pod.del().unwrap());
    }
    node.stop_daemon();
    node.start_daemon();
    let cidrs: Vec<_> = node.status().pools.iter().map(|pool| pool.cidr).collect();
    assert_eq!((cidrs, is_denied()), (stranger(9).pod_cidrs, None));
    let pods = ["three", "four"].map(|name| node.add_pod(name));
    check_pods(&pods[0], &pods[1]);
}
