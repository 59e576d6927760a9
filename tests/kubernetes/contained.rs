//! A daemon as the manifest runs it: with a pod's service account over TLS, and with no other capabilities than the
//! manifest's.

use std::{path::Path, process::Command};

use harness::{Family, icmp, interfaces, pod::Unattached, wait_for};
use podnet::config::{Config, RoutingMode, StoreConfig, kubernetes::KubernetesConfig};
use podnet_common::verdict::Verdict;
use rcgen::ExtendedKeyUsagePurpose::ServerAuth;

use crate::{
    daemon::{PORT, Running, Setup, health},
    manifests,
    tls::Authority,
};

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The folders on the way to it, which a machine without such an account may lack; removed again if they are made here.
struct Way(Vec<&'static Path>);

impl Way {
    fn new() -> Self {
        let missing: Vec<_> = Path::new(ACCOUNT).ancestors().filter(|path| !path.exists()).collect();
        std::fs::create_dir_all(ACCOUNT).unwrap();
        Self(missing)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        for path in &self.0 {
            drop(std::fs::remove_dir(path));
        }
    }
}

#[test]
fn the_manifests_capabilities_and_service_account_are_enough() {
    let authority = Authority::new();
    let server = "203.0.113.2";
    let identity = authority.issue(server, ServerAuth);
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("ca.crt", identity.authority.as_str()), ("token", "secret"), ("namespace", "podnet")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let setup = Setup::with_identity(2, RoutingMode::Direct, Some(identity));
    let (node, other) = (&setup.cluster.nodes()[0], &setup.cluster.nodes()[1]);
    assert_eq!(other.name(), "node2");
    assert_eq!(setup.api.address().to_string(), format!("{server}:{PORT}"));
    setup.configure(node);
    let config = node.node().config_path();
    let mut of_all_nodes = Config::load(&config).unwrap();
    of_all_nodes.node = "overridden".into();
    of_all_nodes.store = Some(StoreConfig::Kubernetes(KubernetesConfig::default()));
    std::fs::write(&config, toml::to_string(&of_all_nodes).unwrap()).unwrap();

    // Made before the daemon's mount namespace, which may not see what is mounted later.
    let pods: Vec<Unattached> = ["a", "b"].iter().map(|name| Unattached::new(node, name)).collect();
    let _way = Way::new();
    let bounding =
        manifests::capabilities().iter().fold("-all".to_owned(), |all, one| format!("{all},+{}", one.to_lowercase()));
    let script = r#"mount --bind "$1" "$2"; shift 2; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-ec", script, "sh"]).arg(folder.path()).arg(ACCOUNT);
    command.args(["setpriv", &format!("--bounding-set={bounding}")]);
    command.arg(harness::binary()).args(["daemon", "--config"]).arg(&config).env("PODNET_NODE", node.name());
    command.env("KUBERNETES_SERVICE_HOST", server).env("KUBERNETES_SERVICE_PORT", PORT.to_string());
    let log = std::fs::File::create(node.node().log_path()).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let daemon = Running(node.netns().run(|| Ok(command.spawn()?)).unwrap());
    let ready = || health(node.netns(), "/readyz").filter(|(code, _)| *code == 200);
    wait_for(&format!("the daemon; its log ends:\n{}", node.log_tail()), ready);
    let effective = std::fs::read_to_string(format!("/proc/{}/status", node.status().pid)).unwrap();
    let effective = effective.lines().find(|line| line.starts_with("CapEff")).unwrap();
    let number = u64::from_str_radix(effective.split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(number.count_ones() as usize, manifests::capabilities().len(), "{effective}");
    println!("{effective}: {:?}", manifests::capabilities());

    let pods: Vec<_> = pods
        .into_iter()
        .map(|pod| pod.add().unwrap_or_else(|error| panic!("{error:#}\n{}", node.log_tail())))
        .collect();
    let far = other.add_pod("far");
    for node in [node, other] {
        interfaces::wait_for_carriers(node.netns());
    }
    for family in Family::ALL {
        icmp::ping(pods[0].netns(), pods[1].address(family), 3, 56);
        icmp::ping(pods[0].netns(), far.address(family), 3, 56);
        // Masqueraded, which is nft's work.
        icmp::ping(pods[1].netns(), setup.cluster.outside_address(family), 2, 56);
    }
    let status = node.status();
    assert!(status.warnings.is_empty(), "{:?}", status.warnings);
    assert!(
        node.counters().verdict(Verdict::RedirectedToPod) > 0 && node.counters().verdict(Verdict::RedirectedToNode) > 0
    );
    wait_for("the condition", || {
        setup.api.state(|state| {
            let condition = state.nodes[node.name()].1.condition("NetworkUnavailable").cloned().unwrap();
            (condition["status"] == "False").then_some(())
        })
    });
    for pod in pods {
        drop(pod.del().unwrap());
    }
    assert!(node.pods().is_empty());
    drop(daemon);
}
