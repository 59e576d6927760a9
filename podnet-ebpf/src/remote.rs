//! The last step towards a pod of another node: a routed hop, to the uplink or into the overlay.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::{bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use podnet_common::verdict::Verdict;

use crate::{
    hop,
    ip::{Family, Transport},
    node::Node,
    packet, trace, tunnel,
    verdict::Decision,
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Sends a packet to the node that has its destination. What is not redirected has not been changed.
///
/// A subprogram, so that the shorter way to a pod of this node stays short.
#[inline(never)]
pub(crate) fn send(skb: *mut __sk_buff, node: Node, transport: Transport, family: Family) -> Decision {
    let ctx = TcContext::new(skb);
    match family {
        Family::V4 => send_family(&ctx, node, transport, Family::V4),
        Family::V6 => send_family(&ctx, node, transport, Family::V6),
    }
}

#[inline(always)]
fn send_family(ctx: &TcContext, node: Node, transport: Transport, family: Family) -> Decision {
    if let Some(verdict) = hop::refusal(ctx, family, transport, node.mtu(), node.ifindex()) {
        return Decision::pass(verdict);
    }
    if node.is_in_overlay() { into_overlay(ctx, node, family) } else { to_uplink(ctx, node, family) }
}

/// To the next hop on the uplink: the kernel finds its MAC among the neighbours, or asks for it, and writes the Ethernet
/// header. With a next hop given it looks up no route.
#[inline(always)]
fn to_uplink(ctx: &TcContext, node: Node, family: Family) -> Decision {
    if hop::count_down(ctx, family).is_none() {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    let [a, b, c, d] = node.next_hop().to_words();
    // All words are written: the helper takes the whole struct.
    let (family, words) = match family {
        Family::V4 => (AF_INET, [d, 0, 0, 0]),
        Family::V6 => (AF_INET6, [a, b, c, d]),
    };
    let mut next_hop =
        bpf_redir_neigh { nh_family: family, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: words } };
    let ifindex = node.ifindex();
    trace::redirected(ctx.skb.skb, ifindex);
    // SAFETY: `next_hop` is valid for reads of the length given; the helper copies it, and notes it for the kernel, which
    // redirects after the program's end.
    let action = unsafe { bpf_redirect_neigh(ifindex, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) };
    Decision::redirect(Verdict::RedirectedToNode, action as i32)
}

/// Into the overlay device, which wraps the packet up as the tunnel key says.
#[inline(always)]
fn into_overlay(ctx: &TcContext, node: Node, family: Family) -> Decision {
    if tunnel::set_destination(ctx, node.address()).is_none()
        || packet::set_macs(ctx, node.macs()).is_none()
        || hop::count_down(ctx, family).is_none()
    {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    let ifindex = node.ifindex();
    trace::redirected(ctx.skb.skb, ifindex);
    // SAFETY: the helper only notes the interface for the kernel.
    let action = unsafe { bpf_redirect(ifindex, 0) };
    Decision::redirect(Verdict::RedirectedToOverlay, action as i32)
}
