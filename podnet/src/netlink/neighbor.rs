//! Neighbour entries: who has which MAC (ARP and ND caches), and behind which bridge port a MAC is.

use std::net::IpAddr;

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};

use super::{Error, Request, Socket, Tolerate};
use crate::api::Mac;

fn neighbor_message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(v4)
        }
        IpAddr::V6(v6) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(v6)
        }
    };
    message.attributes.push(NeighbourAttribute::Destination(destination));
    message
}

/// Returns the request that says, for good, which MAC an address has. No ARP or ND is needed, and none is believed.
#[must_use]
pub fn add(ifindex: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = neighbor_message(ifindex, address);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::new(
        format!("add neighbour {address} {mac} on link {ifindex}"),
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Returns the request that forgets the MAC of an address. One that is not there is success.
#[must_use]
pub fn delete(ifindex: u32, address: IpAddr) -> Request {
    Request::new(
        format!("delete neighbour {address} of link {ifindex}"),
        RouteNetlinkMessage::DelNeighbour(neighbor_message(ifindex, address)),
        0,
    )
    .tolerate(Tolerate::NotFound)
}

/// Returns the request that says, for good, behind which bridge port a MAC is.
#[must_use]
pub fn add_fdb(port: u32, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    Request::new(
        format!("add forwarding entry {mac} of bridge port {port}"),
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

impl Socket {
    /// Lists the permanent neighbours of an interface.
    pub fn permanent_neighbors(&mut self, ifindex: u32) -> Result<Vec<(IpAddr, Mac)>, Error> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            for answer in self.dump("list neighbours", &RouteNetlinkMessage::GetNeighbour(message))? {
                let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
                if message.header.ifindex == ifindex && message.header.state == NeighbourState::Permanent {
                    let (address, mac) = parts(&message.attributes);
                    found.extend(address.zip(mac));
                }
            }
        }
        Ok(found)
    }

    /// Lists the static forwarding entries of the bridges: (port, MAC).
    pub fn fdb(&mut self) -> Result<Vec<(u32, Mac)>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let answers = self.dump("list forwarding entries", &RouteNetlinkMessage::GetNeighbour(message))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) if message.header.state == NeighbourState::Noarp => {
                    parts(&message.attributes).1.map(|mac| (message.header.ifindex, mac))
                }
                _ => None,
            })
            .collect())
    }
}

fn parts(attributes: &[NeighbourAttribute]) -> (Option<IpAddr>, Option<Mac>) {
    let mut address = None;
    let mut mac = None;
    for attribute in attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(octets) => mac = octets.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    (address, mac)
}
