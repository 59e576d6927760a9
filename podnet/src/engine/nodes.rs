//! What the engine tells of the cluster.

use ipnetwork::IpNetwork;

use super::Engine;
use crate::{
    api::{ClusterStatus, NodeCidr, NodeInfo},
    cluster::Cluster,
    routing::Reach,
};

/// Most problems that a warning lists.
const PROBLEMS_SHOWN: usize = 3;

impl Engine {
    /// Describes what the node knows of the cluster.
    pub(super) fn cluster_status(&self) -> ClusterStatus {
        let following = &self.following;
        let name = |ifindex: u32| following.links.get(&ifindex).map(|(name, _)| name.clone());
        ClusterStatus {
            mode: self.config.mode.to_string(),
            store: following.store.clone(),
            nodes: following.cluster.as_ref().map_or(0, |cluster| cluster.nodes().len()),
            stale_seconds: following.failure.as_ref().map(|(_, since)| since.elapsed().as_secs()),
            failure: following.failure().map(str::to_owned),
            uplinks: following.uplinks(&self.config.uplinks).into_values().collect(),
            overlay: following.overlay().and_then(name),
            pod_route_mtu: self.route_mtu,
        }
    }

    /// Things about the cluster that work less well than they should.
    pub(super) fn cluster_warnings(&self) -> Vec<String> {
        let following = &self.following;
        let mut warnings: Vec<String> = following.own_mismatch.iter().map(|mismatch| mismatch.text.clone()).collect();
        if let Some(failure) = following.failure() {
            let nodes = following.cluster.as_ref().map_or(0, |cluster| cluster.nodes().len());
            warnings.push(format!("store: {failure}; the last known {nodes} nodes stay in force"));
        }
        for problems in [following.routing.problems.clone(), following.refused.values().cloned().collect::<Vec<_>>()] {
            let more = problems.len().saturating_sub(PROBLEMS_SHOWN);
            warnings.extend(problems.into_iter().take(PROBLEMS_SHOWN));
            if more > 0 {
                warnings.push(format!("... and {more} more: see `podnet nodes`"));
            }
        }
        for name in &self.config.uplinks {
            if !following.links.values().any(|(link, _)| link == name) {
                warnings.push(format!("uplinks: there is no interface {name}, or it is down"));
            }
        }
        warnings
    }

    /// Lists the cluster's nodes, and how each is reached.
    pub(super) fn list_nodes(&self) -> Vec<NodeInfo> {
        let inputs = self.inputs();
        let name = |ifindex: u32| self.following.links.get(&ifindex).map(|(name, _)| name.clone());
        let cidr = |node, cidr: &IpNetwork| {
            let mut info = NodeCidr {
                cidr: *cidr,
                reach: String::new(),
                next_hop: None,
                interface: None,
                mtu: None,
                problem: self.following.refused.get(cidr).cloned(),
            };
            match inputs.reach(node, *cidr) {
                Ok(Reach::Local) => info.reach = "local".into(),
                Ok(Reach::Direct { ifindex, next_hop, mtu }) => {
                    info.reach = "direct".into();
                    (info.next_hop, info.interface, info.mtu) = (Some(next_hop), name(ifindex), Some(mtu));
                }
                Ok(Reach::Overlay { remote, mtu, .. }) => {
                    info.reach = "overlay".into();
                    let device = self.config.overlay.device.clone();
                    (info.next_hop, info.interface, info.mtu) = (Some(remote), Some(device), Some(mtu));
                }
                Err(reason) => {
                    info.reach = "unreachable".into();
                    info.problem = Some(reason);
                }
            }
            info
        };
        let nodes = self.following.cluster.iter().flat_map(Cluster::nodes);
        nodes
            .map(|node| NodeInfo {
                name: node.name.clone(),
                addresses: node.addresses.clone(),
                local: node.name == self.config.node,
                pod_cidrs: node.pod_cidrs.iter().map(|range| cidr(node, range)).collect(),
            })
            .collect()
    }
}
