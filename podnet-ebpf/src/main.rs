//! podnet's TC programs: entry points only. The modules stand in the order in which a packet meets them.
//!
//! `from_pod` and `to_pod` are attached to the host end of each pod's veth, by clsact and in direct-action mode; the others
//! to uplinks and the overlay device, by TCX or clsact. Whatever they do not redirect or drop goes on with
//! `TC_ACT_UNSPEC` (under TCX the same number is `TCX_NEXT`): to the programs behind them, then to the kernel path.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![expect(
    clippy::inline_always,
    reason = "a BPF subprogram takes five words, returns one, and costs a call: inline is meant"
)]
#![expect(clippy::needless_pass_by_value, reason = "the shape of an entry point is aya's")]

mod from_pod;
mod to_pod;
mod from_uplink;
mod from_overlay;
mod to_uplink;
mod inbound;
mod observed;
mod guard;
mod vlan;
mod arp;
mod neighbor;
mod forward;
mod flow;
mod quote;
mod deliver;
mod remote;
mod tunnel;
mod hop;
mod verdict;
mod event;
mod endpoint;
mod node;
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

/// Egress of a pod's host-side veth: every packet that the kernel path delivers to the pod. Those that were redirected
/// into the pod do not come here.
#[classifier]
fn to_pod(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::ToPod, Ok(to_pod::decide(&ctx)))
}

/// Ingress of an uplink: every packet that other nodes and the outside send, before the kernel's IP layer sees it. What
/// comes through the overlay is still wrapped up here.
#[classifier]
fn from_uplink(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromUplink, from_uplink::decide(&ctx))
}

/// Egress of an uplink or of the overlay device: every packet that the node sends there, by the kernel path or redirected.
/// What the overlay device has wrapped up comes by the uplink once more.
#[classifier]
fn to_uplink(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::ToUplink, Ok(to_uplink::decide(&ctx)))
}

/// Ingress of the overlay device: every packet that comes through the overlay, unwrapped, with its tunnel key.
#[classifier]
fn from_overlay(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromOverlay, from_overlay::decide(&ctx))
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
