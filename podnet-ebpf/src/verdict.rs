//! The single exit of both programs: counts, reports drops, and returns the TC action.

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
#[must_use]
#[derive(Clone, Copy)]
pub(crate) struct Decision {
    verdict: Verdict,
    action: i32,
}

impl Decision {
    /// The packet goes on as if the program were not there.
    ///
    /// `TC_ACT_UNSPEC` lets a direct-action filter be followed by other people's filters on the same hook: `cls_bpf`
    /// goes on to its next program, then `tcf_classify` to the next priority; if none of them decides, the packet
    /// goes on up the stack (`sch_handle_ingress`) or out (`sch_handle_egress`). `TC_ACT_OK` would end the chain. Under
    /// tcx the same number is `TCX_NEXT`, with the same meaning.
    #[inline(always)]
    pub(crate) const fn pass(verdict: Verdict) -> Self {
        Self { verdict, action: TC_ACT_UNSPEC }
    }

    /// The packet goes where a redirect helper said; `action` is what the helper returned.
    #[inline(always)]
    pub(crate) const fn redirect(verdict: Verdict, action: i32) -> Self {
        Self { verdict, action }
    }
}

/// Turns a decision into the program's return value.
#[must_use]
#[inline(always)]
pub(crate) fn conclude(ctx: &TcContext, hook: Hook, decision: Result<Decision, DropReason>) -> i32 {
    match decision {
        Ok(Decision { verdict, action }) => {
            if settings::count_verdicts() {
                count(verdict.counter_index(), ctx.len());
            }
            action
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
