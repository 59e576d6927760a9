//! Frames with a VLAN tag: never redirected, but guarded all the same. The kernel strips tags of VLAN 0 (priority
//! tags), any number of them (`__netif_receive_skb_core`), so a tag does not keep a packet from the node's IP stack.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podnet_common::verdict::DropReason;

use crate::{
    arp,
    endpoint::Source,
    guard as ip_guard,
    ip::ethertype,
    packet::{ETHERNET_LEN, Octets as _},
};

/// Tags inside the frame that are looked behind. The kernel has taken the outermost one out of it before.
const TAGS_MAX: u32 = 2;

/// Returns whether an ethertype is a VLAN tag (IEEE 802.1Q, 802.1ad).
#[inline(always)]
pub(crate) const fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN || kind == ethertype::SERVICE_VLAN
}

/// Checks what a tagged frame carries; `kind` is the ethertype behind the Ethernet addresses.
#[inline(never)]
pub(crate) fn guard(skb: *mut __sk_buff, source: Source, kind: u16) -> Result<(), DropReason> {
    let packet = TcContext::new(skb);
    let mut kind = kind;
    let mut offset = ETHERNET_LEN;
    for _ in 0..TAGS_MAX {
        if is_tag(kind) {
            let [_, _, high, low] = packet.octets::<4>(offset)?;
            kind = u16::from_be_bytes([high, low]);
            offset += 4;
        }
    }
    match kind {
        ethertype::ARP => arp::guard(skb, source, offset),
        ethertype::IPV4 => ip_guard::ipv4_at(&packet, source, offset),
        ethertype::IPV6 => ip_guard::ipv6(skb, source, offset).result().map(drop),
        // Nobody stacks so many tags except to hide what is behind them.
        ethertype::VLAN | ethertype::SERVICE_VLAN => Err(DropReason::Malformed),
        _ => Ok(()),
    }
}
