//! What kind of lab to make: the choices of `podnet lab up`, checked before anything is made.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{api::DatapathMode, config::RoutingMode};

/// Name of the lab unless another is given.
pub const DEFAULT_NAME: &str = "podnet-lab";

/// Most nodes that a lab has addresses for.
const MAX_NODES: u8 = 100;

/// What kind of lab to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the lab.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Pods per node.
    pub pods: u16,
    /// How pods of other nodes are reached.
    pub mode: RoutingMode,
    /// Which path carries pod-to-pod packets.
    pub datapath: DatapathMode,
    /// Names of nodes whose path is the kernel's, whatever `datapath` says.
    pub kernel_nodes: Vec<String>,
    /// Names of the nodes that the router parts from the others; `None`: the last one in mode `auto`, none in others.
    pub second_subnet: Option<Vec<String>>,
    /// Address families of the reference pod CIDRs and of the network between the nodes.
    pub families: Families,
    /// Pod CIDRs of the only node, instead of the reference ones; at most one per family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of the network between the nodes in bytes.
    pub uplink_mtu: u32,
    /// MTU of pods in bytes; `None`: the daemon's choice.
    pub mtu: Option<u32>,
    /// Filter of the daemons' logs, in `tracing`'s directive syntax.
    pub log: String,
    /// The `podnet` binary: daemon and CNI plugin.
    pub binary: PathBuf,
}

impl Options {
    /// Returns the reference lab of three nodes with three pods each, run by this executable.
    pub fn reference() -> Result<Self> {
        Ok(Self {
            name: DEFAULT_NAME.into(),
            nodes: 3,
            pods: 3,
            mode: RoutingMode::Direct,
            datapath: DatapathMode::Ebpf,
            kernel_nodes: Vec::new(),
            second_subnet: None,
            families: Families::Dual,
            pod_cidrs: Vec::new(),
            uplink_mtu: 1500,
            mtu: None,
            log: "info".into(),
            binary: std::env::current_exe().context("find this executable")?,
        })
    }

    /// Returns the names of the nodes that the router parts from the others.
    pub(super) fn second_subnet(&self) -> Vec<String> {
        match &self.second_subnet {
            Some(names) => names.clone(),
            None if self.mode == RoutingMode::Auto && self.nodes > 1 => vec![node_name(self.nodes)],
            None => Vec::new(),
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        validate_name(&self.name)?;
        ensure!(
            (1..=MAX_NODES).contains(&self.nodes),
            "nodes: {} is not in 1..={MAX_NODES}, the addresses that the lab has for them",
            self.nodes
        );
        for (option, names) in [("kernel-nodes", &self.kernel_nodes), ("second-subnet", &self.second_subnet())] {
            for name in names {
                ensure!(
                    (1..=self.nodes).any(|number| node_name(number) == *name),
                    "{option}: there is no node {name:?}; the nodes are node1 to {}",
                    node_name(self.nodes)
                );
            }
        }
        ensure!(
            self.pod_cidrs.is_empty() || self.nodes == 1,
            "pod-cidr: only a lab of one node can have pod CIDRs of your choice"
        );
        ensure!(
            self.nodes > 1 || (self.mode != RoutingMode::Router && self.second_subnet().is_empty()),
            "nodes: a lab of one node has neither router nor second subnet; give 2 nodes or more"
        );
        let minimum = if self.families == Families::Dual { 1280 } else { 576 };
        ensure!(
            (minimum..=65_535).contains(&self.uplink_mtu),
            "uplink-mtu: {} is not in {minimum}..=65535, which the lab's address families need",
            self.uplink_mtu
        );
        Ok(())
    }
}

/// Address families that pods and nodes get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 alone.
    V4,
}

/// Returns the name of the node with this number.
pub(super) fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// Checks that a name can be part of namespace names and of a socket's path.
pub fn validate_name(name: &str) -> Result<()> {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    ensure!(
        (1..=32).contains(&name.len()) && name.bytes().all(valid) && !name.starts_with('-'),
        "lab name {name:?}: give 1 to 32 lower-case letters, digits and dashes, the first no dash"
    );
    Ok(())
}
