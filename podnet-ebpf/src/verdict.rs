//! The single exit of all programs: counts, reports drops, and returns the TC action.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use podnet_common::{
    event::Hook,
    verdict::{COUNTER_SLOTS, Counter, DropReason, Verdict},
};

use crate::{event, settings, trace};

#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// What a program decided about a packet that it does not drop.
///
/// The action, and above it the index of the counter; one word, so that a subprogram can return it.
#[must_use]
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Decision(u64);

impl Decision {
    /// In the place of a counter's index: not counted.
    const UNCOUNTED: u32 = u32::MAX;

    /// The packet goes on as if the program were not there, and is no business of podnet's.
    pub(crate) const IGNORE: Self = Self::new(Self::UNCOUNTED, TC_ACT_UNSPEC);

    #[inline(always)]
    const fn new(counter: u32, action: i32) -> Self {
        Self((counter as u64) << 32 | action.cast_unsigned() as u64)
    }

    #[inline(always)]
    const fn action(self) -> i32 {
        self.0 as i32
    }

    /// Index of the counter.
    #[inline(always)]
    const fn counter(self) -> Option<u32> {
        let counter = (self.0 >> 32) as u32;
        if counter == Self::UNCOUNTED { None } else { Some(counter) }
    }

    /// The packet goes on as if the program were not there.
    ///
    /// `TC_ACT_UNSPEC` lets a direct-action filter be followed by other people's filters on the same hook: `cls_bpf`
    /// goes on to its next program, then `tcf_classify` to the next priority; if none of them decides, the packet
    /// goes on up the stack (`sch_handle_ingress`) or out (`sch_handle_egress`). `TC_ACT_OK` would end the chain. Under
    /// tcx the same number is `TCX_NEXT`, with the same meaning.
    #[inline(always)]
    pub(crate) const fn pass(verdict: Verdict) -> Self {
        Self::new(verdict.counter_index(), TC_ACT_UNSPEC)
    }

    /// The packet goes where a redirect helper said; `action` is what the helper returned.
    #[inline(always)]
    pub(crate) const fn redirect(verdict: Verdict, action: i32) -> Self {
        Self::new(verdict.counter_index(), action)
    }
}

/// Turns a decision into the program's return value.
#[must_use]
#[inline(always)]
pub(crate) fn conclude(ctx: &TcContext, hook: Hook, decision: Result<Decision, DropReason>) -> i32 {
    match decision {
        Ok(decision) => {
            if let Some(counter) = decision.counter()
                && settings::count_verdicts()
            {
                count(counter, ctx.len());
            }
            decision.action()
        }
        Err(reason) => drop_packet(ctx.skb.skb, reason, hook),
    }
}

#[inline(never)]
fn drop_packet(skb: *mut __sk_buff, reason: DropReason, hook: Hook) -> i32 {
    count(reason.counter_index(), TcContext::new(skb).len());
    event::emit(skb, reason, hook);
    trace::dropped(skb, reason);
    TC_ACT_SHOT
}

#[inline(always)]
fn count(index: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: an array's values live as long as the map, and only this CPU writes to its own.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
