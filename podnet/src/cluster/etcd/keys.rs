//! Keys and values in etcd. All values are JSON; unknown fields are left to later versions.
//!
//! | key | lease | value |
//! | --- | --- | --- |
//! | `PREFIX/layout` | no | sizes of pod CIDRs, the same for all nodes |
//! | `PREFIX/nodes/NAME` | no | a node's addresses and pod CIDRs |
//! | `PREFIX/alive/NAME` | yes | there as long as the node reports |
//! | `PREFIX/cidrs/CIDR` | no | whom a pod CIDR belongs to |

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// How ranges are cut. Two nodes that cut differently could claim pod CIDRs that overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    /// Prefix length of IPv4 pod CIDRs.
    #[serde(rename = "nodePrefixIPv4")]
    pub(super) node_prefix_ipv4: u8,
    /// Prefix length of IPv6 pod CIDRs.
    #[serde(rename = "nodePrefixIPv6")]
    pub(super) node_prefix_ipv6: u8,
}

/// What is known of a node, also while it is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// Tells this installation of a node from another one of the same name.
    pub(super) id: String,
    /// Addresses at which the other nodes reach it.
    pub(super) addresses: Vec<IpAddr>,
    /// Its pod CIDRs.
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Vec<IpNetwork>,
    /// Seconds for which the others keep it while it is away: its own choice, so that all agree.
    #[serde(rename = "graceSeconds")]
    pub(super) grace_seconds: u32,
}

/// A node that reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Alive {
    /// The installation.
    pub(super) id: String,
}

/// Whom a pod CIDR belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Name of the node.
    pub(super) node: String,
    /// The installation.
    pub(super) id: String,
}

/// Names keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// [`Layout`].
    Layout,
    /// [`NodeRecord`] of a name.
    Node(String),
    /// [`Alive`] of a name.
    Alive(String),
    /// [`Owner`] of a pod CIDR.
    Cidr(IpNetwork),
    /// Something of a later version.
    Unknown,
}

impl Keys {
    /// Makes names below a prefix, which ends without a slash.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: format!("{prefix}/") }
    }

    /// Returns the beginning of all keys, and the first key behind them.
    pub(super) fn all(&self) -> (String, String) {
        // The character after the slash that ends the prefix.
        (self.prefix.clone(), format!("{}0", self.prefix.trim_end_matches('/')))
    }

    /// Returns the key of the layout.
    pub(super) fn layout(&self) -> String {
        format!("{}layout", self.prefix)
    }

    /// Returns the key of a node's record.
    pub(super) fn node(&self, name: &str) -> String {
        format!("{}nodes/{name}", self.prefix)
    }

    /// Returns the key that is there while a node reports.
    pub(super) fn alive(&self, name: &str) -> String {
        format!("{}alive/{name}", self.prefix)
    }

    /// Returns the key of a pod CIDR's owner.
    pub(super) fn cidr(&self, cidr: IpNetwork) -> String {
        format!("{}cidrs/{cidr}", self.prefix)
    }

    /// Returns what a key is about.
    ///
    /// # Errors
    ///
    /// It names a pod CIDR in another way than [`Keys::cidr`] does.
    pub(super) fn parse(&self, key: &str) -> Result<Key> {
        let Some(rest) = key.strip_prefix(&self.prefix) else { return Ok(Key::Unknown) };
        Ok(match rest.split_once('/') {
            None if rest == "layout" => Key::Layout,
            Some(("nodes", name)) if !name.is_empty() => Key::Node(name.to_owned()),
            Some(("alive", name)) if !name.is_empty() => Key::Alive(name.to_owned()),
            Some(("cidrs", text)) => {
                let cidr: IpNetwork = text.parse().context("the key ends with no CIDR")?;
                anyhow::ensure!(self.cidr(cidr) == key, "the key should be {}", self.cidr(cidr));
                Key::Cidr(cidr)
            }
            _ => Key::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys::new("/podnet");
        assert_eq!(keys.all(), ("/podnet/".into(), "/podnet0".into()));
        let cidr: IpNetwork = "fd00:10:244:1::/64".parse().unwrap();
        assert_eq!(keys.cidr(cidr), "/podnet/cidrs/fd00:10:244:1::/64");
        for (key, meaning) in [
            (keys.layout(), Key::Layout),
            (keys.node("node1"), Key::Node("node1".into())),
            (keys.alive("a/b"), Key::Alive("a/b".into())),
            (keys.cidr(cidr), Key::Cidr(cidr)),
            ("/podnet/other".into(), Key::Unknown),
            ("/podnet/services/a".into(), Key::Unknown),
            ("/podnet/nodes/".into(), Key::Unknown),
            ("/podnetwork/nodes/a".into(), Key::Unknown),
        ] {
            assert_eq!(keys.parse(&key).unwrap(), meaning, "{key}");
        }
        assert!(keys.parse("/podnet/cidrs/x").is_err());
        assert!(keys.parse("/podnet/cidrs/fd00:10:244:01::/64").is_err());
    }

    #[test]
    fn values_are_json_and_unknown_fields_are_borne() {
        let record = NodeRecord {
            id: "1b4e".into(),
            addresses: vec!["192.168.1.11".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            grace_seconds: 300,
        };
        let text = r#"{"id":"1b4e","addresses":["192.168.1.11"],"podCIDRs":["10.244.1.0/24"],"graceSeconds":300}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(serde_json::from_str::<NodeRecord>(&text.replace('{', "{\"new\":1,")).unwrap(), record);
        let layout = Layout { node_prefix_ipv4: 24, node_prefix_ipv6: 64 };
        assert_eq!(serde_json::to_string(&layout).unwrap(), r#"{"nodePrefixIPv4":24,"nodePrefixIPv6":64}"#);
    }
}
