//! What the kernel path sends from a pod of this node to a pod of another one: counted, and remembered. Nothing is
//! dropped.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::Verdict;

use crate::{endpoint, flow, node, observed, packet, settings, verdict::Decision};

/// Looks at a packet at the egress hook of an uplink or of the overlay device.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Decision {
    // The bridge received what a pod sent by the kernel path. What the programs redirected was received by the pod's
    // host-side veth last; what the node sends itself, and what the overlay device has wrapped up, by none.
    let bridge = settings::bridge_ifindex();
    if bridge == 0 || packet::ingress_ifindex(ctx) != bridge {
        return Decision::IGNORE;
    }
    match remember(ctx) {
        Some(()) => Decision::pass(Verdict::SentByKernel),
        None => Decision::IGNORE,
    }
}

/// Remembers a packet from a pod of this node to a pod of another one. `None`: it is not one.
#[inline(always)]
fn remember(ctx: &TcContext) -> Option<()> {
    let packet = observed::packet(ctx)?;
    // Of a translated source nothing is to be remembered: its replies come to the node.
    let endpoint = endpoint::lookup(&packet.source)?;
    let node = node::lookup(&packet.destination, packet.family)?;
    (!node.is_local()).then_some(())?;
    flow::delivered_by_kernel(ctx, &packet);
    // Last, so that nobody who sees the flags misses the flow.
    if let Some(pod) = endpoint::source(endpoint.ifindex()) {
        pod.touch(packet.family.touched_flag());
    }
    endpoint.touch();
    Some(())
}
