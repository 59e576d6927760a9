//! A routed hop: what a router does with TTL and size of a packet that it sends on. Packets at which it would do more
//! (answer by ICMP, or fragment) are the kernel's, so they are passed as they are.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS},
    helpers::{bpf_check_mtu, bpf_csum_update},
    programs::TcContext,
};
use podnet_common::verdict::Verdict;

use crate::{
    ip::{Family, Transport, protocol},
    packet::{self, ETHERNET_LEN, Octets as _},
};

/// Length of an IPv6 hop-by-hop header that says how long a BIG TCP packet is. Its segments have none.
const JUMBO_LEN: u32 = 8;
const UDP_LEN: u32 = 8;

/// Returns the verdict about a packet that must not be sent on: its TTL or hop limit ends here, or it is too big for an
/// MTU of the interface `ifindex`.
#[inline(always)]
pub(crate) fn refusal(
    ctx: &TcContext,
    family: Family,
    transport: Transport,
    mtu: u32,
    ifindex: u32,
) -> Option<Verdict> {
    if limit(ctx, family) <= 1 {
        return Some(Verdict::PassedTtlExpired);
    }
    is_too_big(ctx, transport, mtu, ifindex).then_some(Verdict::PassedTooBig)
}

/// TTL or hop limit; zero if the header is not linear, which it is where this is called.
#[inline(always)]
fn limit(ctx: &TcContext, family: Family) -> u8 {
    match family {
        Family::V4 => packet::linear::<34>(ctx).map_or(0, packet::Headers::read::<u8, 22>),
        Family::V6 => packet::linear::<54>(ctx).map_or(0, packet::Headers::read::<u8, 21>),
    }
}

/// Whether a packet, or the largest segment of a GSO packet, is larger than an MTU in bytes. `ifindex`: the interface
/// that has this MTU, or a larger one.
#[inline(always)]
pub(crate) fn is_too_big(ctx: &TcContext, transport: Transport, mtu: u32, ifindex: u32) -> bool {
    ctx.len() > mtu + ETHERNET_LEN && segments_are_too_big(ctx.skb.skb, transport, mtu, ifindex)
}

#[inline(never)]
fn segments_are_too_big(skb: *mut __sk_buff, transport: Transport, mtu: u32, ifindex: u32) -> bool {
    let ctx = TcContext::new(skb);
    let payload = packet::gso_size(&ctx);
    if payload == 0 {
        return true;
    }
    // What the kernel computes for the segments of a packet that it forwards (`skb_gso_network_seglen`).
    let headers = transport.offset() - ETHERNET_LEN;
    if transport.protocol() == protocol::TCP && !transport.is_fragment() {
        return match tcp_header_len(&ctx, transport.offset()) {
            Some(tcp) => headers + tcp + payload - jumbo_len(&ctx) > mtu,
            None => true,
        };
    }
    if headers + UDP_LEN + payload > mtu {
        return true;
    }
    // Tunnels of the pod's own, SCTP: rare, so the helper may look.
    let mut length = 0;
    // SAFETY: the context is the program's own, and `length` is valid for reads and writes.
    let checked = unsafe { bpf_check_mtu(skb.cast(), ifindex, &raw mut length, 0, BPF_MTU_CHK_SEGS.into()) };
    checked != 0
}

/// Length of a TCP header, read in place behind the fixed headers of Ethernet and IP.
#[inline(always)]
fn tcp_header_len(ctx: &TcContext, offset: u32) -> Option<u32> {
    let data_offset = if offset == 34
        && let Some(headers) = packet::linear::<48>(ctx)
    {
        headers.read::<u8, 46>()
    } else if offset == 54
        && let Some(headers) = packet::linear::<68>(ctx)
    {
        headers.read::<u8, 66>()
    } else {
        let [data_offset] = ctx.octets::<1>(offset + 12).ok()?;
        data_offset
    };
    Some(u32::from(data_offset >> 4) * 4)
}

/// Length of the header that only the whole of a BIG TCP packet has (RFC 2675): its IPv6 payload length is zero.
#[inline(always)]
fn jumbo_len(ctx: &TcContext) -> u32 {
    let is_jumbo = packet::linear::<54>(ctx).is_some_and(|header| {
        header.read::<u8, 14>() >> 4 == 6
            && header.read::<u16, 18>() == 0
            && header.read::<u8, 20>() == protocol::HOP_BY_HOP
    });
    if is_jumbo { JUMBO_LEN } else { 0 }
}

/// Takes one from TTL or hop limit, for a packet that [`refusal`] did not refuse. `None`: its header is not linear.
#[inline(always)]
pub(crate) fn count_down(ctx: &TcContext, family: Family) -> Option<()> {
    match family {
        Family::V4 => {
            let header = packet::linear::<34>(ctx)?;
            let ttl = header.read::<u8, 22>();
            let checksum = header.read::<u16, 24>();
            header.write::<u8, 22>(ttl.wrapping_sub(1));
            header.write::<u16, 24>(checksum_of_smaller_ttl(checksum));
        }
        Family::V6 => {
            let header = packet::linear::<54>(ctx)?;
            let limit = header.read::<u8, 21>();
            header.write::<u8, 21>(limit.wrapping_sub(1));
            // A NIC may have summed up the whole packet (CHECKSUM_COMPLETE), and there is no checksum in the header that
            // would make up for the change. For all other packets the helper does nothing.
            // SAFETY: the context is the program's own.
            unsafe { bpf_csum_update(ctx.skb.skb, !u32::from(1u16.to_be())) };
        }
    }
    Some(())
}

/// The checksum of an IPv4 header whose TTL became one less (RFC 1624), as it stands in the packet.
#[inline(always)]
const fn checksum_of_smaller_ttl(checksum: u16) -> u16 {
    let sum = checksum as u32 + 0x0100u16.to_be() as u32;
    (sum + (sum >= 0xffff) as u32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of a header (RFC 791), as it stands in the packet.
    fn checksum(header: &[u8]) -> u16 {
        let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        (!((sum & 0xffff) + (sum >> 16)) as u16).to_be()
    }

    #[test]
    fn the_checksum_follows_the_ttl() {
        let mut header = [0x45, 0, 0, 40, 0, 0, 0, 0, 0, 6, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3];
        for identification in 0..=u16::MAX {
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            header[8] = (identification % 254) as u8 + 2;
            let before = checksum(&header);
            header[8] -= 1;
            let (new, wanted) = (checksum_of_smaller_ttl(before), checksum(&header));
            // 0 and 0xffff are the same number in one's complement; receivers take both.
            assert!(new == wanted || (new == 0xffff && wanted == 0), "{before:#x} became {new:#x}, not {wanted:#x}");
        }
    }
}
