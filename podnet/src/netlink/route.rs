//! Routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::{
    RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope},
    },
};

use super::{Error, Request, Socket};

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Destination; prefix length 0 is the default route.
    pub destination: IpNetwork,
    /// Next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub ifindex: u32,
}

/// Returns the request that adds a route, or replaces one to the same destination.
#[must_use]
pub fn add(route: Route) -> Request {
    let scope = if route.gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(route.ifindex)
        .protocol(RouteProtocol::Static)
        .scope(scope);
    let message = builder.get_mut();
    message.header.address_family =
        if route.destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = route.destination.prefix();
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(route.destination.ip())));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
    }
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    Request::new(
        format!("add route {}{via} dev {}", route.destination, route.ifindex),
        RouteNetlinkMessage::NewRoute(builder.build()),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

const fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

impl Socket {
    /// Lists the routes of the main table that leave by one interface.
    pub fn routes(&mut self, ifindex: u32) -> Result<Vec<Route>, Error> {
        let answers = self.dump("list routes", &RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            })
            .filter(|route| route.ifindex == ifindex)
            .collect())
    }
}

fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let mut destination: Option<IpAddr> = None;
    let mut gateway = None;
    let mut ifindex = None;
    let address = |value: &RouteAddress| match value {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(value) => destination = address(value),
            RouteAttribute::Gateway(value) => gateway = address(value),
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            _ => {}
        }
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let prefix = message.header.destination_prefix_length;
    Some(Route {
        destination: IpNetwork::new(destination.unwrap_or(unspecified), prefix).ok()?,
        gateway,
        ifindex: ifindex?,
    })
}
