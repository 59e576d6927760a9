//! Reconciliation, the acting third: prepares the node and applies plans.

use std::{net::IpAddr, time::Instant};

use anyhow::{Context as _, Result, bail};
use ipnetwork::IpNetwork;
use podnet_common::endpoint::{Endpoint, EndpointSource};
use tracing::{debug, info, warn};

use super::{Engine, Why, sysctl};
use crate::{
    api::AttachmentKey,
    config::{Config, Family},
    database::Database,
    datapath::{device::detach_device, loader::pin_dir},
    netlink::{
        address::{self, PrefixRoute},
        link::{self, Link, PortSettings},
        neighbor, tc,
    },
    netns::Netns,
    nft,
    plan::{self, BridgeSpec, Change, Desired, REAP_GROUP},
};

/// Whether the node forwards IPv6.
const FORWARDING_V6: &str = "ipv6/conf/all/forwarding";

/// Setting that holds the gateways of the last configuration, to remove those that a new one has not.
const GATEWAYS_SETTING: &str = "gateways";

/// What became of a change.
enum Applied {
    /// It is made.
    Done,
    /// There is nothing that podnet can do.
    Nothing,
}

impl Engine {
    /// Sets what the node's kernel must do for the kernel path: forward, and send no redirects, since every packet
    /// between two pods enters and leaves by the bridge.
    pub(super) fn prepare_node(&mut self) -> Result<()> {
        keep_router_advertisements()?;
        if self.has_family(Family::Ipv6) && sysctl::get(FORWARDING_V6).is_none() {
            bail!("the kernel has no IPv6, but pod-cidrs has an IPv6 CIDR; remove it or boot with IPv6");
        }
        for (name, value) in self.node_settings() {
            sysctl::set(&name, value)?;
        }
        self.warnings.retain(|warning| !warning.starts_with("nftables"));
        if let Err(error) = self.install_nft() {
            self.nft_usable = false;
            let warning = format!(
                "nftables: {error:#}; pods cannot reach addresses outside of the cluster, nor themselves through a service address, until the package nftables is installed and the daemon restarted"
            );
            warn!("{warning}");
            self.warnings.push(warning);
        }
        Ok(())
    }

    fn has_family(&self, family: Family) -> bool {
        self.config.pod_cidrs.iter().any(|cidr| cidr.is_ipv6() == (family == Family::Ipv6))
    }

    /// Lists the settings of the node.
    fn node_settings(&self) -> Vec<(String, &'static str)> {
        let v4 = [("ipv4/ip_forward", "1"), ("ipv4/conf/all/send_redirects", "0")];
        let v6 = [(FORWARDING_V6, "1")];
        let v4 = v4.into_iter().filter(|_| self.has_family(Family::Ipv4));
        v4.chain(v6.into_iter().filter(|_| self.has_family(Family::Ipv6)))
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    /// Lists the settings of the bridge.
    fn bridge_settings(&self) -> Vec<(String, &'static str)> {
        let name = &self.config.bridge;
        vec![
            (format!("ipv4/conf/{name}/forwarding"), "1"),
            (format!("ipv4/conf/{name}/send_redirects"), "0"),
            (format!("ipv6/conf/{name}/accept_ra"), "0"),
            // A link-local address that is still being probed cannot ask for neighbours, and packets would wait for it.
            (format!("ipv6/conf/{name}/accept_dad"), "0"),
        ]
    }

    /// Installs podnet's table, except before the first snapshot: what is masqueraded then stays so for the life of its
    /// flow, and packets between pods must never be.
    fn install_nft(&mut self) -> Result<()> {
        if !self.following.is_known() {
            return Ok(());
        }
        let rules = self.nft_rules();
        nft::install(&rules)?;
        self.nft_rules = rules;
        Ok(())
    }

    /// Finds the bridge, or makes it.
    pub(super) fn ensure_bridge(&mut self) -> Result<()> {
        match self.netlink.link_by_name(&self.config.bridge)? {
            Some(link) => self.accept_bridge(&link),
            None => self.create_bridge(),
        }
    }

    fn accept_bridge(&mut self, link: &Link) -> Result<()> {
        if link.kind != "bridge" {
            bail!(
                "interface {} exists and is no bridge; remove it, or name another bridge in the configuration",
                self.config.bridge
            );
        }
        self.bridge_ifindex = link.ifindex;
        Ok(())
    }

    /// Compares the node with what should be and mends the differences. Goes on after a change that fails.
    ///
    /// # Errors
    ///
    /// The node cannot be read, or the first change that failed.
    pub(super) fn reconcile(&mut self, why: Why<'_>) -> Result<()> {
        self.reconcile_parts(why, why)
    }

    /// See [`Engine::reconcile`]; the routes to other nodes may be compared for another reason than the rest.
    pub(super) fn reconcile_parts(&mut self, why: Why<'_>, why_routes: Why<'_>) -> Result<()> {
        let begun = Instant::now();
        self.derive_routing()?;
        self.adopt_mtus();
        self.refresh_constants()?;
        let desired = self.desired()?;
        let actual = self.observe(&desired.settings)?;
        if let Some(bridge) = actual.links.iter().find(|link| link.name == self.config.bridge) {
            self.accept_bridge(bridge)?;
        }
        let changes = plan::plan(&desired, &actual);
        let mut failure = None;
        for change in changes {
            let what = format!("{change:?}");
            match self.apply(change) {
                Ok(Applied::Done) if why.is_repair() => {
                    info!(change = what, reason = why.text(), "repaired");
                    self.repairs += 1;
                }
                Ok(_) => {}
                Err(error) => {
                    warn!(change = what, error = format!("{error:#}"), "reconciliation");
                    failure.get_or_insert(error.context(what));
                }
            }
        }
        // A bridge that was made anew has another index.
        self.refresh_constants()?;
        if self.reaper.waiting() == 0 && actual.links.iter().any(|link| link.group == REAP_GROUP) {
            self.reaper.sweep();
        }
        // Another node that cannot be reached is no reason to serve this one less.
        let reached = self.accept_both_ways(why).and_then(|()| self.bring_overlay_up());
        if let Err(error) = reached.and_then(|()| self.reconcile_routing(why_routes)) {
            warn!(error = format!("{error:#}"), "routes to other nodes");
        }
        self.retire_other_layouts();
        debug!(reason = why.text(), microseconds = begun.elapsed().as_micros(), "compared");
        failure.map_or(Ok(()), Err)
    }

    fn desired(&self) -> Result<Desired> {
        let addresses = self.gateway_networks();
        let earlier = earlier_gateways(&self.database)?;
        let stale_addresses = earlier.into_iter().filter(|address| !addresses.contains(address)).collect();
        Ok(Desired {
            bridge: BridgeSpec {
                name: self.config.bridge.clone(),
                mac: self.bridge_mac,
                mtu: self.mtu,
                addresses,
                stale_addresses,
            },
            pods: self.pods.values().map(Into::into).collect(),
            settings: self.node_settings().into_iter().chain(self.bridge_settings()).collect(),
            programs: self.wanted_programs()?,
            devices: self.wanted_devices()?,
        })
    }

    /// Stores the gateways, so that the next configuration can remove them.
    pub(super) fn remember_gateways(&mut self) -> Result<()> {
        let gateways: Vec<String> = self.gateway_networks().iter().map(ToString::to_string).collect();
        let gateways = gateways.join(" ");
        if self.database.setting(GATEWAYS_SETTING)?.as_deref() == Some(&gateways) {
            return Ok(());
        }
        self.database.set_setting(GATEWAYS_SETTING, &gateways)
    }

    pub(super) fn gateway_networks(&self) -> Vec<IpNetwork> {
        self.networks(&self.config.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr)).collect::<Vec<IpAddr>>())
    }

    fn apply(&mut self, change: Change) -> Result<Applied> {
        let bridge = self.bridge_ifindex;
        match change {
            Change::SetSetting(name, value) => drop(sysctl::set(&name, value)?),
            Change::CreateBridge => self.create_bridge()?,
            Change::SetBridge => {
                self.netlink.request(link::set_link(bridge, Some(self.bridge_mac), self.mtu))?;
            }
            Change::AddBridgeAddress(address) => {
                self.netlink.request(address::add(bridge, address, PrefixRoute::Add))?;
            }
            Change::DeleteBridgeAddress(address) => self.netlink.request(address::delete(bridge, address))?,
            Change::AddPort(ifindex) => self.netlink.request(link::set_master(ifindex, bridge))?,
            Change::SetPort(ifindex) => self.netlink.request(link::set_port(ifindex, PortSettings::POD))?,
            Change::BringUp(ifindex) => self.netlink.request(link::set_up(ifindex))?,
            Change::Rename(ifindex, name) => self.netlink.batch(link::rename(ifindex, &name))?,
            Change::AddFdb(port, mac) => self.netlink.request(neighbor::add_fdb(port, mac))?,
            Change::AddNeighbor(address, mac) => self.netlink.request(neighbor::add(bridge, address, mac))?,
            Change::DeleteNeighbor(address) => self.netlink.request(neighbor::delete(bridge, address))?,
            Change::Attach(ifindex) => self.attach(ifindex)?,
            Change::ReplacePrograms => self.replace_programs()?,
            Change::RemovePrograms => self.remove_programs()?,
            Change::DetachDevice(ifindex, hook) => detach_device(&pin_dir(&self.config.bpffs), ifindex, hook)?,
            Change::SetMtu(ifindex, mtu) => self.netlink.request(link::set_mtu(ifindex, mtu))?,
            Change::DeleteEndpoint(_) | Change::DeleteSource(_) | Change::PutSource(..) | Change::PutEndpoint(..) => {
                self.apply_to_maps(&change)?;
            }
            Change::ReapVeth(ifindex) => {
                self.netlink.request(link::set_group(ifindex, REAP_GROUP))?;
                self.reaper.doom();
            }
            Change::PodLost(key) => return self.handle_lost_pod(&key),
            Change::InstallNft => self.install_nft()?,
        }
        Ok(Applied::Done)
    }

    fn create_bridge(&mut self) -> Result<()> {
        let name = &self.config.bridge;
        self.netlink.request(link::create_bridge(name, self.bridge_mac, self.mtu))?;
        let link = self.netlink.link_by_name(name)?.with_context(|| format!("bridge {name} vanished"))?;
        self.bridge_ifindex = link.ifindex;
        for (name, value) in self.bridge_settings() {
            sysctl::set(&name, value)?;
        }
        self.netlink.request(link::set_up(link.ifindex))?;
        Ok(())
    }

    /// Attaches a veth to the shared blocks, anew if it is attached to something else.
    fn attach(&mut self, ifindex: u32) -> Result<()> {
        self.netlink.batch(vec![tc::detach(ifindex), tc::attach(ifindex)])?;
        let offers = self.program_offers()?;
        Ok(self.netlink.batch(offers)?)
    }

    fn apply_to_maps(&mut self, change: &Change) -> Result<()> {
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        match *change {
            Change::DeleteEndpoint(address) => datapath.maps_mut().remove_endpoint(address).map(drop),
            Change::DeleteSource(ifindex) => datapath.maps_mut().remove_source(ifindex).map(drop),
            // While an entry was missing, flows of the pod may have gone the kernel's way unseen.
            Change::PutSource(ifindex, source) => {
                let flags = EndpointSource::KERNEL_TOUCHED_V4 | EndpointSource::KERNEL_TOUCHED_V6;
                datapath.maps_mut().upsert_source(ifindex, EndpointSource { flags, ..source }).map(drop)
            }
            Change::PutEndpoint(address, endpoint) => {
                let endpoint = Endpoint { flags: Endpoint::KERNEL_TOUCHED, ..endpoint };
                datapath.maps_mut().upsert_endpoint(address, endpoint).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// A pod's veth is gone. If its network namespace is gone, too, so is the pod; otherwise the runtime still holds it,
    /// and its lease stays until the DEL.
    fn handle_lost_pod(&mut self, key: &AttachmentKey) -> Result<Applied> {
        let Some(record) = self.pods.get(key) else { return Ok(Applied::Nothing) };
        let same_netns = Netns::open(&record.netns).and_then(|netns| netns.id()).is_ok_and(|id| id == record.netns_id);
        if same_netns {
            warn!(
                container = key.container_id,
                veth = record.host_ifname,
                "the pod's veth was deleted, but its network namespace lives: its network is broken until it is recreated"
            );
            return Ok(Applied::Nothing);
        }
        info!(container = key.container_id, "the pod is gone without a DEL; releasing its addresses");
        self.delete(key)?;
        Ok(Applied::Done)
    }
}

/// Lets interfaces that get routes by router advertisements go on to do so: a node that forwards IPv6 takes none unless
/// `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst).
fn keep_router_advertisements() -> Result<()> {
    if sysctl::get(FORWARDING_V6).as_deref() != Some("0") {
        return Ok(());
    }
    let folder = sysctl::path("ipv6/conf");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let setting = format!("ipv6/conf/{name}/accept_ra");
        if name != "all" && name != "default" && sysctl::get(&setting).as_deref() == Some("1") {
            sysctl::set(&setting, "2")?;
        }
    }
    Ok(())
}

/// Returns the gateways that were remembered last, with the prefix lengths of their pod CIDRs.
pub(super) fn earlier_gateways(database: &Database) -> Result<Vec<IpNetwork>> {
    let text = database.setting(GATEWAYS_SETTING)?.unwrap_or_default();
    Ok(text.split_whitespace().filter_map(|gateway| gateway.parse().ok()).collect())
}
