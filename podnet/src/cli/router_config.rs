//! `podnet router-config`: prints the table of pod CIDRs for a router between the nodes.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cluster::{Cluster, file},
    config::RoutingMode,
    router_config::{self, Format},
};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct RouterConfigArgs {
    /// Whose words to print the table in.
    #[arg(long, value_enum)]
    format: Format,
    /// File of nodes, as the static store reads it.
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// How pods of other nodes are reached; decides whether a router needs the table.
    #[arg(long, value_enum, default_value_t = RoutingMode::Router)]
    mode: RoutingMode,
}

/// Runs the command.
pub(super) fn run(args: &RouterConfigArgs) -> Result<()> {
    print(&file::read(&args.nodes)?, args)
}

fn print(cluster: &Cluster, args: &RouterConfigArgs) -> Result<()> {
    super::print(&router_config::render(cluster, args.mode, args.format))
}
