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
    if is_nobodys(packet.source, packet.family) {
        return Decision::IGNORE;
    }
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
    if is_own_address(packet) {
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

/// Whether no router or node sends from an address beyond its own link: the kernel knows what to do with such a source,
/// which is to drop it, mostly.
#[inline(always)]
fn is_nobodys(source: Address, family: Family) -> bool {
    let words = source.to_words();
    match family {
        // This network, loopback, and multicast with what lies beyond it (RFC 6890).
        Family::V4 => matches!(words[3].to_ne_bytes()[0], 0 | 127 | 224..),
        // Multicast, link-local, unspecified, loopback and v4-mapped (RFC 4291).
        Family::V6 => {
            words[0].to_ne_bytes()[0] == 0xff
                || source.is_link_local()
                || source.is_v6_mapped(family)
                || (words[0] | words[1] | words[2] == 0 && u32::from_be(words[3]) <= 1)
        }
    }
}

/// Whether a packet for a pod of this node claims to come from the node itself, which no other machine sends.
#[inline(always)]
fn is_own_address(packet: &Ip) -> bool {
    let Some(owner) = node::owner_of_address(&packet.source) else { return false };
    node::lookup(&packet.destination, packet.family).is_some_and(|node| node.is_local() && node.id() == owner)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn what_stays_on_its_link_is_nobodys() {
        let is = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(v4) => is_nobodys(Address::from_v4(u32::from_ne_bytes(v4.octets())), Family::V4),
            IpAddr::V6(v6) => is_nobodys(Address::from_octets(v6.octets()), Family::V6),
        };
        for text in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.1.2.3", "255.255.255.255"]
        {
            assert!(is(text), "{text}");
        }
        for text in ["::", "::1", "fe80::1", "febf::1", "ff02::1", "::ffff:192.168.1.1"] {
            assert!(is(text), "{text}");
        }
        for text in ["1.0.0.1", "10.0.0.127", "192.168.1.1", "203.0.113.224", "126.0.0.1", "128.0.0.1", "223.0.0.1"] {
            assert!(!is(text), "{text}");
        }
        for text in ["::2", "::1:0:0:1", "0:0:0:1::1", "2001:db8::1", "fd00:1::1", "fec0::1", "1::"] {
            assert!(!is(text), "{text}");
        }
    }
}
