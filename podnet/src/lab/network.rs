//! The network between the nodes: a switch, a router with a second subnet, and a host outside of the cluster.
//!
//! ```text
//!   netns LAB-switch                                    netns LAB-router       netns LAB-outside
//!   +-----------------------------------------+        +--------------------+
//!   | bridge subnet1 192.168.1.0/24           |--------| eth0 192.168.1.1   |
//!   |   node1 .11  node2 .12  ...             |        |                    |
//!   | bridge subnet2 192.168.2.0/24           |--------| eth1 192.168.2.1   |
//!   |   node3 .13                             |        |                    |   +------------------+
//!   | bridge outside 203.0.113.0/24           |--------| eth2 203.0.113.1   |   | eth0 203.0.113.2 |
//!   |                                         |------------------------------- -|                  |
//!   +-----------------------------------------+        +--------------------+   +------------------+
//! ```
//!
//! IPv6 alike: `fd00:192:168:1::/64`, `fd00:192:168:2::/64`, `2001:db8:ff::/64`. Neither the router nor the outside host
//! knows pod CIDRs, so the outside answers masqueraded packets only; in mode `router` the router gets its table of them
//! from `podnet router-config`. Everything is attached to the lab's own namespaces, nothing to the machine's.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::{
    node::make_netns,
    options::Families,
    topology::{Lab, Node},
};
use crate::{
    api::Mac,
    engine::sysctl,
    netlink::{
        Request, Socket,
        address::{self, PrefixRoute},
        link::{self, VethPair},
        route::{self, Route},
    },
    netns::Netns,
};

/// Name of a node's interface on the network.
pub const UPLINK: &str = "eth0";

/// Host number of the router in each subnet.
const ROUTER_HOST: u8 = 1;

/// Host number of the host outside of the cluster, in the subnet of that name.
const OUTSIDE_HOST: u8 = 2;

/// The network between the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Network namespace of the switch.
    pub switch: String,
    /// Network namespace of the router.
    pub router: String,
    /// Network namespace of the host outside of the cluster.
    pub outside: String,
    /// MTU in bytes of every link.
    pub mtu: u32,
    /// Address families of the subnets.
    pub families: Families,
    /// Whether the router has the table of pod CIDRs.
    pub router_knows_pods: bool,
}

/// One layer 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subnet {
    /// Where nodes are.
    First,
    /// Where nodes are that the router parts from the others.
    Second,
    /// Beyond the router, outside of the cluster.
    Outside,
}

impl Subnet {
    const ALL: [Self; 3] = [Self::First, Self::Second, Self::Outside];

    /// Returns the name of the subnet's bridge in the switch.
    #[must_use]
    pub const fn bridge(self) -> &'static str {
        match self {
            Self::First => "subnet1",
            Self::Second => "subnet2",
            Self::Outside => "outside",
        }
    }

    /// Returns the addresses of a host number, IPv4 first. The number's decimal digits end the IPv6 address, too.
    ///
    /// # Errors
    ///
    /// Never for the prefix lengths given here.
    pub fn addresses(self, host: u8, families: Families) -> Result<Vec<IpNetwork>> {
        let (v4, v6) = match self {
            Self::First => (Ipv4Addr::new(192, 168, 1, host), [0xfd00, 0x192, 0x168, 1]),
            Self::Second => (Ipv4Addr::new(192, 168, 2, host), [0xfd00, 0x192, 0x168, 2]),
            // Documentation ranges: RFC 5737, RFC 3849.
            Self::Outside => (Ipv4Addr::new(203, 0, 113, host), [0x2001, 0xdb8, 0xff, 0]),
        };
        let mut addresses = vec![IpNetwork::V4(Ipv4Network::new(v4, 24)?)];
        if families == Families::Dual {
            let [a, b, c, d] = v6;
            let digits = u16::from_str_radix(&host.to_string(), 16).context("read decimal digits as hexadecimal")?;
            addresses.push(IpNetwork::V6(Ipv6Network::new(Ipv6Addr::new(a, b, c, d, 0, 0, 0, digits), 64)?));
        }
        Ok(addresses)
    }

    /// Returns the router's addresses in the subnet.
    ///
    /// # Errors
    ///
    /// As [`Subnet::addresses`].
    pub fn router(self, families: Families) -> Result<Vec<IpAddr>> {
        Ok(self.addresses(ROUTER_HOST, families)?.iter().map(IpNetwork::ip).collect())
    }
}

/// A link from a subnet's bridge into a namespace.
struct Leg<'a> {
    subnet: Subnet,
    /// Name of the bridge's port.
    port: &'a str,
    netns: &'a str,
    ifname: &'a str,
    addresses: Vec<IpNetwork>,
    /// Default gateways.
    gateways: Vec<IpAddr>,
}

impl Network {
    /// Draws the network of a lab; makes nothing.
    #[must_use]
    pub fn new(lab: &str, mtu: u32, families: Families, router_knows_pods: bool) -> Self {
        Self {
            switch: format!("{lab}-switch"),
            router: format!("{lab}-router"),
            outside: format!("{lab}-outside"),
            mtu,
            families,
            router_knows_pods,
        }
    }

    /// Returns the names of the network's namespaces, and what people call them.
    #[must_use]
    pub fn netns_names(&self) -> [(&'static str, &str); 3] {
        [("switch", &self.switch), ("router", &self.router), ("outside", &self.outside)]
    }

    /// Returns the addresses of the host outside of the cluster.
    ///
    /// # Errors
    ///
    /// As [`Subnet::addresses`].
    pub fn outside_addresses(&self) -> Result<Vec<IpAddr>> {
        Ok(Subnet::Outside.addresses(OUTSIDE_HOST, self.families)?.iter().map(IpNetwork::ip).collect())
    }

    /// Makes switch, router and outside host, and plugs the nodes in, whose namespaces exist.
    pub fn make(&self, nodes: &[Node]) -> Result<()> {
        make_netns(&self.switch)?.run(|| self.make_bridges()).context("make the lab's switch")?;
        make_netns(&self.router)?.run(become_router).context("make the lab's router")?;
        make_netns(&self.outside)?;
        for leg in self.legs(nodes)? {
            self.plug(&leg).with_context(|| format!("plug {} of {} in", leg.ifname, leg.netns))?;
        }
        Ok(())
    }

    fn legs<'a>(&'a self, nodes: &'a [Node]) -> Result<Vec<Leg<'a>>> {
        let mut legs = Vec::new();
        for (subnet, port, ifname) in [
            (Subnet::First, "router1", "eth0"),
            (Subnet::Second, "router2", "eth1"),
            (Subnet::Outside, "router3", "eth2"),
        ] {
            let addresses = subnet.addresses(ROUTER_HOST, self.families)?;
            legs.push(Leg { subnet, port, netns: &self.router, ifname, addresses, gateways: Vec::new() });
        }
        legs.push(Leg {
            subnet: Subnet::Outside,
            port: "host",
            netns: &self.outside,
            ifname: UPLINK,
            addresses: Subnet::Outside.addresses(OUTSIDE_HOST, self.families)?,
            gateways: Subnet::Outside.router(self.families)?,
        });
        for node in nodes {
            let subnet = node.subnet.with_context(|| format!("{} is in no subnet", node.name))?;
            legs.push(Leg {
                subnet,
                port: &node.name,
                netns: &node.netns,
                ifname: UPLINK,
                addresses: node.addresses.iter().map(|address| with_prefix(*address)).collect::<Result<_>>()?,
                gateways: subnet.router(self.families)?,
            });
        }
        Ok(legs)
    }

    /// Makes the switch's bridges; in the switch's namespace.
    fn make_bridges(&self) -> Result<()> {
        // A switch has no address, hands nothing to netfilter, and asks for nothing.
        sysctl::set("ipv6/conf/all/disable_ipv6", "1")?;
        sysctl::set("ipv6/conf/default/disable_ipv6", "1")?;
        for table in ["iptables", "ip6tables", "arptables"] {
            sysctl::set(&format!("bridge/bridge-nf-call-{table}"), "0")?;
        }
        let mut socket = Socket::open()?;
        for (number, subnet) in (1..).zip(Subnet::ALL) {
            let mac = Mac([0x02, 0x02, 0, 0, 0, number]);
            socket.request(link::create_bridge(subnet.bridge(), mac, self.mtu))?;
            socket.request(link::set_up(link::ifindex(subnet.bridge())?))?;
        }
        Ok(())
    }

    fn plug(&self, leg: &Leg<'_>) -> Result<()> {
        let netns = Netns::open_named(leg.netns)?;
        let v4 = leg.addresses.iter().find_map(|address| match address.ip() {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        });
        let [a, b, c, d] = v4.context("no IPv4 address to derive a MAC from")?;
        Netns::open_named(&self.switch)?.run(|| {
            let pair = VethPair {
                host_name: leg.port,
                host_mac: Mac([0x02, 0x01, a, b, c, d]),
                bridge: link::ifindex(leg.subnet.bridge())?,
                pod_name: leg.ifname,
                pod_mac: Mac([0x02, 0x00, a, b, c, d]),
                pod_netns: netns.as_fd(),
                mtu: self.mtu,
            };
            Ok(Socket::open()?.request(pair.create())?)
        })?;
        netns.run(|| {
            for setting in ["accept_ra", "accept_dad"] {
                // Nobody advertises; and a link-local address that is still being probed cannot ask for neighbours.
                sysctl::set(&format!("ipv6/conf/{}/{setting}", leg.ifname), "0")?;
            }
            let ifindex = link::ifindex(leg.ifname)?;
            let addresses = leg.addresses.iter().map(|network| address::add(ifindex, *network, PrefixRoute::Add));
            let routes = default_routes(&leg.gateways, ifindex)?;
            let requests = std::iter::once(link::set_up(ifindex)).chain(addresses).chain(routes);
            Ok(Socket::open()?.batch(requests.collect())?)
        })
    }

    /// Gives the router the table of pod CIDRs that `podnet router-config` prints for a file of nodes.
    ///
    /// # Errors
    ///
    /// What `podnet` or the shell printed when it failed.
    pub fn configure_router(&self, binary: &Path, nodes: &Path) -> Result<()> {
        let mut podnet = Command::new(binary);
        podnet.args(["router-config", "--format", "iproute2", "--nodes"]).arg(nodes);
        let script = output_of(&mut podnet)?;
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &script]);
        Netns::open_named(&self.router)?.run(|| output_of(&mut shell)).map(drop)
    }
}

impl Lab {
    /// Gives a node other addresses on its network: the new ones are usable when this returns, the old ones are gone.
    /// Tells no other node: that is the business of the file of nodes.
    ///
    /// # Errors
    ///
    /// The lab has no network, or the kernel refuses.
    pub fn readdress(&mut self, position: usize, host: u8) -> Result<()> {
        let families = self.network.as_ref().context("a lab of one node has no network")?.families;
        let node = self.nodes.get_mut(position).with_context(|| format!("there is no node number {position}"))?;
        let subnet = node.subnet.with_context(|| format!("{} is in no subnet", node.name))?;
        let (old, new) = (std::mem::take(&mut node.addresses), subnet.addresses(host, families)?);
        node.addresses = new.iter().map(IpNetwork::ip).collect();
        let stale = old.iter().map(|address| with_prefix(*address)).collect::<Result<Vec<_>>>()?;
        let gateways = subnet.router(families)?;
        Netns::open_named(&node.netns)?.run(|| {
            let ifindex = link::ifindex(UPLINK)?;
            let add = new.iter().map(|network| address::add(ifindex, *network, PrefixRoute::Add));
            // With the first address of a subnet the kernel also takes the others of it, unless it may promote them.
            sysctl::set(&format!("ipv4/conf/{UPLINK}/promote_secondaries"), "1")?;
            let delete = stale.iter().map(|network| address::delete(ifindex, *network));
            let routes = default_routes(&gateways, ifindex)?;
            Ok(Socket::open()?.batch(add.chain(delete).chain(routes).collect())?)
        })?;
        self.save()
    }
}

/// Returns an address of a subnet with the subnet's prefix length.
fn with_prefix(address: IpAddr) -> Result<IpNetwork> {
    Ok(IpNetwork::new(address, if address.is_ipv4() { 24 } else { 64 })?)
}

fn default_route(gateway: IpAddr, ifindex: u32) -> Result<Route> {
    let everything = match gateway {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Ok(Route::new(IpNetwork::new(everything, 0)?, Some(gateway), ifindex))
}

/// Returns the requests for a default route by each gateway.
fn default_routes(gateways: &[IpAddr], ifindex: u32) -> Result<Vec<Request>> {
    gateways.iter().map(|gateway| default_route(*gateway, ifindex).map(route::add)).collect()
}

/// Makes the calling thread's namespace forward.
fn become_router() -> Result<()> {
    sysctl::set("ipv4/ip_forward", "1")?;
    sysctl::set("ipv6/conf/all/forwarding", "1")?;
    // In mode `router` packets leave by the interface they came by, and shall go on doing so.
    for interfaces in ["all", "default"] {
        sysctl::set(&format!("ipv4/conf/{interfaces}/send_redirects"), "0")?;
    }
    Ok(())
}

fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program}: {}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_reference() {
        let show = |subnet: Subnet, host, families| -> Vec<String> {
            subnet.addresses(host, families).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(show(Subnet::First, 11, Families::Dual), ["192.168.1.11/24", "fd00:192:168:1::11/64"]);
        assert_eq!(show(Subnet::Second, 113, Families::Dual), ["192.168.2.113/24", "fd00:192:168:2::113/64"]);
        assert_eq!(show(Subnet::Outside, 2, Families::V4), ["203.0.113.2/24"]);
        let network = Network::new("a", 1500, Families::Dual, false);
        assert_eq!(network.outside_addresses().unwrap()[1].to_string(), "2001:db8:ff::2");
    }
}
