//! Log statements of the programs, for debugging: `debug` for drops, `trace` for redirects and flows that change hands.
//!
//! The level is a constant to the verifier, so a statement that is off costs nothing. Each is a subprogram of its own,
//! because formatting needs much of the 512 bytes of stack.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
    trace,
};
use podnet_common::verdict::DropReason;

/// Logs a drop. The reason is the number of a [`DropReason`]; events carry its name.
#[inline(always)]
pub(crate) fn dropped(skb: *mut __sk_buff, reason: DropReason) {
    if level_enabled(Level::Debug) {
        log_dropped(skb, reason as u32);
    }
}

#[inline(never)]
fn log_dropped(skb: *mut __sk_buff, reason: u32) {
    let ctx = TcContext::new(skb);
    debug!(&ctx, "drop: reason {}, interface {}, {} bytes", reason, crate::packet::ifindex(&ctx), ctx.len());
}

/// Logs a redirect into a pod.
#[inline(always)]
pub(crate) fn redirected(skb: *mut __sk_buff, target: u32) {
    if level_enabled(Level::Trace) {
        log_redirected(skb, target);
    }
}

#[inline(never)]
fn log_redirected(skb: *mut __sk_buff, target: u32) {
    let ctx = TcContext::new(skb);
    trace!(&ctx, "redirect: interface {} to {}, {} bytes", crate::packet::ifindex(&ctx), target, ctx.len());
}

/// Logs that a flow changed its state.
#[inline(always)]
pub(crate) fn flow_changed(skb: *mut __sk_buff, state: u32) {
    if level_enabled(Level::Trace) {
        log_flow_changed(skb, state);
    }
}

#[inline(never)]
fn log_flow_changed(skb: *mut __sk_buff, state: u32) {
    let ctx = TcContext::new(skb);
    trace!(&ctx, "flow: interface {}, state now 0x{:x}", crate::packet::ifindex(&ctx), state);
}
