//! A node that is not as it should be: no bpffs, no eBPF, a socket that somebody else has. The daemon says what is wrong,
//! and no pod loses its network.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
};

use harness::{Family, TestCluster, TestLab, icmp, interfaces, tcp, wait_for};
use nix::mount::{MntFlags, umount2};
use podnet_common::verdict::Verdict;

const PORT: u16 = 8080;

/// Returns a program that runs podnet with system calls that fail.
fn podnet_without(folder: &Path, injection: &str) -> PathBuf {
    let program = folder.join("podnet");
    let podnet = harness::binary();
    let script = format!(
        "#!/bin/sh\nexec strace -D -f --seccomp-bpf -qq -o /dev/null -e trace={} -e inject={injection} {} \"$@\"\n",
        injection.split(':').next().unwrap_or(injection),
        podnet.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn links(lab: &TestLab) -> Vec<(u32, String)> {
    interfaces::links(lab.netns()).into_iter().map(|link| (link.ifindex, link.ifname)).collect()
}

/// Starts a daemon for which a system call fails, under traffic: the kernel's path takes over, and eBPF comes back with
/// the next good start.
fn falls_back_to_the_kernel_path(injection: &str, reason: &str, before: impl Fn(&TestLab)) {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    let connections = Family::ALL.map(|family| tcp::LiveConnection::start(a.netns(), b.socket_address(family, PORT)));
    let veths = links(&lab);
    lab.stop_daemon();
    before(&lab);
    let folder = tempfile::tempdir().unwrap();
    lab.start_daemon_by(&podnet_without(folder.path(), injection));
    let status = lab.status();
    assert!(status.ready, "{status:?}");
    let said = status.datapath.reason.unwrap();
    assert!(!status.datapath.attached && said.contains(reason), "{said}");
    lab.wait_for_log(&["pods are served by the kernel path", reason]);
    for connection in &connections {
        connection.wait_for_rounds(5);
    }
    // Pods that come now work, too.
    let c = lab.add_pod("c");
    for family in Family::ALL {
        icmp::ping(c.netns(), b.address(family), 1, 56);
        icmp::ping(lab.netns(), c.address(family), 1, 56);
    }
    c.del().unwrap();
    wait_for("the veth to go", || (links(&lab) == veths).then_some(()));

    lab.stop_daemon();
    lab.start_daemon();
    assert!(lab.status().datapath.attached);
    let redirected = lab.counters().verdict(Verdict::RedirectedToPod);
    for connection in connections {
        connection.wait_for_rounds(20);
        connection.finish();
    }
    assert!(lab.counters().verdict(Verdict::RedirectedToPod) > redirected, "the eBPF path is back");
}

#[test]
fn a_bpffs_that_may_not_be_mounted() {
    falls_back_to_the_kernel_path("mount:error=EPERM", "mount a bpffs", |lab| {
        umount2(&lab.node().bpffs(), MntFlags::MNT_DETACH).unwrap();
    });
}

#[test]
fn a_kernel_without_the_system_call_bpf() {
    falls_back_to_the_kernel_path("bpf:error=ENOSYS", "Function not implemented", |_| {});
}

#[test]
fn a_kernel_that_forbids_bpf() {
    falls_back_to_the_kernel_path("bpf:error=EPERM", "Operation not permitted", |_| {});
}

#[test]
fn a_socket_that_another_daemon_serves() {
    let lab = TestLab::new();
    let a = lab.add_pod("a");
    let before = links(&lab);
    let first = lab.daemon();
    let said = lab.refused_start();
    assert!(said.contains("another podnet daemon serves") && said.contains("podnet.sock"), "{said}");
    assert!(first.is_running().unwrap());
    assert_eq!(links(&lab), before);
    a.check().unwrap();
    let b = lab.add_pod("b");
    icmp::ping(b.netns(), a.address(Family::V4), 1, 56);
    first.stop(std::time::Duration::from_secs(10)).unwrap();
    lab.start_daemon();
}

#[test]
fn a_socket_that_a_foreign_process_holds() {
    let lab = TestLab::new();
    let a = lab.add_pod("a");
    let before = links(&lab);
    lab.stop_daemon();
    let socket = lab.node().socket();
    let foreign = UnixListener::bind(&socket).unwrap();
    let said = lab.refused_start();
    assert!(said.contains("is held by a process that does not answer") && said.contains("podnet.sock"), "{said}");
    drop(foreign);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "somebody's file").unwrap();
    let said = lab.refused_start();
    assert!(said.contains("exists and is no socket"), "{said}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "somebody's file");
    assert_eq!(links(&lab), before);
    fs::remove_file(&socket).unwrap();
    lab.start_daemon();
    a.check().unwrap();
    icmp::ping(lab.netns(), a.address(Family::V4), 1, 56);
}

#[test]
fn a_kernel_that_forbids_bpf_on_a_node_with_neighbors() {
    let cluster = TestCluster::with(|options| options.nodes = 2);
    cluster.wait_for_routes();
    let pods = cluster.add_pods(1);
    let (a, b) = (&pods[0][0], &pods[1][0]);
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    let connections = Family::ALL.map(|family| tcp::LiveConnection::start(a.netns(), b.socket_address(family, PORT)));
    let node = &cluster.nodes()[0];
    // The links of the uplink's programs are pinned; they go although they cannot be looked at.
    let links = podnet::datapath::loader::pin_dir(&node.node().bpffs()).join("links");
    assert!(fs::read_dir(&links).is_ok_and(|mut links| links.next().is_some()), "{} is empty", links.display());
    node.stop_daemon();
    let folder = tempfile::tempdir().unwrap();
    node.start_daemon_by(&podnet_without(folder.path(), "bpf:error=EPERM"));
    assert!(!node.status().datapath.attached);
    assert_eq!(fs::read_dir(&links).unwrap().count(), 0);
    for connection in &connections {
        connection.wait_for_rounds(5);
    }
    let c = node.add_pod("c");
    icmp::ping(c.netns(), b.address(Family::V4), 1, 56);
    icmp::ping(b.netns(), c.address(Family::V6), 1, 56);
    node.stop_daemon();
    node.start_daemon();
    assert!(node.status().datapath.attached);
    assert!(fs::read_dir(&links).unwrap().count() > 0);
    for connection in connections {
        connection.wait_for_rounds(5);
        connection.finish();
    }
}
