//! The tunnel key of a packet that goes into the overlay device, or has come out of it.

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX},
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
    programs::TcContext,
};
use podnet_common::verdict::DropReason;

use crate::{ip::Address, settings};

/// TTL of the outer header.
const TTL: u8 = 64;

/// `struct bpf_tunnel_key` without its last field, the local address, which kernels before 5.18 do not know; all take the
/// shorter one. The kernel chooses the outer source as for any packet of its own.
#[repr(C)]
struct TunnelKey {
    /// VXLAN network identifier.
    id: u32,
    /// IPv4 in host byte order, and three words that do not count; or IPv6 as it stands in a packet.
    remote: [u32; 4],
    tos: u8,
    ttl: u8,
    extension: u16,
    label: u32,
}

const LEN: u32 = size_of::<TunnelKey>() as u32;

/// Sets where the overlay device sends a packet. `None`: the kernel refuses, and nothing is set.
#[inline(always)]
pub(crate) fn set_destination(ctx: &TcContext, node: Address) -> Option<()> {
    let (remote, flags) = match node.to_v4() {
        // The outer UDP checksum may be zero for IPv4; the inner packet has its own (RFC 7348, section 5).
        Some(v4) => ([u32::from_be(v4), 0, 0, 0], BPF_F_ZERO_CSUM_TX),
        None => (node.to_words(), BPF_F_TUNINFO_IPV6),
    };
    let mut key = TunnelKey { id: settings::vni(), remote, tos: 0, ttl: TTL, extension: 0, label: 0 };
    // SAFETY: `key` is valid for reads of the length given.
    let set = unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, (&raw mut key).cast(), LEN, flags.into()) };
    (set == 0).then_some(())
}

/// Returns the outer source of a packet that came out of the overlay device.
///
/// # Errors
///
/// The packet came through no tunnel, or one of another identifier: no node of this cluster sent it.
#[inline(always)]
pub(crate) fn source(ctx: &TcContext) -> Result<Address, DropReason> {
    let mut key = TunnelKey { id: 0, remote: [0; 4], tos: 0, ttl: 0, extension: 0, label: 0 };
    // The kernel says which family it is by refusing the other one (EPROTO).
    // SAFETY: `key` is valid for writes of the length given; for the second call, too.
    let address = unsafe {
        if bpf_skb_get_tunnel_key(ctx.skb.skb, (&raw mut key).cast(), LEN, 0) == 0 {
            Address::from_v4(key.remote[0].to_be())
        } else if bpf_skb_get_tunnel_key(ctx.skb.skb, (&raw mut key).cast(), LEN, BPF_F_TUNINFO_IPV6.into()) == 0 {
            Address::from_words(key.remote)
        } else {
            return Err(DropReason::UnknownNode);
        }
    };
    if key.id == settings::vni() { Ok(address) } else { Err(DropReason::UnknownNode) }
}
