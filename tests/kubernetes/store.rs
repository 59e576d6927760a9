//! Snapshots follow the Node objects: by list in pages, by events, in bursts.

use std::time::Duration;

use podnet::{cluster::kubernetes::Timing, config::show};

use crate::{
    follower::{Follower, api_of, inside, names, timing},
    objects::FakeNode,
};

#[test]
fn nodes_come_with_both_families_and_change_by_events() {
    inside(|| {
        let api = api_of(2);
        let mut follower = Follower::new(&api);
        let first = follower.snapshot();
        assert_eq!(names(&first), ["node1", "node2"]);
        let node = first.node("node2").unwrap();
        assert_eq!(node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.168.10.3", "fd00:192::2"]);
        assert_eq!(show(&node.pod_cidrs), "[10.64.2.0/24, fd00:10:2::/64]");

        api.put([FakeNode::numbered(3)]);
        assert_eq!(names(&follower.snapshot()), ["node1", "node2", "node3"]);
        api.state(|state| state.change("node3", |node| node.addresses = vec!["192.168.77.7".into()]));
        assert_eq!(follower.snapshot().node("node3").unwrap().addresses[0].to_string(), "192.168.77.7");
        api.state(|state| state.delete("node2"));
        assert_eq!(names(&follower.snapshot()), ["node1", "node3"]);
        let (lists, watches) = api.state(|state| (state.count("list"), state.count("watch")));
        assert_eq!((lists, watches), (1, 1), "one list and one watch are enough");
    });
}

#[test]
fn requests_are_as_the_api_wants_them() {
    inside(|| {
        let api = api_of(7);
        let mut follower = Follower::with_timing(&api, Timing { page: 3, ..timing() });
        assert_eq!(names(&follower.snapshot()).len(), 7);
        follower.until("the watch", || api.state(|state| state.count("watch")) == 1);
        let (seen, version) = api.state(|state| (state.seen.clone(), state.version));
        let limits: Vec<_> = seen[..3].iter().map(|seen| (seen.verb, seen.query["limit"].as_str())).collect();
        assert_eq!(limits, [("list", "3"); 3]);
        assert!(
            !seen[0].query.contains_key("continue")
                && seen[1..3].iter().all(|seen| seen.query.contains_key("continue"))
        );
        // Without a resourceVersion a list is the newest state; with one and a limit it would be another one in pages.
        assert!(seen[..3].iter().all(|seen| !seen.query.contains_key("resourceVersion")), "{seen:?}");
        let watch = &seen[3].query;
        assert_eq!(watch["resourceVersion"], version.to_string());
        assert_eq!((watch["watch"].as_str(), watch["allowWatchBookmarks"].as_str()), ("true", "true"));
        assert_eq!(watch["timeoutSeconds"], "290");
    });
}

#[test]
fn heart_beats_make_no_snapshot() {
    inside(|| {
        let api = api_of(3);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        for _ in 0..20 {
            for number in 1..=3 {
                api.state(|state| state.change(&format!("node{number}"), |node| node.beats += 1));
            }
        }
        follower.quiet(Duration::from_millis(800));
    });
}

#[test]
fn a_burst_makes_one_snapshot() {
    inside(|| {
        let api = api_of(1);
        let patient = Timing { settle: Duration::from_millis(500), settle_limit: Duration::from_secs(5), ..timing() };
        let mut follower = Follower::with_timing(&api, patient);
        follower.snapshot();
        follower.until("the watch", || api.state(|state| state.watches) == 1);
        api.put((2..=300).map(FakeNode::numbered));
        let mut snapshots = 1;
        while names(&follower.snapshot()).len() < 300 {
            snapshots += 1;
        }
        assert!(snapshots <= 2, "{snapshots} snapshots");
        follower.quiet(Duration::from_millis(700));
    });
}

#[test]
fn what_is_not_told_now_is_told_later() {
    inside(|| {
        let api = api_of(1);
        let mut follower = Follower::new(&api);
        // Cancelled again and again, also in the middle of the list.
        let mut first = None;
        for _ in 0..200 {
            first = follower.within(Duration::from_millis(1));
            if first.is_some() {
                break;
            }
        }
        assert!(first.is_some());
        for number in 2..=6 {
            api.put([FakeNode::numbered(number)]);
            follower.within(Duration::from_micros(100 * u64::from(number)));
        }
        let mut last = nodes_of(&mut follower);
        while last < 6 {
            last = nodes_of(&mut follower);
        }
    });
}

fn nodes_of(follower: &mut Follower) -> usize {
    follower.snapshot().nodes().len()
}

#[test]
fn unfinished_nodes_do_not_fail_the_rest() {
    inside(|| {
        let api = api_of(2);
        api.put([
            FakeNode::new("no-address", &[], &["10.90.0.0/24"]),
            FakeNode::new("no-cidr", &["192.168.99.1"], &[]),
            FakeNode::new("bad-address", &["not an address"], &["10.91.0.0/24"]),
            FakeNode::new("bad-cidr", &["192.168.99.2"], &["10.92.0.1/24"]),
        ]);
        let mut follower = Follower::new(&api);
        let cluster = follower.snapshot();
        assert_eq!(names(&cluster), ["bad-cidr", "no-cidr", "node1", "node2"]);
        assert!(
            cluster.node("no-cidr").unwrap().pod_cidrs.is_empty()
                && cluster.node("bad-cidr").unwrap().pod_cidrs.is_empty()
        );

        // As the controller manager and kubelet do it: the rest comes later.
        api.state(|state| state.change("no-cidr", |node| node.pod_cidrs = vec!["10.93.0.0/24".into()]));
        assert_eq!(show(&follower.snapshot().node("no-cidr").unwrap().pod_cidrs), "[10.93.0.0/24]");
        api.state(|state| state.change("no-address", |node| node.addresses = vec!["192.168.99.3".into()]));
        assert!(follower.snapshot().node("no-address").is_some());
    });
}

#[test]
fn a_node_at_odds_with_another_is_left_out_and_the_own_one_never() {
    inside(|| {
        let api = api_of(2);
        let young = |node: FakeNode| FakeNode { created: "2026-02-02T00:00:00Z".into(), ..node };
        api.put([young(FakeNode::new("twin", &["192.168.50.1"], &["10.64.2.0/25"]))]);
        let mut follower = Follower::new(&api);
        assert_eq!(names(&follower.snapshot()), ["node1", "node2"]);
        // Now this node has what another one had before.
        api.state(|state| {
            state.change("node1", |node| {
                *node = young(node.clone());
                node.pod_cidrs = vec!["10.64.2.0/24".into()];
            });
        });
        let failure = follower.failure();
        assert!(failure.contains("node1") && failure.contains("node2") && failure.contains("10.64.2.0"), "{failure}");
        api.state(|state| state.delete("node2"));
        assert_eq!(names(&follower.snapshot()), ["node1"]);
        // A node that nobody has registered.
        api.state(|state| state.delete("node1"));
        let failure = follower.failure();
        assert!(failure.contains("has the name node1") && failure.contains("PODNET_NODE"), "{failure}");
        api.put([FakeNode::numbered(1)]);
        assert!(names(&follower.snapshot()).contains(&"node1"));
    });
}
