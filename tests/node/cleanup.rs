//! What is left when the daemon, a pod or everything goes, and what a restart finds again.
//!
//! ```text
//!   a <----- traffic -----> b      all the while: daemon stops, starts, cleans up
//! ```

use std::path::Path;

use harness::{Family, TestLab, TestPod, command, icmp, interfaces, maps, pod::Unattached, tcp, udp, wait_for};
use podnet::{api::DatapathMode, lab::runtime::CniError};

const PORT: u16 = 8080;

/// "Try again later" of the CNI specification.
const TRY_AGAIN: u32 = 11;

fn cni_error(error: &anyhow::Error) -> CniError {
    error.downcast_ref::<CniError>().unwrap_or_else(|| panic!("no CNI error: {error:#}")).clone()
}

fn node_has_link(lab: &TestLab, ifname: &str) -> bool {
    interfaces::links(lab.netns()).iter().any(|link| link.ifname == ifname)
}

fn restart_under_traffic(datapath: DatapathMode, end: impl Fn(&TestLab)) {
    let lab = TestLab::with_datapath(datapath);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    for family in Family::ALL {
        let target = b.socket_address(family, PORT);
        let _udp = udp::EchoServer::start(b.netns(), target);
        let connection = tcp::LiveConnection::start(a.netns(), target);
        let flood = udp::Flood::start(a.netns(), target);
        end(&lab);
        // The datapath outlives the daemon.
        flood.wait_for_answers(500);
        tcp::exchange(a.netns(), target, 100_000);
        icmp::ping(lab.netns(), b.address(family), 3, 56);
        let repairs_before = lab_links(&lab);
        lab.start_daemon();
        flood.wait_for_answers(500);
        connection.wait_for_rounds(5);
        connection.finish();
        let tally = flood.finish();
        assert_eq!(tally.lost(), 0, "{datapath}, {family:?}: {tally:?}");
        assert_eq!(lab_links(&lab), repairs_before, "links were made anew");
        assert_eq!(lab.status().repairs, 0, "there was nothing to repair");
    }
    let mut pods: Vec<_> = lab.pods().into_iter().map(|pod| pod.pod.name).collect();
    pods.sort();
    assert_eq!(pods, ["a", "b"]);
    a.check().unwrap();
    tcp::exchange(a.netns(), b.socket_address(Family::V6, PORT), 100_000);
    let c = lab.add_pod("c");
    assert!([&a, &b].iter().all(|pod| pod.address(Family::V4) != c.address(Family::V4)));
}

fn lab_links(lab: &TestLab) -> Vec<(u32, String)> {
    interfaces::links(lab.netns()).into_iter().map(|link| (link.ifindex, link.ifname)).collect()
}

#[test]
fn a_clean_restart_loses_nothing() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        restart_under_traffic(datapath, |lab| lab.stop_daemon());
    }
}

#[test]
fn a_killed_daemon_restarts_and_loses_nothing() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        restart_under_traffic(datapath, |lab| lab.kill_daemon());
    }
}

#[test]
fn cleanup_leaves_nothing() {
    let lab = TestLab::new();
    let (a, _b) = (lab.add_pod("a"), lab.add_pod("b"));
    lab.stop_daemon();
    lab.run_cleanup();
    let left: Vec<_> = lab_links(&lab).into_iter().filter(|(_, name)| name != "lo").collect();
    assert_eq!(left, []);
    assert!(!maps::pins(lab.node()).exists(), "{} is left", maps::pins(lab.node()).display());
    assert!(!Path::new(&lab.node().socket()).exists());
    assert_eq!(command::run(lab.netns(), "nft", &["list", "ruleset"]).trim(), "");
    assert!(interfaces::links(a.netns()).iter().all(|link| link.ifname != "eth0"));
    // What was cleaned up can be cleaned up again, and the node can start afresh.
    lab.run_cleanup();
    lab.start_daemon();
    assert_eq!(lab.pods(), []);
    let c = lab.add_pod("c");
    icmp::ping(lab.netns(), c.address(Family::V4), 3, 56);
}

#[test]
fn del_removes_the_pod_and_can_be_repeated() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let (address, host_ifname) = (a.address(Family::V4), a.host_ifname().to_owned());
    let gone = a.del().unwrap();
    gone.del().unwrap();
    assert!(!icmp::answers(b.netns(), address, harness::QUIET));
    assert!(interfaces::links(gone.netns()).iter().all(|link| link.ifname != "eth0"));
    wait_for("the host-side veth to be reaped", || (!node_has_link(&lab, &host_ifname)).then_some(()));
    assert_eq!(lab.pods().len(), 1);
    assert_eq!(maps::endpoints(lab.node()).keys().count(), 2, "the other pod's addresses");
    assert_eq!(maps::endpoints_by_ifindex(lab.node()).keys().count(), 1);
}

#[test]
fn del_without_the_daemon_is_done_when_it_starts() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let host_ifname = a.host_ifname().to_owned();
    lab.stop_daemon();
    let a = a.del().unwrap();
    assert_eq!(cni_error(&lab.try_add_pod("c").unwrap_err()).code, TRY_AGAIN);
    // The runtime removes the namespace as soon as DEL has answered.
    drop(a);
    lab.start_daemon();
    wait_for("the deletion to be made up for", || (lab.pods().len() == 1).then_some(()));
    wait_for("the host-side veth to go", || (!node_has_link(&lab, &host_ifname)).then_some(()));
    assert_eq!(lab.status().pools[0].used, 1);
    b.check().unwrap();
}

#[test]
fn add_after_a_queued_del_is_not_undone_by_it() {
    let lab = TestLab::new();
    let a = lab.add_pod("a");
    lab.stop_daemon();
    let a = a.del().unwrap();
    lab.start_daemon();
    let a = a.add().unwrap();
    lab.stop_daemon();
    lab.start_daemon();
    a.check().unwrap();
    icmp::ping(lab.netns(), a.address(Family::V6), 3, 56);
}

#[test]
fn check_notices_what_was_changed() {
    let lab = TestLab::new();
    let changes: [fn(&TestPod) -> String; 4] = [
        |pod| format!("address delete {}/24 dev eth0", pod.address(Family::V4)),
        |pod| format!("address delete {}/64 dev eth0", pod.address(Family::V6)),
        |_| "route delete default".into(),
        |_| "link set eth0 down".into(),
    ];
    for (number, change) in changes.iter().enumerate() {
        let pod = lab.add_pod(&format!("pod{number}"));
        pod.check().unwrap();
        let change = change(&pod);
        command::run(pod.netns(), "ip", &change.split(' ').collect::<Vec<_>>());
        let error = cni_error(&pod.check().unwrap_err());
        assert!(error.msg.contains("eth0") || error.details.contains("eth0"), "after `ip {change}`: {error}");
        pod.del().unwrap();
    }
}

#[test]
fn an_attachment_cannot_be_made_twice() {
    let lab = TestLab::new();
    let a = lab.add_pod("a");
    let mut again = Unattached::new(&lab, "again");
    again.request.container_id = a.container_id().to_owned();
    again.request.netns = Some(a.netns().path().to_owned());
    assert!(again.add().is_err());
    a.check().unwrap();
    icmp::ping(lab.netns(), a.address(Family::V4), 3, 56);
    assert_eq!(lab.pods().len(), 1);
}
