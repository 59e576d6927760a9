//! What the node has to write next, so that etcd knows it and its pod CIDRs. Pure: from what was heard to a proposal,
//! which a transaction then makes true or refuses.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{
    claim::Range,
    keys::{Layout, NodeRecord, Owner},
    mirror::Mirror,
};
use crate::config::show;

/// The node, as it wants to be known.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Name and installation.
    pub(super) identity: Owner,
    /// Addresses at which the others reach it.
    pub(super) addresses: Vec<IpAddr>,
    /// Seconds for which the others shall keep it while it is away.
    pub(super) grace_seconds: u32,
    /// How ranges are cut.
    pub(super) layout: Layout,
    /// Where its pod CIDRs come from.
    pub(super) ranges: Vec<Range>,
    /// Pod CIDRs of the configuration: these and no others; empty: any.
    pub(super) exact: Vec<IpNetwork>,
    /// Pod CIDRs that pods have addresses of, or that this daemon runs with: no others will do.
    pub(super) held: Vec<IpNetwork>,
    /// Pod CIDRs that it had last.
    pub(super) preferred: Vec<IpNetwork>,
}

/// What to write: all or nothing, and only if nothing of it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    /// The node's record.
    pub(super) record: NodeRecord,
    /// Pod CIDRs that it has, or claims.
    pub(super) claim: Vec<IpNetwork>,
    /// Pod CIDRs that it gives back.
    pub(super) release: Vec<IpNetwork>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: all is as it should be.
    Done,
    /// Try this.
    Propose(Proposal),
    /// The node cannot be registered, and why. To go on, something in etcd or on the node must change.
    Blocked(String),
}

impl Own {
    /// Says what is to be done for the node under a lease. `attempt` counts conflicts with other nodes so far.
    pub(super) fn next(&self, mirror: &Mirror, lease: i64, attempt: u32, random: u64) -> Step {
        if let Err(reason) = self.check(mirror) {
            return Step::Blocked(reason);
        }
        let claim = match self.wanted(mirror, attempt, random) {
            Ok(claim) => claim,
            Err(reason) => return Step::Blocked(reason),
        };
        let owned: BTreeSet<IpNetwork> = mirror.owned_by(&self.identity.node, &self.identity.id).collect();
        let record = NodeRecord {
            id: self.identity.id.clone(),
            addresses: self.addresses.clone(),
            pod_cidrs: claim.clone(),
            grace_seconds: self.grace_seconds,
        };
        let name = &self.identity.node;
        let is_known = mirror.layout.is_some()
            && mirror.nodes.get(name).is_some_and(|entry| entry.value == record)
            && mirror.is_alive(name, &self.identity.id)
            && mirror.alive.get(name).is_some_and(|entry| entry.lease == lease)
            && owned.len() == claim.len()
            && claim.iter().all(|cidr| owned.contains(cidr));
        if is_known {
            return Step::Done;
        }
        let release = owned.into_iter().filter(|cidr| !claim.contains(cidr)).collect();
        Step::Propose(Proposal { record, claim, release })
    }

    /// Checks what no claim could change.
    fn check(&self, mirror: &Mirror) -> Result<(), String> {
        let name = &self.identity.node;
        if self.addresses.is_empty() {
            return Err("store.node-addresses: the node has no default route whose source address it could be reached at; name its addresses there".into());
        }
        if let Some((address, range)) = self.addresses.iter().find_map(|address| {
            let range = self.ranges.iter().find(|range| range.cidr.contains(*address))?;
            Some((address, range.cidr))
        }) {
            return Err(format!(
                "the node's address {address} is inside of {range} of cluster-cidrs, which hold pods' addresses alone; choose another range, or name other addresses in store.node-addresses"
            ));
        }
        if let Some(layout) = mirror.layout.as_ref().map(|entry| entry.value)
            && layout != self.layout
        {
            return Err(format!(
                "the other nodes have node-prefix-ipv4 = {} and node-prefix-ipv6 = {}, this node has {} and {}; make them equal",
                layout.node_prefix_ipv4,
                layout.node_prefix_ipv6,
                self.layout.node_prefix_ipv4,
                self.layout.node_prefix_ipv6
            ));
        }
        if let Some(other) = mirror.alive.get(name)
            && other.value.id != self.identity.id
        {
            let addresses = mirror.nodes.get(name).map(|entry| show_addresses(&entry.value.addresses));
            return Err(format!(
                "another machine is registered as {name} ({}): give one of them another name; if it is this one before it was installed anew, wait until its lease has run out",
                addresses.unwrap_or_else(|| "without addresses".into())
            ));
        }
        Ok(())
    }

    /// Returns the pod CIDRs that the node should have: those that it must have, else those that it has, else those that
    /// it had, else free ones.
    fn wanted(&self, mirror: &Mirror, attempt: u32, random: u64) -> Result<Vec<IpNetwork>, String> {
        if !self.exact.is_empty() {
            for cidr in &self.exact {
                self.ensure_ours(mirror, *cidr, || "choose others for pod-cidrs, or leave pod-cidrs out".into())?;
            }
            return Ok(self.exact.clone());
        }
        if let Some(stray) = self.held.iter().find(|cidr| !self.ranges.iter().any(|range| range.has(**cidr))) {
            let ranges: Vec<IpNetwork> = self.ranges.iter().map(|range| range.cidr).collect();
            return Err(format!(
                "pods of this node have addresses of {stray}, which is no pod CIDR of cluster-cidrs {}: mend cluster-cidrs and store.node-prefix-*, or remove the pods and start the daemon again",
                show(&ranges)
            ));
        }
        self.ranges.iter().map(|range| self.wanted_of(mirror, *range, attempt, random)).collect()
    }

    fn wanted_of(&self, mirror: &Mirror, range: Range, attempt: u32, random: u64) -> Result<IpNetwork, String> {
        if let Some(held) = self.held.iter().copied().find(|cidr| range.has(*cidr)) {
            self.ensure_ours(mirror, held, || {
                format!(
                    "{} was away for longer than grace-seconds, and its pods still have addresses of it: remove them and start the daemon again, then it claims another one",
                    self.identity.node
                )
            })?;
            return Ok(held);
        }
        if let Some(own) = mirror.owned_by(&self.identity.node, &self.identity.id).find(|cidr| range.has(*cidr)) {
            return Ok(own);
        }
        let is_free = |cidr: &IpNetwork| range.has(*cidr) && !mirror.owners.contains_key(cidr);
        if let Some(preferred) = self.preferred.iter().copied().find(is_free) {
            return Ok(preferred);
        }
        range.choose(mirror.owners.keys().copied(), attempt, random).ok_or_else(|| {
            format!(
                "no pod CIDR is free: all {} of size /{} in {} belong to nodes; add a larger range to cluster-cidrs, or remove nodes (podnet daemon --cleanup)",
                range.blocks(),
                range.node_prefix,
                range.cidr
            )
        })
    }

    fn ensure_ours(&self, mirror: &Mirror, cidr: IpNetwork, fix: impl Fn() -> String) -> Result<(), String> {
        match mirror.owners.get(&cidr).map(|entry| &entry.value) {
            Some(owner) if owner.node == self.identity.node && owner.id != self.identity.id => Err(format!(
                "pod CIDR {cidr} belongs to an earlier installation of {}, whose grace-seconds must pass first",
                owner.node
            )),
            Some(owner) if *owner != self.identity => {
                Err(format!("pod CIDR {cidr} belongs to node {}: {}", owner.node, fix()))
            }
            _ => Ok(()),
        }
    }
}

fn show_addresses(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::etcd::keys::Keys;

    fn cidrs(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn own() -> Own {
        Own {
            identity: Owner { node: "a".into(), id: "ida".into() },
            addresses: vec!["192.168.1.11".parse().unwrap()],
            grace_seconds: 300,
            layout: Layout { node_prefix_ipv4: 24, node_prefix_ipv6: 64 },
            ranges: vec![
                Range { cidr: "10.244.0.0/16".parse().unwrap(), node_prefix: 24 },
                Range { cidr: "fd00:10:244::/48".parse().unwrap(), node_prefix: 64 },
            ],
            exact: Vec::new(),
            held: Vec::new(),
            preferred: Vec::new(),
        }
    }

    /// Owners, each a pod CIDR, a node and its installation.
    fn mirror(owners: &[(&str, &str, &str)]) -> Mirror {
        let mut mirror = Mirror::new(Keys::new("/p"));
        for (cidr, node, id) in owners {
            mirror.put(&format!("/p/cidrs/{cidr}"), format!(r#"{{"node":"{node}","id":"{id}"}}"#).as_bytes(), 2, 0);
        }
        mirror
    }

    fn proposal(own: &Own, mirror: &Mirror) -> Proposal {
        match own.next(mirror, 7, 0, 0) {
            Step::Propose(proposal) => proposal,
            other => panic!("{other:?}"),
        }
    }

    fn blocked(own: &Own, mirror: &Mirror) -> String {
        match own.next(mirror, 7, 0, 0) {
            Step::Blocked(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_node_claims_one_of_each_family_and_is_done_then() {
        let mut mirror = mirror(&[("10.244.0.0/24", "b", "idb")]);
        let proposal = proposal(&own(), &mirror);
        assert_eq!(proposal.claim, cidrs(&["10.244.1.0/24", "fd00:10:244::/64"]));
        assert_eq!(proposal.record.pod_cidrs, proposal.claim);
        for cidr in &proposal.claim {
            mirror.put(&format!("/p/cidrs/{cidr}"), br#"{"node":"a","id":"ida"}"#, 3, 0);
        }
        mirror.put("/p/layout", br#"{"nodePrefixIPv4":24,"nodePrefixIPv6":64}"#, 3, 0);
        mirror.put("/p/nodes/a", &serde_json::to_vec(&proposal.record).unwrap(), 3, 0);
        mirror.put("/p/alive/a", br#"{"id":"ida"}"#, 3, 7);
        assert_eq!(own().next(&mirror, 7, 0, 0), Step::Done);
        // Another lease, a key that somebody removed, a new address: each is written again, with the same pod CIDRs.
        assert!(matches!(own().next(&mirror, 8, 0, 0), Step::Propose(again) if again == proposal));
        let moved = Own { addresses: vec!["192.168.1.99".parse().unwrap()], ..own() };
        assert!(matches!(moved.next(&mirror, 7, 0, 0), Step::Propose(again) if again.claim == proposal.claim));
        for key in ["/p/nodes/a", "/p/alive/a", "/p/layout"] {
            let mut without = mirror.clone();
            without.delete(key, 9);
            assert!(matches!(own().next(&without, 7, 0, 0), Step::Propose(again) if again == proposal), "{key}");
        }
    }

    #[test]
    fn a_node_keeps_what_it_has_and_takes_back_what_it_had() {
        let own = Own { preferred: cidrs(&["10.244.7.0/24", "10.9.0.0/24"]), ..own() };
        assert_eq!(proposal(&own, &mirror(&[])).claim[0].to_string(), "10.244.7.0/24");
        let taken = mirror(&[("10.244.7.0/24", "b", "idb")]);
        assert_eq!(proposal(&own, &taken).claim[0].to_string(), "10.244.0.0/24");
        let had = mirror(&[("10.244.9.0/24", "a", "ida"), ("10.244.8.0/24", "a", "old")]);
        assert_eq!(proposal(&own, &had).claim[0].to_string(), "10.244.9.0/24");
    }

    #[test]
    fn what_pods_use_is_never_exchanged() {
        let own = Own { held: cidrs(&["10.244.7.0/24"]), ..own() };
        assert_eq!(proposal(&own, &mirror(&[])).claim[0].to_string(), "10.244.7.0/24");
        let text = blocked(&own, &mirror(&[("10.244.7.0/24", "b", "idb")]));
        assert!(text.contains("10.244.7.0/24 belongs to node b") && text.contains("start the daemon again"), "{text}");
        let stray = Own { held: cidrs(&["10.9.0.0/24"]), ..own };
        assert!(blocked(&stray, &mirror(&[])).contains("pods of this node have addresses of 10.9.0.0/24"));
    }

    #[test]
    fn pod_cidrs_of_the_configuration_are_claimed_exactly() {
        let own = Own { exact: cidrs(&["10.244.3.0/24"]), held: cidrs(&["10.244.7.0/24"]), ..own() };
        let had = mirror(&[("10.244.9.0/24", "a", "ida")]);
        let proposal = proposal(&own, &had);
        assert_eq!((proposal.claim, proposal.release), (cidrs(&["10.244.3.0/24"]), cidrs(&["10.244.9.0/24"])));
        let text = blocked(&own, &mirror(&[("10.244.3.0/24", "b", "idb")]));
        assert!(text.contains("belongs to node b") && text.contains("leave pod-cidrs out"), "{text}");
        let text = blocked(&own, &mirror(&[("10.244.3.0/24", "a", "old")]));
        assert!(text.contains("earlier installation of a"), "{text}");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let mut other = mirror(&[]);
        other.put("/p/alive/a", br#"{"id":"other"}"#, 3, 9);
        let text = blocked(&own(), &other);
        assert!(text.contains("another machine is registered as a (without addresses)"), "{text}");
        let mut other = mirror(&[]);
        other.put("/p/layout", br#"{"nodePrefixIPv4":25,"nodePrefixIPv6":64}"#, 3, 0);
        assert!(blocked(&own(), &other).contains("the other nodes have node-prefix-ipv4 = 25"));
        let nowhere = Own { addresses: Vec::new(), ..own() };
        assert!(blocked(&nowhere, &mirror(&[])).contains("store.node-addresses"));
        let inside = Own { addresses: vec!["10.244.1.1".parse().unwrap()], ..own() };
        assert!(blocked(&inside, &mirror(&[])).contains("is inside of 10.244.0.0/16 of cluster-cidrs"));
        let small = Own { ranges: vec![Range { cidr: "10.0.0.0/24".parse().unwrap(), node_prefix: 24 }], ..own() };
        let text = blocked(&small, &mirror(&[("10.0.0.0/24", "b", "idb")]));
        assert!(text.contains("all 1 of size /24 in 10.0.0.0/24"), "{text}");
    }
}
