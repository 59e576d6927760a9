//! `podnet nodes`.

use anyhow::Result;

use super::{Format, print, print_json, table};
use crate::api::{NodeInfo, client::Client};

/// Lists the cluster's nodes, and how their pods are reached from this one.
pub(super) fn list(client: &Client, format: Format) -> Result<()> {
    let nodes = client.nodes()?;
    match format {
        Format::Json => print_json(&nodes),
        Format::Table => print(&render(&nodes)),
    }
}

fn render(nodes: &[NodeInfo]) -> String {
    let mut table = table(["NODE", "ADDRESSES", "POD CIDR", "REACHED", "BY", "INTERFACE", "MTU", "PROBLEM"]);
    for node in nodes {
        let addresses = node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        for (position, cidr) in node.pod_cidrs.iter().enumerate() {
            let (name, addresses) = if position == 0 { (node.name.as_str(), addresses.as_str()) } else { ("", "") };
            let dash = || "-".to_owned();
            table.add_row([
                name.to_owned(),
                addresses.to_owned(),
                cidr.cidr.to_string(),
                cidr.reach.clone(),
                cidr.next_hop.map_or_else(dash, |next_hop| next_hop.to_string()),
                cidr.interface.clone().unwrap_or_else(dash),
                cidr.mtu.map_or_else(dash, |mtu| mtu.to_string()),
                cidr.problem.clone().unwrap_or_default(),
            ]);
        }
    }
    table.trim_fmt()
}
