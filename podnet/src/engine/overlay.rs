//! The overlay device: a VXLAN device in collect-metadata mode, and what the kernel's path needs for it.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use ipnetwork::IpNetwork;
use tracing::info;

use super::{Engine, Why, sysctl};
use crate::{
    config::Config,
    netlink::{
        address::{self, PrefixRoute},
        link::{self, Link},
    },
};

impl Engine {
    /// Finds the overlay device. One of podnet's that another configuration made is removed.
    pub(super) fn find_overlay(&mut self, links: &[Link]) -> Result<()> {
        let wanted = &self.config.overlay;
        self.following.overlay = None;
        let Some(link) = links.iter().find(|link| link.name == wanted.device) else { return Ok(()) };
        if link.kind != "vxlan" {
            bail!("interface {} exists and is no VXLAN device; remove it, or name another overlay.device", link.name);
        }
        if link.vxlan_port != Some(wanted.port) || link.mac != Some(self.bridge_mac) {
            return Ok(self.netlink.request(link::delete(link.ifindex))?);
        }
        self.following.overlay = Some(link.ifindex);
        Ok(())
    }

    pub(super) fn create_overlay(&mut self, mtu: u32) -> Result<()> {
        let name = &self.config.overlay.device;
        self.netlink.request(link::create_vxlan(name, self.bridge_mac, mtu, self.config.overlay.port))?;
        // It needs no link-local address, and nobody may configure it from afar.
        sysctl::set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        sysctl::set(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        let link = self.netlink.link_by_name(name)?.with_context(|| format!("VXLAN device {name} vanished"))?;
        self.following.overlay = Some(link.ifindex);
        Ok(())
    }

    /// Brings the overlay device up, once its programs guard it.
    pub(super) fn bring_overlay_up(&mut self) -> Result<()> {
        let Some(ifindex) = self.following.overlay() else { return Ok(()) };
        if self.following.links.contains_key(&ifindex) {
            return Ok(());
        }
        let port = self.config.overlay.port;
        self.netlink.request(link::set_up(ifindex)).with_context(|| {
            format!("is UDP port {port} in use by another overlay? If so, choose another overlay.port on all nodes")
        })?;
        let mtu = self.following.routing.overlay_device_mtu.unwrap_or_default();
        self.following.links.insert(ifindex, (self.config.overlay.device.clone(), mtu));
        Ok(())
    }

    /// Makes the kernel accept both ways that an overlay makes: what a pod sends to the address of another node comes by the
    /// uplink, and the answer through the overlay. Reverse path filtering (RFC 3704) must be loose for that, which is the
    /// default of most distributions, or off; and an interface without an address never passes it.
    ///
    /// # Errors
    ///
    /// The kernel refuses the address, or a setting cannot be written.
    pub(super) fn accept_both_ways(&mut self, why: Why<'_>) -> Result<()> {
        const STRICT: &str = "1";
        const LOOSE: &str = "2";
        let Some(overlay) = self.following.overlay() else { return Ok(()) };
        let gateways = self.config.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr));
        if let Some(gateway) = gateways.into_iter().find(IpAddr::is_ipv4).map(IpNetwork::from)
            && !self.netlink.addresses(overlay)?.contains(&gateway)
        {
            self.netlink.request(address::add(overlay, gateway, PrefixRoute::Omit))?;
            self.count_repair(why, "the overlay device lacked its address");
        }
        let uplinks = self.following.uplinks(&self.config.uplinks);
        let device = self.config.overlay.device.clone();
        for name in uplinks.values().chain([&device]) {
            let setting = format!("ipv4/conf/{name}/rp_filter");
            // The larger one of the two counts (ip-sysctl.rst).
            let values = [sysctl::get("ipv4/conf/all/rp_filter"), sysctl::get(&setting)];
            if values.iter().flatten().max().is_some_and(|larger| larger == STRICT) {
                info!(interface = name, "reverse path filtering becomes loose: the overlay makes two ways");
                sysctl::set(&setting, LOOSE)?;
                self.count_repair(why, "reverse path filtering was strict");
            }
        }
        Ok(())
    }
}
