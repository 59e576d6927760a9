//! Whole nodes: daemons that register in an etcd outside of their network, find each other by it, and go on without it.
//!
//! ```text
//!  node1 ─┐
//!  node2 ─┼─ switch ── router ── outside: etcd
//!  node3 ─┘
//! ```

use std::{io::Write as _, net::TcpStream, time::Duration};

use harness::{Family, TestCluster, TestNode, TestPod, command, interfaces, traffic::Steady, wait_for};
use podnet::{
    cluster::ClusterNode,
    config::{Config, RoutingMode, StoreConfig, etcd::EtcdConfig},
    lab::process::Stopped,
};

use crate::server::{Etcd, Options, watch_for};

const LEASE: u32 = 3;
const GRACE: u32 = 8;

fn use_etcd(config: &mut Config, cluster: &TestCluster) {
    let mut etcd = EtcdConfig::new(vec![format!("http://{}:2379", cluster.outside_address(Family::V4))]);
    (etcd.lease_seconds, etcd.grace_seconds) = (LEASE, GRACE);
    config.store = Some(StoreConfig::Etcd(Box::new(etcd)));
    config.pod_cidrs = Vec::new();
    config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
}

fn names(node: &TestNode) -> Vec<String> {
    node.cluster().into_iter().map(|node| node.name).collect()
}

fn has_routes_to(node: &TestNode, other: &ClusterNode) -> bool {
    let routes = Family::ALL.into_iter().flat_map(|family| interfaces::own_destinations(node.netns(), family));
    let routes: Vec<String> = routes.collect();
    other.pod_cidrs.iter().all(|cidr| routes.contains(&cidr.to_string()))
}

/// Adds a pod, and waits until the bridge delivers to it.
fn add_pod(node: &TestNode, name: &str) -> TestPod {
    let pod = node.add_pod(name);
    interfaces::wait_for_carriers(node.netns());
    pod
}

fn check_all_pairs(pods: &[TestPod]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.name() != from.name()) {
            for family in Family::ALL {
                let target = to.address(family).to_string();
                command::run(from.netns(), "ping", &["-c1", "-W5", "-q", &target]);
            }
        }
    }
}

#[test]
fn nodes_find_each_other_by_etcd_and_go_on_without_it() {
    let cluster = TestCluster::new(RoutingMode::Direct);
    let address = cluster.outside_address(Family::V4).to_string();
    let etcd = Etcd::inside(cluster.outside(), Options { members: 1, address: Some(address), ..Options::default() });
    let nodes = cluster.nodes();
    let lab = cluster.nodes_file().read().unwrap();
    for node in nodes {
        node.stop_daemon();
        node.edit_config(|config| use_etcd(config, &cluster));
    }
    // What a node had by the file it claims in etcd; its addresses are those of its default routes.
    for node in nodes {
        node.start_daemon();
    }
    for node in nodes {
        for other in lab.iter().filter(|other| other.name != node.name()) {
            wait_for(&format!("{} to know {}", node.name(), other.name), || has_routes_to(node, other).then_some(()));
        }
    }
    let records = etcd.get("/podnet/nodes/");
    for (record, node) in records.iter().zip(&lab) {
        let value: serde_json::Value = serde_json::from_str(&record.1).unwrap();
        assert_eq!(value["addresses"], serde_json::json!(node.addresses), "{record:?}");
        assert_eq!(value["podCIDRs"], serde_json::json!(node.pod_cidrs), "{record:?}");
    }
    let mut pods: Vec<TestPod> = cluster.add_pods(1).into_iter().flatten().collect();
    check_all_pairs(&pods);
    let traffic = Steady::start(&[(&pods[0], &pods[1]), (&pods[1], &pods[2])]);

    // etcd is away: pods come and go, their packets pass, and the status says how old its knowledge is.
    etcd.kill(0);
    for node in nodes {
        let status =
            wait_for("the status to say so", || Some(node.status()).filter(|status| status.cluster.failure.is_some()));
        assert!(status.ready && status.cluster.nodes == 3, "{status:?}");
    }
    wait_for("the age of what is known", || nodes[0].status().cluster.stale_seconds.filter(|seconds| *seconds > 0));
    assert!(nodes[0].cli(&["status"]).contains("3 nodes, STALE for "));
    pods.push(add_pod(&nodes[2], "meanwhile"));
    check_all_pairs(&pods);
    pods.pop().unwrap().del().unwrap();
    // Also a daemon that is started now.
    nodes[1].stop_daemon();
    nodes[1].start_daemon();
    assert_eq!(nodes[1].status().cluster.nodes, 3);
    pods.push(add_pod(&nodes[1], "later"));
    check_all_pairs(&pods);
    traffic.wait_for_progress();

    etcd.start(0);
    for node in nodes {
        wait_for("the store to be back", || node.status().cluster.failure.is_none().then_some(()));
        assert_eq!((node.status().warnings, node.status().repairs), (Vec::new(), 0));
        assert_eq!(names(node).len(), 3);
    }
    traffic.finish_without_loss();

    // A node that dies is forgotten after its grace, and not before; when it is back it has what it had.
    nodes[2].kill_daemon();
    wait_for("its lease to run out", || etcd.get("/podnet/alive/node3").is_empty().then_some(()));
    watch_for(Duration::from_secs(u64::from(GRACE) - 2), || assert!(has_routes_to(&nodes[0], &lab[2])));
    wait_for("node1 to forget node3", || (!has_routes_to(&nodes[0], &lab[2])).then_some(()));
    wait_for("its pod CIDRs to be free", || etcd.get("/podnet/cidrs/10.244.3.0/24").is_empty().then_some(()));
    nodes[2].start_daemon();
    wait_for("node1 to know node3", || has_routes_to(&nodes[0], &lab[2]).then_some(()));
    check_all_pairs(&pods);

    // A node that leaves is gone at once, with its claims.
    drop(pods);
    assert_eq!(nodes[1].daemon().stop(Duration::from_secs(60)).unwrap(), Stopped::Terminated);
    nodes[1].run_cleanup();
    wait_for("node1 to forget node2", || (!has_routes_to(&nodes[0], &lab[1])).then_some(()));
    assert!(etcd.get("/podnet/").iter().all(|(key, value)| !key.contains("node2") && !value.contains("node2")));
}

#[test]
fn a_new_node_waits_for_etcd_and_says_so() {
    let cluster = TestCluster::with(|options| options.nodes = 2);
    let address = cluster.outside_address(Family::V4).to_string();
    let node = &cluster.nodes()[0];
    node.stop_daemon();
    node.run_cleanup();
    let http = "127.0.0.1:9100";
    node.edit_config(|config| {
        use_etcd(config, &cluster);
        config.http = Some(http.parse().unwrap());
    });
    // The answer of a path, with its headers.
    let ask = |path: &str| -> String {
        let get = || -> anyhow::Result<String> {
            let mut stream = TcpStream::connect(http)?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
            Ok(std::io::read_to_string(stream)?)
        };
        node.netns().run(get).unwrap_or_default()
    };
    std::thread::scope(|scope| {
        let started = scope.spawn(|| node.start_daemon());
        let answer = wait_for("a reason", || Some(ask("/readyz")).filter(|answer| answer.contains("failed: http://")));
        assert!(answer.contains(" 503 "), "{answer}");
        assert!(ask("/healthz").contains(" 200 "));
        assert!(!started.is_finished());
        let options = Options { members: 1, address: Some(address.clone()), ..Options::default() };
        let etcd = Etcd::inside(cluster.outside(), options);
        started.join().unwrap();
        assert!(ask("/readyz").contains(" 200 "));
        assert_eq!(etcd.get("/podnet/cidrs/").len(), 2);
    });
}
