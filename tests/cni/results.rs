//! What ADD and VERSION print, per version of the specification, against files in `golden/`.

use serde_json::{Value, json};

use crate::{fake_daemon::FakeDaemon, plugin::Plugin};

fn golden(text: &str) -> Value {
    serde_json::from_str(text).expect("golden file")
}

#[test]
fn add_prints_the_result_of_each_version() {
    let plugin = Plugin::new();
    let _daemon = FakeDaemon::healthy(&plugin.socket());
    let dns = json!({"dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]}});
    for (version, expected) in [
        ("0.3.1", include_str!("golden/add-0.3.1.json")),
        ("0.4.0", include_str!("golden/add-0.4.0.json")),
        ("1.0.0", include_str!("golden/add-1.0.0.json")),
        ("1.1.0", include_str!("golden/add-1.1.0.json")),
    ] {
        assert_eq!(plugin.run("ADD", &plugin.conf(version, &dns)).json(), golden(expected), "{version}");
    }
    let mut expected = golden(include_str!("golden/add-0.3.1.json"));
    expected["cniVersion"] = "0.3.0".into();
    assert_eq!(plugin.run("ADD", &plugin.conf("0.3.0", &dns)).json(), expected);
}

#[test]
fn add_appends_to_the_result_of_earlier_plugins() {
    let plugin = Plugin::new();
    let _daemon = FakeDaemon::healthy(&plugin.socket());
    let earlier = json!({"prevResult": {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": "0a:58:00:00:00:09", "sandbox": "/run/netns/pod"}],
        "ips": [{"address": "192.0.2.5/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"domain": "example.org"},
    }});
    let result = plugin.run("ADD", &plugin.conf("1.0.0", &earlier)).json();
    assert_eq!(result, golden(include_str!("golden/add-chained.json")));
}

#[test]
fn the_request_carries_what_the_runtime_said() {
    let plugin = Plugin::new();
    let daemon = FakeDaemon::healthy(&plugin.socket());
    let conf = json!({"mtu": 1400, "runtimeConfig": {"ips": ["10.244.1.9/24", "fd00:10:244:1::9"], "mac": "02:00:00:00:00:09"}});
    let result = plugin.run("ADD", &plugin.conf("1.1.0", &conf)).json();
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:09");
    let expected = json!({
        "container_id": "0123abc", "ifname": "eth0", "netns": "/run/netns/pod", "network": "podnet",
        "pod": {"namespace": "default", "name": "web", "uid": "u1"},
        "addresses": ["10.244.1.9", "fd00:10:244:1::9"], "mac": "02:00:00:00:00:09", "mtu": 1400,
    });
    assert_eq!(daemon.seen(), [("/v1/cni/add".to_owned(), expected)]);
}

#[test]
fn version_needs_neither_input_nor_daemon() {
    let plugin = Plugin::new();
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (stdin, version) in [("", "1.1.0"), ("{}", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0")] {
        let result = plugin.run("VERSION", stdin).json();
        assert_eq!(result, json!({"cniVersion": version, "supportedVersions": supported}));
    }
}
