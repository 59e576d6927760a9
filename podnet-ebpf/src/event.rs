//! Drop events: a rate-limited record of each dropped packet, with its first bytes.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_coarse_ns, bpf_skb_load_bytes},
    macros::map,
    maps::{PerCpuArray, RingBuf},
    programs::TcContext,
};
use podnet_common::{
    event::{CAPTURE_LEN, Event, Hook},
    flow::Flow,
    verdict::DropReason,
};

use crate::{packet, settings};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Private to the programs, not pinned: a reload starts with a fresh allowance.
#[map]
static EVENT_LIMITS: PerCpuArray<Limit> = PerCpuArray::with_max_entries(1, 0);

/// What one CPU has sent in the current tick.
#[repr(C)]
struct Limit {
    tick: u32,
    sent: u32,
    /// Events that were not sent since the last one that was.
    lost: u32,
}

/// Sends an event, unless this CPU has sent enough in this tick; then it is counted as lost.
#[inline(always)]
pub(crate) fn emit(skb: *mut __sk_buff, reason: DropReason, hook: Hook) {
    let allowance = settings::events_per_tick();
    if allowance == 0 {
        return;
    }
    let Some(limit) = EVENT_LIMITS.get_ptr_mut(0) else { return };
    // SAFETY: an array's values live as long as the map. Another program may interrupt this one on its CPU; at worst
    // an event more or less is sent, or counted as lost.
    let limit = unsafe { &mut *limit };
    // SAFETY: the helper takes no argument. The coarse clock is a load, not a read of the hardware.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let tick = (now >> Flow::TICK_SHIFT) as u32;
    if limit.tick != tick {
        limit.tick = tick;
        limit.sent = 0;
    }
    if limit.sent >= allowance {
        limit.lost = limit.lost.saturating_add(1);
        return;
    }
    limit.sent += 1;
    if send(skb, reason, hook, now, limit.lost) {
        limit.lost = 0;
    } else {
        limit.lost = limit.lost.saturating_add(1);
    }
}

/// Returns whether the ring buffer had room.
#[inline(always)]
#[expect(clippy::cast_ptr_alignment, reason = "`data` is 32 bytes into a record that is aligned to 8")]
fn send(skb: *mut __sk_buff, reason: DropReason, hook: Hook, now: u64, lost: u32) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else { return false };
    let ctx = TcContext::new(skb);
    let event = entry.as_mut_ptr();
    // SAFETY: `event` points to a reserved record of this very type, which nobody reads before `submit`; every field
    // is written, so no old memory of the ring leaves the kernel.
    unsafe {
        (*event).timestamp_ns = now;
        (*event).reason = reason as u32;
        (*event).hook = hook as u32;
        (*event).ifindex = packet::ifindex(&ctx);
        (*event).packet_len = ctx.len();
        (*event).lost = lost;
        // Words keep the compiler from calling `memset`, which the verifier would walk byte by byte.
        let words = (&raw mut (*event).data).cast::<[u64; CAPTURE_LEN / 8]>();
        words.write([0; CAPTURE_LEN / 8]);
        let data = (&raw mut (*event).data).cast();
        let len = ctx.len();
        // Constant lengths: the verifier loses the bound of a computed one on its way through the spill slots.
        (*event).captured_len = if len >= 96 && bpf_skb_load_bytes(skb.cast(), 0, data, 96) == 0 {
            96
        } else {
            capture_short(skb, data, len)
        };
    }
    entry.submit(0);
    true
}

/// Captures a packet of fewer than [`CAPTURE_LEN`] bytes.
#[inline(always)]
fn capture_short(skb: *mut __sk_buff, data: *mut core::ffi::c_void, len: u32) -> u32 {
    // For the verifier: the mask gives an upper bound, the comparison a smaller one, and the addition keeps zero out, which
    // a comparison with zero does not before kernel 6.8.
    let last = core::hint::black_box(len.wrapping_sub(1)) & 0x7f;
    if last >= CAPTURE_LEN as u32 {
        return 0;
    }
    let len = last + 1;
    // SAFETY: `data` has room for `CAPTURE_LEN` bytes and `len` is at most that; the helper checks the packet's end.
    let loaded = unsafe { bpf_skb_load_bytes(skb.cast(), 0, data, len) };
    if loaded == 0 { len } else { 0 }
}
