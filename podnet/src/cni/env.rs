//! The environment that a runtime gives the plugin: the `CNI_*` variables, and the pairs of `CNI_ARGS`.
//!
//! Pure: variables come through a function, so tests and fuzzers need no process environment.

use std::{ffi::OsString, fmt, net::IpAddr};

use super::{error::CniError, netconf};
use crate::{
    api::{AttachmentKey, Mac, PodIdentity},
    config::validate_ifname,
};

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Delete,
    /// Compare an attachment with how it was made.
    Check,
    /// Release what is no longer needed.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// Say which versions are supported.
    Version,
}

impl Command {
    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Delete,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// Variables that the specification requires for the command.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Delete => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// The environment, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// What to do.
    pub command: Command,
    /// Key of the attachment; empty for commands that are not about one.
    pub key: AttachmentKey,
    /// `CNI_NETNS`, of ADD and CHECK only: DEL must not depend on it, since it may be empty or stale.
    pub netns: String,
    /// `CNI_ARGS`, of ADD and CHECK only.
    pub args: Args,
}

/// What `CNI_ARGS` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`: requested addresses.
    pub addresses: Vec<IpAddr>,
    /// `MAC`: requested MAC.
    pub mac: Option<Mac>,
    /// `K8S_POD_*`: who the pod is.
    pub pod: PodIdentity,
}

impl Env {
    /// Parses the environment.
    ///
    /// # Errors
    ///
    /// Names every variable that is missing, or the first that is wrong.
    pub fn parse(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let text = |name: &str| match get(name).unwrap_or_default().into_string() {
            Ok(value) => Ok(value),
            Err(value) => Err(CniError::environment(format!("{name}: {} is not UTF-8", value.display()))),
        };
        let command = text("CNI_COMMAND")?;
        let command = Command::from_text(&command).ok_or_else(|| {
            CniError::environment(format!("CNI_COMMAND: {command:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"))
        })?;
        let missing: Vec<_> =
            command.required().iter().copied().filter(|name| get(name).is_none_or(|value| value.is_empty())).collect();
        if !missing.is_empty() {
            return Err(CniError::environment(format!("{command} needs {}, not set or empty", missing.join(", "))));
        }
        let mut env = Self {
            command,
            key: AttachmentKey { container_id: String::new(), ifname: String::new() },
            netns: String::new(),
            args: Args::default(),
        };
        if matches!(command, Command::Add | Command::Check | Command::Delete) {
            env.key = AttachmentKey { container_id: text("CNI_CONTAINERID")?, ifname: text("CNI_IFNAME")? };
            validate_key(&env.key)?;
        }
        if matches!(command, Command::Add | Command::Check) {
            env.netns = text("CNI_NETNS")?;
            env.args = parse_args(&text("CNI_ARGS")?)?;
        }
        Ok(env)
    }
}

fn validate_key(key: &AttachmentKey) -> Result<(), CniError> {
    if !is_identifier(&key.container_id) {
        return Err(CniError::environment(format!("CNI_CONTAINERID: {:?} {IDENTIFIER_RULE}", key.container_id)));
    }
    validate_ifname(&key.ifname).map_err(|reason| CniError::environment(format!("CNI_IFNAME: {reason}")))
}

/// What [`is_identifier`] demands, to follow the value in an error.
pub const IDENTIFIER_RULE: &str =
    "must start with an ASCII letter or digit and go on with letters, digits, '_', '.' and '-'";

/// Whether the specification allows a container ID or a network name.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Parses the `KEY=VALUE;KEY=VALUE` pairs of `CNI_ARGS`.
///
/// Keys that podnet does not know are an error unless `IgnoreUnknown=1` is among the pairs, by convention; keys that
/// start with `K8S_` always pass, since runtimes add to them.
pub fn parse_args(text: &str) -> Result<Args, CniError> {
    let mut args = Args::default();
    let mut ignore_unknown = false;
    let mut unknown = Vec::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(CniError::environment(format!("CNI_ARGS: {pair:?} is not a pair KEY=VALUE")));
        };
        let wrong = |reason: String| CniError::environment(format!("CNI_ARGS: {key}: {reason}"));
        match key {
            "IgnoreUnknown" => {
                ignore_unknown = parse_bool(value).ok_or_else(|| wrong(format!("{value:?} is not true or false")))?;
            }
            "IP" if !value.is_empty() => args.addresses = netconf::addresses(value.split(',')).map_err(wrong)?,
            "MAC" if !value.is_empty() => args.mac = Some(value.parse().map_err(wrong)?),
            "K8S_POD_NAMESPACE" => args.pod.namespace = value.into(),
            "K8S_POD_NAME" => args.pod.name = value.into(),
            "K8S_POD_UID" => args.pod.uid = value.into(),
            "IP" | "MAC" => {}
            _ if key.starts_with("K8S_") => {}
            _ => unknown.push(key),
        }
    }
    if unknown.is_empty() || ignore_unknown {
        return Ok(args);
    }
    Err(CniError::environment(format!(
        "CNI_ARGS: unknown keys {}; drop them, or add IgnoreUnknown=1",
        unknown.join(", ")
    )))
}

fn parse_bool(text: &str) -> Option<bool> {
    if text == "1" || text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text == "0" || text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::cni::error::Fault;

    fn parse(variables: &[(&str, &str)]) -> Result<Env, CniError> {
        Env::parse(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn missing_variables_are_listed() {
        for (command, missing) in [
            ("ADD", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME,"),
            ("CHECK", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME,"),
            ("DEL", "CNI_CONTAINERID, CNI_IFNAME,"),
            ("GC", "CNI_PATH,"),
        ] {
            let error = parse(&[("CNI_COMMAND", command)]).unwrap_err();
            assert_eq!(error.fault, Fault::Environment);
            assert!(error.details.contains(missing), "{command}: {}", error.details);
        }
        assert!(parse(&[("CNI_COMMAND", "STATUS")]).is_ok());
        assert!(parse(&[("CNI_COMMAND", "VERSION")]).is_ok());
        assert!(parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")]).is_ok());
        for command in ["", "add", "UPDATE"] {
            assert!(parse(&[("CNI_COMMAND", command)]).unwrap_err().details.contains("CNI_COMMAND"));
        }
    }

    #[test]
    fn identifiers_and_interface_names_are_checked() {
        let with = |id, ifname| {
            parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)]).map_err(|e| e.details)
        };
        assert!(with("0a_.-Z", "eth0").is_ok());
        for id in ["-a", ".a", "a/b", "a b", "é", "a\n"] {
            assert!(with(id, "eth0").unwrap_err().contains("CNI_CONTAINERID"), "{id:?}");
        }
        for ifname in [".", "..", "a/b", "a:b", "a b", "0123456789abcdef", "a\t"] {
            assert!(with("a", ifname).unwrap_err().contains("CNI_IFNAME"), "{ifname:?}");
        }
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_named() {
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            let error = Env::parse(|key| {
                let good = if key == "CNI_COMMAND" { "ADD" } else { "x" };
                Some(if key == name { OsString::from_vec(vec![b'a', 0xff]) } else { good.into() })
            })
            .unwrap_err();
            assert_eq!(error.fault, Fault::Environment);
            assert!(error.details.contains(name), "{}", error.details);
        }
    }

    #[test]
    fn args_are_parsed() {
        let args = parse_args(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=i;\
             IP=10.244.1.9,fd00::9/64;MAC=0a:58:0a:f4:01:09;FOO=BAR;",
        )
        .unwrap();
        assert_eq!(args.pod, PodIdentity { namespace: "default".into(), name: "web".into(), uid: "u".into() });
        assert_eq!(args.addresses, ["10.244.1.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert_eq!(args.mac.unwrap().to_string(), "0a:58:0a:f4:01:09");
        for fine in ["", ";", "K8S_FUTURE=1", "IP=;MAC=", "A=1;IgnoreUnknown=TRUE", "K8S_POD_NAME=a=b"] {
            assert!(parse_args(fine).is_ok(), "{fine}");
        }
        for (wrong, names) in [
            ("FOO", "FOO"),
            ("=1", "KEY=VALUE"),
            ("FOO=BAR", "IgnoreUnknown=1"),
            ("FOO=BAR;IgnoreUnknown=0", "FOO"),
            ("IgnoreUnknown=maybe", "IgnoreUnknown"),
            ("IP=10.0.0.300", "IP: "),
            ("IP=10.0.0.3,10.0.0.4", "IP: "),
            ("MAC=01:00:00:00:00:01", "MAC: "),
        ] {
            let error = parse_args(wrong).unwrap_err();
            assert_eq!(error.fault, Fault::Environment);
            assert!(error.details.contains(names), "{wrong}: {}", error.details);
        }
    }

    proptest! {
        #[test]
        fn any_args_give_a_result_or_an_environment_error(text in ".*") {
            if let Err(error) = parse_args(&text) {
                prop_assert_eq!(error.fault, Fault::Environment);
            }
        }

        #[test]
        fn any_pairs_give_a_result_or_an_environment_error(
            pairs in proptest::collection::vec(("(IP|MAC|IgnoreUnknown|K8S_POD_NAME|[A-Z=;]*)", "[0-9a-f:./,=1]*"), 0..5),
        ) {
            let text: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            if let Err(error) = parse_args(&text.join(";")) {
                prop_assert_eq!(error.fault, Fault::Environment);
            }
        }

        #[test]
        fn any_environment_gives_a_result_or_an_environment_error(
            command in "(ADD|DEL|CHECK|GC|STATUS|VERSION|.*)",
            values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(1u8.., 0..20)), 5),
        ) {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
            let parsed = Env::parse(|name| match names.iter().position(|known| *known == name) {
                Some(position) => values[position].clone().map(OsString::from_vec),
                None => Some(command.clone().into()),
            });
            if let Err(error) = parsed {
                prop_assert_eq!(error.fault, Fault::Environment);
            }
        }
    }
}
