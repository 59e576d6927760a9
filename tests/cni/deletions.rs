//! DEL in bad times: without a network namespace, without a daemon, and while the daemon starts.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use podnet::{api::ErrorKind, cni::deletions::drain};
use serde_json::json;

use crate::{
    fake_daemon::{Answer, FakeDaemon, well},
    plugin::Plugin,
};

/// Drains the queue as a starting daemon does, and returns the container IDs.
fn drained(plugin: &Plugin) -> Vec<String> {
    let mut ids = Vec::new();
    drain(&plugin.deletions(), |request| {
        ids.push(request.key.container_id);
        Ok(())
    })
    .expect("drain the queue");
    ids
}

#[test]
fn del_needs_no_netns_and_no_valid_configuration_of_the_pod() {
    let plugin = Plugin::new();
    let daemon = FakeDaemon::healthy(&plugin.socket());
    let stdin = plugin.conf("0.3.1", &json!({"mtu": "wrong", "ipam": {"type": "host-local"}}));
    let bad = [("CNI_NETNS", "".into()), ("CNI_ARGS", "wrong".into()), ("CNI_PATH", "".into())];
    plugin.run_with("DEL", &bad, &stdin).assert_silent_success();
    let expected = json!({"container_id": "0123abc", "ifname": "eth0"});
    assert_eq!(daemon.seen(), [("/v1/cni/delete".to_owned(), expected)]);
    assert_eq!(plugin.queued(), 0);
}

#[test]
fn del_of_what_the_daemon_does_not_know_succeeds() {
    let plugin = Plugin::new();
    let _daemon = FakeDaemon::failing(&plugin.socket(), ErrorKind::NotFound);
    plugin.call("DEL").assert_silent_success();
}

#[test]
fn del_reports_what_the_daemon_cannot_do() {
    let plugin = Plugin::new();
    let _daemon = FakeDaemon::failing(&plugin.socket(), ErrorKind::Internal);
    plugin.call("DEL").assert_error(999, "the fake daemon says no");
    assert_eq!(plugin.queued(), 0);
}

#[test]
fn del_without_a_daemon_is_queued_and_drained() {
    let plugin = Plugin::new();
    for _ in 0..2 {
        let outcome = plugin.call("DEL");
        outcome.assert_silent_success();
        assert!(outcome.stderr.contains("queued"), "{outcome:?}");
    }
    let stdin = plugin.conf("1.1.0", &json!({}));
    plugin.run_with("DEL", &[("CNI_CONTAINERID", "other".into())], &stdin).assert_silent_success();
    assert_eq!(plugin.queued(), 2, "the same deletion is queued once");
    assert_eq!(fs::metadata(plugin.deletions()).expect("folder").permissions().mode() & 0o777, 0o700);
    let mut ids = drained(&plugin);
    ids.sort();
    assert_eq!(ids, ["0123abc", "other"]);
    assert_eq!(plugin.queued(), 0);
}

#[test]
fn del_is_queued_while_the_daemon_starts_or_dies() {
    for answer in [|| Answer::Error(ErrorKind::Unavailable, "starting"), || Answer::Raw("")] {
        let plugin = Plugin::new();
        let _daemon = FakeDaemon::start(&plugin.socket(), move |_, _| answer());
        plugin.call("DEL").assert_silent_success();
        assert_eq!(drained(&plugin), ["0123abc"]);
    }
}

#[test]
fn del_that_can_neither_be_sent_nor_queued_says_both() {
    let plugin = Plugin::new();
    fs::write(plugin.deletions(), "").expect("a file in the folder's place");
    let outcome = plugin.call("DEL");
    outcome.assert_error(11, "podnet.sock");
    outcome.assert_error(11, "deletions");
}

#[test]
fn a_daemon_that_comes_up_takes_the_deletion_at_once() {
    let plugin = Plugin::new();
    let asked = AtomicUsize::new(0);
    let daemon = FakeDaemon::start(&plugin.socket(), move |path, body| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 { Answer::Raw("") } else { well(path, body) }
    });
    plugin.call("DEL").assert_silent_success();
    assert_eq!(daemon.seen_paths(), ["/v1/cni/delete", "/v1/cni/delete"]);
    assert_eq!(plugin.queued(), 0);
}

#[test]
fn no_deletion_is_lost_while_the_daemon_starts() {
    const PODS: usize = 40;
    for _ in 0..5 {
        let plugin = Plugin::new();
        let deleted = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&deleted);
        let daemon = thread::scope(|scope| {
            for worker in 0..4 {
                let plugin = &plugin;
                scope.spawn(move || {
                    let stdin = plugin.conf("1.1.0", &json!({}));
                    for pod in (worker..PODS).step_by(4) {
                        let id = [("CNI_CONTAINERID", format!("pod{pod}").into())];
                        plugin.run_with("DEL", &id, &stdin).assert_silent_success();
                    }
                });
            }
            // In the midst of it, the daemon starts: it listens, then drains.
            while plugin.queued() < PODS / 4 {
                thread::yield_now();
            }
            let daemon = FakeDaemon::start(&plugin.socket(), move |path, body| {
                seen.lock().expect("deleted").insert(body["container_id"].as_str().expect("id").to_owned());
                well(path, body)
            });
            deleted.lock().expect("deleted").extend(drained(&plugin));
            daemon
        });
        assert_eq!(deleted.lock().expect("deleted").len(), PODS);
        assert_eq!(plugin.queued(), 0);
        drop(daemon);
    }
}

#[test]
fn an_add_applies_its_queued_deletion_first() {
    let plugin = Plugin::new();
    plugin.call("DEL").assert_silent_success();
    plugin.call("ADD").assert_error(11, "podnet.sock");
    assert_eq!(plugin.queued(), 1, "the deletion stays until it is applied");
    let daemon = FakeDaemon::healthy(&plugin.socket());
    plugin.call("ADD").json();
    assert_eq!(daemon.seen_paths(), ["/v1/cni/delete", "/v1/cni/add"]);
    assert_eq!(plugin.queued(), 0);
}

#[test]
fn an_add_without_an_answer_is_taken_back() {
    let plugin = Plugin::new();
    let daemon = FakeDaemon::start(&plugin.socket(), |path, body| match path {
        "/v1/cni/add" => Answer::Silence,
        _ => well(path, body),
    });
    let outcome = plugin.run("ADD", &plugin.conf("1.1.0", &json!({"timeoutSeconds": 1})));
    outcome.assert_error(11, "did not answer within 1 s");
    assert_eq!(daemon.seen_paths(), ["/v1/cni/add", "/v1/cni/delete"]);
}
