//! The cluster's nodes, and the stores that they come from.
//!
//! A store yields complete, ordered snapshots: what a snapshot lacks is gone. A store that is away, or holds what makes no
//! sense, yields failures; the last snapshot then stays in force.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use self::{etcd::EtcdStore, kubernetes::KubernetesStore, static_store::StaticStore};
use crate::config::{Config, StoreConfig};

pub mod etcd;
pub mod file;
pub mod kubernetes;
pub mod last_known;
pub mod static_store;
mod watch;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterNode {
    /// Name of the node.
    pub name: String,
    /// Addresses at which the other nodes reach it: at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs of the node: at most one per family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
}

impl ClusterNode {
    /// Returns the node's address of a family.
    #[must_use]
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == v6)
    }
}

/// All nodes of the cluster at one moment, this one included, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    nodes: Vec<ClusterNode>,
}

/// What a store has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The cluster as it is now.
    Snapshot(Cluster),
    /// The store is away or broken, and why. The last snapshot stays in force.
    Failed(String),
    /// As [`Update::Failed`], and the node's pod CIDRs may be another's: it must give no more addresses of them.
    Disowned(String),
}

/// Where the list of nodes comes from.
pub trait Store: Send {
    /// Names the store for people, such as `static file /etc/podnet/nodes.json`.
    fn describe(&self) -> String;

    /// Waits for the next news; the first is the state at start. Safe to cancel: what was not returned is told again.
    fn next(&mut self) -> impl Future<Output = Update> + Send;

    /// Returns whether somebody else may give this node its pod CIDRs after it started, so that waiting for them helps.
    fn allots_pod_cidrs(&self) -> bool {
        false
    }

    /// Notes that this node can be given pods, for stores that pass it on; they do so within [`Store::next`].
    fn announce_ready(&mut self) {}
}

/// A store of any kind.
#[derive(Debug)]
pub enum AnyStore {
    /// A file.
    Static(StaticStore),
    /// An etcd.
    Etcd(EtcdStore),
    /// Node objects of Kubernetes.
    Kubernetes(KubernetesStore),
}

/// Opens the store that the configuration names, if it names one. It need not be reachable: that is for [`Store::next`]
/// to tell.
///
/// # Errors
///
/// The configuration makes no sense.
pub fn open(config: &Config) -> Result<Option<AnyStore>> {
    let Some(store) = &config.store else { return Ok(None) };
    Ok(Some(match store {
        StoreConfig::Static { path } => StaticStore::new(path).map(AnyStore::Static).context("store.path")?,
        StoreConfig::Etcd(etcd) => AnyStore::Etcd(EtcdStore::new(config, etcd)?),
        StoreConfig::Kubernetes(kubernetes) => {
            AnyStore::Kubernetes(KubernetesStore::new(kubernetes.clone(), config.node.clone()))
        }
    }))
}

/// Takes the node out of the store, if it has put itself there. A store that is away is said so, and is no error.
///
/// # Errors
///
/// What the node knows of its membership cannot be removed.
pub fn leave(config: &Config) -> Result<()> {
    match &config.store {
        Some(StoreConfig::Etcd(store)) => etcd::leave(config, store),
        Some(StoreConfig::Static { .. } | StoreConfig::Kubernetes(_)) | None => Ok(()),
    }
}

impl Store for AnyStore {
    fn describe(&self) -> String {
        match self {
            Self::Static(store) => store.describe(),
            Self::Etcd(store) => store.describe(),
            Self::Kubernetes(store) => store.describe(),
        }
    }

    async fn next(&mut self) -> Update {
        match self {
            Self::Static(store) => store.next().await,
            Self::Etcd(store) => store.next().await,
            Self::Kubernetes(store) => store.next().await,
        }
    }

    fn allots_pod_cidrs(&self) -> bool {
        match self {
            Self::Static(store) => store.allots_pod_cidrs(),
            Self::Etcd(store) => store.allots_pod_cidrs(),
            Self::Kubernetes(store) => store.allots_pod_cidrs(),
        }
    }

    fn announce_ready(&mut self) {
        match self {
            Self::Static(store) => store.announce_ready(),
            Self::Etcd(store) => store.announce_ready(),
            Self::Kubernetes(store) => store.announce_ready(),
        }
    }
}

impl Cluster {
    /// Makes a snapshot of nodes in any order.
    ///
    /// # Errors
    ///
    /// Names the nodes and the field: two nodes with one name or address, pod CIDRs that overlap, an address inside of a
    /// pod CIDR, host bits, more than one of a family.
    pub fn new(mut nodes: Vec<ClusterNode>) -> Result<Self> {
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut owners: HashMap<IpAddr, &str> = HashMap::with_capacity(nodes.len());
        for (position, node) in nodes.iter().enumerate() {
            validate(node)?;
            if position > 0 {
                ensure!(nodes[position - 1].name != node.name, "two nodes have the name {}; rename one", node.name);
            }
            for address in &node.addresses {
                if let Some(other) = owners.insert(*address, &node.name) {
                    bail!("nodes {other} and {} both have the address {address}; give each its own", node.name);
                }
            }
        }
        ensure_disjoint(&nodes)?;
        Ok(Self { nodes })
    }

    /// Returns the nodes, ordered by name.
    #[must_use]
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// Returns the node of a name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&ClusterNode> {
        self.nodes.binary_search_by(|node| node.name.as_str().cmp(name)).ok().map(|position| &self.nodes[position])
    }
}

fn validate(node: &ClusterNode) -> Result<()> {
    let name = &node.name;
    ensure!(!name.is_empty(), "a node has an empty name; give each node its name");
    ensure!(!node.addresses.is_empty(), "node {name}: addresses is empty; give at least one");
    for (position, address) in node.addresses.iter().enumerate() {
        let usable = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
        ensure!(usable, "node {name}: {address} cannot be the address of a node");
        ensure!(
            node.addresses[..position].iter().all(|other| other.is_ipv4() != address.is_ipv4()),
            "node {name}: {address} is the second address of its family; give one per family"
        );
    }
    for (position, cidr) in node.pod_cidrs.iter().enumerate() {
        crate::config::validate_pod_cidr(*cidr).map_err(|error| anyhow::anyhow!("node {name}: {error}"))?;
        ensure!(
            node.pod_cidrs[..position].iter().all(|other| other.is_ipv4() != cidr.is_ipv4()),
            "node {name}: {cidr} is the second pod CIDR of its family; give one per family"
        );
    }
    Ok(())
}

/// Checks that no pod CIDR holds another one, or the address of a node.
fn ensure_disjoint(nodes: &[ClusterNode]) -> Result<()> {
    let mut ranges: Vec<(IpAddr, IpAddr, &str, bool)> = Vec::new();
    for node in nodes {
        ranges.extend(node.pod_cidrs.iter().map(|cidr| (cidr.network(), cidr.broadcast(), node.name.as_str(), true)));
        ranges.extend(node.addresses.iter().map(|address| (*address, *address, node.name.as_str(), false)));
    }
    ranges.sort_unstable_by_key(|(start, ..)| *start);
    // The range that reaches furthest so far is the only one that can hold the next.
    let mut furthest: Option<(IpAddr, IpAddr, &str, bool)> = None;
    for range in ranges {
        let (start, end, name, is_cidr) = range;
        if let Some((from, to, other, other_is_cidr)) = furthest
            && to.is_ipv4() == start.is_ipv4()
            && start <= to
            && (is_cidr || other_is_cidr)
        {
            bail!(
                "{from}-{to} of node {other} and {start}-{end} of node {name} overlap; pod CIDRs must be disjoint from each other and hold no node's address"
            );
        }
        if furthest.is_none_or(|(_, to, ..)| end > to) {
            furthest = Some(range);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes a node out of texts.
    pub(crate) fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> ClusterNode {
        ClusterNode {
            name: name.into(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn error(nodes: Vec<ClusterNode>) -> String {
        Cluster::new(nodes).unwrap_err().to_string()
    }

    #[test]
    fn nodes_are_found_by_name() {
        let cluster = Cluster::new(vec![
            node("node2", &["192.168.1.12", "fd00::12"], &["10.244.2.0/24", "fd00:10:244:2::/64"]),
            node("node1", &["192.168.1.11"], &["10.244.1.0/24"]),
        ])
        .unwrap();
        assert_eq!(cluster.nodes()[0].name, "node1");
        assert_eq!(cluster.node("node2").unwrap().address(true).unwrap().to_string(), "fd00::12");
        assert!(cluster.node("node3").is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let one = || node("node1", &["192.168.1.11"], &["10.244.1.0/24"]);
        assert!(error(vec![one(), one()]).contains("two nodes have the name node1"));
        let text = error(vec![one(), node("node2", &["192.168.1.11"], &["10.244.2.0/24"])]);
        assert!(text.contains("node1 and node2 both have the address 192.168.1.11"), "{text}");
        for (address, cidr) in [
            ("192.168.1.12", "10.244.0.0/16"),
            ("192.168.1.12", "10.244.1.128/25"),
            ("192.168.1.12", "10.244.1.0/24"),
            ("10.244.1.7", "10.244.2.0/24"),
        ] {
            let text = error(vec![one(), node("node2", &[address], &[cidr])]);
            assert!(text.contains("overlap") && text.contains("node1") && text.contains("node2"), "{text}");
        }
        assert!(error(vec![node("", &["192.168.1.11"], &[])]).contains("empty name"));
        assert!(error(vec![node("a", &[], &[])]).contains("addresses is empty"));
        assert!(error(vec![node("a", &["127.0.0.1"], &[])]).contains("cannot be the address"));
        assert!(error(vec![node("a", &["10.0.0.1", "10.0.0.2"], &[])]).contains("second address of its family"));
        assert!(error(vec![node("a", &["10.0.0.1"], &["10.1.0.0/24", "10.2.0.0/24"])]).contains("second pod CIDR"));
        assert!(error(vec![node("a", &["10.0.0.1"], &["10.1.0.1/24"])]).contains("did you mean 10.1.0.0/24"));
    }

    /// Ranges crowded together, so that many overlap: addresses `10.0.x.y` and `fd00::x` with short and long prefixes.
    fn arbitrary_node() -> impl Strategy<Value = ClusterNode> {
        let host = 0_u32..64;
        let v4 = move |position: u32| IpAddr::V4((0x0a00_0000 + position * 16).into());
        let v6 = move |position: u32| IpAddr::V6(((0xfd00_u128 << 112) + u128::from(position) * 16).into());
        let address = host.clone().prop_flat_map(move |position| prop_oneof![Just(v4(position)), Just(v6(position))]);
        let cidr = (host, 0_u8..6, any::<bool>()).prop_map(move |(position, size, is_v6)| {
            let (address, bits) = if is_v6 { (v6(position), 128) } else { (v4(position), 32) };
            let cidr = IpNetwork::new(address, bits - 4 - size).unwrap();
            IpNetwork::new(cidr.network(), cidr.prefix()).unwrap()
        });
        (address, proptest::option::of(cidr)).prop_map(|(address, cidr)| ClusterNode {
            name: String::new(),
            addresses: vec![address],
            pod_cidrs: cidr.into_iter().collect(),
        })
    }

    /// Compares each with each.
    fn overlap_naively(nodes: &[ClusterNode]) -> bool {
        let cidrs: Vec<IpNetwork> = nodes.iter().flat_map(|node| node.pod_cidrs.clone()).collect();
        let addresses: Vec<IpAddr> = nodes.iter().flat_map(|node| node.addresses.clone()).collect();
        let pairs = cidrs.iter().enumerate().flat_map(|(position, a)| cidrs[..position].iter().map(move |b| (a, b)));
        let mut pairs = pairs.map(|(a, b)| a.contains(b.network()) || b.contains(a.network()));
        pairs.any(|overlap| overlap)
            || addresses.iter().any(|address| cidrs.iter().any(|cidr| cidr.contains(*address)))
            || addresses.iter().enumerate().any(|(position, address)| addresses[..position].contains(address))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn overlaps_are_found_as_by_comparing_each_with_each(nodes in prop::collection::vec(arbitrary_node(), 0..6)) {
            let mut nodes = nodes;
            for (number, node) in nodes.iter_mut().enumerate() {
                node.name = format!("node{number}");
            }
            let naive = overlap_naively(&nodes);
            let result = Cluster::new(nodes.clone());
            prop_assert_eq!(result.is_err(), naive, "{:?}: {:?}", nodes, result);
        }
    }
}
