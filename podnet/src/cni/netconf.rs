//! The network configuration on standard input.
//!
//! It is read from a JSON tree field by field, so that an error can name the field, and so that DEL does not stumble
//! over a field that only ADD needs. Keys that podnet does not know are ignored.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use super::{
    env::{Args, IDENTIFIER_RULE, is_identifier},
    error::{CniError, Fault},
    result::PrevResult,
    version::Version,
};
use crate::{
    api::{AttachmentKey, Mac},
    config::{DEFAULT_SOCKET, validate_ifname},
};

/// Seconds that a call may take unless `timeoutSeconds` says otherwise.
const DEFAULT_TIMEOUT: u64 = 60;

/// A network configuration whose common fields are valid.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: Version,
    /// `name`: the network.
    pub name: String,
    /// `socket`: the daemon's.
    pub socket: PathBuf,
    /// `timeoutSeconds`: the longest that a call may take.
    pub timeout: Duration,
    object: Map<String, Value>,
}

/// What a pod asks for, from the most specific source that says something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Requested addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Requested MAC.
    pub mac: Option<Mac>,
    /// Requested MTU.
    pub mtu: Option<u32>,
    /// Whether every wish comes from `CNI_ARGS`, and so an unacceptable one is an error of the environment.
    pub from_env: bool,
}

/// Decodes a JSON object.
pub fn decode(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    let wrong = |details: String| CniError::new(Fault::Decode, "cannot decode the network configuration", details);
    if stdin.iter().all(u8::is_ascii_whitespace) {
        return Err(wrong(
            "standard input is empty; the network configuration, a JSON object, is expected there".into(),
        ));
    }
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("line 1 column 1 of standard input: not a JSON object".into())),
        // The error ends in "at line L column C".
        Err(error) => Err(wrong(format!("standard input: {error}"))),
    }
}

impl NetConf {
    /// Decodes a network configuration and validates what every command needs.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let object = decode(stdin)?;
        let version = Version::of(&object)?;
        let name = string(&object, "", "name")?
            .ok_or_else(|| CniError::config("name: missing; give the network a name such as \"podnet\""))?;
        if !is_identifier(name) {
            return Err(CniError::config(format!("name: {name:?} {IDENTIFIER_RULE}")));
        }
        let name = name.to_owned();
        let socket = socket(&object)?;
        let seconds = number(&object, "timeoutSeconds", 1..=3600)?.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Self { version, name, socket, timeout: Duration::from_secs(seconds), object })
    }

    /// Refuses a delegated IPAM plugin: ignoring it would give pods other addresses than the file says.
    pub fn refuse_ipam(&self) -> Result<(), CniError> {
        let Some(ipam) = object(&self.object, "", "ipam")? else { return Ok(()) };
        let Some(kind) = string(ipam, "ipam.", "type")? else { return Ok(()) };
        Err(CniError::new(
            Fault::UnsupportedField,
            "unsupported field in the network configuration",
            format!("ipam.type: {kind:?}: podnet assigns addresses itself, from the node's pod CIDR; remove \"ipam\""),
        ))
    }

    /// Returns what the pod asks for: `runtimeConfig` counts before `args.cni`, and that before `CNI_ARGS`.
    pub fn wishes(&self, args: &Args) -> Result<Wishes, CniError> {
        let runtime = object(&self.object, "", "runtimeConfig")?;
        // By convention, `args` is for whoever understands it: another shape is none of podnet's business.
        let conventional = self.object.get("args").and_then(|args| args.get("cni")).and_then(|value| value.as_object());
        let mut wishes = Wishes::default();
        for (source, prefix) in [(runtime, "runtimeConfig."), (conventional, "args.cni.")] {
            let Some(source) = source else { continue };
            let addresses = list_of_addresses(source, prefix)?;
            if wishes.addresses.is_empty() {
                wishes.addresses = addresses;
            }
            let mac = string(source, prefix, "mac")?
                .map(str::parse)
                .transpose()
                .map_err(|reason: String| CniError::config(format!("{prefix}mac: {reason}")))?;
            wishes.mac = wishes.mac.or(mac);
        }
        wishes.mtu = number(&self.object, "mtu", 0..=65_535)?.map(|mtu| mtu as u32).filter(|mtu| *mtu != 0);
        let nothing = wishes == Wishes::default();
        if wishes.addresses.is_empty() {
            wishes.addresses.clone_from(&args.addresses);
        }
        wishes.mac = wishes.mac.or(args.mac);
        wishes.from_env = nothing && wishes != Wishes::default();
        Ok(wishes)
    }

    /// Returns `dns`, which passes through to the result.
    pub fn dns(&self) -> Result<Map<String, Value>, CniError> {
        Ok(object(&self.object, "", "dns")?.cloned().unwrap_or_default())
    }

    /// Returns `prevResult`, if there is one.
    pub fn prev_result(&self) -> Result<Option<PrevResult>, CniError> {
        object(&self.object, "", "prevResult")?.map(PrevResult::parse).transpose()
    }

    /// Returns the attachments that GC must keep, or `None` if the runtime did not say any list.
    ///
    /// An absent key and `null` (which a runtime's empty list may become by accident) mean "not said": nothing may be
    /// released on their account.
    pub fn valid_attachments(&self) -> Result<Option<Vec<AttachmentKey>>, CniError> {
        // libcni also sends the key's name of a draft of the specification.
        for name in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let Some(list) = list(&self.object, "", name)? else { continue };
            return list
                .iter()
                .enumerate()
                .map(|(index, entry)| attachment(name, index, entry))
                .collect::<Result<_, _>>()
                .map(Some);
        }
        Ok(None)
    }
}

fn attachment(list: &str, index: usize, entry: &Value) -> Result<AttachmentKey, CniError> {
    let prefix = format!("{list}[{index}].");
    let member = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| CniError::config(format!("{prefix}{key}: missing or not a string")))
    };
    let key = AttachmentKey { container_id: member("containerID")?, ifname: member("ifname")? };
    if !is_identifier(&key.container_id) {
        return Err(CniError::config(format!("{prefix}containerID: {:?} {IDENTIFIER_RULE}", key.container_id)));
    }
    validate_ifname(&key.ifname).map_err(|reason| CniError::config(format!("{prefix}ifname: {reason}")))?;
    Ok(key)
}

fn socket(config: &Map<String, Value>) -> Result<PathBuf, CniError> {
    let text = string(config, "", "socket")?.unwrap_or(DEFAULT_SOCKET);
    let wrong = |reason| Err(CniError::config(format!("socket: {text:?} {reason}")));
    if !Path::new(text).is_absolute() {
        return wrong("is not an absolute path such as \"/run/podnet/podnet.sock\"");
    }
    // `sun_path` of sockaddr_un holds 108 bytes with the terminating zero (unix(7)).
    if text.len() >= 108 {
        return wrong("is longer than the 107 bytes of a unix socket's path");
    }
    if text.contains('\0') {
        return wrong("has a zero byte, which no path can have");
    }
    Ok(text.into())
}

fn list_of_addresses(source: &Map<String, Value>, prefix: &str) -> Result<Vec<IpAddr>, CniError> {
    let Some(list) = list(source, prefix, "ips")? else { return Ok(Vec::new()) };
    let texts = list
        .iter()
        .map(|value| value.as_str().ok_or_else(|| CniError::config(format!("{prefix}ips: {value} is not a string"))))
        .collect::<Result<Vec<_>, _>>()?;
    addresses(texts.into_iter()).map_err(|reason| CniError::config(format!("{prefix}ips: {reason}")))
}

/// Parses requested addresses, each with or without a prefix length.
pub fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpAddr>, String> {
    let mut parsed: Vec<IpAddr> = Vec::new();
    for text in texts {
        let address = text
            .parse::<IpNetwork>()
            .map(|network| network.ip().to_canonical())
            .map_err(|_| format!("{text:?} is not an address such as \"10.244.1.9\" or \"fd00:10:244:1::9/64\""))?;
        if let Some(other) = parsed.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
            return Err(format!("{other} and {address} are of one family; a pod has at most one address per family"));
        }
        parsed.push(address);
    }
    Ok(parsed)
}

/// Returns a member; `null` is the same as absent.
fn member<'a>(parent: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    parent.get(key).filter(|value| !value.is_null())
}

/// Returns a member that is a string; an empty one is the same as absent.
fn string<'a>(parent: &'a Map<String, Value>, prefix: &str, key: &str) -> Result<Option<&'a str>, CniError> {
    match member(parent, key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(CniError::config(format!("{prefix}{key}: {other} is not a string"))),
    }
}

fn number(
    parent: &Map<String, Value>,
    key: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Option<u64>, CniError> {
    let Some(value) = member(parent, key) else { return Ok(None) };
    value.as_u64().filter(|number| range.contains(number)).map(Some).ok_or_else(|| {
        CniError::config(format!("{key}: {value} is not a whole number in {}..={}", range.start(), range.end()))
    })
}

/// Returns a member that is an object.
pub(super) fn object<'a>(
    parent: &'a Map<String, Value>,
    prefix: &str,
    key: &str,
) -> Result<Option<&'a Map<String, Value>>, CniError> {
    match member(parent, key) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(CniError::config(format!("{prefix}{key}: not a JSON object"))),
    }
}

/// Returns a member that is a list.
pub(super) fn list<'a>(
    parent: &'a Map<String, Value>,
    prefix: &str,
    key: &str,
) -> Result<Option<&'a Vec<Value>>, CniError> {
    match member(parent, key) {
        None => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(CniError::config(format!("{prefix}{key}: not a JSON list"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a configuration with these members besides `cniVersion` and `name`.
    fn conf(members: &str) -> Result<NetConf, CniError> {
        let comma = if members.is_empty() { "" } else { "," };
        NetConf::parse(format!(r#"{{"cniVersion":"1.1.0","name":"podnet"{comma}{members}}}"#).as_bytes())
    }

    fn wishes(members: &str, args: &str) -> Result<Wishes, CniError> {
        conf(members)?.wishes(&super::super::env::parse_args(args)?)
    }

    #[test]
    fn defaults_and_unknown_keys() {
        let conf = conf(r#""type":"podnet","future":{"a":1},"socket":null,"capabilities":[]"#).unwrap();
        assert_eq!(conf.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(conf.timeout, Duration::from_secs(60));
        conf.refuse_ipam().unwrap();
        assert_eq!(conf.valid_attachments().unwrap(), None);
        assert_eq!(conf.wishes(&Args::default()).unwrap(), Wishes::default());
    }

    #[test]
    fn what_is_no_json_object_says_where() {
        for (stdin, text) in [
            ("", "empty"),
            (" \n", "empty"),
            ("[]", "not a JSON object"),
            ("{\n  \"name\": }", "line 2 column 11"),
            ("{} x", "line 1 column 4"),
        ] {
            let error = NetConf::parse(stdin.as_bytes()).unwrap_err();
            assert_eq!(error.fault, Fault::Decode, "{stdin}");
            assert!(error.details.contains(text), "{stdin}: {}", error.details);
        }
        assert_eq!(NetConf::parse(b"\xff").unwrap_err().fault, Fault::Decode);
        assert_eq!(NetConf::parse("[".repeat(100_000).as_bytes()).unwrap_err().fault, Fault::Decode);
    }

    #[test]
    fn wrong_fields_are_named() {
        for (members, field) in [
            (r#""socket":"podnet.sock""#, "socket: "),
            (r#""socket":7"#, "socket: "),
            (r#""socket":"/a\u0000b""#, "socket: "),
            (r#""timeoutSeconds":0"#, "timeoutSeconds: 0"),
            (r#""timeoutSeconds":"5""#, "timeoutSeconds: \"5\""),
            (r#""mtu":-1"#, "mtu: -1"),
            (r#""mtu":1.5"#, "mtu: 1.5"),
            (r#""mtu":65536"#, "mtu: 65536"),
            (r#""runtimeConfig":[]"#, "runtimeConfig: "),
            (r#""runtimeConfig":{"ips":"10.0.0.1"}"#, "runtimeConfig.ips: "),
            (r#""runtimeConfig":{"ips":[1]}"#, "runtimeConfig.ips: 1"),
            (r#""runtimeConfig":{"ips":["10.0.0"]}"#, "runtimeConfig.ips: \"10.0.0\""),
            (r#""runtimeConfig":{"ips":["10.0.0.1","10.0.0.2/24"]}"#, "one family"),
            (r#""runtimeConfig":{"ips":["10.0.0.1","::ffff:10.0.0.2"]}"#, "one family"),
            (r#""runtimeConfig":{"mac":"01:00:00:00:00:00"}"#, "runtimeConfig.mac: "),
            (r#""args":{"cni":{"mac":"x"}}"#, "args.cni.mac: "),
            (r#""args":{"cni":{"ips":["x"]}}"#, "args.cni.ips: "),
        ] {
            let error = wishes(members, "").unwrap_err();
            assert_eq!(error.fault, Fault::Config, "{members}");
            assert!(error.details.contains(field), "{members}: {}", error.details);
        }
        for (stdin, field) in [
            (r#"{"cniVersion":"1.0.0"}"#, "name: missing"),
            (r#"{"cniVersion":"1.0.0","name":""}"#, "name: missing"),
            (r#"{"cniVersion":"1.0.0","name":"a/b"}"#, "name: \"a/b\""),
            (r#"{"cniVersion":1,"name":"a"}"#, "cniVersion: 1"),
        ] {
            let error = NetConf::parse(stdin.as_bytes()).unwrap_err();
            assert_eq!(error.fault, Fault::Config, "{stdin}");
            assert!(error.details.contains(field), "{stdin}: {}", error.details);
        }
    }

    #[test]
    fn the_most_specific_wish_counts() {
        let runtime = r#""runtimeConfig":{"ips":["10.0.0.1/24","fd00::1"],"mac":"02:00:00:00:00:01"}"#;
        let args = r#""args":{"cni":{"ips":["10.0.0.2"],"mac":"02:00:00:00:00:02"}}"#;
        let env = "IP=10.0.0.3;MAC=02:00:00:00:00:03";
        let summary = |members: &str, env: &str| {
            let wishes = wishes(members, env).unwrap();
            let addresses: Vec<_> = wishes.addresses.iter().map(ToString::to_string).collect();
            format!(
                "{} {} {}",
                addresses.join(","),
                wishes.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                wishes.from_env
            )
        };
        assert_eq!(summary(&format!("{runtime},{args}"), env), "10.0.0.1,fd00::1 02:00:00:00:00:01 false");
        assert_eq!(summary(args, env), "10.0.0.2 02:00:00:00:00:02 false");
        assert_eq!(summary("", env), "10.0.0.3 02:00:00:00:00:03 true");
        assert_eq!(summary(r#""mtu":1400"#, env), "10.0.0.3 02:00:00:00:00:03 false");
        assert_eq!(
            summary(r#""runtimeConfig":{"ips":[]},"args":"labels","mtu":0"#, env),
            "10.0.0.3 02:00:00:00:00:03 true"
        );
        assert_eq!(
            summary(r#""runtimeConfig":{"mac":"02:00:00:00:00:01"}"#, "IP=10.0.0.3"),
            "10.0.0.3 02:00:00:00:00:01 false"
        );
    }

    #[test]
    fn only_a_named_ipam_plugin_is_refused() {
        for members in [r#""ipam":{}"#, r#""ipam":{"type":""}"#, r#""ipam":null"#] {
            conf(members).unwrap().refuse_ipam().unwrap();
        }
        let error = conf(r#""ipam":{"type":"host-local"}"#).unwrap().refuse_ipam().unwrap_err();
        assert_eq!(error.fault, Fault::UnsupportedField);
        assert!(error.details.contains("ipam.type: \"host-local\""), "{}", error.details);
    }

    #[test]
    fn gc_tells_an_absent_list_from_an_empty_one() {
        let valid = |members: &str| conf(members).unwrap().valid_attachments();
        assert_eq!(valid("").unwrap(), None);
        assert_eq!(valid(r#""cni.dev/valid-attachments":null"#).unwrap(), None);
        assert_eq!(valid(r#""cni.dev/valid-attachments":[]"#).unwrap(), Some(vec![]));
        let one = r#"[{"containerID":"c1","ifname":"eth0"}]"#;
        let expected = vec![AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() }];
        assert_eq!(valid(&format!(r#""cni.dev/valid-attachments":{one}"#)).unwrap(), Some(expected.clone()));
        assert_eq!(valid(&format!(r#""cni.dev/attachments":{one}"#)).unwrap(), Some(expected));
        for wrong in [r"{}", r#"["c1"]"#, r#"[{"containerID":"c1"}]"#, r#"[{"containerID":"/","ifname":"eth0"}]"#] {
            assert_eq!(valid(&format!(r#""cni.dev/valid-attachments":{wrong}"#)).unwrap_err().fault, Fault::Config);
        }
    }
}
