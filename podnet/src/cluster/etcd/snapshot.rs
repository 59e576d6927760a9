//! From what etcd holds to the nodes of the cluster. Pure.
//!
//! Everybody who may write to etcd can write nonsense. One record that makes none, or contradicts others, is left out
//! with its reason; the rest counts.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{keys::Keys, mirror::Mirror};
use crate::cluster::{Cluster, ClusterNode};

/// The nodes, and the keys that were left out, each with its reason.
#[derive(Debug)]
pub(super) struct Assembled {
    /// The nodes.
    pub(super) cluster: Cluster,
    /// What was left out.
    pub(super) left_out: BTreeMap<String, String>,
}

/// Makes the nodes of those records whose nodes are not gone. `own` comes before whatever contradicts it.
pub(super) fn assemble(mirror: &Mirror, keys: &Keys, own: &str, is_gone: impl Fn(&str, &str) -> bool) -> Assembled {
    let mut left_out: BTreeMap<String, String> =
        mirror.broken.iter().map(|(key, entry)| (key.clone(), entry.value.clone())).collect();
    let nodes: Vec<(i64, ClusterNode)> = mirror
        .nodes
        .iter()
        .filter(|(name, entry)| !is_gone(name, &entry.value.id))
        .map(|(name, entry)| {
            let record = &entry.value;
            let node = ClusterNode {
                name: name.clone(),
                addresses: record.addresses.clone(),
                pod_cidrs: record.pod_cidrs.clone(),
            };
            (entry.revision, node)
        })
        .collect();
    if let Ok(cluster) = Cluster::new(nodes.iter().map(|(_, node)| node.clone()).collect()) {
        return Assembled { cluster, left_out };
    }
    let mut nodes = nodes;
    nodes.sort_by_key(|(revision, node)| (node.name != own, *revision));
    let mut space = Space::default();
    let mut accepted = Vec::with_capacity(nodes.len());
    for (_, node) in nodes {
        // By itself first, then beside the others.
        let verdict = Cluster::new(vec![node.clone()]).map_err(|error| format!("{error:#}"));
        match verdict.and_then(|_| space.take(&node)) {
            Ok(()) => accepted.push(node),
            Err(reason) => {
                left_out.insert(keys.node(&node.name), reason);
            }
        }
    }
    match Cluster::new(accepted) {
        Ok(cluster) => Assembled { cluster, left_out },
        Err(error) => {
            // Each was compared with all before it, by the same rules.
            left_out.insert(keys.all().0, format!("{error:#}"));
            Assembled { cluster: Cluster::default(), left_out }
        }
    }
}

/// Ranges that nodes have taken, disjoint: the last address of each and its node, by the first address.
#[derive(Debug, Default)]
struct Space {
    ranges: BTreeMap<IpAddr, (IpAddr, String)>,
}

impl Space {
    /// Takes all ranges of a node, or none.
    fn take(&mut self, node: &ClusterNode) -> Result<(), String> {
        let cidrs = node.pod_cidrs.iter().map(|cidr| (cidr.network(), cidr.broadcast()));
        let ranges: HashMap<IpAddr, IpAddr> =
            node.addresses.iter().map(|address| (*address, *address)).chain(cidrs).collect();
        for (start, end) in &ranges {
            // The ranges are disjoint, so that the last one that begins before `end` is the only one to look at.
            if let Some((from, (to, other))) = self.ranges.range(..=*end).next_back()
                && to >= start
                && to.is_ipv4() == start.is_ipv4()
            {
                return Err(format!("{start}-{end} overlaps {from}-{to} of node {other}"));
            }
        }
        self.ranges.extend(ranges.into_iter().map(|(start, end)| (start, (end, node.name.clone()))));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(records: &[(&str, &str, &str)]) -> Mirror {
        let mut mirror = Mirror::new(Keys::new("/p"));
        for (position, (name, address, cidr)) in records.iter().enumerate() {
            let text = format!(r#"{{"id":"{name}","addresses":["{address}"],"podCIDRs":["{cidr}"],"graceSeconds":9}}"#);
            mirror.put(&format!("/p/nodes/{name}"), text.as_bytes(), 10 + position as i64, 0);
        }
        mirror
    }

    fn names(assembled: &Assembled) -> Vec<&str> {
        assembled.cluster.nodes().iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn nodes_that_are_gone_are_left_out_silently() {
        let mirror = mirror(&[("a", "10.0.0.1", "10.244.0.0/24"), ("b", "10.0.0.2", "10.244.1.0/24")]);
        let assembled = assemble(&mirror, &Keys::new("/p"), "a", |name, _| name == "b");
        assert_eq!(names(&assembled), ["a"]);
        assert!(assembled.left_out.is_empty());
    }

    #[test]
    fn one_broken_record_does_not_spoil_the_rest() {
        let mut mirror = mirror(&[
            ("early", "10.0.0.5", "10.244.5.0/24"),
            ("thief", "10.0.0.2", "10.244.5.128/25"),
            ("twin", "10.0.0.5", "10.244.6.0/24"),
            ("host", "10.244.5.9", "10.244.7.0/24"),
            ("strange", "127.0.0.1", "10.244.8.0/24"),
            ("rival", "10.0.0.8", "10.244.0.0/24"),
            ("fine", "fd00::7", "fd00:1::/64"),
            ("own", "10.0.0.1", "10.244.0.0/24"),
        ]);
        mirror.put("/p/nodes/torn", b"{\"id\":", 99, 0);
        let assembled = assemble(&mirror, &Keys::new("/p"), "own", |_, _| false);
        assert_eq!(names(&assembled), ["early", "fine", "own"]);
        let reason = |name: &str| assembled.left_out.get(&format!("/p/nodes/{name}")).unwrap().as_str();
        assert!(reason("thief").contains("10.244.5.128-10.244.5.255 overlaps 10.244.5.0-10.244.5.255 of node early"));
        assert!(reason("twin").contains("of node early") && reason("host").contains("of node early"));
        assert!(reason("rival").contains("of node own"), "the node's own record comes first");
        assert!(reason("strange").contains("cannot be the address"));
        assert!(reason("torn").contains("read the value"));
    }
}
