//! What the kernel path delivers to a pod: counted, and remembered where it came from another pod. Nothing is dropped.

use aya_ebpf::programs::TcContext;
use podnet_common::{endpoint::EndpointSource, verdict::Verdict};

use crate::{
    endpoint::{self, Source},
    extension, flow, guard,
    ip::{Address, Ip, Transport, ethertype},
    packet,
    verdict::Decision,
};

/// Looks at a packet at the egress hook of a pod's host-side veth.
#[inline(always)]
pub(crate) fn decide(ctx: &TcContext) -> Decision {
    // A packet that cannot be read, or is for another address, opens no flow that `from_pod` could look up.
    let _remembered = remember(ctx);
    Decision::pass(Verdict::DeliveredByKernel)
}

/// Remembers a packet from a pod to this pod. `None`: it is not one.
#[inline(always)]
fn remember(ctx: &TcContext) -> Option<()> {
    let ethernet = packet::headers::<14>(ctx).ok()?;
    match u16::from_be(ethernet.read::<u16, 12>()) {
        ethertype::IPV4 => ipv4(ctx),
        ethertype::IPV6 => ipv6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Option<()> {
    let header = packet::headers::<34>(ctx).ok()?;
    let version_ihl = header.read::<u8, 14>();
    let to = header.read::<u32, 30>();
    let fragment = header.read::<u16, 20>() & guard::IPV4_FRAGMENT_MASK.to_be() != 0;
    let packet = Ip {
        source: Address::from_v4(header.read::<u32, 26>()),
        destination: Address::from_v4(to),
        // `from_pod` passes packets with options before it looks at flows; like fragments, they tell nothing here.
        transport: Transport::new(header.read::<u8, 23>(), 34, fragment || version_ihl != 0x45),
    };
    let pod = endpoint::source(packet::ifindex(ctx))?;
    (to != 0 && pod.v4() == to).then_some(())?;
    delivered(ctx, pod, &packet, EndpointSource::KERNEL_TOUCHED_V4)
}

#[inline(always)]
fn ipv6(ctx: &TcContext) -> Option<()> {
    let header = packet::headers::<54>(ctx).ok()?;
    let from = Address::new(header.read::<u64, 22>(), header.read::<u64, 30>());
    let to = Address::new(header.read::<u64, 38>(), header.read::<u64, 46>());
    let pod = endpoint::source(packet::ifindex(ctx))?;
    (to.is_specified() && pod.v6() == to).then_some(())?;
    let transport = extension::walk_packet(ctx.skb.skb, header.read::<u8, 20>(), 54).result().ok()?;
    delivered(ctx, pod, &Ip { source: from, destination: to, transport }, EndpointSource::KERNEL_TOUCHED_V6)
}

#[inline(always)]
fn delivered(ctx: &TcContext, pod: Source, packet: &Ip, family_flag: u32) -> Option<()> {
    is_pod_source(&packet.source).then_some(())?;
    flow::delivered_by_kernel(ctx, packet);
    // Last, so that nobody who sees the flags misses the flow.
    pod.touch(family_flag);
    if let Some(endpoint) = endpoint::lookup(&packet.destination) {
        endpoint.touch();
    }
    Some(())
}

/// Returns whether a packet from this address may be part of a flow between pods. Flows with anybody else are no
/// business of the eBPF path.
#[inline(always)]
fn is_pod_source(source: &Address) -> bool {
    endpoint::lookup(source).is_some()
}
