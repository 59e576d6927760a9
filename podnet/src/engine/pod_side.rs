//! The pod's side of an attachment: everything inside the pod's network namespace.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};
use ipnetwork::IpNetwork;

use super::sysctl;
use crate::{
    api::Mac,
    netlink::{
        Socket,
        address::{self, PrefixRoute},
        link, neighbor,
        route::{self, Route},
    },
    netns::Netns,
};

/// The pod-side interface as it should be.
#[derive(Debug)]
pub(super) struct PodSide<'a> {
    /// Name of the interface.
    pub(super) ifname: &'a str,
    /// MAC of the interface.
    pub(super) mac: Mac,
    /// MTU in bytes.
    pub(super) mtu: u32,
    /// MTU in bytes of the way out of the node.
    pub(super) route_mtu: u32,
    /// Addresses with the pod CIDR's prefix length.
    pub(super) addresses: Vec<IpNetwork>,
    /// Gateway of each address.
    pub(super) gateways: Vec<IpAddr>,
    /// MAC of the gateway.
    pub(super) gateway_mac: Mac,
}

impl PodSide<'_> {
    /// Brings the interface up: addresses, gateway, default routes.
    ///
    /// The addresses have no on-link route, and the gateway's MAC is known for good: whatever a pod sends goes to the
    /// gateway. So on the kernel path a pod-to-pod packet passes the node's IP layer, where netfilter can undo a
    /// translation, with or without br_netfilter; and no pod needs, or believes, an ARP answer.
    pub(super) fn configure(&self, netns: &Netns, home: &Netns) -> Result<()> {
        netns.visit(home, || {
            let ifindex = link::ifindex(self.ifname)?;
            if self.addresses.iter().any(IpNetwork::is_ipv6) {
                self.prepare_ipv6()?;
            }
            let mut requests = vec![link::set_up(link::LOOPBACK), link::set_up(ifindex)];
            for (address, gateway) in self.addresses.iter().zip(&self.gateways) {
                requests.push(address::add(ifindex, *address, PrefixRoute::Omit));
                requests.push(neighbor::add(ifindex, *gateway, self.gateway_mac));
                requests.push(route::add(Route::new(host_prefix(*gateway), None, ifindex)));
                requests.extend(self.routes(*address, *gateway, ifindex).map(route::add));
            }
            Socket::open()?.batch(requests)?;
            Ok(())
        })
    }

    /// Returns the routes by a gateway. Where the way out of the node carries less than the interface, the node's own pods
    /// keep the interface's MTU.
    fn routes(&self, address: IpNetwork, gateway: IpAddr, ifindex: u32) -> impl Iterator<Item = Route> {
        let smaller = (self.route_mtu < self.mtu).then_some(self.route_mtu);
        let own = IpNetwork::new(address.network(), address.prefix()).ok().filter(|_| smaller.is_some());
        let default = Route { mtu: smaller, ..default_route(gateway, ifindex) };
        std::iter::once(default).chain(own.map(|own| Route::new(own, Some(gateway), ifindex)))
    }

    /// Changes the MTUs of a pod that is up.
    pub(super) fn change_mtus(&self, netns: &Netns, home: &Netns) -> Result<()> {
        netns.visit(home, || {
            let ifindex = link::ifindex(self.ifname)?;
            let mut requests = vec![link::set_mtu(ifindex, self.mtu)];
            for (address, gateway) in self.addresses.iter().zip(&self.gateways) {
                requests.extend(self.routes(*address, *gateway, ifindex).map(route::add));
            }
            Socket::open()?.batch(requests)?;
            Ok(())
        })
    }

    /// Some runtimes turn IPv6 off in new namespaces; router advertisements and redirects are nobody's to send here.
    fn prepare_ipv6(&self) -> Result<()> {
        let setting = |name: &str| format!("ipv6/conf/{}/{name}", self.ifname);
        // A write needs the kernel's lock on all links, and spins until it has it (`addrconf_disable_ipv6`).
        let disabled = setting("disable_ipv6");
        let exists = sysctl::get(&disabled).as_deref() == Some("0") || sysctl::set(&disabled, "0")?;
        ensure!(exists, "the kernel has no IPv6, but the node's pod CIDRs do; remove the IPv6 CIDR or boot with IPv6");
        sysctl::set(&setting("accept_ra"), "0")?;
        sysctl::set(&setting("accept_redirects"), "0")?;
        Ok(())
    }

    /// Returns whether the interface is there and lacks one of its addresses.
    pub(super) fn lacks_address(&self, netns: &Netns, home: &Netns) -> Result<bool> {
        netns.visit(home, || {
            let Ok(ifindex) = link::ifindex(self.ifname) else { return Ok(false) };
            let present = Socket::open()?.addresses(ifindex)?;
            Ok(!self.addresses.iter().all(|address| present.contains(address)))
        })
    }

    /// Compares the interface with what [`PodSide::configure`] made. What others added is left alone.
    ///
    /// # Errors
    ///
    /// The first difference.
    pub(super) fn check(&self, netns: &Netns, home: &Netns) -> Result<()> {
        netns.visit(home, || {
            let mut netlink = Socket::open()?;
            let Some(link) = netlink.link_by_name(self.ifname)? else {
                bail!("interface {} is missing in the pod", self.ifname);
            };
            ensure!(link.up, "interface {} is down in the pod", self.ifname);
            ensure!(
                link.mac == Some(self.mac),
                "interface {} has MAC {}, not {}",
                self.ifname,
                link.mac.map_or_else(|| "none".into(), |mac| mac.to_string()),
                self.mac
            );
            ensure!(link.mtu == self.mtu, "interface {} has MTU {}, not {}", self.ifname, link.mtu, self.mtu);
            let addresses = netlink.addresses(link.ifindex)?;
            for address in &self.addresses {
                ensure!(addresses.contains(address), "interface {} lacks address {address}", self.ifname);
            }
            let routes = netlink.routes(link.ifindex)?;
            for gateway in &self.gateways {
                let wanted = default_route(*gateway, link.ifindex);
                ensure!(
                    // Its MTU may be another one by now, and follows.
                    routes.iter().any(|route| Route { mtu: None, ..*route } == wanted),
                    "the pod lacks its default route via {gateway} dev {}",
                    self.ifname
                );
            }
            Ok(())
        })
    }
}

/// Returns the prefix that holds one address alone.
fn host_prefix(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

fn default_route(gateway: IpAddr, ifindex: u32) -> Route {
    let destination = match gateway {
        IpAddr::V4(_) => IpNetwork::V4(ipnetwork::Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => IpNetwork::V6(ipnetwork::Ipv6Network::from(std::net::Ipv6Addr::UNSPECIFIED)),
    };
    // `From` makes a prefix of one address; the default route is the prefix of all.
    let destination = IpNetwork::new(destination.ip(), 0).unwrap_or(destination);
    Route::new(destination, Some(gateway), ifindex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_covers_everything() {
        assert_eq!(default_route("10.244.1.1".parse().unwrap(), 2).destination.to_string(), "0.0.0.0/0");
        assert_eq!(default_route("fd00::1".parse().unwrap(), 2).destination.to_string(), "::/0");
        assert_eq!(host_prefix("fd00::1".parse().unwrap()).to_string(), "fd00::1/128");
    }
}
