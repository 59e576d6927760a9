//! What the kernel path delivers to a pod: counted, and remembered where it came from another pod. Nothing is dropped.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::Verdict;

use crate::{
    endpoint, flow,
    ip::{Family, Ip},
    node, observed, packet,
    verdict::Decision,
};

/// Looks at a packet at the egress hook of a pod's host-side veth.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Decision {
    // A packet that cannot be read, or is for another address, opens no flow that anybody could look up.
    let _remembered = remember(ctx);
    Decision::pass(Verdict::DeliveredByKernel)
}

/// Remembers a packet from a pod to this pod. `None`: it is not one.
#[inline(always)]
fn remember(ctx: &TcContext) -> Option<()> {
    let packet = observed::packet(ctx)?;
    let pod = endpoint::source(packet::ifindex(ctx))?;
    let is_own = match packet.family {
        Family::V4 => pod.v4() != 0 && packet.destination.to_v4() == Some(pod.v4()),
        Family::V6 => pod.v6().is_specified() && packet.destination == pod.v6(),
    };
    (is_own && is_from_pod(&packet)).then_some(())?;
    flow::delivered_by_kernel(ctx, &packet);
    // Last, so that nobody who sees the flags misses the flow.
    pod.touch(packet.family.touched_flag());
    if let Some(endpoint) = endpoint::lookup(&packet.destination) {
        endpoint.touch();
    }
    Some(())
}

/// Returns whether a packet may be part of a flow between pods. Flows with anybody else are no business of the eBPF path.
#[inline(always)]
fn is_from_pod(packet: &Ip) -> bool {
    endpoint::lookup(&packet.source).is_some()
        || node::lookup(&packet.source, packet.family).is_some_and(|node| !node.is_local())
}
