//! One call of the plugin, parsed and checked: environment and standard input in, requests to the daemon out.
//!
//! Pure, so that a test or a fuzzer can feed it anything.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use super::{
    env::{Command, Env},
    error::CniError,
    netconf::NetConf,
    result::PrevResult,
    version::{self, Version},
};
use crate::api::{AddRequest, CheckRequest, DeleteRequest, GcRequest};

/// What the runtime asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// VERSION, already answered.
    Version(Vec<u8>),
    /// A call that the daemon serves.
    Daemon(DaemonCall),
}

/// A call that the daemon serves.
#[derive(Clone, Debug, PartialEq)]
pub struct DaemonCall {
    /// Version of the request and of its result.
    pub version: Version,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The longest that the call may take.
    pub timeout: Duration,
    /// What to ask the daemon for.
    pub verb: Verb,
}

/// What to ask the daemon for.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// ADD.
    Add(Box<Add>),
    /// DEL.
    Delete {
        /// What the daemon is asked.
        request: DeleteRequest,
        /// Name of the network.
        network: String,
    },
    /// CHECK.
    Check(CheckRequest),
    /// GC; `None` when the runtime did not say what is valid, so that nothing can be released.
    Gc(Option<GcRequest>),
    /// STATUS.
    Status,
}

/// ADD, with what its result needs besides the daemon's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    /// What the daemon is asked.
    pub request: AddRequest,
    /// Whether what the pod asks for comes from `CNI_ARGS` alone.
    pub wishes_from_env: bool,
    /// What earlier plugins of the chain reported.
    pub earlier: PrevResult,
    /// `dns` of the network configuration.
    pub dns: Map<String, Value>,
}

impl Call {
    /// Parses a call.
    pub fn parse(get: impl Fn(&str) -> Option<OsString>, stdin: &[u8]) -> Result<Self, CniError> {
        Self::from_env(Env::parse(get)?, stdin)
    }

    /// Parses a call whose environment is parsed already.
    pub fn from_env(env: Env, stdin: &[u8]) -> Result<Self, CniError> {
        if env.command == Command::Version {
            return version::answer(stdin).map(Self::Version);
        }
        let conf = NetConf::parse(stdin)?;
        conf.version.require(env.command)?;
        let verb = match env.command {
            Command::Add => Verb::Add(Box::new(add(env, &conf)?)),
            Command::Delete => Verb::Delete { request: DeleteRequest { key: env.key }, network: conf.name.clone() },
            Command::Check => check(env, &conf)?,
            Command::Gc => {
                let valid = conf.valid_attachments()?;
                Verb::Gc(valid.map(|valid| GcRequest { network: conf.name.clone(), valid }))
            }
            Command::Status | Command::Version => {
                conf.refuse_ipam()?;
                Verb::Status
            }
        };
        Ok(Self::Daemon(DaemonCall { version: conf.version, socket: conf.socket, timeout: conf.timeout, verb }))
    }
}

fn add(env: Env, conf: &NetConf) -> Result<Add, CniError> {
    conf.refuse_ipam()?;
    let wishes = conf.wishes(&env.args)?;
    // Read before the pod is added, so that an error here leaves nothing behind.
    let earlier = conf.prev_result()?.unwrap_or_default();
    let dns = conf.dns()?;
    let request = AddRequest {
        key: env.key,
        netns: env.netns,
        network: conf.name.clone(),
        pod: env.args.pod,
        addresses: wishes.addresses,
        mac: wishes.mac,
        mtu: wishes.mtu,
    };
    Ok(Add { request, wishes_from_env: wishes.from_env, earlier, dns })
}

fn check(env: Env, conf: &NetConf) -> Result<Verb, CniError> {
    let previous = conf
        .prev_result()?
        .ok_or_else(|| CniError::config("prevResult: missing; CHECK compares the pod with the result of its ADD"))?;
    let expected = previous.expected(&env.key.ifname, &env.netns)?;
    Ok(Verb::Check(CheckRequest { key: env.key, netns: env.netns, addresses: expected.addresses, mac: expected.mac }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

    fn parse(command: &str, args: &str, stdin: &[u8]) -> Result<Call, CniError> {
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        Call::parse(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()), stdin)
    }

    fn verb(command: &str, args: &str, stdin: &str) -> Verb {
        match parse(command, args, stdin.as_bytes()).unwrap() {
            Call::Daemon(call) => call.verb,
            Call::Version(_) => panic!("VERSION"),
        }
    }

    #[test]
    fn add_asks_for_what_environment_and_configuration_say() {
        let stdin = r#"{"cniVersion":"1.1.0","name":"podnet","mtu":1400,"runtimeConfig":{"ips":["10.0.0.1/24"]}}"#;
        let Verb::Add(add) = verb("ADD", "IgnoreUnknown=1;K8S_POD_NAME=web;MAC=02:00:00:00:00:01", stdin) else {
            panic!("not ADD");
        };
        assert_eq!(
            serde_json::to_string(&add.request).unwrap(),
            r#"{"container_id":"c1","ifname":"eth0","netns":"/run/netns/a","network":"podnet","#.to_owned()
                + r#""pod":{"namespace":"","name":"web","uid":""},"addresses":["10.0.0.1"],"#
                + r#""mac":"02:00:00:00:00:01","mtu":1400}"#
        );
    }

    #[test]
    fn del_does_not_stumble_over_what_only_add_needs() {
        let stdin = r#"{"cniVersion":"0.3.1","name":"podnet","mtu":"x","ipam":{"type":"host-local"},"prevResult":[]}"#;
        assert!(matches!(verb("DEL", "no pairs", stdin), Verb::Delete { .. }));
    }

    #[test]
    fn gc_without_a_list_asks_for_nothing() {
        assert_eq!(verb("GC", "", r#"{"cniVersion":"1.1.0","name":"podnet"}"#), Verb::Gc(None));
    }

    /// JSON trees whose keys are mostly those that the plugin reads.
    fn any_json() -> impl Strategy<Value = Value> {
        let key = "(cniVersion|name|socket|mtu|timeoutSeconds|runtimeConfig|args|cni|ips|mac|ipam|type|dns|prevResult|\
                   interfaces|routes|address|interface|sandbox|cni.dev/valid-attachments|containerID|ifname)";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "(1\\.1\\.0|0\\.4\\.0|eth0|c1|/run/netns/a|10\\.0\\.0\\.1/24|fd00::1|02:00:00:00:00:01|.*)"
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(key, inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_call_or_an_error(
            command in proptest::sample::select(&COMMANDS[..]),
            stdin in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Err(error) = parse(command, "", &stdin) {
                prop_assert!(super::super::code(error.fault) > 0);
            }
            prop_assert!(Version::for_error(&stdin) <= Version::LATEST);
        }

        #[test]
        fn any_members_give_a_call_or_an_error(
            command in proptest::sample::select(&COMMANDS[..]),
            mut members in any_json(),
        ) {
            if let Some(object) = members.as_object_mut() {
                object.insert("cniVersion".into(), "1.1.0".into());
                object.insert("name".into(), "podnet".into());
            }
            if let Err(error) = parse(command, "", members.to_string().as_bytes()) {
                prop_assert!(super::super::code(error.fault) > 0);
                prop_assert!(!error.details.is_empty());
            }
        }
    }
}
