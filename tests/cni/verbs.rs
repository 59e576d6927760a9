//! CHECK, GC, STATUS and repeated ADD.

use std::{collections::HashSet, sync::Mutex};

use podnet::api::ErrorKind;
use serde_json::{Value, json};

use crate::{
    fake_daemon::{Answer, FakeDaemon, well},
    plugin::Plugin,
};

#[test]
fn a_second_add_is_an_error_until_del() {
    let plugin = Plugin::new();
    let attached = Mutex::new(HashSet::new());
    let _daemon = FakeDaemon::start(&plugin.socket(), move |path, body| {
        let mut attached = attached.lock().expect("attached");
        let key = body["container_id"].to_string();
        match path {
            "/v1/cni/add" if !attached.insert(key.clone()) => {
                Answer::Error(ErrorKind::AlreadyExists, "eth0 of 0123abc exists; DEL it first")
            }
            "/v1/cni/delete" => {
                attached.remove(&key);
                well(path, body)
            }
            _ => well(path, body),
        }
    });
    plugin.call("ADD").json();
    plugin.call("ADD").assert_error(100, "exists");
    plugin.call("DEL").assert_silent_success();
    plugin.call("DEL").assert_silent_success();
    plugin.call("ADD").json();
}

#[test]
fn check_straight_after_add_sends_what_add_said() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let plugin = Plugin::new();
        let daemon = FakeDaemon::healthy(&plugin.socket());
        let result = plugin.run("ADD", &plugin.conf(version, &json!({}))).json();
        plugin.run("CHECK", &plugin.conf(version, &json!({"prevResult": result}))).assert_silent_success();
        let expected = json!({
            "container_id": "0123abc", "ifname": "eth0", "netns": "/run/netns/pod",
            "addresses": ["10.244.1.2/24", "fd00:10:244:1::2/64"], "mac": "0a:58:0a:f4:01:02",
        });
        assert_eq!(daemon.seen()[1], ("/v1/cni/check".to_owned(), expected));
    }
}

#[test]
fn check_of_another_sandbox_is_a_mismatch() {
    let plugin = Plugin::new();
    let daemon = FakeDaemon::healthy(&plugin.socket());
    let result = plugin.call("ADD").json();
    let stdin = plugin.conf("1.1.0", &json!({"prevResult": result}));
    plugin.run_with("CHECK", &[("CNI_NETNS", "/run/netns/other".into())], &stdin).assert_error(101, "/run/netns/other");
    assert_eq!(daemon.seen_paths(), ["/v1/cni/add"]);
}

#[test]
fn gc_releases_only_what_the_runtime_lists_as_invalid() {
    let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let asked = |members: &Value| -> Option<Value> {
        let plugin = Plugin::new();
        let daemon = FakeDaemon::healthy(&plugin.socket());
        plugin.run("GC", &plugin.conf("1.1.0", members)).assert_silent_success();
        daemon.seen().first().map(|(_, body)| body["valid"].clone())
    };
    let kept = Some(json!([{"container_id": "c1", "ifname": "eth0"}]));
    assert_eq!(asked(&json!({"cni.dev/valid-attachments": list})), kept);
    assert_eq!(asked(&json!({"cni.dev/attachments": list})), kept, "the key of libcni's older releases");
    assert_eq!(asked(&json!({"cni.dev/valid-attachments": []})), Some(json!([])));
    assert_eq!(asked(&json!({"cni.dev/valid-attachments": null})), None);
    assert_eq!(asked(&json!({})), None, "an absent list is not an empty one");
}

#[test]
fn status_succeeds_when_pods_can_be_added() {
    let plugin = Plugin::new();
    let daemon = FakeDaemon::healthy(&plugin.socket());
    plugin.run_with("STATUS", &[("CNI_PATH", "".into())], &plugin.conf("1.1.0", &json!({}))).assert_silent_success();
    assert_eq!(daemon.seen_paths(), ["/readyz"]);
}
