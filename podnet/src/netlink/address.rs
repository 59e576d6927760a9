//! Interface addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    },
};

use super::{Error, Request, Socket, Tolerate};

/// Whether an address brings a route to its whole prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixRoute {
    /// The kernel adds the on-link route of the prefix.
    Add,
    /// It does not (`IFA_F_NOPREFIXROUTE`).
    Omit,
}

fn message(ifindex: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = address.prefix();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    message
}

/// Returns the request that gives an interface an address. IPv6 addresses are usable at once: no duplicate address
/// detection (`IFA_F_NODAD`), since podnet hands every address out once.
#[must_use]
pub fn add(ifindex: u32, address: IpNetwork, prefix_route: PrefixRoute) -> Request {
    let mut message = message(ifindex, address);
    let mut flags = AddressFlags::Permanent;
    if address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    if prefix_route == PrefixRoute::Omit {
        flags |= AddressFlags::Noprefixroute;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    Request::new(
        format!("add address {address} to link {ifindex}"),
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Returns the request that takes an address from an interface. One that is not there is success.
#[must_use]
pub fn delete(ifindex: u32, address: IpNetwork) -> Request {
    Request::new(
        format!("delete address {address} of link {ifindex}"),
        RouteNetlinkMessage::DelAddress(message(ifindex, address)),
        0,
    )
    .tolerate(Tolerate::NotFound)
}

impl Socket {
    /// Lists the addresses of an interface.
    pub fn addresses(&mut self, ifindex: u32) -> Result<Vec<IpNetwork>, Error> {
        let answers = self.dump("list addresses", &RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) if message.header.index == ifindex => network(&message),
                _ => None,
            })
            .collect())
    }
}

fn network(message: &AddressMessage) -> Option<IpNetwork> {
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links `Address` is the peer's; `Local` counts.
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
            _ => {}
        }
    }
    IpNetwork::new(address?, message.header.prefix_len).ok()
}
