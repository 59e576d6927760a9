//! The last step into a pod of this node. It is switching, not routing: the TTL stays as it is.

use aya_ebpf::{
    helpers::{bpf_redirect_peer, bpf_skb_change_type},
    programs::TcContext,
};
use podnet_common::verdict::Verdict;

use crate::{endpoint::Target, packet, trace, verdict::Decision};

/// Makes the frame the pod's own and redirects it to the pod's end of the veth.
#[inline(always)]
pub(crate) fn deliver(ctx: &TcContext, endpoint: Target) -> Decision {
    let ifindex = endpoint.ifindex();
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
    trace::redirected(ctx.skb.skb, ifindex);
    // SAFETY: the helper only notes the interface for the kernel, which redirects after the program's end.
    let action = unsafe { bpf_redirect_peer(ifindex, 0) };
    Decision::redirect(Verdict::RedirectedToPod, action as i32)
}
