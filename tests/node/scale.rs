//! A thousand pods on one node, fifty at a time; and a pool that runs out.

use std::collections::BTreeSet;

use harness::{Family, TestLab, crowd, icmp, maps, pod::Unattached, wait_for};
use podnet::lab::runtime::CniError;

const PODS: usize = 1000;

/// Requests that a runtime makes at a time.
const WIDTH: usize = 50;

#[test]
fn a_thousand_pods_come_and_go() {
    let lab = TestLab::with(|options| {
        options.pod_cidrs = vec!["10.244.0.0/20".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()];
        options.log = "info".into();
    });
    // Namespaces are the runtime's part: they are not timed.
    let namespaces = crowd::run(WIDTH, (0..PODS).collect(), |number| Unattached::new(&lab, &format!("pod{number}")));

    let added = crowd::run(WIDTH, namespaces.results, |pod| pod.add().unwrap_or_else(|error| panic!("{error:#}")));
    println!("{}", added.describe("CNI ADD"));
    let pods = added.results;
    for family in Family::ALL {
        let addresses: BTreeSet<_> = pods.iter().map(|pod| pod.address(family)).collect();
        assert_eq!(addresses.len(), PODS, "{family:?} addresses are unique");
    }
    let status = lab.status();
    assert_eq!((status.pods, status.pools[0].used), (PODS, PODS as u64));
    assert_eq!(maps::endpoints(lab.node()).keys().count(), 2 * PODS);
    harness::interfaces::wait_for_carriers(lab.netns());
    for pair in pods.windows(2).step_by(50) {
        for family in Family::ALL {
            icmp::ping(pair[0].netns(), pair[1].address(family), 1, 56);
        }
    }

    measure_comparisons(&lab);

    let deleted = crowd::run(WIDTH, pods, |pod| pod.del().unwrap_or_else(|error| panic!("{error:#}")));
    println!("{}", deleted.describe("CNI DEL"));
    let status = lab.status();
    assert_eq!((status.pods, status.pools[0].used, status.pools[1].used), (0, 0, 0));
    assert_eq!(maps::endpoints(lab.node()).keys().count(), 0);
    assert_eq!(maps::endpoints_by_ifindex(lab.node()).keys().count(), 0);
    let reaped = std::time::Instant::now();
    wait_for("all host-side veths to be reaped", || {
        let left = harness::interfaces::statistics(lab.netns());
        left.keys().all(|name| matches!(name.as_str(), "lo" | "v-net-0")).then_some(())
    });
    println!("veths were reaped {:.2} s after the last DEL", reaped.elapsed().as_secs_f64());
    wait_for("the reaper to have nothing left", || (lab.status().reaping == 0).then_some(()));
    crowd::run(WIDTH, deleted.results, drop);
}

/// Measures what a comparison of everything costs: the processor time of the daemon, and of `nft`, which it runs.
fn measure_comparisons(lab: &TestLab) {
    const COMPARISONS: usize = 1;
    /// A tick of /proc/PID/stat (`USER_HZ`) in milliseconds.
    const TICK: u64 = 10;
    lab.restart_with(|config| {
        config.resync_seconds = 1;
        config.log.daemon = "info,podnet=debug".into();
    });
    let compared = || lab.log().matches("compared reason=\"resync\"").count();
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", lab.daemon().pid)).unwrap();
        // Behind the command's name: user and system time, its own and of children that it waited for (proc(5)).
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11..15].iter().map(|field| field.parse::<u64>().unwrap() * TICK).sum::<u64>()
    };
    wait_for("the first comparison", || (compared() >= 1).then_some(()));
    let (first, before) = (compared(), spent());
    wait_for("comparisons", || (compared() >= first + COMPARISONS).then_some(()));
    let (count, milliseconds) = (compared() - first, spent() - before);
    println!("comparing {PODS} pods: {} ms of processor time each ({count} measured)", milliseconds / count as u64);
    assert_eq!(lab.status().repairs, 0, "there was nothing to repair");
}

#[test]
fn an_exhausted_pool_says_so_and_recovers() {
    // Of 16 addresses, network, broadcast and gateway are no pod's.
    const CAPACITY: u64 = 13;
    let lab = TestLab::with(|options| {
        options.pod_cidrs = vec!["10.244.1.0/28".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()];
    });
    assert_eq!(lab.status().pools[0].capacity, CAPACITY);
    let mut pods: Vec<_> = (0..CAPACITY).map(|number| lab.add_pod(&format!("pod{number}"))).collect();
    for _ in 0..3 {
        let error = lab.try_add_pod("one-too-many").unwrap_err();
        let error = error.downcast_ref::<CniError>().unwrap_or_else(|| panic!("no CNI error: {error:#}")).clone();
        let text = error.to_string();
        assert!(text.contains("10.244.1.0/28") && text.contains("13"), "{text}");
        assert!(error.code >= 100, "{text}");
    }
    let status = lab.status();
    assert_eq!((status.pools[0].used, status.pools[1].used), (CAPACITY, CAPACITY), "nothing is left of what failed");
    let freed = pods.swap_remove(4);
    let address = freed.address(Family::V4);
    drop(freed.del().unwrap());
    let next = lab.add_pod("next");
    assert_eq!(next.address(Family::V4), address, "the only free address");
    icmp::ping(pods[0].netns(), next.address(Family::V4), 3, 56);
}
