//! IPv6 extension headers (RFC 8200, section 4): the bounded walk to the transport header.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podnet_common::verdict::DropReason;

use crate::{
    ip::{Outcome, Transport, protocol},
    packet::Octets,
};

/// Headers of one packet, the transport header included. RFC 8200 knows more kinds, but nobody sends them all.
const HEADERS_MAX: u32 = 5;

/// Walks the headers of a packet that ends with its frame.
#[inline(never)]
pub(crate) fn walk_packet(skb: *mut __sk_buff, next_header: u8, offset: u32) -> Outcome {
    let packet = TcContext::new(skb);
    let end = packet.len();
    walk(&packet, next_header, offset, end).into()
}

/// Walks from the header of type `next_header` at `offset` to the transport header, before `end`.
///
/// A chain that is cut, in the packet or in its first fragment (RFC 7112 forbids that), or longer than anybody
/// needs, is malformed: it could hide what it carries.
#[inline(always)]
pub(crate) fn walk(packet: &impl Octets, next_header: u8, offset: u32, end: u32) -> Result<Transport, DropReason> {
    let mut next = next_header;
    let mut offset = offset;
    let mut fragment = false;
    for _ in 0..HEADERS_MAX {
        if !protocol::is_extension(next) {
            return if offset <= end { Ok(Transport::new(next, offset, fragment)) } else { Err(DropReason::Malformed) };
        }
        // The shortest extension header has 8 bytes.
        if offset + 8 > end {
            return Err(DropReason::Malformed);
        }
        let [following, len, high, low] = packet.octets::<4>(offset)?;
        let bytes = match next {
            protocol::FRAGMENT => {
                if fragment {
                    return Err(DropReason::Malformed);
                }
                fragment = true;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    return Ok(Transport::new(following, offset + 8, true).as_later_fragment());
                }
                8
            }
            protocol::AUTHENTICATION => (u32::from(len) + 2) * 4,
            _ => (u32::from(len) + 1) * 8,
        };
        next = following;
        offset += bytes;
    }
    Err(DropReason::Malformed)
}
