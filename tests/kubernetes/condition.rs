//! The node's condition `NetworkUnavailable` is cleared once podnet serves, and nothing else is written.

use std::time::Duration;

use podnet::cluster::Store as _;

use crate::{
    follower::{Follower, api_of, inside},
    objects::failure,
    state::Fault,
};

#[test]
fn the_condition_is_cleared_when_podnet_serves_and_not_before() {
    inside(|| {
        let api = api_of(2);
        api.state(|state| state.change("node1", |node| node.set_condition("NetworkUnavailable", "True")));
        let mut follower = Follower::new(&api);
        follower.snapshot();
        follower.quiet(Duration::from_millis(500));
        assert_eq!(api.state(|state| state.count("patch")), 0);

        follower.store().announce_ready();
        follower.until("the condition", || api.state(|state| !state.patches.is_empty()));
        api.state(|state| {
            let node = &state.nodes["node1"].1;
            let condition = node.condition("NetworkUnavailable").unwrap();
            assert_eq!(
                (condition["status"].as_str(), condition["reason"].as_str()),
                (Some("False"), Some("PodnetIsUp"))
            );
            assert!(condition["lastTransitionTime"].as_str().unwrap().ends_with('Z'), "{condition}");
            // Those of others stay as they were, and so do other nodes.
            assert_eq!(node.condition("Ready").unwrap()["reason"], "KubeletReady");
            assert!(state.nodes["node2"].1.condition("NetworkUnavailable").is_none());
        });
        // Its own writing comes back as an event: that is no news, and is not answered by another writing.
        follower.quiet(Duration::from_millis(800));
        assert_eq!(api.state(|state| state.patches.len()), 1);
    });
}

#[test]
fn whoever_sets_it_again_is_answered() {
    inside(|| {
        let api = api_of(1);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        follower.store().announce_ready();
        for writings in 1..=3 {
            follower.until("the condition", || api.state(|state| state.patches.len()) == writings);
            api.state(|state| state.change("node1", |node| node.set_condition("NetworkUnavailable", "True")));
        }
    });
}

#[test]
fn what_is_right_is_not_written() {
    inside(|| {
        let api = api_of(1);
        api.state(|state| state.change("node1", |node| node.set_condition("NetworkUnavailable", "False")));
        let mut follower = Follower::new(&api);
        follower.store().announce_ready();
        follower.snapshot();
        follower.quiet(Duration::from_millis(800));
        assert_eq!(api.state(|state| state.count("patch")), 0);
    });
}

#[test]
fn it_is_tried_until_it_succeeds() {
    inside(|| {
        let api = api_of(1);
        let conflict = || Fault::Status(409, failure(409, "Conflict", "the object has been modified"));
        api.state(|state| state.fail("patch", [conflict(), conflict(), conflict()]));
        let mut follower = Follower::new(&api);
        follower.snapshot();
        follower.store().announce_ready();
        follower.until("the condition", || api.state(|state| state.patches.len()) == 1);
        assert_eq!(api.state(|state| state.count("patch")), 4);

        // Without the permission the nodes are followed all the same.
        api.state(|state| {
            state.allowed.remove(&("patch", "nodes/status"));
            state.change("node1", |node| node.set_condition("NetworkUnavailable", "True"));
        });
        follower.until("a refused writing", || api.state(|state| state.count("patch")) > 4);
        api.put([crate::objects::FakeNode::numbered(2)]);
        assert_eq!(follower.snapshot().nodes().len(), 2);
        api.state(|state| state.allowed.insert(("patch", "nodes/status")));
        follower.until("the condition", || api.state(|state| state.patches.len()) == 2);
    });
}
