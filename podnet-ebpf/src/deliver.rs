//! The last step into a pod of this node. It is switching, not routing: the TTL stays as it is.

use aya_ebpf::{
    helpers::{bpf_redirect_peer, bpf_skb_change_type, bpf_skb_store_bytes},
    programs::TcContext,
};
use podnet_common::verdict::Verdict;

use crate::{endpoint::Target, packet, trace, verdict::Decision};

/// Makes the frame the pod's own and redirects it to the pod's end of the veth.
#[inline(always)]
pub(crate) fn deliver(ctx: &TcContext, endpoint: Target) -> Decision {
    let ifindex = endpoint.ifindex();
    let macs = endpoint.macs();
    // `bpf_redirect_peer` delivers with the type that the frame got at the host end; a pod drops what is not for a
    // host. Pods send to the bridge's MAC, which the host end has, too, so this is rare.
    if !packet::is_for_this_host(ctx) {
        // SAFETY: the helper only needs the program's own context.
        let changed = unsafe { bpf_skb_change_type(ctx.skb.skb, packet::PACKET_HOST) };
        if changed != 0 {
            return Decision::pass(Verdict::PassedUnsupported);
        }
    }
    // The helper, and not a store by pointer: a program with such stores makes every packet private at its entry
    // (`tc_cls_act_prologue`), including those that it only passes.
    // SAFETY: the helper reads 12 bytes of `macs`, which has 12, and checks the packet's bounds.
    let stored = unsafe { bpf_skb_store_bytes(ctx.skb.skb, 0, (&raw const macs).cast(), 12, 0) };
    if stored != 0 {
        return Decision::pass(Verdict::PassedUnsupported);
    }
    trace::redirected(ctx.skb.skb, ifindex);
    // SAFETY: the helper only notes the interface for the kernel, which redirects after the program's end.
    let action = unsafe { bpf_redirect_peer(ifindex, 0) };
    Decision::redirect(Verdict::RedirectedToPod, action as i32)
}
