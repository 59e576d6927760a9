//! What happens to a packet that came through the overlay: sent by a node? from an address of that node? for a pod of this
//! node? into it.
//!
//! The overlay says who sent a packet, so every inner source is judged, also of packets that go on to the kernel.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::DropReason;

use crate::{
    endpoint, inbound,
    ip::{Address, Family, Ip, ethertype},
    node, packet, tunnel,
    verdict::Decision,
    vlan,
};

/// Decides about a packet at the ingress hook of the overlay device.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Result<Decision, DropReason> {
    let outer = tunnel::source(ctx)?;
    let ethernet = packet::headers::<14>(ctx)?;
    let kind = u16::from_be(ethernet.read::<u16, 12>());
    if packet::is_vlan_tagged(ctx) || vlan::is_tag(kind) {
        // No node sends tags, but the kernel takes priority tags out, and what was behind them would go unjudged.
        return Err(DropReason::Malformed);
    }
    match kind {
        ethertype::IPV4 => forward(ctx, &outer, &inbound::ipv4(ctx, packet::headers::<34>(ctx)?)?),
        ethertype::IPV6 => {
            let packet = inbound::ipv6(ctx, packet::headers::<54>(ctx)?)?;
            if packet.source.to_v4().is_some() {
                return Err(DropReason::SpoofedNode);
            }
            if packet.source.is_link_local() {
                return ignore(&outer);
            }
            forward(ctx, &outer, &packet)
        }
        _ => ignore(&outer),
    }
}

/// Passes what is not forwarded, if a node sent it.
#[inline(always)]
fn ignore(outer: &Address) -> Result<Decision, DropReason> {
    node::owner_of_address(outer).map(|_node| Decision::IGNORE).ok_or(DropReason::UnknownNode)
}

#[inline(always)]
fn forward(ctx: &TcContext, outer: &Address, packet: &Ip) -> Result<Decision, DropReason> {
    let sender = judge(outer, &packet.source, packet.family)?;
    if !packet::is_for_this_host(ctx) || packet.destination.is_v6_mapped(packet.family) {
        return Ok(Decision::IGNORE);
    }
    Ok(match (endpoint::lookup(&packet.destination), sender) {
        (Some(endpoint), Sender::Pod) => inbound::accept(ctx, endpoint, packet),
        (Some(endpoint), Sender::Node) => inbound::accept_error(ctx, endpoint, packet),
        (None, _) => Decision::IGNORE,
    })
}

/// What a packet came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// A pod CIDR.
    Pod,
    /// An address of the node itself: netfilter may have a say.
    Node,
}

/// Checks that the node which sent a packet has the address that the packet came from.
#[inline(always)]
fn judge(outer: &Address, source: &Address, family: Family) -> Result<Sender, DropReason> {
    let owner = node::lookup(source, family);
    if let Some(owner) = owner
        && owner.address() == *outer
        && !owner.is_local()
    {
        return Ok(Sender::Pod);
    }
    // A node may send from its address of the other family, and packets of its own.
    let node = node::owner_of_address(outer).ok_or(DropReason::UnknownNode)?;
    let (owner, sender) = match owner {
        Some(owner) if owner.is_local() => (None, Sender::Pod),
        Some(owner) => (Some(owner.id()), Sender::Pod),
        None => (node::owner_of_address(source), Sender::Node),
    };
    if owner == Some(node) { Ok(sender) } else { Err(DropReason::SpoofedNode) }
}
