//! The CNI result: what ADD prints, and what `prevResult` holds.

use ipnetwork::IpNetwork;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    error::{CniError, Fault},
    netconf::{list, object},
    version::Version,
};
use crate::api::{Attachment, Mac};

/// A result of earlier plugins, or of our own ADD. Members that podnet does not know pass through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrevResult {
    interfaces: Vec<Value>,
    ips: Vec<Value>,
    routes: Vec<Value>,
    dns: Map<String, Value>,
}

/// What `prevResult` says about our interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Addresses of the interface.
    pub addresses: Vec<IpNetwork>,
    /// MAC of the interface, if it says one.
    pub mac: Option<Mac>,
}

impl PrevResult {
    /// Reads `prevResult`.
    pub fn parse(value: &Map<String, Value>) -> Result<Self, CniError> {
        let member = |key| list(value, "prevResult.", key).map(|list| list.cloned().unwrap_or_default());
        Ok(Self {
            interfaces: member("interfaces")?,
            ips: member("ips")?,
            routes: member("routes")?,
            dns: object(value, "prevResult.", "dns")?.cloned().unwrap_or_default(),
        })
    }

    /// Returns what the result says about one pod interface.
    ///
    /// # Errors
    ///
    /// The interface is not there with an address, is in another sandbox, or its MAC or an address does not parse.
    pub fn expected(&self, ifname: &str, netns: &str) -> Result<Expected, CniError> {
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        // Host-side interfaces have no sandbox, and may have any name.
        let of_pods = |value: &Value| text(value, "name") == ifname && !text(value, "sandbox").is_empty();
        let candidates = || self.interfaces.iter().enumerate().filter(|(_, value)| of_pods(value));
        let Some((index, interface)) = candidates().find(|(_, value)| text(value, "sandbox") == netns) else {
            return Err(match candidates().next() {
                Some((_, other)) => CniError::new(
                    Fault::Mismatch,
                    "the attachment is not as it was made",
                    format!("{ifname} is in sandbox {} by prevResult, CNI_NETNS is {netns}", text(other, "sandbox")),
                ),
                None => CniError::config(format!(
                    "prevResult.interfaces: no interface {ifname:?} with a sandbox; CHECK needs the result of ADD"
                )),
            });
        };
        let mac = Some(text(interface, "mac")).filter(|mac| !mac.is_empty());
        let mac = mac
            .map(|mac| mac.parse())
            .transpose()
            .map_err(|reason: String| CniError::config(format!("prevResult.interfaces[{index}].mac: {reason}")))?;
        let addresses = self
            .ips
            .iter()
            .enumerate()
            .filter(|(_, ip)| ip.get("interface").and_then(Value::as_u64) == Some(index as u64))
            .map(|(position, ip)| {
                let address = text(ip, "address");
                address.parse().map_err(|_| {
                    CniError::config(format!(
                        "prevResult.ips[{position}].address: {address:?} is not an address with a prefix length"
                    ))
                })
            })
            .collect::<Result<Vec<IpNetwork>, _>>()?;
        if addresses.is_empty() {
            return Err(CniError::config(format!(
                "prevResult.ips: no address of interface {index} ({ifname}); CHECK needs the result of ADD"
            )));
        }
        Ok(Expected { addresses, mac })
    }
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(rename = "cniVersion")]
    version: &'static str,
    interfaces: Vec<Entry<'a, Interface<'a>>>,
    ips: Vec<Entry<'a, Ip>>,
    routes: Vec<Entry<'a, Route>>,
    dns: &'a Map<String, Value>,
}

/// An entry of a list: of an earlier plugin, or our own.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a, T> {
    Earlier(&'a Value),
    Ours(T),
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    mac: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'a str>,
}

#[derive(Serialize)]
struct Ip {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: IpNetwork,
    gateway: std::net::IpAddr,
    interface: usize,
}

#[derive(Serialize)]
struct Route {
    dst: &'static str,
    gw: std::net::IpAddr,
}

/// Position of the pod interface among our three: after the bridge and the host-side veth.
const POD_INTERFACE: usize = 2;

/// Returns the result of ADD: what earlier plugins reported, then our own.
///
/// `netns` is `CNI_NETNS` as the runtime gave it, which the result must repeat.
pub fn render(
    version: Version,
    attachment: &Attachment,
    netns: &str,
    earlier: &PrevResult,
    dns: &Map<String, Value>,
) -> Result<Vec<u8>, CniError> {
    let ours = [
        Interface { name: &attachment.bridge, mac: attachment.bridge_mac, mtu: None, sandbox: None },
        Interface { name: &attachment.host_ifname, mac: attachment.host_mac, mtu: None, sandbox: None },
        Interface {
            name: &attachment.key.ifname,
            mac: attachment.mac,
            mtu: version.has_mtu().then_some(attachment.mtu),
            sandbox: Some(netns),
        },
    ];
    let ips = attachment.addresses.iter().zip(&attachment.gateways).map(|(address, gateway)| Ip {
        version: version.has_address_family().then_some(if address.is_ipv4() { "4" } else { "6" }),
        address: *address,
        gateway: *gateway,
        interface: earlier.interfaces.len() + POD_INTERFACE,
    });
    let routes = attachment
        .gateways
        .iter()
        .map(|gateway| Route { dst: if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" }, gw: *gateway });
    let output = Output {
        version: version.as_str(),
        interfaces: joined(&earlier.interfaces, ours),
        ips: joined(&earlier.ips, ips),
        routes: joined(&earlier.routes, routes),
        dns: if earlier.dns.is_empty() { dns } else { &earlier.dns },
    };
    serde_json::to_vec(&output)
        .map_err(|error| CniError::new(Fault::Internal, "cannot encode the result", error.to_string()))
}

fn joined<T>(earlier: &[Value], ours: impl IntoIterator<Item = T>) -> Vec<Entry<'_, T>> {
    earlier.iter().map(Entry::Earlier).chain(ours.into_iter().map(Entry::Ours)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::AttachmentKey;

    fn attachment() -> Attachment {
        Attachment {
            key: AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() },
            netns: "/proc/1/ns/net".into(),
            host_ifname: "pn0123456789a".into(),
            host_mac: "02:00:00:00:00:02".parse().unwrap(),
            mac: "02:00:00:00:00:03".parse().unwrap(),
            mtu: 1450,
            addresses: vec!["10.244.1.2/24".parse().unwrap(), "fd00:10:244:1::2/64".parse().unwrap()],
            gateways: vec!["10.244.1.1".parse().unwrap(), "fd00:10:244:1::1".parse().unwrap()],
            bridge: "v-net-0".into(),
            bridge_mac: "02:00:00:00:00:01".parse().unwrap(),
        }
    }

    fn prev(value: &Value) -> PrevResult {
        PrevResult::parse(value.as_object().unwrap()).unwrap()
    }

    fn render_json(version: Version, earlier: &PrevResult) -> Value {
        let dns = json!({"nameservers": ["10.96.0.10"]});
        let output = render(version, &attachment(), "/run/netns/a", earlier, dns.as_object().unwrap()).unwrap();
        serde_json::from_slice(&output).unwrap()
    }

    #[test]
    fn our_result_checks_against_itself() {
        for version in [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
            let output = render_json(version, &PrevResult::default());
            let expected = prev(&output).expected("eth0", "/run/netns/a").unwrap();
            assert_eq!(expected.addresses, attachment().addresses);
            assert_eq!(expected.mac, Some(attachment().mac));
        }
    }

    #[test]
    fn a_chain_keeps_what_earlier_plugins_said() {
        let earlier = prev(&json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo", "sandbox": "/run/netns/a", "future": 1}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
            "routes": [{"dst": "192.0.2.0/24"}],
            "dns": {"domain": "a"},
        }));
        let output = render_json(Version::V1_1_0, &earlier);
        assert_eq!(output["interfaces"].as_array().unwrap().len(), 4);
        assert_eq!(output["interfaces"][0], json!({"name": "lo", "sandbox": "/run/netns/a", "future": 1}));
        assert_eq!(output["ips"][0], json!({"address": "127.0.0.1/8", "interface": 0}));
        assert_eq!(output["ips"][1]["interface"], 3);
        assert_eq!(output["routes"].as_array().unwrap().len(), 3);
        assert_eq!(output["dns"], json!({"domain": "a"}));
        assert_eq!(prev(&output).expected("eth0", "/run/netns/a").unwrap().addresses, attachment().addresses);
    }

    #[test]
    fn check_says_what_prev_result_lacks() {
        let good = json!({
            "interfaces": [{"name": "eth0"}, {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.2/24", "interface": 1}, {"address": "10.0.0.3/24"}],
        });
        assert_eq!(prev(&good).expected("eth0", "/n").unwrap().addresses, ["10.0.0.2/24".parse().unwrap()]);
        let wrong = |pointer: &str, value: Value, netns: &str| {
            let mut changed = good.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = prev(&changed).expected("eth0", netns).unwrap_err();
            (error.fault, error.details)
        };
        let (fault, details) = wrong("/interfaces/1/name", json!("eth1"), "/n");
        assert!(fault == Fault::Config && details.contains("prevResult.interfaces"), "{details}");
        let (fault, details) = wrong("/interfaces/1/sandbox", json!("/other"), "/n");
        assert!(fault == Fault::Mismatch && details.contains("/other"), "{details}");
        let (fault, details) = wrong("/interfaces/1/mac", json!("x"), "/n");
        assert!(fault == Fault::Config && details.contains("prevResult.interfaces[1].mac"), "{details}");
        let (fault, details) = wrong("/ips/0/address", json!("x"), "/n");
        assert!(fault == Fault::Config && details.contains("prevResult.ips[0].address"), "{details}");
        let (fault, details) = wrong("/ips/0/interface", json!(-1), "/n");
        assert!(fault == Fault::Config && details.contains("prevResult.ips"), "{details}");
    }

    #[test]
    fn a_list_that_is_none_is_named() {
        let error = PrevResult::parse(json!({"ips": {}}).as_object().unwrap()).unwrap_err();
        assert!(error.details.contains("prevResult.ips"), "{}", error.details);
    }
}
