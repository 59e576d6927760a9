//! The last step into a pod of this node.

use aya_ebpf::{
    helpers::{bpf_redirect_peer, bpf_skb_change_type},
    programs::TcContext,
};
use podnet_common::verdict::Verdict;

use crate::{endpoint::Target, hop, ip::Family, packet, trace, verdict::Decision};

/// Delivers what another pod of this node sent. That is switching, not routing: the TTL stays as it is.
#[inline(always)]
pub(crate) fn switch(ctx: &TcContext, endpoint: Target) -> Decision {
    // `bpf_redirect_peer` delivers with the type that the frame got at the host end; a pod drops what is not for a
    // host. Pods send to the bridge's MAC, which the host end has, too, so this is rare.
    if !packet::is_for_this_host(ctx) {
        // SAFETY: the helper only needs the program's own context.
        let changed = unsafe { bpf_skb_change_type(ctx.skb.skb, packet::PACKET_HOST) };
        if changed != 0 {
            return Decision::pass(Verdict::PassedUnsupported);
        }
    }
    if packet::set_macs(ctx, endpoint.macs()).is_none() {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    redirect(ctx, endpoint)
}

/// Delivers what another node sent to this host, as a router does. `hop::refusal` has not refused the packet.
#[inline(always)]
pub(crate) fn route(ctx: &TcContext, endpoint: Target, family: Family) -> Decision {
    // Both succeed or neither: the first needs more of the header than the second.
    if hop::count_down(ctx, family).is_none() || packet::set_macs(ctx, endpoint.macs()).is_none() {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    redirect(ctx, endpoint)
}

#[inline(always)]
fn redirect(ctx: &TcContext, endpoint: Target) -> Decision {
    let ifindex = endpoint.ifindex();
    trace::redirected(ctx.skb.skb, ifindex);
    // SAFETY: the helper only notes the interface for the kernel, which redirects after the program's end.
    let action = unsafe { bpf_redirect_peer(ifindex, 0) };
    Decision::redirect(Verdict::RedirectedToPod, action as i32)
}
