//! The image: loaded by containerd and podman, and running a node's daemon.
//!
//! ```text
//!   machine (private mount, net, pid namespaces)
//!   +-----------------------------------------------------------------------------------+
//!   | containerd -- container: podnet daemon --install     /opt/cni/bin/podnet (plugin) |
//!   |               read-only root, least capabilities     /etc/cni/net.d/10-podnet...  |
//!   |               /host/proc/sys/net, /sys/fs/bpf, /run/podnet, /run/netns            |
//!   | v-net-0 10.244.1.1 -- pods a 10.244.1.2, b 10.244.1.3                             |
//!   +-----------------------------------------------------------------------------------+
//! ```

#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

use serde_json::{Value, json};

use crate::{
    artefacts,
    containers::{ARCHIVE, Containerd, image},
    machine::{Machine, poll},
};

/// What the daemon needs: NET_ADMIN for links, routes, qdiscs and nftables; SYS_ADMIN to enter network namespaces. The
/// latter includes what BPF and PERFMON allow.
const CAPABILITIES: [&str; 2] = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"];

/// What containerd gives unless it is told otherwise.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const CONFIG: &str = r#"node = "node1"
pod-cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
bpffs = "/sys/fs/bpf/podnet"
http = "127.0.0.1:9100"
resync-seconds = 1
"#;

/// Returns the options of a container as the DaemonSet makes it.
fn daemon_options() -> Vec<String> {
    let mut options: Vec<String> =
        ["--net-host", "--read-only", "--seccomp", "--env", "PODNET_PROC_SYS=/host/proc/sys"]
            .map(String::from)
            .to_vec();
    options.extend(DEFAULT_CAPABILITIES.iter().flat_map(|name| ["--cap-drop".into(), (*name).to_owned()]));
    options.extend(CAPABILITIES.iter().flat_map(|name| ["--cap-add".into(), (*name).to_owned()]));
    for (from, to, how) in [
        ("/etc/podnet", "/etc/podnet", "rbind:ro"),
        ("/run/podnet", "/run/podnet", "rbind:rw"),
        ("/run/netns", "/run/netns", "rbind:rslave:ro"),
        ("/var/lib/podnet", "/var/lib/podnet", "rbind:rw"),
        ("/sys/fs/bpf", "/sys/fs/bpf", "rbind:rw"),
        ("/proc/sys/net", "/host/proc/sys/net", "rbind:rw"),
        ("/opt/cni/bin", "/opt/cni/bin", "rbind:rw"),
        ("/etc/cni/net.d", "/etc/cni/net.d", "rbind:rw"),
    ] {
        options.extend(["--mount".into(), format!("type=bind,src={from},dst={to},options={how}")]);
    }
    options
}

/// Starts the daemon in a container, and returns when it serves.
fn start_daemon(machine: &Machine, containerd: &Containerd<'_>, name: &str, options: &[String]) {
    containerd.serve(name, options, &["podnet", "daemon", "--install"]);
    poll("the daemon is ready", || {
        containerd.exec(name, &["podnet", "status", "-o", "json"]).map_err(|e| e + &machine.log(name))
    });
}

/// Runs the installed plugin on the machine, as a runtime does.
fn plugin(machine: &Machine, command: &str, pod: &str) -> Value {
    let conflist = machine.shell("cat /etc/cni/net.d/10-podnet.conflist");
    let conflist: Value = serde_json::from_str(&conflist).expect("the network configuration is JSON");
    let mut conf = conflist["plugins"][0].clone();
    conf["name"] = conflist["name"].clone();
    conf["cniVersion"] = json!("1.0.0");
    let script = format!(
        "CNI_COMMAND={command} CNI_CONTAINERID={pod} CNI_NETNS=/var/run/netns/{pod} CNI_IFNAME=eth0 \
         CNI_PATH=/opt/cni/bin /opt/cni/bin/podnet"
    );
    let printed = machine.shell_with_input(&script, conf.to_string().as_bytes());
    if printed.is_empty() { Value::Null } else { serde_json::from_str(&printed).expect("the plugin prints JSON") }
}

#[test]
fn containerd_and_podman_run_the_image() {
    let machine = Machine::start();
    let containerd = Containerd::start(&machine);
    assert_eq!(containerd.once("version", &["podnet", "--version"]), artefacts::version());
    assert!(containerd.once("nft", &["nft", "--version"]).starts_with("nftables v"));

    let podman = |args: &str| {
        // Debian's podman is told what this machine lacks: an init system with a journal, and cgroups of version 2.
        machine
            .shell(&format!("podman --cgroup-manager cgroupfs --events-backend file --storage-driver vfs {args} 2>&1"))
    };
    let loaded = podman(&format!("load --input {ARCHIVE}"));
    assert!(loaded.contains(&image()), "{loaded}");
    let run = format!("run --rm --network none --read-only --cgroup-parent /{} ", machine.id());
    assert_eq!(podman(&format!("{run} {} --version", image())), artefacts::version());
    let nft = podman(&format!("{run} --entrypoint nft {} --version", image()));
    assert!(nft.starts_with("nftables v"), "{nft}");
    let labels = podman(&format!("image inspect --format '{{{{json .Labels}}}}' {}", image()));
    assert!(labels.contains("org.opencontainers.image.source"), "{labels}");
}

#[test]
fn a_container_with_the_least_capabilities_serves_the_node() {
    let machine = Machine::start();
    machine.shell("mkdir -p /etc/podnet /run/podnet /var/lib/podnet /opt/cni/bin /etc/cni/net.d");
    machine.shell_with_input("cat > /etc/podnet/podnet.toml", CONFIG.as_bytes());
    let containerd = Containerd::start(&machine);
    start_daemon(&machine, &containerd, "first", &daemon_options());

    // Plugin and configuration are there; the plugin is the image's binary.
    poll("the plugin is installed", || machine.try_shell("cat /etc/cni/net.d/10-podnet.conflist"));
    assert_eq!(machine.shell("/opt/cni/bin/podnet --version"), artefacts::version());
    let status: Value =
        serde_json::from_str(&containerd.exec("first", &["podnet", "status", "-o", "json"]).expect("status"))
            .expect("the status is JSON");
    assert_eq!(status["warnings"], json!([]), "nothing works less well than it should");
    assert_eq!(status["datapath"]["attached"], true, "{status}");
    let version = machine.shell("ls /sys/fs/bpf/podnet");
    assert_eq!(status["datapath"]["pins"], format!("/sys/fs/bpf/podnet/{}", version.trim()), "the pins are the node's");
    assert!(machine.shell("nft list tables").contains("podnet"), "masquerading works by the image's own nft");
    assert_eq!(machine.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");

    for pod in ["a", "b"] {
        machine.shell(&format!("ip netns add {pod}"));
        plugin(&machine, "ADD", pod);
    }
    let ping =
        "ip netns exec a ping -c 3 -i 0.2 -W 2 10.244.1.3; ip netns exec a ping -c 3 -i 0.2 -W 2 fd00:10:244:1::3";
    assert_eq!(machine.shell(ping).matches(" 0% packet loss").count(), 2);
    // The sysctls of pods are written through the node's /proc/sys, and land in the pod.
    assert_eq!(machine.shell("ip netns exec a cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");

    // The container is replaced as by a rolling update: what is pinned stays, and pods keep talking.
    machine.serve("ping", "sh", &["-c", "ip netns exec a ping -i 0.05 -c 100 -q 10.244.1.3"]);
    containerd.stop("first");
    machine.shell("ls /sys/fs/bpf/podnet/*/ENDPOINTS /etc/cni/net.d/10-podnet.conflist /opt/cni/bin/podnet");
    start_daemon(&machine, &containerd, "second", &daemon_options());
    let report = poll("ping ends", || {
        let log = machine.log("ping");
        if log.contains("packet loss") { Ok(log) } else { Err(log) }
    });
    assert!(report.contains(" 0% packet loss"), "{report}");

    // Somebody removes the configuration: it comes back.
    machine.shell("rm /etc/cni/net.d/10-podnet.conflist");
    poll("the configuration is back", || machine.try_shell("test -f /etc/cni/net.d/10-podnet.conflist"));

    for pod in ["a", "b"] {
        plugin(&machine, "DEL", pod);
    }
    let pods = containerd.exec("second", &["podnet", "pods", "-o", "json"]).expect("the pods");
    assert_eq!(pods.trim(), "[]");
    containerd.stop("second");
}

#[test]
fn a_read_only_folder_is_told_and_survived() {
    let machine = Machine::start();
    machine.shell("mkdir -p /etc/podnet /run/podnet /var/lib/podnet /opt/cni/bin /etc/cni/net.d");
    machine.shell_with_input("cat > /etc/podnet/podnet.toml", CONFIG.as_bytes());
    let containerd = Containerd::start(&machine);
    let options: Vec<String> = daemon_options()
        .into_iter()
        .map(|option| option.replace("dst=/etc/cni/net.d,options=rbind:rw", "dst=/etc/cni/net.d,options=rbind:ro"))
        .collect();
    start_daemon(&machine, &containerd, "daemon", &options);
    let status = poll("the status says it", || {
        let status = containerd.exec("daemon", &["podnet", "status"])?;
        if status.contains("install: ") { Ok(status) } else { Err(status) }
    });
    assert!(status.contains("/etc/cni/net.d") && status.contains("Read-only file system"), "{status}");
    containerd.stop("daemon");
}
