//! The guard on packets in memory: mostly those that `BPF_PROG_TEST_RUN` refuses to take, such as cut IP headers.

use podnet_common::{
    endpoint::{EndpointSource, link_local_address},
    verdict::DropReason,
};

use crate::{
    endpoint::Source,
    extension, guard,
    ip::{Transport, icmpv6, protocol},
};

const MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02];
const V4: [u8; 4] = [10, 244, 1, 2];
const V6: [u8; 16] = [0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2];

fn pod() -> EndpointSource {
    EndpointSource { v4: V4, flags: 0, v6: V6, mac: MAC, reserved: [0; 2] }
}

fn ipv4(total_len: u16) -> Vec<u8> {
    let [high, low] = total_len.to_be_bytes();
    [&[0x45, 0, high, low, 0, 0, 0, 0, 64, protocol::UDP, 0, 0][..], &V4, &[10, 244, 1, 3]].concat()
}

fn ipv6(from: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, next, 255][..], &from, &V6, payload].concat()
}

#[test]
fn every_cut_of_an_ip_header_is_malformed() {
    let mut pod = pod();
    let (v4, v6) = (ipv4(20), ipv6(V6, protocol::TCP, &[]));
    assert_eq!(guard::ipv4_at(&v4.as_slice(), Source::of(&mut pod), 0), Ok(()));
    assert_eq!(guard::ipv6_at(&v6.as_slice(), Source::of(&mut pod), 0), Ok(Transport::new(protocol::TCP, 40, false)));
    for len in 0..20 {
        assert_eq!(guard::ipv4_at(&&v4[..len], Source::of(&mut pod), 0), Err(DropReason::Malformed), "{len} bytes");
    }
    for len in 0..40 {
        let result = guard::ipv6_at(&&v6[..len], Source::of(&mut pod), 0);
        assert_eq!(result, Err(DropReason::Malformed), "{len} bytes");
    }
}

#[test]
fn a_length_beyond_the_packet_is_malformed() {
    let mut pod = pod();
    assert_eq!(guard::ipv4_at(&ipv4(21).as_slice(), Source::of(&mut pod), 0), Err(DropReason::Malformed));
    // BIG TCP: too long for the field.
    assert_eq!(guard::ipv4_at(&ipv4(0).as_slice(), Source::of(&mut pod), 0), Ok(()));
}

#[test]
fn link_local_sources_are_marked() {
    let mut pod = pod();
    let packet = ipv6(link_local_address(MAC), protocol::UDP, &[0; 8]);
    let transport = guard::ipv6_at(&packet.as_slice(), Source::of(&mut pod), 0).unwrap();
    assert!(transport.is_link_scoped() && !transport.is_neighbor_discovery());
    let packet = ipv6(V6, protocol::ICMPV6, &[icmpv6::ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    let transport = guard::ipv6_at(&packet.as_slice(), Source::of(&mut pod), 0).unwrap();
    assert!(transport.is_neighbor_discovery() && !transport.is_link_scoped());
}

#[test]
fn bytes_behind_the_payload_are_no_options() {
    let mut pod = pod();
    let mut packet = ipv6(V6, protocol::ICMPV6, &[icmpv6::ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend([1, 1, 9, 9, 9, 9, 9, 9]);
    assert!(guard::ipv6_at(&packet.as_slice(), Source::of(&mut pod), 0).is_ok());
    // They are where the payload has no end of its own.
    packet[4..6].copy_from_slice(&[0, 0]);
    let result = guard::ipv6_at(&packet.as_slice(), Source::of(&mut pod), 0);
    assert_eq!(result, Err(DropReason::SpoofedNeighbor));
}

#[test]
fn the_walk_ends_where_the_chain_does() {
    let walk = |bytes: &[u8], next| extension::walk(&bytes, next, 0, bytes.len() as u32);
    assert_eq!(walk(&[], protocol::TCP), Ok(Transport::new(protocol::TCP, 0, false)));
    let hop = [protocol::TCP, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(walk(&hop, protocol::HOP_BY_HOP), Ok(Transport::new(protocol::TCP, 8, false)));
    assert_eq!(walk(&hop[..7], protocol::HOP_BY_HOP), Err(DropReason::Malformed));
    assert_eq!(walk(&[protocol::TCP, 1, 0, 0, 0, 0, 0, 0], protocol::ROUTING), Err(DropReason::Malformed));
    let authentication = [protocol::UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(walk(&authentication, protocol::AUTHENTICATION), Ok(Transport::new(protocol::UDP, 12, false)));
    let first = [protocol::UDP, 0, 0, 1, 0, 0, 0, 9];
    assert_eq!(walk(&first, protocol::FRAGMENT), Ok(Transport::new(protocol::UDP, 8, true)));
    let later = [protocol::UDP, 0, 0, 8, 0, 0, 0, 9];
    assert!(walk(&later, protocol::FRAGMENT).unwrap().is_later_fragment());
    for headers in 0..=8 {
        let mut chain = [protocol::DESTINATION, 0, 0, 0, 0, 0, 0, 0].repeat(headers);
        if let Some(last) = chain.len().checked_sub(8) {
            chain[last] = protocol::UDP;
        }
        let next = if headers == 0 { protocol::UDP } else { protocol::DESTINATION };
        assert_eq!(walk(&chain, next).is_ok(), headers < 5, "{headers} headers");
    }
}
