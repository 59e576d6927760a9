//! Where a guarded packet goes: into a pod of this node, to the node of another pod, or to the kernel path.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::Verdict;

use crate::{
    deliver,
    endpoint::{self, Source},
    flow::{self, Path},
    hop,
    ip::Ip,
    node, packet, remote,
    verdict::Decision,
};

/// Forwards a packet whose source is known to be right.
#[inline(always)]
pub(crate) fn forward(ctx: &TcContext, source: Source, packet: &Ip) -> Decision {
    if packet.destination.is_v6_mapped(packet.family) {
        return Decision::pass(Verdict::PassedNotPod);
    }
    let Some(endpoint) = endpoint::lookup(&packet.destination) else {
        return to_node(ctx, source, packet);
    };
    if endpoint.ifindex() == packet::ifindex(ctx) || packet::is_group_frame(ctx) {
        return Decision::pass(Verdict::PassedNotPod);
    }
    if packet.transport.is_link_scoped() {
        // A link-local or unspecified source stays on its link (RFC 4291, section 2.5.6).
        return Decision::pass(Verdict::PassedNotForwarded);
    }
    if (source.flags() & packet.family.touched_flag() != 0 || endpoint.is_touched())
        && let Some(verdict) = kernels_own(ctx, packet)
    {
        return Decision::pass(verdict);
    }
    if hop::is_too_big(ctx, packet.transport, endpoint.mtu(), endpoint.ifindex()) {
        return Decision::pass(Verdict::PassedTooBig);
    }
    deliver::switch(ctx, endpoint)
}

/// Sends a packet to the node that has its destination, if one has.
#[inline(always)]
fn to_node(ctx: &TcContext, source: Source, packet: &Ip) -> Decision {
    let Some(node) = node::lookup(&packet.destination, packet.family) else {
        return Decision::pass(Verdict::PassedNotPod);
    };
    if !node.is_reachable() || packet::is_group_frame(ctx) {
        return Decision::pass(Verdict::PassedNotPod);
    }
    if packet.transport.is_link_scoped() {
        return Decision::pass(Verdict::PassedNotForwarded);
    }
    if source.flags() & packet.family.touched_flag() != 0
        && let Some(verdict) = kernels_own(ctx, packet)
    {
        return Decision::pass(verdict);
    }
    remote::send(ctx.skb.skb, node, packet.transport, packet.family)
}

/// Returns the verdict about a packet of a touched endpoint if it must take the kernel path.
#[inline(always)]
fn kernels_own(ctx: &TcContext, packet: &Ip) -> Option<Verdict> {
    if packet.transport.is_fragment() {
        // Without ports there is no flow to look up.
        return Some(Verdict::PassedUnsupported);
    }
    (flow::path(ctx, packet) == Path::Kernel).then_some(Verdict::PassedKernelFlow)
}
