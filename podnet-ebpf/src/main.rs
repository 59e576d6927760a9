//! podnet's TC programs: entry points only. The modules stand in the order in which a packet meets them.
//!
//! Both programs are attached to the host end of a pod's veth, by clsact and in direct-action mode. Whatever they do
//! not redirect or drop goes on with `TC_ACT_UNSPEC`: to the filters behind them, then to the kernel path.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(
    clippy::inline_always,
    reason = "a BPF subprogram takes five words, returns one, and costs a call: inline is meant"
)]
#![expect(clippy::needless_pass_by_value, reason = "the shape of an entry point is aya's")]

mod from_pod;
mod to_pod;
mod guard;
mod vlan;
mod arp;
mod neighbor;
mod forward;
mod flow;
mod deliver;
mod verdict;
mod event;
mod endpoint;
mod extension;
mod ip;
mod packet;
mod settings;
mod trace;
#[cfg(test)]
mod guard_tests;

use aya_ebpf::{macros::classifier, programs::TcContext};
use podnet_common::event::Hook;

/// Ingress of a pod's host-side veth: every packet that the pod sends, before the bridge sees it.
#[classifier]
fn from_pod(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromPod, from_pod::decide(&ctx))
}

/// Egress of a pod's host-side veth: every packet that the kernel path delivers to the pod. Those that `from_pod`
/// redirected into the pod do not come here.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::ToPod, Ok(to_pod::decide(&ctx)))
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No code path panics: the verifier would refuse the endless loop.
    loop {}
}

/// Some of the helpers are for GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
