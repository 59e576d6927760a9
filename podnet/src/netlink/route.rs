//! Routes, and the kernel's answer to "by which way?".

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteIp6Tunnel, RouteIp6TunnelFlags, RouteIpTunnel,
            RouteLwTunnelEncap, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
        },
    },
};

use super::{Error, Request, Socket, Tolerate};

/// Protocol number (`rtm_protocol` of rtnetlink(7)) by which podnet knows its own routes on a node; `p` of ASCII. No
/// other routing daemon is known to use it (<linux/rtnetlink.h>, iproute2's `rt_protos`).
pub const PODNET_PROTOCOL: u8 = 112;

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination; prefix length 0 is the default route.
    pub destination: IpNetwork,
    /// Next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub ifindex: u32,
    /// Source of packets that the host itself sends by this route; `None`: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Largest packet in bytes; `None`: the interface's.
    pub mtu: Option<u32>,
    /// Metric of an IPv4 route; `None`: zero. IPv6 routes have the kernel's default.
    pub metric: Option<u32>,
    /// Encapsulation: the interface is a tunnel device in collect-metadata mode, and the next hop is on its link
    /// whatever the addresses say.
    pub tunnel: Option<Tunnel>,
}

/// Metadata that a route gives to packets for a tunnel device (lightweight tunnel, <linux/lwtunnel.h>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tunnel {
    /// Network identifier.
    pub vni: u32,
    /// Destination of the outer header.
    pub remote: IpAddr,
}

/// The way to an address, as the kernel would take it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// Outgoing interface.
    pub ifindex: u32,
    /// Next hop; `None`: the address is on the link.
    pub gateway: Option<IpAddr>,
}

impl Route {
    /// Makes a plain route.
    #[must_use]
    pub const fn new(destination: IpNetwork, gateway: Option<IpAddr>, ifindex: u32) -> Self {
        Self { destination, gateway, ifindex, source: None, mtu: None, metric: None, tunnel: None }
    }

    /// Returns whether this IPv4 route is taken in place of another one to the same destination. Of IPv6 routes the kernel
    /// itself refuses one of the same metric.
    #[must_use]
    pub fn comes_before(&self, other: &Self) -> bool {
        self.destination.is_ipv4() && self.metric.unwrap_or(0) <= other.metric.unwrap_or(0)
    }

    fn message(&self, protocol: RouteProtocol) -> RouteMessage {
        let scope = if self.gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
        let mut builder =
            RouteMessageBuilder::<IpAddr>::new().output_interface(self.ifindex).protocol(protocol).scope(scope);
        builder = match self.tunnel {
            Some(Tunnel { vni, remote: IpAddr::V4(remote) }) => {
                builder.encap_ip(vec![RouteIpTunnel::Id(u64::from(vni)), RouteIpTunnel::Destination(remote)]).onlink()
            }
            // UDP over IPv6 needs its checksum (RFC 8200, section 8.1).
            Some(Tunnel { vni, remote: IpAddr::V6(remote) }) => builder
                .encap_ip6(vec![
                    RouteIp6Tunnel::Id(u64::from(vni)),
                    RouteIp6Tunnel::Destination(remote),
                    RouteIp6Tunnel::Flags(RouteIp6TunnelFlags::Checksum),
                ])
                .onlink(),
            None => builder,
        };
        let message = builder.get_mut();
        message.header.address_family =
            if self.destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = self.destination.prefix();
        let attributes = &mut message.attributes;
        if self.destination.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(route_address(self.destination.ip())));
        }
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(route_address(source))));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        builder.build()
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(Tunnel { vni, remote }) = self.tunnel {
            write!(f, " encap id {vni} dst {remote}")?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " dev {}", self.ifindex)?;
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}

/// Returns the request that adds a route inside a pod, or replaces one to the same destination.
#[must_use]
pub fn add(route: Route) -> Request {
    Request::new(
        format!("add route {route}"),
        RouteNetlinkMessage::NewRoute(route.message(RouteProtocol::Static)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Returns the request that adds one of podnet's routes to the node. It fails with [`Error::is_exists`] where there is a
/// route to the same destination, whoever's.
#[must_use]
pub fn add_to_node(route: Route) -> Request {
    Request::new(
        format!("add route {route}"),
        RouteNetlinkMessage::NewRoute(route.message(RouteProtocol::Other(PODNET_PROTOCOL))),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Metric of the routes that the kernel makes with IPv6 addresses (`IP6_RT_PRIO_ADDRCONF` of <linux/ipv6_route.h>).
const IPV6_CONNECTED_METRIC: u32 = 256;

/// Returns the request that restores the route which the kernel made with an address of an interface: the address, with its
/// prefix length. One that is there is success.
#[must_use]
pub fn restore_connected(address: IpNetwork, ifindex: u32) -> Request {
    let mut route = Route::new(network_of(address), None, ifindex);
    route.source = address.is_ipv4().then(|| address.ip());
    route.metric = address.is_ipv6().then_some(IPV6_CONNECTED_METRIC);
    Request::new(
        format!("restore route {route}"),
        RouteNetlinkMessage::NewRoute(route.message(RouteProtocol::Kernel)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .tolerate(Tolerate::Exists)
}

/// Returns the network that an address with a prefix length is in.
#[must_use]
pub fn network_of(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

/// Returns the request that changes one of podnet's routes, which must be there.
#[must_use]
pub fn replace_on_node(route: Route) -> Request {
    Request::new(
        format!("change route {route}"),
        RouteNetlinkMessage::NewRoute(route.message(RouteProtocol::Other(PODNET_PROTOCOL))),
        NLM_F_REPLACE,
    )
}

/// Returns the request that deletes podnet's route to a destination; others' stay. One that is not there is success.
#[must_use]
pub fn delete_from_node(destination: IpNetwork) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = RouteProtocol::Other(PODNET_PROTOCOL);
    message.attributes.push(RouteAttribute::Destination(route_address(destination.ip())));
    Request::new(format!("delete route {destination}"), RouteNetlinkMessage::DelRoute(message), 0)
        .tolerate(Tolerate::NotFound)
}

const fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

const fn ip_address(value: &RouteAddress) -> Option<IpAddr> {
    match value {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

impl Socket {
    /// Lists the routes of the main table that leave by one interface.
    pub fn routes(&mut self, ifindex: u32) -> Result<Vec<Route>, Error> {
        Ok(self.main_table()?.into_iter().map(|(route, _)| route).filter(|route| route.ifindex == ifindex).collect())
    }

    /// Lists podnet's routes on the node, and everybody else's.
    pub fn node_routes(&mut self) -> Result<(Vec<Route>, Vec<Route>), Error> {
        let own = RouteProtocol::Other(PODNET_PROTOCOL);
        let (own, others): (Vec<_>, Vec<_>) =
            self.main_table()?.into_iter().partition(|(_, protocol)| *protocol == own);
        let routes = |list: Vec<(Route, RouteProtocol)>| list.into_iter().map(|(route, _)| route).collect();
        Ok((routes(own), routes(others)))
    }

    /// Returns the destinations of those routes that a route of somebody else, to this very prefix, comes before or stands
    /// in the way of.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn taken_destinations(&mut self, wanted: &[Route]) -> Result<Vec<IpNetwork>, Error> {
        let messages = wanted.iter().map(|wanted| {
            let mut message = question(wanted.destination.ip());
            // The route itself, not what follows from it for this one address.
            message.header.flags |= RouteFlags::FibMatch;
            RouteNetlinkMessage::GetRoute(message)
        });
        let answers = self.get_each("ask for the route to a pod CIDR", messages)?;
        let is_taken = |wanted: &Route, answer: Option<RouteNetlinkMessage>| match answer {
            Some(RouteNetlinkMessage::NewRoute(message)) => {
                message.header.protocol != RouteProtocol::Other(PODNET_PROTOCOL)
                    && message.header.table == RouteHeader::RT_TABLE_MAIN
                    && message.header.destination_prefix_length == wanted.destination.prefix()
                    && route(&message).is_some_and(|other| other.comes_before(wanted))
            }
            _ => false,
        };
        let pairs = wanted.iter().zip(answers);
        Ok(pairs.filter_map(|(wanted, answer)| is_taken(wanted, answer).then_some(wanted.destination)).collect())
    }

    fn main_table(&mut self) -> Result<Vec<(Route, RouteProtocol)>, Error> {
        let answers = self.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) if message.header.table == RouteHeader::RT_TABLE_MAIN => {
                    let protocol = message.header.protocol;
                    route(&message).map(|route| (route, protocol))
                }
                _ => None,
            })
            .collect())
    }

    /// Asks for the way to each address; `None` where the kernel has none, or the address is its own.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn ways_to(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<NextHop>>, Error> {
        let messages = addresses.iter().map(|address| RouteNetlinkMessage::GetRoute(question(*address)));
        let answers = self.get_each("ask for the way to an address", messages)?;
        Ok(answers
            .into_iter()
            .map(|answer| match answer {
                Some(RouteNetlinkMessage::NewRoute(message)) if message.header.kind == RouteType::Unicast => {
                    route(&message).map(|Route { gateway, ifindex, .. }| NextHop { ifindex, gateway })
                }
                _ => None,
            })
            .collect())
    }
}

/// Returns the message that asks for the way to an address.
fn question(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, prefix) = if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    message.header.address_family = family;
    message.header.destination_prefix_length = prefix;
    message.attributes.push(RouteAttribute::Destination(route_address(address)));
    message
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut destination: Option<IpAddr> = None;
    let mut ifindex = None;
    let mut found = Route::new(IpNetwork::from(IpAddr::from([0; 4])), None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(value) => destination = ip_address(value),
            RouteAttribute::Gateway(value) => found.gateway = ip_address(value),
            RouteAttribute::PrefSource(value) => found.source = ip_address(value),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Priority(metric) if message.header.address_family == AddressFamily::Inet => {
                found.metric = Some(*metric);
            }
            RouteAttribute::Metrics(metrics) => {
                found.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Encap(encap) => found.tunnel = tunnel(encap),
            _ => {}
        }
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let prefix = message.header.destination_prefix_length;
    found.destination = IpNetwork::new(destination.unwrap_or(unspecified), prefix).ok()?;
    found.ifindex = ifindex?;
    Some(found)
}

fn tunnel(encap: &[RouteLwTunnelEncap]) -> Option<Tunnel> {
    let mut vni = None;
    let mut remote = None;
    for attribute in encap {
        match attribute {
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Id(id)) | RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Id(id)) => {
                vni = u32::try_from(*id).ok();
            }
            RouteLwTunnelEncap::Ip(RouteIpTunnel::Destination(v4)) => remote = Some(IpAddr::V4(*v4)),
            RouteLwTunnelEncap::Ip6(RouteIp6Tunnel::Destination(v6)) => remote = Some(IpAddr::V6(*v6)),
            _ => {}
        }
    }
    Some(Tunnel { vni: vni?, remote: remote? })
}
