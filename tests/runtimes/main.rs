//! Real runtimes: containerd by `ctr` and by its CRI, and podman call the installed plugin, and their pods reach each
//! other, publish ports, restart, and leave nothing.
//!
//! ```text
//!   node (private mount, net, pid namespaces)                        outside
//!   +--------------------------------------------------------------+ +--------------+
//!   | containerd, podman -- /opt/cni/bin/podnet, portmap -- daemon | |              |
//!   | v-net-0 10.244.1.1                        up0 192.168.1.11   +-+ 192.168.1.100|
//!   |    +-- veth -- pod web 10.244.1.2:8080 <--- :8088            | |              |
//!   |    +-- veth -- pod cli 10.244.1.3                            | |              |
//!   +--------------------------------------------------------------+ +--------------+
//! ```

#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

mod containerd;
mod cri;
mod daemon;
mod image;
mod node;
mod podman;

use std::time::Duration;

use containerd::Containerd;
use cri::Cri;
use daemon::Daemon;
use node::{Node, poll, try_output};
use podman::Podman;

/// Port of the node at which a pod's port 8080 is published.
const HOST_PORT: u16 = 8088;

/// What the tests want of a runtime, whose pods are known by `P`.
trait Runtime<P> {
    /// Runs a command in a pod and returns its output.
    fn exec(&self, pod: &P, command: &[&str]) -> String;

    /// Returns the addresses of a pod that are not link-local.
    fn addresses(&self, pod: &P) -> Vec<String>;
}

/// Returns the addresses in the output of `ip -o address show` that are not link-local.
fn shown_addresses(text: &str) -> Vec<String> {
    let mut addresses = Vec::new();
    for line in text.lines().filter(|line| !line.contains("scope link")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let position = words.iter().position(|word| word.starts_with("inet"));
        let address = position.and_then(|at| words.get(at + 1)).and_then(|cidr| cidr.split('/').next());
        addresses.push(address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned());
    }
    assert!(!addresses.is_empty(), "the pod has no address: {text}");
    addresses
}

/// Returns the script that fetches the page.
fn request(address: &str, port: u16) -> String {
    // busybox's wget looks up the name of the port, which crashes in a static binary without a C library beside it.
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {address} {port}")
}

/// Fetches a page from a pod's addresses and expects the page that the image holds.
fn assert_reaches<P>(runtime: &impl Runtime<P>, from: &P, to: &P) {
    for address in runtime.addresses(to) {
        let ping = runtime.exec(from, &["ping", "-c", "3", "-i", "0.2", "-W", "2", &address]);
        assert!(ping.contains(" 0% packet loss"), "-> {address}: {ping}");
        let page = runtime.exec(from, &["sh", "-c", &request(&address, 8080)]);
        assert!(page.ends_with("podnet\n"), "-> {address}: {page}");
    }
}

/// Fetches a page from the published port: from the network outside, from the node itself, and from another pod.
fn assert_published<P>(node: &Node, runtime: &impl Runtime<P>, from: &P) {
    for address in ["192.168.1.11", "fd00:192:168:1::11"] {
        let page = request(address, HOST_PORT);
        let places = [
            ("outside", node.shell(&format!("ip netns exec outside sh -c \"{}\"", page.replace('\\', "\\\\")))),
            ("node", node.shell(&page)),
            ("pod", runtime.exec(from, &["sh", "-c", &page])),
        ];
        for (place, answer) in places {
            assert!(answer.ends_with("podnet\n"), "{place} -> {address}:{HOST_PORT}: {answer}");
        }
    }
}

/// Asserts that nothing of the pods is left on the node.
fn assert_nothing_left(node: &Node, daemon: &Daemon<'_>) {
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(0));
    poll("the veths are removed", Duration::from_secs(10), || {
        let left = node.shell("ip -o link show type veth | grep -v up0 || true");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    for pool in daemon.json(&["status", "-o", "json"])["pools"].as_array().expect("a list of pools") {
        assert_eq!(pool["used"], 0, "every address is free again: {pool}");
    }
    for map in ["ENDPOINTS", "ENDPOINTS_BY_IFINDEX"] {
        let left = daemon.json(&["maps", "dump", map, "-o", "json"]);
        assert!(!left.to_string().contains("10.244.1."), "{map}: {left}");
    }
    let names = node.shell("ls /run/netns 2>/dev/null | grep -v outside || true");
    assert_eq!(names, "", "network namespaces are left");
    let rules = node.shell("iptables-save; ip6tables-save");
    assert!(
        !rules.contains("10.244.1.") && !rules.contains(&HOST_PORT.to_string()),
        "portmap's rules are left: {rules}"
    );
}

fn start_pair(containerd: &Containerd<'_>) {
    for name in ["web", "cli"] {
        containerd.run(name);
        containerd.exec(&name, &["httpd", "-p", "8080", "-h", "/www"]);
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
    assert_reaches(&containerd, &"cli", &"web");
    assert_reaches(&containerd, &"web", &"cli");
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
    assert_eq!(containerd.addresses(&"web").len(), 2, "one address per family");

    let before = daemon.counter("redirected_to_pod");
    assert_reaches(&containerd, &"cli", &"web");
    assert_reaches(&containerd, &"web", &"cli");
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
    assert_nothing_left(&node, &daemon);
}

#[test]
fn pods_run_by_cri_publish_ports_restart_and_leave_nothing() {
    let node = Node::start();
    node.add_outside();
    let daemon = Daemon::start(&node);
    node.install_reference(&["loopback", "portmap"]);
    let containerd = Containerd::start_cri(&node);
    let cri = Cri::connect(&containerd);
    // The runtime's network is ready as soon as the configuration is there.
    let (ready, reason) = cri.network_ready();
    assert!(!ready, "{reason}");
    daemon.install();
    poll("the runtime's network is ready", Duration::from_secs(10), || match cri.network_ready() {
        (true, _) => Ok(()),
        (false, reason) => Err(reason),
    });

    let mut web = cri.run("web", 0, Some(HOST_PORT.into()));
    let cli = cri.run("cli", 0, None);
    let pods = daemon.json(&["pods", "-o", "json"]);
    let known = pods.as_array().expect("a list").iter().find(|pod| pod["container_id"] == web.sandbox.as_str());
    let known = known.unwrap_or_else(|| panic!("{pods}"));
    assert_eq!((&known["pod"]["namespace"], &known["pod"]["name"]), (&"default".into(), &"web".into()), "{known}");
    assert_eq!(known["pod"]["uid"], "uid-web", "{known}");
    assert_eq!(cri.addresses(&web).len(), 2, "one address per family");
    assert_reaches(&cri, &cli, &web);
    assert_reaches(&cri, &web, &cli);
    assert_published(&node, &cri, &cli);

    // A container that restarts keeps its pod's network; a pod that is made anew publishes its port again.
    let before = cri.addresses(&web);
    cri.restart_container(&mut web);
    assert_eq!(cri.addresses(&web), before);
    assert_reaches(&cri, &cli, &web);
    assert_published(&node, &cri, &cli);
    cri.remove(web);
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(1));
    let web = cri.run("web", 1, Some(HOST_PORT.into()));
    assert_published(&node, &cri, &cli);
    cri.remove(web);
    cri.remove(cli);
    assert_nothing_left(&node, &daemon);

    // A configuration that goes takes the readiness along.
    node.shell("rm /etc/cni/net.d/*");
    poll("the runtime's network is not ready", Duration::from_secs(10), || match cri.network_ready() {
        (true, reason) => Err(reason),
        (false, _) => Ok(()),
    });
}

#[test]
fn status_says_what_a_runtime_may_rely_on() {
    let node = Node::start();
    let status = |daemon: &Daemon<'_>, node: &Node| {
        let config = node.shell("cat /etc/cni/net.d/10-podnet.conflist");
        let config: serde_json::Value = serde_json::from_str(&config).expect("the configuration is JSON");
        let mut plugin = config["plugins"][0].clone();
        plugin["cniVersion"] = "1.1.0".into();
        plugin["name"] = config["name"].clone();
        let mut command = daemon.podnet(&[]);
        command.env("CNI_COMMAND", "STATUS").env("CNI_PATH", "/opt/cni/bin");
        let file = node.dir().join("netconf.json");
        std::fs::write(&file, plugin.to_string()).expect("write the plugin's input");
        command.stdin(std::fs::File::open(&file).expect("open the plugin's input"));
        try_output(&mut command)
    };
    let daemon = Daemon::start(&node);
    daemon.install();
    status(&daemon, &node).expect("a daemon that serves");
    daemon.stop();
    let error = status(&daemon, &node).expect_err("no daemon serves");
    assert!(error.contains("\"code\":50") && error.contains("podnet.sock"), "{error}");
}

#[test]
fn podman_runs_containers_through_podnet() {
    let node = Node::start();
    node.add_outside();
    let daemon = Daemon::start(&node);
    node.install_reference(&["portmap"]);
    daemon.install();
    let podman = Podman::new(&node);
    podman.run("web", Some(HOST_PORT));
    podman.run("cli", None);
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(2));
    assert_eq!(podman.addresses(&"web").len(), 2, "one address per family");
    assert_reaches(&podman, &"cli", &"web");
    assert_reaches(&podman, &"web", &"cli");
    assert_published(&node, &podman, &"cli");

    podman.restart("web");
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(2));
    assert_reaches(&podman, &"cli", &"web");
    assert_published(&node, &podman, &"cli");
    podman.remove("web");
    assert_eq!(daemon.json(&["pods", "-o", "json"]).as_array().map(Vec::len), Some(1), "only cli is left");
    podman.remove("cli");
    assert_nothing_left(&node, &daemon);
}
