//! Where a guarded packet goes: into a pod of this node, or to the kernel path.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::Verdict;

use crate::{
    deliver,
    endpoint::{self, Source},
    flow::{self, Path},
    ip::Ip,
    packet,
    verdict::Decision,
};

/// Forwards a packet whose source is known to be right. `family_flag` is the `KERNEL_TOUCHED_*` bit of its family.
#[inline(always)]
pub(crate) fn forward(ctx: &TcContext, source: Source, packet: &Ip, family_flag: u32) -> Decision {
    let Some(endpoint) = endpoint::lookup(&packet.destination) else {
        return Decision::pass(Verdict::PassedNotPod);
    };
    if endpoint.ifindex() == packet::ifindex(ctx) || packet::is_group_frame(ctx) {
        return Decision::pass(Verdict::PassedNotPod);
    }
    if packet.transport.is_link_scoped() {
        // A link-local or unspecified source stays on its link (RFC 4291, section 2.5.6).
        return Decision::pass(Verdict::PassedNotForwarded);
    }
    if source.flags() & family_flag != 0 || endpoint.is_touched() {
        if packet.transport.is_fragment() {
            // Without ports there is no flow to look up.
            return Decision::pass(Verdict::PassedUnsupported);
        }
        if flow::path(ctx, packet) == Path::Kernel {
            return Decision::pass(Verdict::PassedKernelFlow);
        }
    }
    deliver::deliver(ctx, endpoint)
}
