//! A packet that another node sent to a pod of this node: parsed and judged by `from_uplink` or `from_overlay`, delivered
//! here.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::{DropReason, Verdict};

use crate::{
    deliver,
    endpoint::Target,
    extension,
    flow::{self, Path},
    guard, hop,
    ip::{Address, Family, Ip, Transport, protocol},
    node,
    packet::{ETHERNET_LEN, Headers},
    quote,
    verdict::Decision,
};

/// Reads an IPv4 header. Options count as a fragment does: the transport header is not to be looked at.
///
/// # Errors
///
/// The packet is shorter than it says: malformed.
#[inline(always)]
pub(crate) fn ipv4(ctx: &TcContext, header: Headers<34>) -> Result<Ip, DropReason> {
    let version_ihl = header.read::<u8, 14>();
    guard::ipv4_lengths(version_ihl, header.read::<u16, 16>(), ctx.len() - ETHERNET_LEN)?;
    let fragment = header.read::<u16, 20>() & guard::IPV4_FRAGMENT_MASK.to_be() != 0;
    let transport = Transport::new(header.read::<u8, 23>(), 34, fragment);
    Ok(Ip {
        family: Family::V4,
        source: Address::from_v4(header.read::<u32, 26>()),
        destination: Address::from_v4(header.read::<u32, 30>()),
        transport: if version_ihl == 0x45 { transport } else { transport.as_unsupported() },
    })
}

/// Reads an IPv6 header, and those behind it.
///
/// # Errors
///
/// As for [`ipv4`].
#[inline(always)]
pub(crate) fn ipv6(ctx: &TcContext, header: Headers<54>) -> Result<Ip, DropReason> {
    let payload = u32::from(u16::from_be(header.read::<u16, 18>()));
    if header.read::<u8, 14>() >> 4 != 6 || payload + 54 > ctx.len() {
        return Err(DropReason::Malformed);
    }
    let next_header = header.read::<u8, 20>();
    let transport = if protocol::is_extension(next_header) {
        extension::walk_packet(ctx.skb.skb, next_header, 54).result()?
    } else {
        Transport::new(next_header, 54, false)
    };
    Ok(Ip {
        family: Family::V6,
        source: Address::new(header.read::<u64, 22>(), header.read::<u64, 30>()),
        destination: Address::new(header.read::<u64, 38>(), header.read::<u64, 46>()),
        transport,
    })
}

/// Delivers a packet whose source is a pod address of the node that sent it.
#[inline(always)]
pub(crate) fn accept(ctx: &TcContext, endpoint: Target, packet: &Ip) -> Decision {
    if packet.transport.is_unsupported() {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    if endpoint.is_touched() {
        if packet.transport.is_fragment() {
            return Decision::pass(Verdict::PassedUnsupported);
        }
        if flow::path(ctx, packet) == Path::Kernel {
            return Decision::pass(Verdict::PassedKernelFlow);
        }
    }
    if let Some(verdict) = hop::refusal(ctx, packet.family, packet.transport, endpoint.mtu(), endpoint.ifindex()) {
        return Decision::pass(verdict);
    }
    deliver::route(ctx, endpoint, packet.family)
}

/// Delivers an ICMP error of a router or node about a packet that the pod sent to a pod of another node: a middle that
/// carries less, a TTL that ended on the way. Everything else that no pod sent is the kernel's.
#[inline(always)]
pub(crate) fn accept_error(ctx: &TcContext, endpoint: Target, packet: &Ip) -> Decision {
    let number = packet.transport.protocol();
    let is_icmp = number == protocol::ICMP || number == protocol::ICMPV6;
    if !is_icmp || packet.transport.is_fragment() || packet.transport.is_unsupported() {
        return Decision::IGNORE;
    }
    let Some(quote) = quote::of_error(ctx, packet) else { return Decision::IGNORE };
    if quote.destination.is_v6_mapped(packet.family)
        || node::lookup(&quote.destination, packet.family).is_none_or(node::Node::is_local)
    {
        return Decision::IGNORE;
    }
    if endpoint.is_touched() && flow::path_of_quoted(&quote) == Path::Kernel {
        return Decision::IGNORE;
    }
    if hop::refusal(ctx, packet.family, packet.transport, endpoint.mtu(), endpoint.ifindex()).is_some() {
        return Decision::IGNORE;
    }
    deliver::route(ctx, endpoint, packet.family)
}
