//! Real daemons that follow the fake API server, which is outside of their cluster's subnet.
//!
//! ```text
//!   pod1 - node1 ---+--- node2 - pod2       node3 - pod3
//!                   +--- node3
//!                   +--- router --- outside: the API server
//! ```

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use harness::{Family, TestCluster, TestNode, icmp, interfaces, traffic::Steady, wait_for};
use podnet::{
    config::{Config, RoutingMode, StoreConfig, kubernetes::KubernetesConfig},
    netns::Netns,
};
use podnet_common::verdict::Verdict;

use crate::{api::FakeApi, follower::kubeconfig, objects::FakeNode, tls::Identity};

/// Address of the daemons' health.
const HEALTH: &str = "127.0.0.1:9807";

/// Port of the API server.
pub(crate) const PORT: u16 = 6443;

/// A cluster whose daemons follow an API server.
pub(crate) struct Setup {
    pub(crate) cluster: TestCluster,
    pub(crate) api: FakeApi,
    folder: tempfile::TempDir,
}

impl Setup {
    /// Makes a cluster of so many nodes, and an API server that knows them. The daemons follow the static file still.
    pub(crate) fn new(nodes: u8, mode: RoutingMode) -> Self {
        Self::with_identity(nodes, mode, None)
    }

    /// Makes the same with a server that speaks TLS, if it has an identity.
    pub(crate) fn with_identity(nodes: u8, mode: RoutingMode, identity: Option<Identity>) -> Self {
        let cluster = TestCluster::with(|options| (options.nodes, options.mode) = (nodes, mode));
        let address = format!("{}:{PORT}", cluster.outside_address(Family::V4));
        let api = cluster.outside().run(|| Ok(FakeApi::with(&address, identity))).unwrap();
        api.state(|state| state.token = Some("secret".into()));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig(&api.url(), "", "token: secret")).unwrap();
        let setup = Self { cluster, api, folder };
        setup.api.put(setup.cluster.nodes().iter().map(fake));
        setup
    }

    /// Lets a node follow the API server when its daemon starts again.
    pub(crate) fn configure(&self, node: &TestNode) {
        let path = self.folder.path().join("kubeconfig");
        node.stop_daemon();
        node.edit_config(|config| {
            config.pod_cidrs = Vec::new();
            config.http = Some(HEALTH.parse().unwrap());
            let kubernetes = KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() };
            config.store = Some(StoreConfig::Kubernetes(kubernetes));
        });
    }

    /// Starts the API server again where it was.
    fn resume(&mut self) {
        let Self { cluster, api, .. } = self;
        cluster
            .outside()
            .run(|| {
                api.resume();
                Ok(())
            })
            .unwrap();
    }
}

/// Returns a node of the lab as the API server knows it.
fn fake(node: &TestNode) -> FakeNode {
    let (addresses, cidrs) = (&node.node().addresses, &node.node().pod_cidrs);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let cidrs: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    let mut fake = FakeNode::new(
        node.name(),
        &addresses.iter().map(String::as_str).collect::<Vec<_>>(),
        &cidrs.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    // As a cloud's controller makes them.
    fake.set_condition("NetworkUnavailable", "True");
    fake
}

/// Asks for the daemon's health as kubelet does; `None` while it does not listen.
pub(crate) fn health(netns: &Netns, path: &str) -> Option<(u16, String)> {
    let mut stream = netns.run(|| Ok(TcpStream::connect(HEALTH)?)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {HEALTH}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let code = text.split(' ').nth(1)?.parse().ok()?;
    Some((code, text.split_once("\r\n\r\n")?.1.to_owned()))
}

#[test]
fn daemons_follow_the_api_server_and_carry_on_without_it() {
    let mut setup = Setup::new(3, RoutingMode::Direct);
    let (first, second, third) = {
        let nodes = setup.cluster.nodes();
        (&nodes[0], &nodes[1], &nodes[2])
    };
    let cidrs = setup.api.state(|state| state.nodes["node3"].1.pod_cidrs.clone());
    setup.api.state(|state| state.change("node3", |node| node.pod_cidrs.clear()));
    for node in [first, second] {
        setup.configure(node);
        node.start_daemon();
        assert_eq!(health(node.netns(), "/readyz").unwrap().0, 200);
        assert!(node.cli(&["status"]).contains("kubernetes by "), "{}", node.cli(&["status"]));
    }

    // A node is registered before it has pod CIDRs: it waits, says for what, and is alive.
    setup.configure(third);
    std::thread::scope(|scope| {
        scope.spawn(|| third.start_daemon());
        let waits = wait_for("node3 to wait", || {
            health(third.netns(), "/readyz").filter(|(code, text)| *code == 503 && text.contains("pod CIDRs"))
        });
        assert!(waits.1.contains("node3"), "{waits:?}");
        assert_eq!(health(third.netns(), "/healthz").unwrap().0, 200);
        let unavailable = |name: &str| {
            setup.api.state(|state| state.nodes[name].1.condition("NetworkUnavailable").unwrap()["status"].clone())
        };
        wait_for("the conditions of the others", || {
            (unavailable("node1") == "False" && unavailable("node2") == "False").then_some(())
        });
        assert_eq!(unavailable("node3"), "True", "a node that waits can have no pods");
        setup.api.state(|state| state.change("node3", |node| node.pod_cidrs.clone_from(&cidrs)));
        wait_for("the condition of node3", || (unavailable("node3") == "False").then_some(()));
    });
    setup.cluster.wait_for_routes();

    let pods: Vec<_> = setup.cluster.add_pods(1).into_iter().flatten().collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for family in Family::ALL {
            icmp::ping(pods[from].netns(), pods[to].address(family), 3, 56);
        }
    }
    assert!(first.counters().verdict(Verdict::RedirectedToNode) > 0);

    // Away: traffic, ADD and DEL go on, and the state is said to be stale.
    let traffic = Steady::start(&[(&pods[0], &pods[1]), (&pods[2], &pods[0])]);
    setup.api.stop();
    let node = &setup.cluster.nodes()[0];
    let status = wait_for("the status to be stale", || {
        Some(node.status()).filter(|status| status.cluster.stale_seconds.is_some_and(|seconds| seconds >= 1))
    });
    assert!(status.ready && status.cluster.nodes == 3, "{status:?}");
    assert!(status.cluster.failure.unwrap().contains("nodes"), "the failure names what was asked for");
    traffic.wait_for_progress();
    let late = node.add_pod("late");
    interfaces::wait_for_carriers(node.netns());
    icmp::ping(late.netns(), pods[1].address(Family::V4), 2, 56);
    // A daemon that starts meanwhile has the last known nodes.
    node.stop_daemon();
    node.start_daemon();
    icmp::ping(late.netns(), pods[2].address(Family::V6), 2, 56);
    drop(late.del().unwrap());
    traffic.wait_for_progress();

    setup.resume();
    let node = &setup.cluster.nodes()[0];
    wait_for("fresh news", || node.status().cluster.stale_seconds.is_none().then_some(()));
    traffic.wait_for_progress();
    traffic.finish();

    // A node leaves the cluster, and the others forget it.
    setup.api.state(|state| state.delete("node3"));
    wait_for("node1 to forget node3", || {
        let routes = interfaces::own_destinations(node.netns(), Family::V4);
        (!routes.contains(&cidrs[0])).then_some(())
    });
    icmp::ping(pods[0].netns(), pods[1].address(Family::V4), 2, 56);
    // Nothing was asked for that the manifest does not allow.
    let seen = setup.api.state(|state| state.seen.iter().map(|seen| (seen.verb, seen.resource)).collect::<Vec<_>>());
    for asked in seen {
        assert!(crate::manifests::permissions().contains(&(asked.0.into(), asked.1.into())), "{asked:?}");
    }
}

/// A running daemon that is stopped when it is dropped.
pub(crate) struct Running(pub(crate) std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn one_configuration_serves_all_nodes() {
    let setup = Setup::new(2, RoutingMode::Direct);
    let node = &setup.cluster.nodes()[0];
    setup.configure(node);
    let config: &Path = &node.node().config_path();
    let wait_for_name = |name: &str, options: &[&str]| {
        let mut command = Command::new(harness::binary());
        command.arg("daemon").args(options).arg("--config").arg(config).env("PODNET_NODE", "by-environment");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let _daemon = Running(node.netns().run(|| Ok(command.spawn()?)).unwrap());
        wait_for(&format!("the daemon of {name}"), || {
            health(node.netns(), "/readyz").filter(|(_, text)| text.contains(&format!("has the name {name}")))
        });
    };
    // As the manifest gives it; the command line counts before that.
    wait_for_name("by-environment", &[]);
    wait_for_name("by-option", &["--node", "by-option"]);
    assert!(Config::load(config).unwrap().named(Some(String::new())).is_err());
}
