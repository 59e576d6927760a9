//! The server is away, forgets, breaks off, answers late or refuses: the last snapshot stays, a failure is told once, and
//! the store finds its way back.

use std::time::{Duration, Instant};

use podnet::cluster::{Update, kubernetes::Timing};

use crate::{
    follower::{Follower, api_of, inside, names, timing},
    objects::{FakeNode, failure},
    state::Fault,
};

/// Longer than several retries.
const RETRIES: Duration = Duration::from_millis(1500);

#[test]
fn an_absent_server_is_told_once_and_so_is_its_return() {
    inside(|| {
        let mut api = api_of(2);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        api.stop();
        let reason = follower.failure();
        assert!(reason.contains("watch nodes"), "{reason}");
        // Refused again and again: that is no news.
        follower.quiet(RETRIES);
        api.put([FakeNode::numbered(3)]);
        api.resume();
        assert_eq!(names(&follower.snapshot()).len(), 3);
        // The watch went on from where it was: nothing was listed again.
        assert_eq!(api.state(|state| state.count("list")), 1);
        // Also where nothing has changed meanwhile.
        follower.until("the watch", || api.state(|state| state.watches) == 1);
        api.stop();
        follower.failure();
        api.resume();
        let back = Instant::now();
        assert_eq!(names(&follower.snapshot()).len(), 3);
        println!("back after {:?}", back.elapsed());
    });
}

#[test]
fn a_server_that_is_away_at_start_is_waited_for() {
    inside(|| {
        let mut api = api_of(1);
        api.stop();
        let mut follower = Follower::new(&api);
        assert!(follower.failure().contains("refused"));
        follower.quiet(RETRIES);
        api.resume();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

#[test]
fn what_the_server_has_forgotten_is_listed_anew() {
    inside(|| {
        let mut api = api_of(3);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        api.stop();
        follower.failure();
        // A node goes, and the event of that is compacted away: the watch answers 410 in an event.
        api.state(|state| {
            state.delete("node3");
            state.compact();
        });
        api.resume();
        assert_eq!(names(&follower.snapshot()), ["node1", "node2"]);
        assert_eq!(api.state(|state| state.count("list")), 2);
        follower.quiet(Duration::from_millis(500));

        // The same as the status of the answer.
        follower.until("the watch", || api.state(|state| state.watches) == 1);
        api.stop();
        follower.failure();
        api.state(|state| {
            state.delete("node2");
            state.fail("watch", [Fault::Status(410, failure(410, "Expired", "too old resource version"))]);
        });
        api.resume();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

#[test]
fn an_expired_page_begins_the_list_again() {
    inside(|| {
        let api = api_of(10);
        let gone = Fault::Status(410, failure(410, "Expired", "The provided continue parameter is too old"));
        api.state(|state| state.fail("list", [Fault::Late(Duration::ZERO), gone]));
        let mut follower = Follower::with_timing(&api, Timing { page: 4, ..timing() });
        assert_eq!(names(&follower.snapshot()).len(), 10);
        let lists =
            api.state(|state| state.seen.iter().filter(|seen| seen.verb == "list").cloned().collect::<Vec<_>>());
        assert_eq!(lists.len(), 2 + 3);
        assert!(!lists[2].query.contains_key("continue"), "{lists:?}");
    });
}

#[test]
fn a_restored_database_is_listed_anew() {
    inside(|| {
        let mut api = api_of(2);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        follower.until("the watch", || api.state(|state| state.watches) == 1);
        api.stop();
        follower.failure();
        // Out of a backup: versions are smaller than the one that the store knows.
        api.state(|state| {
            state.delete("node2");
            state.version = 500;
        });
        api.resume();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_an_event_loses_nothing() {
    inside(|| {
        let api = api_of(1);
        api.state(|state| state.fail("watch", [Fault::CutAfter(1), Fault::CutAfter(0)]));
        let mut follower = Follower::new(&api);
        follower.snapshot();
        api.put([FakeNode::numbered(2)]);
        assert_eq!(names(&follower.snapshot()).len(), 2);
        api.put([FakeNode::numbered(3)]);
        assert_eq!(names(&follower.snapshot()).len(), 3);
        let (lists, watches) = api.state(|state| (state.count("list"), state.count("watch")));
        assert_eq!((lists, watches), (1, 3));
        follower.quiet(Duration::from_millis(500));
    });
}

#[test]
fn an_error_event_is_a_failure_and_is_overcome() {
    inside(|| {
        let api = api_of(1);
        let status = failure(500, "InternalError", "etcdserver: request timed out");
        api.state(|state| state.fail("watch", [Fault::ErrorEvent(status)]));
        let mut follower = Follower::new(&api);
        follower.snapshot();
        assert!(follower.failure().contains("etcdserver: request timed out"));
        assert_eq!(names(&follower.snapshot()), ["node1"]);
        api.put([FakeNode::numbered(2)]);
        assert_eq!(names(&follower.snapshot()).len(), 2);
    });
}

#[test]
fn a_watch_that_ends_in_time_goes_on_from_its_bookmark() {
    inside(|| {
        let api = api_of(1);
        api.state(|state| state.bookmarks = Duration::from_millis(300));
        let mut follower = Follower::with_timing(&api, Timing { watch_seconds: 1, ..timing() });
        follower.snapshot();
        // Only other objects change, so only bookmarks tell of new versions; without them the watch would be too old.
        api.state(|state| state.version += 50);
        follower.until("a bookmark", || api.state(|state| state.count("watch")) >= 2);
        let version = api.state(|state| state.version);
        let watches =
            api.state(|state| state.seen.iter().filter(|seen| seen.verb == "watch").cloned().collect::<Vec<_>>());
        assert_eq!(watches.last().unwrap().query["resourceVersion"], version.to_string());
        assert_eq!(api.state(|state| state.count("list")), 1);
        follower.quiet(Duration::from_millis(500));
    });
}

#[test]
fn a_network_that_swallows_everything_is_noticed() {
    inside(|| {
        let api = api_of(1);
        let mut follower = Follower::new(&api);
        follower.snapshot();
        follower.until("the watch", || api.state(|state| state.watches) == 1);
        let start = Instant::now();
        api.state(|state| {
            state.silent = true;
            state.fail("watch", vec![Fault::Late(Duration::from_secs(60)); 3]);
        });
        let reason = follower.failure();
        println!("noticed after {:?}: {reason}", start.elapsed());
        assert!(reason.contains("no answer within 2 s") || reason.contains("timed out"), "{reason}");
        api.state(|state| {
            state.silent = false;
            state.put(FakeNode::numbered(2));
        });
        assert_eq!(names(&follower.snapshot()).len(), 2);
    });
}

#[test]
fn a_slow_server_is_no_absent_one() {
    inside(|| {
        let api = api_of(5);
        api.state(|state| {
            state.fail("list", vec![Fault::Late(Duration::from_millis(700)); 3]);
            state.fail("watch", [Fault::Late(Duration::from_millis(700))]);
        });
        let mut follower = Follower::with_timing(&api, Timing { page: 2, ..timing() });
        assert_eq!(names(&follower.snapshot()).len(), 5);
    });
}

#[test]
fn a_busy_server_decides_how_long_to_wait() {
    inside(|| {
        let api = api_of(1);
        let mut busy = failure(429, "TooManyRequests", "too many requests, please try again later");
        busy["details"] = serde_json::json!({ "retryAfterSeconds": 1 });
        api.state(|state| state.fail("list", [Fault::Status(429, busy)]));
        let start = Instant::now();
        let mut follower = Follower::new(&api);
        assert!(follower.failure().contains("429"));
        follower.snapshot();
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(api.state(|state| state.count("list")), 2);
    });
}

#[test]
fn answers_that_make_no_sense_are_failures() {
    inside(|| {
        let api = api_of(1);
        let html = serde_json::json!("<html>Bad Gateway</html>");
        api.state(|state| {
            state.fail("list", [Fault::Status(502, html.clone()), Fault::Status(200, html)]);
        });
        let mut follower = Follower::new(&api);
        assert!(follower.failure().contains("502"));
        assert!(follower.failure().contains("makes no sense"));
        assert!(matches!(follower.next(), Update::Snapshot(_)));
    });
}
