//! Pods of a node whose database is new: somebody moved a corrupt one away, or lost it. They run on, so their addresses
//! must not be given again, and their DEL must find them.
//!
//! What the kernel and the pinned maps hold says everything of a pod but its container ID. The name of its veth is a hash
//! of that, so whoever names the container names the veth.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::Path,
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use super::Engine;
use crate::{
    api::{AttachmentKey, Mac, PodIdentity},
    database::PodRecord,
    datapath::{loader::pin_dir, maps::Maps},
    names,
    netlink::{Socket, link::Link},
    netns::{NAMED_DIR, Netns, NetnsId},
    plan::{REAP_GROUP, is_veth_name},
};

/// Stands before the veth's name where a container ID would be. No container ID begins with it.
const UNNAMED: &str = "?";

/// The pod's end of a veth.
struct PodEnd {
    path: String,
    id: NetnsId,
    ifname: String,
}

impl Engine {
    /// Takes over the pods that the node has, if the database is new.
    pub(super) fn adopt_pods(&mut self) -> Result<()> {
        if !self.database.is_new()? {
            return Ok(());
        }
        let records = self.find_pods().context("look for pods of an earlier database")?;
        self.database.adopt(&records)?;
        if !records.is_empty() {
            let warning = format!(
                "the database was new: took over {} pods that run here; `podnet pods` shows them by their veths' names",
                records.len()
            );
            warn!("{warning}");
            self.warnings.push(warning);
        }
        Ok(())
    }

    /// Returns the key under which an attachment is known: its own, or that of the pod which was taken over by its veth.
    pub(super) fn known_key(&self, key: &AttachmentKey) -> AttachmentKey {
        if self.pods.contains_key(key) {
            return key.clone();
        }
        let veth = names::host_ifname(key);
        let adopted = self.pods.values().find(|record| is_unnamed(&record.key) && record.host_ifname == veth);
        adopted.map_or(key, |record| &record.key).clone()
    }

    fn find_pods(&mut self) -> Result<Vec<PodRecord>> {
        let links = self.netlink.links()?;
        let veths: Vec<&Link> = links
            .iter()
            .filter(|link| link.kind == "veth" && is_veth_name(&link.name) && link.group != REAP_GROUP)
            .collect();
        if veths.is_empty() {
            return Ok(Vec::new());
        }
        let networks = self.known_networks()?;
        let ends = pod_ends(&self.home)?;
        let mut taken = HashSet::new();
        let mut records = Vec::new();
        for link in veths {
            let Some((mac, addresses)) = networks.get(&link.ifindex) else {
                warn!(veth = link.name, "a veth without an address: its pod was never answered, and is not taken over");
                continue;
            };
            let mut addresses = addresses.clone();
            addresses.sort_unstable();
            addresses.retain(|address| taken.insert(*address));
            let end = link.peer_netns.zip(link.peer).and_then(|end| ends.get(&end));
            let ifname = end.map_or_else(String::new, |end| end.ifname.clone());
            info!(veth = link.name, ?addresses, netns = end.map(|end| &end.path), "taken over");
            records.push(PodRecord {
                key: AttachmentKey { container_id: format!("{UNNAMED}{}", link.name), ifname },
                network: String::new(),
                pod: PodIdentity::default(),
                netns: end.map_or_else(String::new, |end| end.path.clone()),
                netns_id: end.map_or(NetnsId { device: 0, inode: 0 }, |end| end.id),
                host_ifname: link.name.clone(),
                host_ifindex: link.ifindex,
                mac: *mac,
                mtu: link.mtu,
                route_mtu: 0,
                mtu_requested: None,
                addresses,
                created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            });
        }
        Ok(records)
    }

    /// Returns MAC and addresses of each veth's pod: as the bridge knows them, or, where it does not, the maps.
    fn known_networks(&mut self) -> Result<HashMap<u32, (Mac, Vec<IpAddr>)>> {
        let mut by_mac: HashMap<Mac, Vec<IpAddr>> = HashMap::new();
        for (address, mac) in self.netlink.permanent_neighbors(self.bridge_ifindex)? {
            by_mac.entry(mac).or_default().push(address);
        }
        let from_maps = Maps::from_pins(&pin_dir(&self.config.bpffs)).and_then(|maps| maps.sources());
        let mut networks: HashMap<u32, (Mac, Vec<IpAddr>)> = from_maps
            .unwrap_or_default()
            .into_iter()
            .map(|(ifindex, source)| {
                let v4 = Some(Ipv4Addr::from(source.v4)).filter(|v4| !v4.is_unspecified()).map(IpAddr::V4);
                let v6 = Some(Ipv6Addr::from(source.v6)).filter(|v6| !v6.is_unspecified()).map(IpAddr::V6);
                (ifindex, (Mac(source.mac), v4.into_iter().chain(v6).collect()))
            })
            .collect();
        for (ifindex, mac) in self.netlink.fdb()? {
            if let Some(addresses) = by_mac.remove(&mac) {
                networks.insert(ifindex, (mac, addresses));
            }
        }
        Ok(networks)
    }
}

/// Returns whether a key stands for a pod that was taken over by its veth.
pub(super) fn is_unnamed(key: &AttachmentKey) -> bool {
    key.container_id.starts_with(UNNAMED)
}

/// Looks into every named namespace for the pods' ends of veths: by the namespace's number and the index there. Those
/// that have no name stay unknown: their pods are served, but follow no change of the MTU.
fn pod_ends(home: &Netns) -> Result<HashMap<(i32, u32), PodEnd>> {
    let mut netlink = Socket::open()?;
    let mut ends = HashMap::new();
    for entry in std::fs::read_dir(NAMED_DIR).into_iter().flatten().filter_map(Result::ok) {
        if let Err(error) = look_into(&entry.path(), home, &mut netlink, &mut ends) {
            info!(error = format!("{error:#}"), "look for pods in {}", entry.path().display());
        }
    }
    Ok(ends)
}

fn look_into(path: &Path, home: &Netns, netlink: &mut Socket, ends: &mut HashMap<(i32, u32), PodEnd>) -> Result<()> {
    let netns = Netns::open(path)?;
    let id = netns.id()?;
    let Some(number) = netlink.namespace_number(netns.as_fd())? else { return Ok(()) };
    let links = netns.visit(home, || Ok(Socket::open()?.links()?))?;
    for link in links.into_iter().filter(|link| link.kind == "veth") {
        ends.insert((number, link.ifindex), PodEnd { path: path.display().to_string(), id, ifname: link.name });
    }
    Ok(())
}
