//! The Node objects that are known, and the snapshot that follows from them. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::object::{NodeObject, Record};
use crate::cluster::{Cluster, ClusterNode};

/// The Node objects that are known.
#[derive(Debug)]
pub(super) struct Members {
    own: String,
    records: BTreeMap<String, Record>,
}

/// What follows from the known objects.
#[derive(Debug)]
pub(super) struct Judgement {
    /// The snapshot; or why this node has no place in it.
    pub(super) cluster: Result<Cluster, String>,
    /// Nodes with faults, and what those are. A node whose fault leaves it no address is not in the snapshot.
    pub(super) faults: BTreeMap<String, String>,
}

impl Members {
    /// Makes an empty set, seen from the node of this name.
    pub(super) fn new(own: String) -> Self {
        Self { own, records: BTreeMap::new() }
    }

    /// Takes an object that came or changed. Returns whether that means anything.
    pub(super) fn put(&mut self, object: &NodeObject) -> bool {
        let record = object.record();
        if self.records.get(&object.metadata.name) == Some(&record) {
            return false;
        }
        self.records.insert(object.metadata.name.clone(), record);
        true
    }

    /// Forgets an object. Returns whether it was known.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.records.remove(name).is_some()
    }

    /// Returns how many objects are known.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Makes the snapshot.
    pub(super) fn judge(&self) -> Judgement {
        let mut faults: BTreeMap<String, String> =
            self.records.iter().filter_map(|(name, record)| Some((name.clone(), record.fault.clone()?))).collect();
        let mut own = self.own_fault();
        let mut nodes: Vec<(&String, &Record)> =
            self.records.iter().filter(|(_, record)| !record.addresses.is_empty()).collect();
        for leave_out in [same_address, overlapping] {
            for (name, fault) in leave_out(&mut nodes) {
                if name == self.own {
                    own = Err(format!("this node's object is at odds with another: {fault}"));
                }
                faults.insert(name, format!("{fault}; it is left out"));
            }
        }
        let cluster = own.and_then(|()| {
            let node = |(name, record): (&String, &Record)| ClusterNode {
                name: name.clone(),
                addresses: record.addresses.clone(),
                pod_cidrs: record.pod_cidrs.clone(),
            };
            Cluster::new(nodes.into_iter().map(node).collect()).map_err(|error| format!("{error:#}"))
        });
        Judgement { cluster, faults }
    }

    fn own_fault(&self) -> Result<(), String> {
        let own = &self.own;
        match self.records.get(own) {
            None => Err(format!(
                "none of the {} Node objects has the name {own}; register the node, or give its name by `node`, --node or PODNET_NODE",
                self.records.len()
            )),
            Some(Record { fault: Some(fault), .. }) => Err(format!("the object of this node, {own}: {fault}")),
            Some(_) => Ok(()),
        }
    }
}

/// Removes nodes whose address another one has. The younger object stays: where a machine has the address of one that is
/// gone, the object of the latter is the one that nobody has deleted yet.
fn same_address(nodes: &mut Vec<(&String, &Record)>) -> Vec<(String, String)> {
    nodes.sort_by(|(a, one), (b, other)| other.created.cmp(&one.created).then_with(|| a.cmp(b)));
    let mut owners: HashMap<IpAddr, &str> = HashMap::with_capacity(nodes.len());
    let mut removed = Vec::new();
    nodes.retain(|(name, record)| {
        let taken = record.addresses.iter().find_map(|address| Some((address, *owners.get(address)?)));
        if let Some((address, other)) = taken {
            removed.push((
                (*name).clone(),
                format!("{name} and the younger {other} both have the address {address}; delete the object of the node that is gone"),
            ));
            return false;
        }
        owners.extend(record.addresses.iter().map(|address| (*address, name.as_str())));
        true
    });
    removed
}

/// Removes nodes whose pod CIDRs overlap with another's, or hold its address, or whose address another's hold. The older
/// object stays: its node has pods.
fn overlapping(nodes: &mut Vec<(&String, &Record)>) -> Vec<(String, String)> {
    nodes.sort_by(|(a, one), (b, other)| one.created.cmp(&other.created).then_with(|| a.cmp(b)));
    // Pod CIDRs and addresses of the nodes that stay, by their first address: disjoint, but for equal addresses.
    let mut ranges: BTreeMap<IpAddr, (IpAddr, bool, &str)> = BTreeMap::new();
    let mut removed = Vec::new();
    nodes.retain(|(name, record)| {
        let cidrs = record.pod_cidrs.iter().map(|cidr| (cidr.network(), cidr.broadcast(), true));
        let addresses = record.addresses.iter().map(|address| (*address, *address, false));
        let own: Vec<(IpAddr, IpAddr, bool)> = cidrs.chain(addresses).collect();
        let clash = own.iter().find_map(|range| Some((range, clash(&ranges, *range)?)));
        let within = own.iter().enumerate().any(|(position, a)| {
            own[..position].iter().any(|b| (a.2 || b.2) && a.0.is_ipv4() == b.0.is_ipv4() && a.0 <= b.1 && b.0 <= a.1)
        });
        if let Some(((start, end, _), other)) = clash {
            removed.push((
                (*name).clone(),
                format!("{} of {name} overlaps with what the older {other} has", show(*start, *end)),
            ));
            return false;
        }
        if within {
            removed.push(((*name).clone(), format!("a pod CIDR of {name} holds its own address")));
            return false;
        }
        ranges.extend(own.into_iter().map(|(start, end, is_cidr)| (start, (end, is_cidr, name.as_str()))));
        true
    });
    removed
}

/// Returns who has a range that overlaps with this one, unless both are addresses.
fn clash<'a>(
    ranges: &BTreeMap<IpAddr, (IpAddr, bool, &'a str)>,
    (start, end, is_cidr): (IpAddr, IpAddr, bool),
) -> Option<&'a str> {
    // Disjoint ranges end in the order in which they begin: only the last one that begins before the end can reach in.
    let (_, (other_end, other_is_cidr, other)) = ranges.range(..=end).next_back()?;
    let overlaps = other_end.is_ipv4() == start.is_ipv4() && *other_end >= start && (is_cidr || *other_is_cidr);
    overlaps.then_some(other)
}

fn show(start: IpAddr, end: IpAddr) -> String {
    if start == end { start.to_string() } else { format!("{start}-{end}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, address: &str, cidr: &str, created: u32) -> NodeObject {
        let addresses = if address.is_empty() {
            serde_json::json!([])
        } else {
            serde_json::json!([{"type": "InternalIP", "address": address}])
        };
        let cidrs: Vec<&str> = if cidr.is_empty() { vec![] } else { vec![cidr] };
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
            "spec": {"podCIDRs": cidrs},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn members(objects: &[NodeObject]) -> Members {
        let mut members = Members::new("own".into());
        members.put(&object("own", "10.0.0.1", "10.244.1.0/24", 10));
        for object in objects {
            members.put(object);
        }
        members
    }

    fn names(judgement: &Judgement) -> Vec<&str> {
        judgement.cluster.as_ref().unwrap().nodes().iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn only_what_means_something_is_news() {
        let mut members = members(&[]);
        let mut beat = object("own", "10.0.0.1", "10.244.1.0/24", 10);
        beat.metadata.resource_version = "7".into();
        assert!(!members.put(&beat));
        assert!(members.put(&object("own", "10.0.0.2", "10.244.1.0/24", 10)));
        assert!(!members.remove("other") && members.remove("own"));
    }

    #[test]
    fn nodes_without_address_are_left_out_and_those_without_cidrs_are_not() {
        let judgement = members(&[object("a", "", "10.244.2.0/24", 1), object("b", "10.0.0.3", "", 1)]).judge();
        assert_eq!(names(&judgement), ["b", "own"]);
        assert!(judgement.faults["a"].contains("InternalIP"), "{judgement:?}");
        assert_eq!(judgement.faults.len(), 1);
    }

    #[test]
    fn of_one_address_the_younger_object_has_it() {
        let judgement =
            members(&[object("old", "10.0.0.9", "10.244.2.0/24", 1), object("young", "10.0.0.9", "10.244.3.0/24", 2)])
                .judge();
        assert_eq!(names(&judgement), ["own", "young"]);
        let fault = &judgement.faults["old"];
        assert!(fault.contains("old") && fault.contains("young") && fault.contains("10.0.0.9"), "{fault}");
    }

    #[test]
    fn of_overlapping_ranges_the_older_object_has_them() {
        for (address, cidr) in [
            ("10.0.0.8", "10.244.2.128/25"),
            ("10.0.0.8", "10.244.0.0/16"),
            ("10.0.0.8", "10.0.0.0/24"),
            ("10.244.2.7", "10.244.3.0/24"),
        ] {
            let judgement =
                members(&[object("old", "10.0.0.9", "10.244.2.0/24", 11), object("young", address, cidr, 12)]).judge();
            assert_eq!(names(&judgement), ["old", "own"], "{address} {cidr}");
            assert!(judgement.faults["young"].contains("older"), "{judgement:?}");
        }
        let itself = members(&[object("a", "10.9.0.1", "10.9.0.0/24", 1)]).judge();
        assert_eq!(names(&itself), ["own"]);
    }

    #[test]
    fn the_own_node_is_never_left_out_silently() {
        let error = |members: &Members| members.judge().cluster.unwrap_err();
        let clash = error(&members(&[object("old", "10.0.0.9", "10.244.1.0/24", 1)]));
        assert!(clash.contains("own") && clash.contains("old"), "{clash}");
        assert_eq!(names(&members(&[object("young", "10.0.0.9", "10.244.1.0/24", 11)]).judge()), ["own"]);
        assert!(error(&Members::new("own".into())).contains("PODNET_NODE"));
        let mut without = members(&[]);
        without.put(&object("own", "", "", 10));
        assert!(error(&without).contains("InternalIP"));
    }

    #[test]
    fn whatever_is_put_a_snapshot_can_be_made() {
        // Addresses and CIDRs that clash in every way; the own node is the oldest and the only one of 172.16.0.0/12.
        let mut all = Members::new("own".into());
        all.put(&object("own", "172.16.0.1", "172.17.0.0/24", 0));
        for number in 0..200_u32 {
            let address = format!("10.{}.0.{}", number % 7, number % 11 + 1);
            let cidr = format!("10.{}.0.0/{}", (number * 3) % 16 * 8, 16 - number % 4);
            all.put(&object(&format!("n{number}"), &address, &cidr, number % 50 + 1));
        }
        let judgement = all.judge();
        let kept = judgement.cluster.unwrap().nodes().len();
        assert_eq!(kept + judgement.faults.len(), 201);
        assert!(kept > 2, "{kept}");
    }
}
