//! What happens to a packet that a pod sends: known interface? own MAC? own address? pod of this node? into it. Pod of
//! another node? to it.
//!
//! Anti-spoofing comes first and is complete before anything is forwarded, or handed to the kernel. Only common
//! packets (IPv4, IPv6 with TCP or UDP) stay in this file; all others are judged by subprograms.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::{DropReason, Verdict};

use crate::{
    arp,
    endpoint::{self, Source},
    forward, guard,
    ip::{Address, Family, Ip, Transport, ethertype, protocol},
    packet::{self, ETHERNET_LEN},
    verdict::Decision,
    vlan,
};

/// Decides about a packet at the ingress hook of a pod's host-side veth.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Result<Decision, DropReason> {
    let source = endpoint::source(packet::ifindex(ctx)).ok_or(DropReason::UnknownEndpoint)?;
    let ethernet = packet::headers::<{ ETHERNET_LEN as usize }>(ctx)?;
    if !source.has_mac(ethernet.read::<u32, 6>(), ethernet.read::<u16, 10>()) {
        return Err(DropReason::SpoofedMac);
    }
    let kind = u16::from_be(ethernet.read::<u16, 12>());
    if packet::is_vlan_tagged(ctx) || vlan::is_tag(kind) {
        vlan::guard(ctx.skb.skb, source, kind)?;
        return Ok(Decision::pass(Verdict::PassedUnsupported));
    }
    match kind {
        ethertype::IPV4 => ipv4(ctx, source),
        ethertype::IPV6 => ipv6(ctx, source),
        ethertype::ARP => {
            arp::guard(ctx.skb.skb, source, ETHERNET_LEN)?;
            Ok(Decision::pass(Verdict::PassedNotForwarded))
        }
        _ => Ok(Decision::pass(Verdict::PassedNotForwarded)),
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, source: Source) -> Result<Decision, DropReason> {
    let header = packet::headers::<34>(ctx)?;
    let version_ihl = header.read::<u8, 14>();
    let from = header.read::<u32, 26>();
    guard::ipv4(source, version_ihl, header.read::<u16, 16>(), from, ctx.len() - ETHERNET_LEN)?;
    if version_ihl != 0x45 {
        return Ok(Decision::pass(Verdict::PassedUnsupported));
    }
    let fragment = header.read::<u16, 20>() & guard::IPV4_FRAGMENT_MASK.to_be() != 0;
    let packet = Ip {
        family: Family::V4,
        source: Address::from_v4(from),
        destination: Address::from_v4(header.read::<u32, 30>()),
        transport: Transport::new(header.read::<u8, 23>(), 34, fragment),
    };
    Ok(forward::forward(ctx, source, &packet))
}

#[inline(always)]
fn ipv6(ctx: &TcContext, source: Source) -> Result<Decision, DropReason> {
    let header = packet::headers::<54>(ctx)?;
    let from = Address::new(header.read::<u64, 22>(), header.read::<u64, 30>());
    let next_header = header.read::<u8, 20>();
    let transport = if from == source.v6() && from.is_specified() && protocol::is_tcp_or_udp(next_header) {
        let payload = u32::from(u16::from_be(header.read::<u16, 18>()));
        if header.read::<u8, 14>() >> 4 != 6 || payload + 54 > ctx.len() {
            return Err(DropReason::Malformed);
        }
        Transport::new(next_header, 54, false)
    } else {
        guard::ipv6(ctx.skb.skb, source, ETHERNET_LEN).result()?
    };
    if transport.is_neighbor_discovery() {
        return Ok(Decision::pass(Verdict::PassedNotForwarded));
    }
    let destination = Address::new(header.read::<u64, 38>(), header.read::<u64, 46>());
    let packet = Ip { family: Family::V6, source: from, destination, transport };
    Ok(forward::forward(ctx, source, &packet))
}
