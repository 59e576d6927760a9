//! The node is booted: its kernel forgot everything, and the database is all that is left.

use std::fs;

use harness::{Family, TestLab, TestPod, command, icmp, interfaces, maps, wait_for};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podnet::database::Database;

/// Takes from the node what no boot leaves: links, rules, maps, what is below `/run`; not the pods' namespaces.
fn forget(lab: &TestLab) {
    lab.kill_daemon();
    for link in interfaces::links(lab.netns()) {
        // The other end of a pair goes with the first.
        if link.ifname != "lo" {
            drop(command::try_run(lab.netns(), "ip", &["link", "delete", &link.ifname]));
        }
    }
    wait_for("links to go", || (interfaces::links(lab.netns()).len() == 1).then_some(()));
    command::run(lab.netns(), "nft", &["flush", "ruleset"]);
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        command::set_sysctl(lab.netns(), setting, "0");
    }
    let bpffs = lab.node().bpffs();
    umount2(&bpffs, MntFlags::MNT_DETACH).unwrap();
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    fs::remove_file(lab.node().socket()).unwrap();
}

/// Asserts that the node works as a new one does, with these pods of before.
fn assert_works(lab: &TestLab, before: usize) {
    let (c, d) = (lab.add_pod("c"), lab.add_pod("d"));
    for netns in [lab.netns(), c.netns(), d.netns()] {
        interfaces::wait_for_carriers(netns);
    }
    for family in Family::ALL {
        icmp::ping(c.netns(), d.address(family), 1, 56);
        icmp::ping(lab.netns(), c.address(family), 1, 56);
    }
    assert_eq!(lab.status().pods, before + 2);
    assert_eq!(maps::endpoints(lab.node()).keys().count(), 4);
    assert!(command::run(lab.netns(), "nft", &["list", "tables"]).contains("inet podnet"));
    // Nothing is left of those who were released: no lease, no veth.
    for pool in lab.status().pools {
        assert_eq!(pool.used, before as u64 + 2, "{pool:?}");
    }
    c.del().unwrap();
    d.del().unwrap();
    wait_for("veths to go", || (interfaces::links(lab.netns()).len() == 2).then_some(()));
    assert!(lab.status().datapath.attached);
}

#[test]
fn pods_of_namespaces_that_are_gone_are_released() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    forget(&lab);
    drop((a, b));
    lab.start_daemon();
    assert_eq!(lab.pods(), []);
    assert_works(&lab, 0);
}

#[test]
fn a_pod_whose_namespace_lives_is_reported_and_keeps_its_addresses_until_its_del() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    forget(&lab);
    drop(a);
    lab.start_daemon();
    let left: Vec<_> = lab.pods().into_iter().map(|pod| pod.pod.name).collect();
    assert_eq!(left, ["b"]);
    lab.wait_for_log(&["network is broken until it is recreated", b.container_id()]);
    assert!(b.check().is_err());
    assert_works(&lab, 1);
    let b = b.del().unwrap();
    assert_eq!(lab.pods(), []);
    // The runtime makes it anew.
    let b: TestPod = b.add().unwrap();
    for netns in [lab.netns(), b.netns()] {
        interfaces::wait_for_carriers(netns);
    }
    icmp::ping(lab.netns(), b.address(Family::V6), 1, 56);
}

#[test]
fn nothing_of_an_earlier_boot_is_taken_for_a_pod() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    forget(&lab);
    // Path and inode of a namespace are as before: the kernel begins to count anew, and so may a runtime. The boot differs.
    Database::open(&lab.node().state_dir())
        .unwrap()
        .set_setting("boot", "11111111-2222-3333-4444-555555555555")
        .unwrap();
    lab.start_daemon();
    assert_eq!(lab.pods(), []);
    assert_works(&lab, 0);
    let warnings = lab.status().warnings;
    assert!(warnings.is_empty(), "{warnings:?}");
    drop((a, b));
}
