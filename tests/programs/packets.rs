//! Packets, put together by hand so that any field can be wrong.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::fixture::{GATEWAY_MAC, Pod};

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const IPV6: u16 = 0x86dd;

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const NO_NEXT: u8 = 59;
pub(crate) const DESTINATION: u8 = 60;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// A frame from a pod to the gateway's MAC, as pods send them.
pub(crate) fn frame(from: Pod, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(GATEWAY_MAC, from.mac, ethertype, payload)
}

pub(crate) fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(from, to, protocol, 0, &[], payload)
}

/// `fragment` is the field of flags and offset; options are padded by the caller.
pub(crate) fn ipv4_with(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total_len = (header_len + payload.len()) as u16;
    let [t0, t1] = total_len.to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let start = [0x40 | (header_len / 4) as u8, 0, t0, t1, 0, 1, f0, f1, 64, protocol, 0, 0];
    [&start[..], &from.octets(), &to.octets(), options, payload].concat()
}

pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, l0, l1, next, 255][..], &from.octets(), &to.octets(), payload].concat()
}

pub(crate) fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), 12u16.to_be_bytes(), [0, 0], [1, 2], [3, 4]].concat()
}

pub(crate) fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]].concat()
}

/// An ICMP or ICMPv6 echo message.
pub(crate) fn echo(kind: u8, identifier: u16) -> Vec<u8> {
    let [i0, i1] = identifier.to_be_bytes();
    vec![kind, 0, 0, 0, i0, i1, 0, 1, 0xaa, 0xbb]
}

/// An extension header of 8 bytes (hop-by-hop, destination, routing).
pub(crate) fn extension(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// A fragment header; `offset` in units of 8 bytes.
pub(crate) fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next, 0, o0, o1, 0, 0, 0, 7]
}

/// The hop-by-hop header of a BIG TCP packet (RFC 2675).
pub(crate) fn jumbo(next: u8, len: u32) -> Vec<u8> {
    [&[next, 0, 0xc2, 4][..], &len.to_be_bytes()].concat()
}

/// An ARP packet with the sender that it claims.
pub(crate) fn arp(operation: u16, mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let start = [0, 1, 8, 0, 6, 4, 0, operation as u8];
    [&start[..], &mac, &sender.octets(), &[0; 6], &target.octets()].concat()
}

/// A neighbour solicitation or advertisement.
pub(crate) fn neighbor(kind: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), options].concat()
}

/// A router solicitation.
pub(crate) fn router_solicitation(options: &[u8]) -> Vec<u8> {
    [&[133, 0, 0, 0, 0, 0, 0, 0][..], options].concat()
}

/// A link-layer address option: 1 is the source's, 2 the target's.
pub(crate) fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// The frame as it is after a router: TTL or hop limit one less, and the header's checksum right.
pub(crate) fn after_hop(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == IPV4.to_be_bytes() {
        frame[22] -= 1;
        with_checksum(&frame)
    } else {
        frame[21] -= 1;
        frame
    }
}

/// The frame with the right checksum in its IPv4 header (RFC 791).
pub(crate) fn with_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[24..26].copy_from_slice(&[0, 0]);
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    let sum: u32 = frame[14..end].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame with another TTL or hop limit.
pub(crate) fn with_ttl(frame: &[u8], ttl: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == IPV4.to_be_bytes() {
        frame[22] = ttl;
        with_checksum(&frame)
    } else {
        frame[21] = ttl;
        frame
    }
}

/// The frame with other MACs.
pub(crate) fn with_macs(frame: &[u8], to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &frame[12..]].concat()
}

/// A frame with a UDP datagram between two pods.
pub(crate) fn udp_v4(from: Pod, to: Pod) -> Vec<u8> {
    frame(from, IPV4, &ipv4(from.v4, to.v4, UDP, &udp(40_000, 53)))
}

/// As [`udp_v4`], over IPv6.
pub(crate) fn udp_v6(from: Pod, to: Pod) -> Vec<u8> {
    frame(from, IPV6, &ipv6(from.v6, to.v6, UDP, &udp(40_000, 53)))
}
