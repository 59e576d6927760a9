//! Real runtimes: containerd calls the installed plugin, and its pods reach each other.
//!
//! ```text
//!   node (private mount, net, pid namespaces)
//!   +--------------------------------------------------------------+
//!   | containerd -- ctr run --cni -- /opt/cni/bin/podnet -- daemon |
//!   | v-net-0 10.244.1.1                                           |
//!   |    +-- veth -- pod web 10.244.1.2                            |
//!   |    +-- veth -- pod cli 10.244.1.3                            |
//!   +--------------------------------------------------------------+
//! ```

#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

mod containerd;
mod daemon;
mod node;

use std::time::Duration;

use containerd::Containerd;
use daemon::Daemon;
use node::{Node, poll};

/// Fetches a page from a pod's address and expects the page that the image holds.
fn assert_reaches(containerd: &Containerd<'_>, from: &str, to: &str) {
    for address in containerd.addresses(to) {
        let ping = containerd.exec(from, &["ping", "-c", "3", "-i", "0.2", "-W", "2", &address]);
        assert!(ping.contains(" 0% packet loss"), "{from} -> {to} {address}: {ping}");
        // busybox's wget looks up the name of the port, which crashes in a static binary without a C library beside it.
        let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080");
        let page = containerd.exec(from, &["sh", "-c", &request]);
        assert!(page.ends_with("podnet\n"), "{from} -> {to} {address}: {page}");
    }
}

fn start_pair(containerd: &Containerd<'_>) {
    for name in ["web", "cli"] {
        containerd.run(name);
        containerd.exec(name, &["httpd", "-p", "8080", "-h", "/www"]);
    }
}

/// The fixture itself: what fails here is containerd, the image or the node, and not podnet.
#[test]
fn containerd_pods_reach_each_other_through_the_reference_bridge() {
    let node = Node::start();
    let reference = std::path::Path::new("/usr/lib/cni/bridge");
    assert!(reference.is_file(), "{} is missing: install containernetworking-plugins", reference.display());
    node.shell(
        r#"cp /usr/lib/cni/bridge /usr/lib/cni/host-local /opt/cni/bin/
cat > /etc/cni/net.d/10-reference.conflist <<'CONFLIST'
{"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "bridge", "bridge": "reference0", "isGateway": true,
 "ipam": {"type": "host-local", "dataDir": "/run/host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}}]}
CONFLIST"#,
    );
    let containerd = Containerd::start(&node);
    start_pair(&containerd);
    assert_reaches(&containerd, "cli", "web");
    assert_reaches(&containerd, "web", "cli");
    containerd.stop("web");
    containerd.stop("cli");
    let leases = node.shell("cd /run/host-local/reference && ls | grep -c '^10' || true");
    assert_eq!(leases.trim(), "0", "the runtime called DEL for both pods");
}

#[test]
fn containerd_pods_are_added_and_deleted_through_podnet() {
    let node = Node::start();
    let daemon = Daemon::start(&node);
    daemon.install();
    let containerd = Containerd::start(&node);
    start_pair(&containerd);

    let pods = daemon.json(&["pods", "-o", "json"]);
    let ids: Vec<&str> =
        pods.as_array().expect("a list").iter().filter_map(|pod| pod["container_id"].as_str()).collect();
    assert_eq!(ids.len(), 2, "{pods}");
    assert!(ids.contains(&"default-web") && ids.contains(&"default-cli"), "{pods}");
    assert_eq!(containerd.addresses("web").len(), 2, "one address per family");

    let before = daemon.counter("redirected_to_pod");
    assert_reaches(&containerd, "cli", "web");
    assert_reaches(&containerd, "web", "cli");
    let redirected = daemon.counter("redirected_to_pod") - before;
    // Three requests and three replies, per family and direction.
    assert!(
        redirected >= 24,
        "only {redirected} packets went by the eBPF path: {}",
        daemon.json(&["status", "-o", "json"])
    );

    let veths_with_pods = node.shell("ip -o link show type veth | wc -l");
    assert_eq!(veths_with_pods.trim(), "2");
    containerd.stop("web");
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(1), "only cli is left");
    containerd.stop("cli");
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(0));
    poll("the veths are removed", Duration::from_secs(10), || {
        let left = node.shell("ip -o link show type veth");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    for pool in daemon.json(&["status", "-o", "json"])["pools"].as_array().expect("a list of pools") {
        assert_eq!(pool["used"], 0, "every address is free again: {pool}");
    }
}
