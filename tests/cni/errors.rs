//! Every code that the plugin gives, from bad input and from the daemon's errors.

use std::{
    ffi::OsString,
    fs::File,
    os::unix::ffi::OsStringExt as _,
    process::{Command, Stdio},
};

use podnet::api::ErrorKind;
use serde_json::{Value, json};

use crate::{
    fake_daemon::{Answer, FakeDaemon},
    plugin::Plugin,
};

#[test]
fn a_daemons_error_has_its_code() {
    for (kind, add, check) in [
        (ErrorKind::InvalidRequest, 7, 7),
        (ErrorKind::InvalidNetns, 8, 8),
        (ErrorKind::AlreadyExists, 100, 100),
        (ErrorKind::NotFound, 999, 3),
        (ErrorKind::Mismatch, 101, 101),
        (ErrorKind::Exhausted, 102, 102),
        (ErrorKind::AddressInUse, 103, 103),
        (ErrorKind::Unavailable, 11, 11),
        (ErrorKind::Internal, 999, 999),
    ] {
        let plugin = Plugin::new();
        let daemon = FakeDaemon::failing(&plugin.socket(), kind);
        plugin.call("ADD").assert_error(add, "the fake daemon says no");
        plugin.run("CHECK", &check_conf(&plugin)).assert_error(check, "the fake daemon says no");
        plugin.call("STATUS").assert_error(50, "the fake daemon says no");
        assert_eq!(daemon.seen_paths(), ["/v1/cni/add", "/v1/cni/check", "/readyz"], "{kind:?}");
    }
}

#[test]
fn an_unacceptable_value_of_cni_args_is_an_error_of_the_environment() {
    let plugin = Plugin::new();
    let _daemon = FakeDaemon::failing(&plugin.socket(), ErrorKind::InvalidRequest);
    let stdin = plugin.conf("1.1.0", &json!({}));
    plugin.run_with("ADD", &[("CNI_ARGS", "IP=192.0.2.1".into())], &stdin).assert_error(4, "CNI_ARGS");
}

#[test]
fn an_unreachable_daemon_is_named_with_its_socket() {
    let plugin = Plugin::new();
    let socket = plugin.socket().display().to_string();
    for (command, code) in [("ADD", 11), ("GC", 11), ("STATUS", 50)] {
        let stdin = plugin.conf("1.1.0", &json!({"cni.dev/valid-attachments": []}));
        let outcome = plugin.run(command, &stdin);
        outcome.assert_error(code, &socket);
        outcome.assert_error(code, "podnet daemon");
    }
    plugin.run("CHECK", &check_conf(&plugin)).assert_error(11, &socket);
}

#[test]
fn an_answer_that_is_none_is_an_error() {
    for (answer, code) in [("nonsense\r\n\r\n", 999), ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 999), ("", 11)]
    {
        let plugin = Plugin::new();
        let daemon = FakeDaemon::start(&plugin.socket(), move |path, _| match path {
            "/v1/cni/add" => Answer::Raw(answer),
            _ => Answer::Ok(json!({})),
        });
        plugin.call("ADD").assert_error(code, "podnet daemon");
        assert_eq!(daemon.seen_paths(), ["/v1/cni/add", "/v1/cni/delete"], "what may have been added is taken back");
    }
}

#[test]
fn a_bad_environment_is_code_4() {
    let plugin = Plugin::new();
    let stdin = plugin.conf("1.1.0", &json!({}));
    let unset = |names: &[&'static str]| names.iter().map(|name| (*name, OsString::new())).collect::<Vec<_>>();
    let all = unset(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]);
    for (command, text) in [
        ("ADD", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID, CNI_IFNAME"),
        ("GC", "CNI_PATH"),
        ("UPDATE", "CNI_COMMAND"),
        ("add", "CNI_COMMAND"),
    ] {
        plugin.run_with(command, &all, &stdin).assert_error(4, text);
    }
    for (name, value) in [
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_IFNAME", "a_very_long_name"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_ARGS", "IP"),
        ("CNI_ARGS", "UNKNOWN=1"),
        ("CNI_ARGS", "IP=nonsense"),
        ("CNI_ARGS", "MAC=nonsense"),
        ("CNI_ARGS", "IP=10.0.0.1,10.0.0.2"),
        ("CNI_ARGS", "IgnoreUnknown=perhaps"),
    ] {
        plugin.run_with("ADD", &[(name, value.into())], &stdin).assert_error(4, name);
    }
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        let bytes = OsString::from_vec(vec![b'a', 0xff]);
        plugin.run_with("ADD", &[(name, bytes)], &stdin).assert_error(4, name);
    }
}

#[test]
fn bad_input_has_its_code() {
    let plugin = Plugin::new();
    let deep = "[".repeat(1 << 20);
    for (command, stdin, code, text) in [
        ("ADD", "", 6, "empty"),
        ("ADD", "{\n\"name\" 1}", 6, "line 2 column 8"),
        ("DEL", "[]", 6, "not a JSON object"),
        ("ADD", &deep, 6, "column"),
        ("VERSION", "{", 6, "line 1"),
        ("ADD", r#"{"name":"podnet"}"#, 1, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ("ADD", r#"{"cniVersion":"0.2.0","name":"podnet"}"#, 1, "0.2.0"),
        ("DEL", r#"{"cniVersion":"2.0.0","name":"podnet"}"#, 1, "2.0.0"),
        ("CHECK", r#"{"cniVersion":"0.3.1","name":"podnet"}"#, 1, "CHECK"),
        ("GC", r#"{"cniVersion":"1.0.0","name":"podnet"}"#, 1, "GC"),
        ("STATUS", r#"{"cniVersion":"1.0.0","name":"podnet"}"#, 1, "STATUS"),
        ("ADD", r#"{"cniVersion":"1.1.0"}"#, 7, "name"),
        ("ADD", r#"{"cniVersion":"1.1.0","name":"a b"}"#, 7, "name"),
        ("CHECK", r#"{"cniVersion":"1.1.0","name":"podnet"}"#, 7, "prevResult"),
        (
            "GC",
            r#"{"cniVersion":"1.1.0","name":"podnet","cni.dev/valid-attachments":{}}"#,
            7,
            "cni.dev/valid-attachments",
        ),
    ] {
        plugin.run(command, stdin).assert_error(code, text);
    }
    for (members, code, text) in [
        (json!({"mtu": "1500"}), 7, "mtu"),
        (json!({"socket": "relative"}), 7, "socket"),
        (json!({"timeoutSeconds": 0}), 7, "timeoutSeconds"),
        (json!({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}), 7, "runtimeConfig.ips"),
        (json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), 7, "runtimeConfig.mac"),
        (json!({"prevResult": {"ips": {}}}), 7, "prevResult.ips"),
        (json!({"dns": []}), 7, "dns"),
        (json!({"ipam": {"type": "host-local"}}), 2, "host-local"),
    ] {
        plugin.run("ADD", &plugin.conf("1.1.0", &members)).assert_error(code, text);
    }
}

#[test]
fn an_error_speaks_the_version_of_the_request() {
    let plugin = Plugin::new();
    for (version, spoken) in [("0.4.0", "0.4.0"), ("1.0.0", "1.0.0"), ("9.9.9", "1.1.0")] {
        let outcome = plugin.run("ADD", &plugin.conf(version, &json!({})));
        let error: Value = serde_json::from_str(&outcome.stdout).expect("error object");
        assert_eq!(error["cniVersion"], spoken);
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
    let status = Command::new(harness::binary())
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .status()
        .expect("run the plugin");
    assert_eq!(status.code(), Some(1), "neither success nor a panic");
}

/// A configuration for CHECK whose `prevResult` is that of the pod.
fn check_conf(plugin: &Plugin) -> String {
    plugin.conf(
        "1.1.0",
        &json!({"prevResult": {
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
            "ips": [{"address": "10.244.1.2/24", "interface": 0}],
        }}),
    )
}
