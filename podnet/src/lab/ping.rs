//! `podnet lab ping`: every pod pings every other pod, and each node its pods, in each family; the daemon's counters
//! prove which path the packets took.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    echo::EchoSocket,
    node_api,
    topology::{Lab, Node},
};
use crate::{api::Status, netns::Netns};

/// How long a reply may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of payload, as `ping` sends them.
const PAYLOAD_LEN: usize = 56;

/// One row of the matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the pod or node that pinged.
    pub source: String,
    /// Name of the pod that was pinged.
    pub destination: String,
    /// The address that was pinged.
    pub address: IpAddr,
    /// Requests sent.
    pub sent: u16,
    /// Round-trip time of each reply.
    pub replies: Vec<Duration>,
    /// Packets that the eBPF path redirected into a pod meanwhile, on all nodes of the pair.
    pub redirected_to_pod: u64,
    /// Packets that the kernel path delivered to a pod meanwhile, on all nodes of the pair.
    pub delivered_by_kernel: u64,
    /// Why requests could not be sent.
    pub error: Option<String>,
    /// Whether the eBPF programs were attached, so that the counters could move.
    pub attached: bool,
}

impl Row {
    /// Returns whether each request had its reply.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.replies.len() == usize::from(self.sent)
    }

    /// Names the path that the packets took.
    #[must_use]
    pub fn path(&self) -> &'static str {
        match (self.attached, self.redirected_to_pod, self.delivered_by_kernel) {
            (false, ..) => "kernel (no eBPF)",
            (true, 0, 0) => "-",
            (true, 0, _) => "kernel",
            (true, _, 0) => "ebpf",
            (true, ebpf, kernel) if ebpf > kernel => "ebpf, kernel",
            (true, ..) => "kernel, ebpf",
        }
    }

    fn loss_percent(&self) -> usize {
        let sent = usize::from(self.sent).max(1);
        (sent - self.replies.len().min(sent)) * 100 / sent
    }
}

impl Lab {
    /// Pings the whole matrix, with this many requests for each pair and family.
    pub fn ping(&self, count: u16) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (target_node, target) in self.pods() {
            let nodes = self.nodes.iter().map(|node| (node, &node.name, &node.netns));
            let pods = self.pods().map(|(node, pod)| (node, &pod.name, &pod.netns));
            for (node, source, netns) in pods.chain(nodes).filter(|(_, name, _)| **name != target.name) {
                for address in &target.addresses {
                    let before = counters(node, target_node)?;
                    let (replies, error) = ping(netns, address.ip(), count)?;
                    let after = counters(node, target_node)?;
                    rows.push(Row {
                        source: source.clone(),
                        destination: target.name.clone(),
                        address: address.ip(),
                        sent: count,
                        replies,
                        redirected_to_pod: after.redirected_to_pod.saturating_sub(before.redirected_to_pod),
                        delivered_by_kernel: after.delivered_by_kernel.saturating_sub(before.delivered_by_kernel),
                        error,
                        attached: after.attached,
                    });
                }
            }
        }
        rows.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
        Ok(rows)
    }
}

struct Counters {
    redirected_to_pod: u64,
    delivered_by_kernel: u64,
    attached: bool,
}

fn counters(source: &Node, destination: &Node) -> Result<Counters> {
    let mut sum = Counters { redirected_to_pod: 0, delivered_by_kernel: 0, attached: true };
    let second = (source.name != destination.name).then_some(destination);
    for node in std::iter::once(source).chain(second) {
        let status = node_api::status(&node.socket()).with_context(|| format!("ask {} for its counters", node.name))?;
        sum.redirected_to_pod += packets(&status, "redirected_to_pod");
        sum.delivered_by_kernel += packets(&status, "delivered_by_kernel");
        sum.attached &= status.datapath.attached;
    }
    Ok(sum)
}

fn packets(status: &Status, name: &str) -> u64 {
    let counters = status.datapath.counters.iter();
    counters.filter(|counter| counter.kind == "verdict" && counter.name == name).map(|counter| counter.packets).sum()
}

fn ping(netns: &str, address: IpAddr, count: u16) -> Result<(Vec<Duration>, Option<String>)> {
    let socket = Netns::open_named(netns)?.run(|| EchoSocket::open(address, std::process::id() as u16));
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return Ok((Vec::new(), Some(format!("{error:#}")))),
    };
    let mut replies = Vec::new();
    for sequence in 0..count {
        match socket.ping(sequence, PAYLOAD_LEN, TIMEOUT) {
            Ok(reply) => replies.extend(reply),
            Err(error) => return Ok((replies, Some(format!("{error:#}")))),
        }
    }
    Ok((replies, None))
}

/// Draws the matrix as a table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["FROM", "TO", "ADDRESS", "LOSS", "RTT MIN/MAX", "PATH", "REDIRECTED", "BY KERNEL", "ERROR"]);
    for row in rows {
        let rtt = match (row.replies.iter().min(), row.replies.iter().max()) {
            (Some(min), Some(max)) => format!("{}/{} us", min.as_micros(), max.as_micros()),
            _ => "-".into(),
        };
        table.add_row([
            row.source.clone(),
            row.destination.clone(),
            row.address.to_string(),
            format!("{} %", row.loss_percent()),
            rtt,
            row.path().into(),
            row.redirected_to_pod.to_string(),
            row.delivered_by_kernel.to_string(),
            row.error.clone().unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(replies: usize, redirected_to_pod: u64, delivered_by_kernel: u64) -> Row {
        Row {
            source: "pod1".into(),
            destination: "pod2".into(),
            address: "10.244.1.3".parse().unwrap(),
            sent: 4,
            replies: vec![Duration::from_micros(30); replies],
            redirected_to_pod,
            delivered_by_kernel,
            error: None,
            attached: true,
        }
    }

    #[test]
    fn the_counters_name_the_path() {
        assert_eq!(row(4, 8, 0).path(), "ebpf");
        assert_eq!(row(4, 0, 4).path(), "kernel");
        assert_eq!(row(4, 6, 1).path(), "ebpf, kernel");
        assert_eq!(Row { attached: false, ..row(4, 0, 0) }.path(), "kernel (no eBPF)");
    }

    #[test]
    fn loss_is_shown_and_makes_a_row_incomplete() {
        assert!(row(4, 8, 0).complete());
        assert!(!row(3, 6, 0).complete());
        let text = table(&[row(3, 6, 0), row(0, 0, 0)]);
        assert!(text.contains("25 %") && text.contains("100 %") && text.contains("30/30 us"), "{text}");
    }
}
