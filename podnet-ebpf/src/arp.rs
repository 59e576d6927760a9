//! ARP (RFC 826): a pod speaks for its own addresses only.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podnet_common::verdict::DropReason;

use crate::{endpoint::Source, packet::Octets};

/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Checks an ARP packet that starts at an offset.
#[inline(never)]
pub(crate) fn guard(skb: *mut __sk_buff, source: Source, offset: u32) -> Result<(), DropReason> {
    check(&TcContext::new(skb), source, offset)
}

#[inline(always)]
fn check(packet: &impl Octets, source: Source, offset: u32) -> Result<(), DropReason> {
    let arp = packet.octets::<28>(offset)?;
    let [h0, h1, p0, p1, hl, pl, _, _, m0, m1, m2, m3, m4, m5, a0, a1, a2, a3, ..] = arp;
    let sender = u32::from_ne_bytes([a0, a1, a2, a3]);
    // 0.0.0.0 is a probe (RFC 5227): it claims nothing.
    let own_address = sender == source.v4() || sender == 0;
    let own_mac = source.has_mac(u32::from_ne_bytes([m0, m1, m2, m3]), u16::from_ne_bytes([m4, m5]));
    if [h0, h1, p0, p1, hl, pl] != ETHERNET_IPV4 || !own_address || !own_mac {
        return Err(DropReason::SpoofedArp);
    }
    Ok(())
}
