//! What podnet reads of a Node object. An object may have tens of kilobytes; only these fields are ever decoded.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::config::validate_pod_cidr;

/// One page of a list of Node objects.
#[derive(Debug, Deserialize)]
pub(super) struct NodeList {
    pub(super) metadata: ListMetadata,
    #[serde(default)]
    pub(super) items: Vec<NodeObject>,
}

/// What a list says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    /// State of the cluster that the list shows.
    #[serde(default)]
    pub(super) resource_version: String,
    /// Where the next page begins; empty on the last one.
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// A Node object.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct NodeObject {
    pub(super) metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// Which object it is, and in which state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default)]
    creation_timestamp: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    addresses: Option<Vec<Address>>,
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// Name of the condition that keeps pods off a node whose network is not there yet.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// What podnet keeps of a Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The first `InternalIP` of each family.
    pub(super) addresses: Vec<IpAddr>,
    /// Pod CIDRs that pods can have.
    pub(super) pod_cidrs: Vec<IpNetwork>,
    /// When the object was made, as RFC 3339 in UTC, which sorts by time.
    pub(super) created: String,
    /// What is wrong with the object.
    pub(super) fault: Option<String>,
}

impl NodeObject {
    /// Returns the status of the condition [`NETWORK_UNAVAILABLE`]: `True`, `False`, `Unknown` or none.
    pub(super) fn network_unavailable(&self) -> Option<&str> {
        let conditions = self.status.conditions.as_deref().unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition.kind == NETWORK_UNAVAILABLE);
        condition.map(|condition| condition.status.as_str())
    }

    /// Returns what podnet keeps of the object.
    pub(super) fn record(&self) -> Record {
        let mut faults = Vec::new();
        let addresses = self.internal_addresses(&mut faults);
        let pod_cidrs = self.pod_cidrs(&mut faults);
        Record {
            addresses,
            pod_cidrs,
            created: self.metadata.creation_timestamp.clone().unwrap_or_default(),
            fault: (!faults.is_empty()).then(|| faults.join("; ")),
        }
    }

    fn internal_addresses(&self, faults: &mut Vec<String>) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        let all = self.status.addresses.as_deref().unwrap_or_default();
        for text in all.iter().filter(|address| address.kind == "InternalIP").map(|address| &address.address) {
            match text.parse::<IpAddr>() {
                Ok(address) if address.is_unspecified() || address.is_loopback() || address.is_multicast() => {
                    faults.push(format!("its InternalIP {address} cannot be the address of a node"));
                }
                Ok(address) if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) => {}
                Ok(address) => found.push(address),
                Err(_) => faults.push(format!("its InternalIP {text:?} is no address")),
            }
        }
        if found.is_empty() && faults.is_empty() {
            faults.push("it has no InternalIP in status.addresses, which kubelet sets".into());
        }
        found
    }

    fn pod_cidrs(&self, faults: &mut Vec<String>) -> Vec<IpNetwork> {
        let one = || self.spec.pod_cidr.clone().into_iter().collect();
        let all: Vec<String> = self.spec.pod_cidrs.clone().unwrap_or_else(one);
        let mut found: Vec<IpNetwork> = Vec::new();
        for text in all.iter().filter(|text| !text.is_empty()) {
            let cidr = match text.parse::<IpNetwork>() {
                Ok(cidr) => cidr,
                Err(error) => {
                    faults.push(format!("its pod CIDR {text:?} is none: {error}"));
                    continue;
                }
            };
            match validate_pod_cidr(cidr) {
                Ok(()) if found.iter().any(|other| other.is_ipv4() == cidr.is_ipv4()) => {
                    faults.push(format!("its pod CIDR {cidr} is the second of its family"));
                }
                Ok(()) => found.push(cidr),
                Err(error) => faults.push(format!("its pod CIDR {error}")),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> Record {
        serde_json::from_str::<NodeObject>(json).unwrap().record()
    }

    fn node(spec: &str, addresses: &str) -> String {
        format!(
            r#"{{"metadata":{{"name":"a","labels":{{"x":"y"}}}},"spec":{spec},"status":{{"addresses":{addresses}}}}}"#
        )
    }

    const ADDRESSES: &str = r#"[{"type":"Hostname","address":"a"},{"type":"ExternalIP","address":"203.0.113.1"},
        {"type":"InternalIP","address":"192.168.1.11"},{"type":"InternalIP","address":"192.168.9.9"},
        {"type":"InternalIP","address":"fd00::11"}]"#;

    #[test]
    fn the_first_internal_address_of_each_family_counts() {
        let spec = r#"{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:10:244:1::/64"],"taints":[]}"#;
        let record = record(&node(spec, ADDRESSES));
        assert_eq!(record.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.168.1.11", "fd00::11"]);
        assert_eq!(crate::config::show(&record.pod_cidrs), "[10.244.1.0/24, fd00:10:244:1::/64]");
        assert_eq!(record.fault, None);
    }

    #[test]
    fn an_old_object_has_one_pod_cidr() {
        assert_eq!(
            crate::config::show(&record(&node(r#"{"podCIDR":"10.244.1.0/24"}"#, ADDRESSES)).pod_cidrs),
            "[10.244.1.0/24]"
        );
        let none = record(&node("{}", ADDRESSES));
        assert!(none.pod_cidrs.is_empty() && none.fault.is_none(), "{none:?}");
    }

    #[test]
    fn faults_are_told_and_the_rest_is_kept() {
        for (spec, addresses, word) in [
            ("{}", "[]", "no InternalIP"),
            ("{}", r#"[{"type":"InternalIP","address":"a"}]"#, "is no address"),
            ("{}", r#"[{"type":"InternalIP","address":"::"}]"#, "cannot be the address"),
            (r#"{"podCIDRs":["10.244.1.7/24"]}"#, ADDRESSES, "did you mean 10.244.1.0/24"),
            (r#"{"podCIDRs":["x"]}"#, ADDRESSES, "is none"),
            (r#"{"podCIDRs":["10.1.0.0/24","10.2.0.0/24"]}"#, ADDRESSES, "second of its family"),
        ] {
            let record = record(&node(spec, addresses));
            assert!(record.fault.as_ref().unwrap().contains(word), "{record:?}");
        }
        assert!(record(r#"{"metadata":{"name":"a"}}"#).fault.is_some());
    }

    #[test]
    fn the_condition_is_found() {
        let json = r#"{"metadata":{"name":"a"},"status":{"conditions":[{"type":"Ready","status":"True"},
            {"type":"NetworkUnavailable","status":"False","reason":"x"}]}}"#;
        assert_eq!(serde_json::from_str::<NodeObject>(json).unwrap().network_unavailable(), Some("False"));
        assert_eq!(NodeObject::default().network_unavailable(), None);
    }
}
