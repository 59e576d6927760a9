//! The eBPF path's counters, and their movement between two moments.

use std::collections::BTreeMap;

use podnet::api::Status;
use podnet_common::verdict::{DropReason, Verdict};

/// Packets per verdict and drop reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    packets: BTreeMap<(String, String), u64>,
}

impl Counters {
    /// Takes the counters from a daemon's status.
    pub fn of(status: &Status) -> Self {
        let counters = status.datapath.counters.iter();
        Self { packets: counters.map(|c| ((c.kind.clone(), c.name.clone()), c.packets)).collect() }
    }

    /// Returns the packets of a verdict.
    pub fn verdict(&self, verdict: Verdict) -> u64 {
        self.get("verdict", verdict.as_str())
    }

    /// Returns the packets of a drop reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.get("drop", reason.as_str())
    }

    /// Returns the packets of all drop reasons.
    pub fn all_dropped(&self) -> u64 {
        DropReason::ALL.iter().map(|reason| self.dropped(*reason)).sum()
    }

    /// Returns by how much the counters moved since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let moved = |(key, now): (&(String, String), &u64)| {
            let before = earlier.packets.get(key).copied().unwrap_or(0);
            (
                key.clone(),
                now.checked_sub(before).unwrap_or_else(|| panic!("counter {key:?} fell from {before} to {now}")),
            )
        };
        Self { packets: self.packets.iter().map(moved).filter(|(_, packets)| *packets > 0).collect() }
    }

    fn get(&self, kind: &str, name: &str) -> u64 {
        self.packets.get(&(kind.to_owned(), name.to_owned())).copied().unwrap_or(0)
    }
}
