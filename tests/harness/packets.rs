//! Frames as a well-behaved or a forging pod would send them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use podnet::api::Mac;

/// The Ethernet address of all.
pub const BROADCAST: Mac = Mac([0xff; 6]);

/// Hop limit that neighbour discovery demands (RFC 4861, section 6.1).
const ND_HOP_LIMIT: u8 = 255;

/// The Ethernet addresses of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Source.
    pub source: Mac,
    /// Destination.
    pub destination: Mac,
}

/// Builds a UDP datagram; both addresses are of one family.
pub fn udp(ethernet: Ethernet, source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let start = PacketBuilder::ethernet2(ethernet.source.0, ethernet.destination.0);
    let builder = match (source.0, destination.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => start.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => start.ipv6(from.octets(), to.octets(), 64),
        (from, to) => panic!("{from} and {to} are of two families"),
    };
    let builder = builder.udp(source.1, destination.1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// What an ARP packet says (RFC 826).
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Sender.
    pub sender: (Mac, Ipv4Addr),
    /// Target.
    pub target: (Mac, Ipv4Addr),
}

/// Builds an ARP packet.
pub fn arp(ethernet: Ethernet, arp: Arp) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(ethernet.destination.0);
    frame.extend(ethernet.source.0);
    frame.extend([0x08, 0x06]);
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0x00, 0x01, 0x08, 0x00, 6, 4]);
    frame.extend(arp.operation.to_be_bytes());
    for (mac, address) in [arp.sender, arp.target] {
        frame.extend(mac.0);
        frame.extend(address.octets());
    }
    frame
}

/// Builds an unsolicited neighbour advertisement to all nodes (RFC 4861, section 4.4): `target` is at `claimed`.
pub fn neighbor_advertisement(source_mac: Mac, source: Ipv6Addr, target: Ipv6Addr, claimed: Mac) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    // Option 2, of one unit of 8 bytes: target link-layer address.
    body.extend([2, 1]);
    body.extend(claimed.0);
    // Override.
    icmpv6_to_all_nodes(source_mac, source, 136, [0x20, 0, 0, 0], &body)
}

/// Builds a router advertisement to all nodes (RFC 4861, section 4.2) with a router lifetime of 1800 s.
pub fn router_advertisement(source_mac: Mac, source: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![0; 8];
    // Option 1: source link-layer address.
    body.extend([1, 1]);
    body.extend(source_mac.0);
    icmpv6_to_all_nodes(source_mac, source, 134, [64, 0, 0x07, 0x08], &body)
}

fn icmpv6_to_all_nodes(source_mac: Mac, source: Ipv6Addr, kind: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // RFC 2464, section 7.
    let destination = [0x33, 0x33, 0, 0, 0, 1];
    let builder = PacketBuilder::ethernet2(source_mac.0, destination)
        .ipv6(source.octets(), all_nodes.octets(), ND_HOP_LIMIT)
        .icmpv6_raw(kind, 0, rest);
    let mut frame = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut frame, body).unwrap();
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 2]);

    #[test]
    fn an_arp_packet_parses() {
        let packet =
            Arp { operation: 2, sender: (MAC, [10, 244, 1, 2].into()), target: (BROADCAST, [10, 244, 1, 3].into()) };
        let frame = arp(Ethernet { source: MAC, destination: BROADCAST }, packet);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(etherparse::NetSlice::Arp(slice)) = parsed.net else { panic!("{parsed:?}") };
        assert_eq!(slice.sender_protocol_addr(), [10, 244, 1, 2]);
        assert_eq!(slice.target_hw_addr(), BROADCAST.0);
    }

    #[test]
    fn neighbor_discovery_has_the_hop_limit_and_a_checksum() {
        let source = "fe80::858:aff:fef4:102".parse().unwrap();
        for frame in [neighbor_advertisement(MAC, source, source, MAC), router_advertisement(MAC, source)] {
            let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::NetSlice::Ipv6(ip)) = parsed.net else { panic!("{parsed:?}") };
            assert_eq!(ip.header().hop_limit(), 255);
            let Some(etherparse::TransportSlice::Icmpv6(icmp)) = parsed.transport else { panic!() };
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        }
    }
}
