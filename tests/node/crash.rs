//! The daemon is killed at random moments while pods come and go: afterwards, nothing is leaked and no pod is lost.
//!
//! ```text
//!   50 runtimes: ADD, DEL, ADD, ...  -->  daemon  x SIGKILL, restart, x SIGKILL, restart, ...
//!   a <----- one TCP connection -----> b          all the while
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use harness::{
    DEADLINE, Family, TestLab, TestPod, crowd, icmp, interfaces, maps, pod::Unattached, random::Random, tcp, wait_for,
};

const OPERATIONS: usize = 1000;
const WIDTH: usize = 50;
const KILLS: usize = 10;
const SEED: u64 = 20_260_301;

/// Does what a runtime does until it succeeds: an ADD that failed is followed by a DEL, and then tried again.
fn add(mut pod: Unattached) -> TestPod {
    let start = Instant::now();
    loop {
        let failed = match pod.try_add() {
            Ok(pod) => return pod,
            Err(failed) => failed,
        };
        assert!(start.elapsed() < 3 * DEADLINE, "ADD fails for {:?}: {:#}", start.elapsed(), failed.1);
        pod = *failed.0;
        del(&pod);
    }
}

fn del(pod: &Unattached) {
    let start = Instant::now();
    while let Err(error) = pod.del() {
        assert!(start.elapsed() < 3 * DEADLINE, "DEL fails for {:?}: {error:#}", start.elapsed());
    }
}

/// Kills and restarts the daemon whenever so many operations are done, until all are.
fn kill_at_random(lab: &TestLab, done: &AtomicUsize) {
    let mut random = Random::new(SEED);
    // Two at the same moment kill a daemon that has barely recovered.
    let mut moments: Vec<_> = (0..KILLS).map(|_| random.below(OPERATIONS as u64 * 9 / 10) as usize).collect();
    moments.sort_unstable();
    for moment in moments {
        wait_for(&format!("operation {moment}"), || (done.load(Ordering::Relaxed) >= moment).then_some(()));
        lab.kill_daemon();
        lab.start_daemon();
    }
}

#[test]
fn nothing_is_leaked_and_no_pod_lost() {
    let lab = TestLab::with(|options| {
        options.pod_cidrs = vec!["10.244.0.0/20".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()];
        options.log = "info".into();
    });
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), 8080);
    let connections = Family::ALL.map(|family| tcp::LiveConnection::start(a.netns(), b.socket_address(family, 8080)));

    let (done, kept) = (AtomicUsize::new(0), Mutex::new(vec![a, b]));
    // Of the operations, a third are DELs: of half of the pods that ADD made.
    let jobs: Vec<_> = (0..OPERATIONS * 2 / 3).collect();
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at_random(&lab, &done));
        crowd::run(WIDTH, jobs, |number| {
            let pod = add(Unattached::new(&lab, &format!("pod{number}")));
            done.fetch_add(1, Ordering::Relaxed);
            if number % 2 == 0 {
                return kept.lock().unwrap().push(pod);
            }
            // DEL is retried with what ADD was given.
            let pod = pod.into_unattached();
            del(&pod);
            done.fetch_add(1, Ordering::Relaxed);
        });
        killer.join().unwrap();
    });
    let pods = kept.into_inner().unwrap();

    for connection in connections {
        connection.wait_for_rounds(5);
        connection.finish();
    }
    assert_holds_exactly(&lab, &pods);
    // One more start: what it finds is what should be.
    lab.kill_daemon();
    lab.start_daemon();
    assert_holds_exactly(&lab, &pods);
    assert_eq!(lab.status().repairs, 0, "{}", lab.log_tail());
    for pod in &pods {
        for family in Family::ALL {
            icmp::ping(lab.netns(), pod.address(family), 1, 56);
            icmp::ping(pod.netns(), pods[0].gateway(family), 1, 56);
            if pod.name() != "b" {
                icmp::ping(pod.netns(), pods[1].address(family), 1, 56);
            }
        }
    }
    crowd::run(WIDTH, pods, |pod| drop(pod.del().unwrap()));
    assert_holds_exactly(&lab, &[]);
}

/// Asserts that daemon, links and maps hold these pods and nothing else.
fn assert_holds_exactly(lab: &TestLab, pods: &[TestPod]) {
    let addresses = |pod: &TestPod| -> Vec<IpAddr> { Family::ALL.map(|family| pod.address(family)).into() };
    let expected: BTreeMap<_, _> = pods.iter().map(|pod| (pod.container_id().to_owned(), addresses(pod))).collect();
    // Deletions that were queued while the daemon was down are made up for soon, not at once.
    wait_for("the daemon to have the pods that ADD answered, and no other", || {
        let actual: BTreeMap<_, _> = lab.pods().into_iter().map(|pod| (pod.key.container_id, pod.addresses)).collect();
        (actual == expected).then_some(())
    });

    let status = lab.status();
    for pool in &status.pools {
        assert_eq!(pool.used, pods.len() as u64, "leases of {}", pool.cidr);
    }

    let all: BTreeSet<IpAddr> = pods.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 2 * pods.len(), "an address was given twice");
    let endpoints = maps::endpoints(lab.node());
    let mapped: BTreeSet<_> = endpoints.keys().map(|key| key.unwrap().to_ip()).collect();
    assert_eq!(mapped, all, "ENDPOINTS");

    let veths: BTreeSet<_> = pods.iter().map(|pod| pod.host_ifname().to_owned()).collect();
    let links = wait_for("the node to have the veths of its pods, and no other", || {
        let mut links: BTreeMap<_, _> =
            interfaces::links(lab.netns()).into_iter().map(|link| (link.ifname, link.ifindex)).collect();
        links.retain(|name, _| name != "lo" && name != "v-net-0");
        (links.keys().cloned().collect::<BTreeSet<_>>() == veths).then_some(links)
    });
    let indices: BTreeSet<_> = maps::endpoints_by_ifindex(lab.node()).keys().map(Result::unwrap).collect();
    assert_eq!(indices, links.values().copied().collect(), "ENDPOINTS_BY_IFINDEX");
    for pod in pods {
        let endpoint = endpoints.get(&pod.address(Family::V4).into(), 0).unwrap();
        assert_eq!((endpoint.ifindex, endpoint.mac), (links[pod.host_ifname()], pod.mac().0), "{}", pod.name());
    }
    wait_for("the reaper to have nothing left", || (lab.status().reaping == 0).then_some(()));
}
