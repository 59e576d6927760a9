//! What happens to a packet that an uplink receives: for a pod of this node? from a pod of another node? into it.
//!
//! Everything else is the node's own business, or the kernel's, and goes on uncounted. Where a packet really came from
//! cannot be known on an uplink; but addresses of this node's own pods cannot come from there.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::DropReason;

use crate::{
    endpoint::{self, Target},
    inbound,
    ip::{Address, Ip, ethertype},
    node, packet,
    verdict::Decision,
};

/// Decides about a packet at the ingress hook of an uplink.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Result<Decision, DropReason> {
    // In promiscuous mode the interface also gets frames for other machines.
    if !packet::is_for_this_host(ctx) || packet::is_vlan_tagged(ctx) {
        return Ok(Decision::IGNORE);
    }
    let Ok(ethernet) = packet::headers::<14>(ctx) else { return Ok(Decision::IGNORE) };
    match u16::from_be(ethernet.read::<u16, 12>()) {
        ethertype::IPV4 => ipv4(ctx),
        ethertype::IPV6 => ipv6(ctx),
        _ => Ok(Decision::IGNORE),
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Result<Decision, DropReason> {
    let Ok(header) = packet::headers::<34>(ctx) else { return Ok(Decision::IGNORE) };
    let Some(endpoint) = endpoint::lookup(&Address::from_v4(header.read::<u32, 30>())) else {
        return Ok(Decision::IGNORE);
    };
    let Ok(packet) = inbound::ipv4(ctx, header) else { return Ok(Decision::IGNORE) };
    for_pod(ctx, endpoint, &packet)
}

#[inline(always)]
fn ipv6(ctx: &TcContext) -> Result<Decision, DropReason> {
    let Ok(header) = packet::headers::<54>(ctx) else { return Ok(Decision::IGNORE) };
    let destination = Address::new(header.read::<u64, 38>(), header.read::<u64, 46>());
    if destination.to_v4().is_some() {
        return Ok(Decision::IGNORE);
    }
    let Some(endpoint) = endpoint::lookup(&destination) else { return Ok(Decision::IGNORE) };
    let Ok(packet) = inbound::ipv6(ctx, header) else { return Ok(Decision::IGNORE) };
    if packet.source.to_v4().is_some() {
        return Ok(Decision::IGNORE);
    }
    for_pod(ctx, endpoint, &packet)
}

#[inline(always)]
fn for_pod(ctx: &TcContext, endpoint: Target, packet: &Ip) -> Result<Decision, DropReason> {
    match node::lookup(&packet.source, packet.family) {
        Some(node) if node.is_local() => Err(DropReason::SpoofedNode),
        Some(_) => Ok(inbound::accept(ctx, endpoint, packet)),
        None if endpoint::lookup(&packet.source).is_some() => Err(DropReason::SpoofedNode),
        // The outside, or a node itself: netfilter may have a say.
        None => Ok(inbound::accept_error(ctx, endpoint, packet)),
    }
}
