//! `podnet router-config`: prints the table of pod CIDRs for a router between the nodes.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

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
    /// How pods of other nodes are reached, which decides whether a router needs the table [default: the daemon's mode;
    /// with --nodes, router]
    #[arg(long, value_enum)]
    mode: Option<RoutingMode>,
}

/// Runs the command.
///
/// # Errors
///
/// The file makes no sense, or the daemon does not answer or knows no node.
pub(super) fn run(client: &Client, args: &RouterConfigArgs) -> Result<()> {
    // A file of nodes is read without a daemon.
    let cluster = match &args.nodes {
        Some(path) => file::read(path)?,
        None => Cluster::new(client.nodes()?.into_iter().map(cluster_node).collect())?,
    };
    let mode = match (args.mode, &args.nodes) {
        (Some(mode), _) => mode,
        (None, Some(_)) => RoutingMode::Router,
        (None, None) => daemon_mode(&client.status()?.cluster.mode)?,
    };
    ensure!(!cluster.nodes().is_empty(), "there are no nodes: give --nodes FILE, or the daemon a [store]");
    super::print(&router_config::render(&cluster, mode, args.format))
}

fn daemon_mode(name: &str) -> Result<RoutingMode> {
    RoutingMode::from_str(name, false)
        .ok()
        .with_context(|| format!("the daemon's mode {name:?} is unknown to this version: give --mode"))
}

fn cluster_node(node: NodeInfo) -> ClusterNode {
    let pod_cidrs = node.pod_cidrs.iter().map(|cidr| cidr.cidr).collect();
    ClusterNode { name: node.name, addresses: node.addresses, pod_cidrs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_of_a_daemon_is_known() {
        for mode in RoutingMode::value_variants() {
            assert_eq!(daemon_mode(&mode.to_string()).unwrap(), *mode);
        }
        assert!(daemon_mode("teleport").unwrap_err().to_string().contains("--mode"));
    }
}
