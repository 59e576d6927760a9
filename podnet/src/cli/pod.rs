//! `podnet pods` and `podnet pod add|del`: the pods of the node, and the net-script by hand.

use std::net::IpAddr;

use anyhow::Result;
use clap::Subcommand;

use super::{Format, Output, print, print_json};
use crate::{
    api::{AddRequest, AttachmentKey, DeleteRequest, Mac, PodIdentity, client::Client},
    netns::NAMED_DIR,
};

#[derive(Debug, Subcommand)]
pub(super) enum PodCommand {
    /// Give a network namespace a pod's network.
    Add {
        /// Name of the pod; also its container ID.
        name: String,
        /// Network namespace: a path, or a name under /run/netns.
        netns: String,
        /// Name of the interface inside.
        #[arg(long, default_value = "eth0")]
        ifname: String,
        /// Address to request; once per family. The daemon chooses where none is given.
        #[arg(long = "ip", value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
        /// MAC to request.
        #[arg(long)]
        mac: Option<Mac>,
        #[command(flatten)]
        output: Output,
    },
    /// Take a pod's network away. One that does not exist is success.
    Del {
        /// Name of the pod, as it was added.
        name: String,
        /// Its network namespace; not needed, taken for symmetry with `add`.
        netns: Option<String>,
        /// Name of the interface inside.
        #[arg(long, default_value = "eth0")]
        ifname: String,
    },
}

/// CNI network that pods added by hand belong to, so that no runtime's GC takes them for its own.
const MANUAL_NETWORK: &str = "podnet-manual";

pub(super) fn run(client: &Client, command: PodCommand) -> Result<()> {
    match command {
        PodCommand::Add { name, netns, ifname, addresses, mac, output } => {
            let netns = if netns.contains('/') { netns } else { format!("{NAMED_DIR}/{netns}") };
            let attachment = client.add(&AddRequest {
                key: AttachmentKey { container_id: name.clone(), ifname },
                netns,
                network: MANUAL_NETWORK.into(),
                pod: PodIdentity { name, ..PodIdentity::default() },
                addresses,
                mac,
                mtu: None,
            })?;
            match output.output {
                Format::Json => print_json(&attachment),
                Format::Table => {
                    let addresses: Vec<String> = attachment.addresses.iter().map(ToString::to_string).collect();
                    print(&format!(
                        "{} has {} {} on {} (veth {})",
                        attachment.key.container_id,
                        attachment.key.ifname,
                        addresses.join(" "),
                        attachment.bridge,
                        attachment.host_ifname
                    ))
                }
            }
        }
        PodCommand::Del { name, ifname, .. } => {
            client.delete(&DeleteRequest { key: AttachmentKey { container_id: name, ifname } })?;
            Ok(())
        }
    }
}

pub(super) fn list(client: &Client, format: Format) -> Result<()> {
    let pods = client.pods()?;
    if format == Format::Json {
        return print_json(&pods);
    }
    let mut table = super::table(["POD", "ADDRESSES", "MAC", "VETH", "IFINDEX", "CONTAINER"]);
    for pod in pods {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        table.add_row([
            pod.display_name(),
            addresses.join(" "),
            pod.mac.to_string(),
            pod.host_ifname,
            pod.host_ifindex.to_string(),
            pod.key.container_id.chars().take(20).collect(),
        ]);
    }
    print(&table.trim_fmt())
}
