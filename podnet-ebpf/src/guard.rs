//! Anti-spoofing of IP packets: the source address is the pod's own, and neighbour discovery tells nothing but the
//! truth about the pod. Called by `from_pod` and, for tagged frames, by `vlan`.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podnet_common::{endpoint::link_local_address, verdict::DropReason};

use crate::{
    endpoint::Source,
    extension,
    ip::{Address, Outcome, Transport, icmpv6, protocol},
    neighbor,
    packet::Octets,
};

/// More-fragments flag and fragment offset of an IPv4 header (RFC 791), in host byte order.
pub(crate) const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// The fragment offset in the same field; zero in the first fragment.
pub(crate) const IPV4_OFFSET_MASK: u16 = 0x1fff;
/// Length of the fixed IPv6 header.
const IPV6_LEN: u32 = 40;

/// Checks an IPv4 header; `total_len` and `from` as they stand in the packet, `available` bytes from the header on.
#[inline(always)]
pub(crate) fn ipv4(
    source: Source,
    version_ihl: u8,
    total_len: u16,
    from: u32,
    available: u32,
) -> Result<(), DropReason> {
    ipv4_lengths(version_ihl, total_len, available)?;
    if from != source.v4() || from == 0 {
        return Err(DropReason::SpoofedAddress);
    }
    Ok(())
}

/// Checks that an IPv4 packet is as long as it says; see [`ipv4`].
#[inline(always)]
pub(crate) fn ipv4_lengths(version_ihl: u8, total_len: u16, available: u32) -> Result<(), DropReason> {
    // A BIG TCP packet says 0 for a length beyond 65,535 (kernel commit b1a78b9b9886), which passes here.
    if u32::from(u16::from_be(total_len)) > available {
        return Err(DropReason::Malformed);
    }
    if version_ihl != 0x45 {
        let header_len = u32::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || header_len < 20 || header_len > available {
            return Err(DropReason::Malformed);
        }
    }
    Ok(())
}

/// Checks an IPv4 packet that starts at an offset which only a tagged frame has.
#[inline(always)]
pub(crate) fn ipv4_at(packet: &impl Octets, source: Source, offset: u32) -> Result<(), DropReason> {
    let header = packet.octets::<20>(offset)?;
    let total_len = u16::from_ne_bytes([header[2], header[3]]);
    let from = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]);
    ipv4(source, header[0], total_len, from, packet.len() - offset)
}

/// Checks an IPv6 packet that starts at an offset, and finds its transport header.
#[inline(never)]
pub(crate) fn ipv6(skb: *mut __sk_buff, source: Source, offset: u32) -> Outcome {
    ipv6_at(&TcContext::new(skb), source, offset).into()
}

/// See [`ipv6`].
#[inline(always)]
pub(crate) fn ipv6_at(packet: &impl Octets, source: Source, offset: u32) -> Result<Transport, DropReason> {
    let header = packet.octets::<8>(offset)?;
    let from = Address::from_octets(packet.octets(offset + 8)?);
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let available = packet.len() - offset;
    if header[0] >> 4 != 6 || payload + IPV6_LEN > available {
        return Err(DropReason::Malformed);
    }
    // Zero: a jumbogram (RFC 2675), which ends with the frame.
    let end = if payload == 0 { packet.len() } else { offset + IPV6_LEN + payload };

    let unspecified = !from.is_specified();
    let own = !unspecified && from == source.v6();
    if !own && !unspecified && from != Address::from_octets(link_local_address(source.mac())) {
        return Err(DropReason::SpoofedAddress);
    }
    let transport = extension::walk(packet, header[6], offset + IPV6_LEN, end)?;
    if transport.protocol() == protocol::ICMPV6 && !transport.is_later_fragment() {
        let at = transport.offset();
        let [kind] = if at < end { packet.octets::<1>(at)? } else { return Err(DropReason::Malformed) };
        match kind {
            icmpv6::ROUTER_ADVERTISEMENT | icmpv6::REDIRECT => return Err(DropReason::RogueRouter),
            icmpv6::NEIGHBOR_ADVERTISEMENT if unspecified => return Err(DropReason::SpoofedAddress),
            icmpv6::ROUTER_SOLICITATION | icmpv6::NEIGHBOR_SOLICITATION | icmpv6::NEIGHBOR_ADVERTISEMENT => {
                // RFC 6980: hosts ignore fragmented neighbour discovery, unless they are old or told not to.
                if transport.is_fragment() {
                    return Err(DropReason::Malformed);
                }
                neighbor::check(packet, source, kind, unspecified, at, end)?;
                return Ok(transport.as_neighbor_discovery());
            }
            icmpv6::MLD_REPORT | icmpv6::MLD_DONE | icmpv6::MLD2_REPORT => {}
            _ if unspecified => return Err(DropReason::SpoofedAddress),
            _ => {}
        }
    } else if unspecified {
        return Err(DropReason::SpoofedAddress);
    }
    Ok(if own { transport } else { transport.as_link_scoped() })
}
