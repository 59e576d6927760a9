//! What others do to a node is repaired, and what is theirs is left alone.

use std::time::Duration;

use harness::{Family, TestLab, command::run, icmp, interfaces, pod::Unattached, wait_for};
use podnet::{api::DatapathRequest, lab::Families, plan::REAP_GROUP};

/// Longer than a repair after a notification of the kernel takes, shorter than the interval of the resync.
const SOON: Duration = Duration::from_secs(10);

fn ip(lab: &TestLab, arguments: &str) {
    run(lab.netns(), "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>());
}

fn index_of(lab: &TestLab, name: &str) -> Option<u32> {
    interfaces::links(lab.netns()).into_iter().find(|link| link.ifname == name).map(|link| link.ifindex)
}

fn has_link(lab: &TestLab, name: &str) -> bool {
    index_of(lab, name).is_some()
}

#[test]
fn what_is_set_down_or_renamed_is_repaired_soon() {
    // Without IPv6, no address goes with an interface that is set down.
    let lab = TestLab::with(|options| options.families = Families::V4);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let veth = a.host_ifname().to_owned();
    let breakages = [
        vec!["link set v-net-0 down".to_owned()],
        vec![format!("link set {veth} down")],
        vec![format!("link set {veth} down"), format!("link set {veth} name other0"), "link set other0 up".into()],
    ];
    for breakage in breakages {
        let before = lab.status().repairs;
        let start = std::time::Instant::now();
        for command in &breakage {
            ip(&lab, command);
        }
        wait_for(&format!("a repair of {breakage:?}"), || (lab.status().repairs > before).then_some(()));
        wait_for(&format!("veth {veth}"), || has_link(&lab, &veth).then_some(()));
        assert!(start.elapsed() < SOON, "{breakage:?} took {:?}", start.elapsed());
        icmp::ping(a.netns(), b.address(Family::V4), 1, 56);
        icmp::ping(lab.netns(), a.address(Family::V4), 1, 56);
        a.check().unwrap();
    }
}

#[test]
fn a_link_that_got_the_index_of_a_lost_pod_is_left_alone() {
    let lab = TestLab::new();
    let keeper = lab.add_pod("keeper");
    let pod = lab.add_pod("pod").into_unattached();
    let veth = lab.pods().into_iter().find(|one| one.key.container_id == pod.request.container_id).unwrap();
    // As after a boot: the pod is gone, and indices begin anew.
    lab.kill_daemon();
    drop(pod);
    wait_for("the veth to go with its pod", || (!has_link(&lab, &veth.host_ifname)).then_some(()));
    ip(&lab, &format!("link add foreign0 index {} type bridge", veth.host_ifindex));
    lab.start_daemon();
    wait_for("the pod to be given up", || (lab.pods().len() == 1).then_some(()));
    // DEL flushes the reaper's group.
    lab.add_pod("other").del().unwrap();
    drop(keeper.del().unwrap());
    wait_for("the reaper", || (lab.status().reaping == 0).then_some(()));
    assert_eq!(index_of(&lab, "foreign0"), Some(veth.host_ifindex));
}

#[test]
fn veths_of_a_killed_daemons_reaper_are_deleted() {
    let lab = TestLab::new();
    lab.kill_daemon();
    ip(&lab, "link add pn0123456789a type veth peer name peer0");
    ip(&lab, &format!("link set pn0123456789a group {REAP_GROUP}"));
    lab.start_daemon();
    wait_for("the veth to be deleted", || (!has_link(&lab, "pn0123456789a")).then_some(()));
}

#[test]
fn a_pod_does_not_take_over_a_mac_that_another_asked_for() {
    let lab = TestLab::new();
    let wish = |name: &str, address: &str, mac: Option<&str>| {
        let mut pod = Unattached::new(&lab, name);
        pod.request.args.push(format!("IP={address}"));
        pod.request.args.extend(mac.map(|mac| format!("MAC={mac}")));
        pod.add().unwrap()
    };
    // The MAC that a pod with 10.244.1.64 has unless it asks for another.
    let a = wish("a", "10.244.1.20", Some("0a:58:0a:f4:01:40"));
    let b = wish("b", "10.244.1.64", None);
    assert_ne!(a.mac(), b.mac());
    interfaces::wait_for_carriers(lab.netns());
    for change in [DatapathRequest::Detach, DatapathRequest::Attach] {
        lab.set_datapath(change);
        for family in Family::ALL {
            icmp::ping(a.netns(), b.address(family), 1, 56);
            icmp::ping(lab.netns(), a.address(family), 1, 56);
            icmp::ping(lab.netns(), b.address(family), 1, 56);
        }
    }
}
