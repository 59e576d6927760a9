//! `podnet router-config`: prints the table of pod CIDRs for a router between the nodes.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{
    api::{NodeInfo, client::Client},
    cluster::{Cluster, ClusterNode, file},
    config::RoutingMode,
    router_config::{self, Format},
};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct RouterConfigArgs {
    /// Whose words to print the table in.
    #[arg(long, value_enum)]
    format: Format,
    /// File of nodes, as the static store reads it; default: the nodes that the daemon knows.
    #[arg(long, value_name = "FILE")]
    nodes: Option<PathBuf>,
    /// How pods of other nodes are reached; decides whether a router needs the table.
    #[arg(long, value_enum, default_value_t = RoutingMode::Router)]
    mode: RoutingMode,
}

/// Runs the command.
///
/// # Errors
///
/// The file makes no sense, or the daemon does not answer or knows no node.
pub(super) fn run(client: &Client, args: &RouterConfigArgs) -> Result<()> {
    let cluster = match &args.nodes {
        Some(path) => file::read(path)?,
        None => Cluster::new(client.nodes()?.into_iter().map(cluster_node).collect())?,
    };
    ensure!(!cluster.nodes().is_empty(), "there are no nodes: give --nodes FILE, or the daemon a [store]");
    super::print(&router_config::render(&cluster, args.mode, args.format))
}

fn cluster_node(node: NodeInfo) -> ClusterNode {
    let pod_cidrs = node.pod_cidrs.iter().map(|cidr| cidr.cidr).collect();
    ClusterNode { name: node.name, addresses: node.addresses, pod_cidrs }
}
