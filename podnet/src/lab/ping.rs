//! `podnet lab ping`: every pod pings every other pod and the outside, and each node every pod, in each family; the
//! daemons' counters prove which path the packets took.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    echo::EchoSocket,
    topology::{Lab, Node},
    up::at_once,
};
use crate::netns::Netns;

pub mod path;
pub mod report;

use path::NodeCounts;

/// How long a reply may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of payload, as `ping` sends them.
const PAYLOAD_LEN: usize = 56;

/// Requests to find out whether a pair answers at all. What the first one may have to wait for (neighbour discovery,
/// the claim of a flow) is then over when the path is measured.
const PROBES: u16 = 2;

/// How many pairs are probed at a time: those that do not answer cost a timeout each.
const PROBED_AT_ONCE: usize = 64;

/// What pings what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A pod a pod.
    PodToPod,
    /// A node a pod.
    NodeToPod,
    /// A pod the host outside of the cluster.
    PodToOutside,
}

/// One row of the matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What pings what.
    pub kind: Kind,
    /// Name of the pod or node that pinged.
    pub source: String,
    /// Name of its node.
    pub source_node: String,
    /// Name of what was pinged: a pod, or `outside`.
    pub destination: String,
    /// Name of its node; `None`: it is outside of the cluster.
    pub destination_node: Option<String>,
    /// The address that was pinged.
    pub address: IpAddr,
    /// Requests sent.
    pub sent: u16,
    /// Round-trip time of each reply in microseconds.
    pub replies_us: Vec<u64>,
    /// What the eBPF path of the nodes counted meanwhile: of the source's, then of the destination's if it is another.
    /// Empty if the pair did not answer.
    pub counts: Vec<NodeCounts>,
    /// Which path the packets took, for people.
    pub path: String,
    /// Why requests could not be sent.
    pub error: Option<String>,
}

impl Row {
    /// Returns whether each request had its reply.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.replies_us.len() == usize::from(self.sent)
    }

    fn lost(&self) -> usize {
        usize::from(self.sent).saturating_sub(self.replies_us.len())
    }
}

/// A pair to ping.
struct Pair<'a> {
    kind: Kind,
    source: &'a str,
    netns: &'a str,
    source_node: &'a Node,
    destination: &'a str,
    destination_node: Option<&'a Node>,
    address: IpAddr,
}

impl Lab {
    /// Pings the whole matrix, with this many requests for each pair and family that answers at all.
    ///
    /// # Errors
    ///
    /// A daemon does not tell its counters. That a pair does not answer is no error but a row.
    pub fn ping(&self, count: u16) -> Result<Vec<Row>> {
        let pairs = self.pairs()?;
        let probes = probe(&pairs);
        pairs
            .iter()
            .zip(probes)
            .map(
                |(pair, probe)| {
                    if probe.replies.is_empty() { Ok(pair.row(PROBES, probe)) } else { pair.measure(count) }
                },
            )
            .collect()
    }

    /// Returns the matrix, pairs of the same nodes side by side.
    fn pairs(&self) -> Result<Vec<Pair<'_>>> {
        let outside = match &self.network {
            Some(network) => network.outside_addresses()?,
            None => Vec::new(),
        };
        let mut pairs = Vec::new();
        for source_node in &self.nodes {
            for node in &self.nodes {
                let (destination_node, targets) = (Some(node), || node.pods.iter());
                for source in &source_node.pods {
                    for target in targets().filter(|target| target.name != source.name) {
                        pairs.extend(target.addresses.iter().map(|address| Pair {
                            kind: Kind::PodToPod,
                            source: &source.name,
                            netns: &source.netns,
                            source_node,
                            destination: &target.name,
                            destination_node,
                            address: address.ip(),
                        }));
                    }
                }
                for target in targets() {
                    pairs.extend(target.addresses.iter().map(|address| Pair {
                        kind: Kind::NodeToPod,
                        source: &source_node.name,
                        netns: &source_node.netns,
                        source_node,
                        destination: &target.name,
                        destination_node,
                        address: address.ip(),
                    }));
                }
            }
            for source in &source_node.pods {
                let reachable =
                    |address: &&IpAddr| source.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
                pairs.extend(outside.iter().filter(reachable).map(|address| Pair {
                    kind: Kind::PodToOutside,
                    source: &source.name,
                    netns: &source.netns,
                    source_node,
                    destination: "outside",
                    destination_node: None,
                    address: *address,
                }));
            }
        }
        pairs.sort_by_key(|pair| pair.kind);
        Ok(pairs)
    }
}

/// What became of a pair's requests.
#[derive(Default)]
struct Outcome {
    replies: Vec<Duration>,
    error: Option<String>,
}

impl Pair<'_> {
    fn ping(&self, count: u16, enough: usize) -> Outcome {
        let mut outcome = Outcome::default();
        let mut ping = || -> Result<()> {
            let identifier = std::process::id() as u16;
            let socket = Netns::open_named(self.netns)?.run(|| EchoSocket::open(self.address, identifier))?;
            for sequence in 0..count {
                outcome.replies.extend(socket.ping(sequence, PAYLOAD_LEN, TIMEOUT)?);
                if outcome.replies.len() >= enough {
                    break;
                }
            }
            Ok(())
        };
        outcome.error = ping().err().map(|error| format!("{error:#}"));
        outcome
    }

    /// Pings and takes the counters of both nodes before and after.
    fn measure(&self, count: u16) -> Result<Row> {
        let destination = self.destination_node.filter(|node| node.name != self.source_node.name);
        let nodes: Vec<_> = std::iter::once(self.source_node).chain(destination).collect();
        let counts = || {
            let of =
                |node: &&Node| NodeCounts::take(node).with_context(|| format!("ask {} for its counters", node.name));
            nodes.iter().map(of).collect::<Result<Vec<_>>>()
        };
        let before = counts()?;
        let outcome = self.ping(count, usize::from(count));
        let counts: Vec<_> = counts()?.into_iter().zip(&before).map(|(after, before)| after.since(before)).collect();
        Ok(Row { path: path::name(&counts), counts, ..self.row(count, outcome) })
    }

    fn row(&self, sent: u16, outcome: Outcome) -> Row {
        Row {
            kind: self.kind,
            source: self.source.into(),
            source_node: self.source_node.name.clone(),
            destination: self.destination.into(),
            destination_node: self.destination_node.map(|node| node.name.clone()),
            address: self.address,
            sent,
            replies_us: outcome.replies.iter().map(|reply| reply.as_micros() as u64).collect(),
            counts: Vec::new(),
            path: "-".into(),
            error: outcome.error,
        }
    }
}

/// Finds out which pairs answer, many at a time; in the order of the pairs.
fn probe(pairs: &[Pair<'_>]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let work = |_| {
        let mut outcomes = Vec::new();
        while let Some((position, pair)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, pairs.get(at)?)))
        {
            outcomes.push((position, pair.ping(PROBES, 1)));
        }
        outcomes
    };
    let mut outcomes: Vec<_> = at_once(0..PROBED_AT_ONCE.min(pairs.len()), work).into_iter().flatten().collect();
    outcomes.sort_by_key(|(position, _)| *position);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
