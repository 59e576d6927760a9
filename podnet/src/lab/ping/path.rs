//! Which path packets took, as the daemons' counters tell.

use anyhow::Result;
use podnet_common::verdict::Verdict;
use serde::Serialize;

use super::super::{node_api, topology::Node};
use crate::api::Status;

/// What the eBPF path of a node counted between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeCounts {
    /// Name of the node.
    pub node: String,
    /// Whether the programs were attached, so that the counters could move.
    pub attached: bool,
    /// Packets that eBPF put into a pod.
    pub redirected_to_pod: u64,
    /// Packets that eBPF sent to another node's address.
    pub redirected_to_node: u64,
    /// Packets that eBPF sent to another node through the overlay.
    pub redirected_to_overlay: u64,
    /// Packets that the kernel delivered to a pod.
    pub delivered_by_kernel: u64,
    /// Packets between pods that the kernel sent to another node.
    pub sent_by_kernel: u64,
}

impl NodeCounts {
    /// Asks a node's daemon for its counters.
    pub(super) fn take(node: &Node) -> Result<Self> {
        Ok(Self::of(node, &node_api::status(&node.socket())?))
    }

    fn of(node: &Node, status: &Status) -> Self {
        let packets = |verdict: Verdict| {
            let counters = status.datapath.counters.iter();
            counters
                .filter(|counter| counter.kind == "verdict" && counter.name == verdict.as_str())
                .map(|counter| counter.packets)
                .sum()
        };
        Self {
            node: node.name.clone(),
            attached: status.datapath.attached,
            redirected_to_pod: packets(Verdict::RedirectedToPod),
            redirected_to_node: packets(Verdict::RedirectedToNode),
            redirected_to_overlay: packets(Verdict::RedirectedToOverlay),
            delivered_by_kernel: packets(Verdict::DeliveredByKernel),
            sent_by_kernel: packets(Verdict::SentByKernel),
        }
    }

    /// Returns by how much the counters moved since an earlier moment.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            node: self.node.clone(),
            attached: self.attached,
            redirected_to_pod: self.redirected_to_pod.saturating_sub(earlier.redirected_to_pod),
            redirected_to_node: self.redirected_to_node.saturating_sub(earlier.redirected_to_node),
            redirected_to_overlay: self.redirected_to_overlay.saturating_sub(earlier.redirected_to_overlay),
            delivered_by_kernel: self.delivered_by_kernel.saturating_sub(earlier.delivered_by_kernel),
            sent_by_kernel: self.sent_by_kernel.saturating_sub(earlier.sent_by_kernel),
        }
    }

    /// Names the path inside of this node; `None` if nothing tells.
    fn path(&self) -> Option<&'static str> {
        if !self.attached {
            return Some(NO_EBPF);
        }
        let by_kernel = self.delivered_by_kernel + self.sent_by_kernel > 0;
        let to_pod = self.redirected_to_pod > 0;
        Some(match (self.redirected_to_node > 0, self.redirected_to_overlay > 0, by_kernel) {
            (true, true, false) => "ebpf direct and overlay",
            (true, false, false) => "ebpf direct",
            (false, true, false) => "ebpf overlay",
            (false, false, false) if to_pod => "ebpf",
            (false, false, false) => return None,
            (false, false, true) if !to_pod => "kernel",
            (.., true) => "ebpf and kernel",
        })
    }
}

/// The path inside of a node without programs.
const NO_EBPF: &str = "kernel (no eBPF)";

/// Names the path of a pair's packets: that of both nodes if they agree, and both by name if they do not.
pub(super) fn name(counts: &[NodeCounts]) -> String {
    let told: Vec<_> = counts.iter().filter_map(|counts| Some((&counts.node, counts.path()?))).collect();
    match &told[..] {
        [] => "-".into(),
        [(_, path)] => (*path).into(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, path)| path == first) => (*first).into(),
        all if all.iter().all(|(_, path)| ["kernel", NO_EBPF].contains(path)) => "kernel".into(),
        all => all.iter().map(|(node, path)| format!("{node}: {path}")).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(node: &str, to_pod: u64, to_node: u64, to_overlay: u64, delivered: u64, sent: u64) -> NodeCounts {
        NodeCounts {
            node: node.into(),
            attached: true,
            redirected_to_pod: to_pod,
            redirected_to_node: to_node,
            redirected_to_overlay: to_overlay,
            delivered_by_kernel: delivered,
            sent_by_kernel: sent,
        }
    }

    #[test]
    fn the_counters_name_the_path() {
        let kernel = || NodeCounts { node: "b".into(), ..NodeCounts::default() };
        for (expected, all) in [
            ("ebpf", vec![counts("a", 8, 0, 0, 0, 0)]),
            ("ebpf direct", vec![counts("a", 4, 4, 0, 0, 0), counts("b", 4, 4, 0, 0, 0)]),
            ("ebpf overlay", vec![counts("a", 4, 0, 4, 0, 0), counts("b", 4, 0, 4, 0, 0)]),
            ("kernel", vec![counts("a", 0, 0, 0, 4, 4), counts("b", 0, 0, 0, 4, 4)]),
            ("ebpf and kernel", vec![counts("a", 4, 4, 0, 0, 1)]),
            ("ebpf and kernel", vec![counts("a", 4, 0, 0, 1, 0)]),
            ("a: ebpf direct; b: kernel (no eBPF)", vec![counts("a", 4, 4, 0, 0, 0), kernel()]),
            ("kernel (no eBPF)", vec![kernel(), kernel()]),
            ("kernel", vec![counts("a", 0, 0, 0, 4, 4), kernel()]),
            // A node that pings the other's pod counts nothing itself.
            ("kernel", vec![counts("a", 0, 0, 0, 0, 0), counts("b", 0, 0, 0, 4, 0)]),
            ("-", vec![counts("a", 0, 0, 0, 0, 0)]),
        ] {
            assert_eq!(name(&all), expected, "{all:?}");
        }
    }

    #[test]
    fn counts_are_differences() {
        let moved = counts("a", 9, 8, 7, 6, 5).since(&counts("a", 1, 1, 1, 1, 1));
        assert_eq!(moved, counts("a", 8, 7, 6, 5, 4));
    }
}
