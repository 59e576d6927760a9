//! `podnet daemon --cleanup`: takes everything that podnet made off the node.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};
use tracing::info;

use crate::{
    cluster::last_known,
    config::Config,
    database::Database,
    datapath::{
        device::detach_all_devices,
        layouts,
        loader::{is_bpffs, pin_dir, unmount_bpffs},
    },
    netlink::{Socket, link, route},
    nft,
    plan::{REAP_GROUP, is_veth_name},
};

/// Removes pods' veths, the bridge, the nftables table, the pinned maps, the database and the queue of deletions.
/// Forwarding stays on: others may rely on it by now. Goes on after an error, and reports all.
///
/// # Errors
///
/// What could not be removed.
pub fn remove_everything(config: &Config) -> Result<()> {
    type Step = (&'static str, fn(&Config) -> Result<()>);
    let steps: [Step; 7] = [
        ("programs of uplinks", remove_device_programs),
        ("routes to other nodes", |_| remove_routes()),
        ("veths, bridge and overlay device", remove_links),
        ("nftables table", |_| nft::remove()),
        ("pinned maps", remove_pins),
        ("database", |config| last_known::remove(&config.state_dir).and(Database::remove(&config.state_dir))),
        ("socket and queued deletions", remove_runtime_files),
    ];
    let mut errors = Vec::new();
    for (what, step) in steps {
        match step(config) {
            Ok(()) => info!("removed {what}"),
            Err(error) => errors.push(format!("{what}: {error:#}")),
        }
    }
    anyhow::ensure!(errors.is_empty(), "cleanup: {}", errors.join("; "));
    Ok(())
}

fn remove_device_programs(config: &Config) -> Result<()> {
    for other in layouts::others(&config.bpffs)? {
        detach_all_devices(&other.folder)?;
    }
    detach_all_devices(&pin_dir(&config.bpffs))
}

fn remove_routes() -> Result<()> {
    let mut netlink = Socket::open()?;
    let (routes, _) = netlink.node_routes()?;
    let refusals =
        netlink.batch_each(routes.iter().map(|route| route::delete_from_node(route.destination)).collect())?;
    refusals.into_iter().next().map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
}

fn remove_links(config: &Config) -> Result<()> {
    let mut netlink = Socket::open()?;
    let links = netlink.links()?;
    let mut requests: Vec<_> = links
        .iter()
        .filter(|link| link.kind == "veth" && is_veth_name(&link.name))
        .map(|link| link::set_group(link.ifindex, REAP_GROUP))
        .collect();
    requests.push(link::delete_group(REAP_GROUP));
    requests.extend(
        links
            .iter()
            .filter(|link| {
                link.name == config.bridge && link.kind == "bridge"
                    || link.name == config.overlay.device && link.vxlan_port == Some(config.overlay.port)
            })
            .map(|link| link::delete(link.ifindex)),
    );
    Ok(netlink.batch(requests)?)
}

fn remove_pins(config: &Config) -> Result<()> {
    if !config.bpffs.exists() || !is_bpffs(&config.bpffs)? {
        return Ok(());
    }
    for entry in fs::read_dir(&config.bpffs).with_context(|| format!("read {}", config.bpffs.display()))? {
        let folder = entry?.path();
        // Pins of any layout version: `v1`, `v2`, ...
        if folder.file_name().and_then(|name| name.to_str()).and_then(layouts::version_of).is_none() {
            continue;
        }
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    unmount_bpffs(&config.bpffs)
}

fn remove_runtime_files(config: &Config) -> Result<()> {
    remove_file(&config.socket)?;
    match fs::remove_dir_all(Config::deletions_dir(&config.socket)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove the queue of deletions"),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
