//! podnet's own nftables table: what only netfilter can do for the kernel path.
//!
//! **Outside.** A pod's packet to an address outside of the cluster leaves behind the node's own address (it is
//! masqueraded), for the world knows no way back to pods. Pods and nodes of the cluster see the pod itself. They are
//! sets of addresses: a change of the cluster is a change of a few elements.
//!
//! **Hairpin.** A pod that reaches itself through a translated service address would receive a packet from its own
//! address, which its kernel refuses. Such packets are masqueraded behind the gateway. nftables cannot compare the
//! source with the destination; so the first packet of each flow from a pod puts the pair (source, source) into a set,
//! and what leaves for a pod with (source, destination) in that set goes to itself.
//!
//! The program `nft` makes the changes, through its JSON interface (libnftables-json(5)).
//!
//! The kernel applies these rules to the first packet of a connection and keeps the outcome in its connection tracking:
//! established connections go on when the table is replaced or removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    config::{Config, Family},
};

mod ranges;
mod ruleset;

/// Name of the table, in family `inet`.
pub const TABLE: &str = "podnet";

/// Up to so many elements, [`is_installed`] counts them. nft needs 2.5 µs for each; the stamp speaks for larger sets.
const COUNTED_ELEMENTS: usize = 2048;

/// Longest part of nft's own words in an error: it repeats the whole input if it cannot read it.
const MAX_COMPLAINT: usize = 400;

/// What the table is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Name of the bridge of pods.
    pub bridge: String,
    /// This node's pod CIDRs.
    pub own: Vec<IpNetwork>,
    /// Families whose packets to addresses outside of the cluster are masqueraded.
    pub masquerade: Vec<Family>,
    /// Ranges of pods, this node's included: packets to them keep their source. They may overlap.
    pub pods: BTreeSet<IpNetwork>,
    /// Addresses of nodes, this one's included: packets to them keep their source.
    pub nodes: BTreeSet<IpAddr>,
}

impl Rules {
    /// Derives the rules of a node with these pod CIDRs. Without a cluster the node is alone.
    #[must_use]
    pub fn new(config: &Config, own: &[IpNetwork], cluster: Option<&Cluster>) -> Self {
        let nodes = || cluster.into_iter().flat_map(Cluster::nodes);
        let pods = nodes().flat_map(|node| &node.pod_cidrs).chain(&config.cluster_cidrs).chain(own);
        Self {
            bridge: config.bridge.clone(),
            own: own.to_vec(),
            masquerade: config.masquerade.clone(),
            pods: pods.copied().collect(),
            nodes: nodes().flat_map(|node| node.addresses.iter().copied()).collect(),
        }
    }
}

/// Creates the table anew, in one transaction: at no moment is there no table, or half of one.
///
/// A connection keeps what was decided at its first packet. With a store, the table that the last daemon left knows
/// more than rules made before the first snapshot: do not replace it until then.
///
/// # Errors
///
/// `nft` is missing or refuses; the message says which.
pub fn install(rules: &Rules) -> Result<()> {
    apply(&ruleset::whole(rules))
}

/// Changes a table that was made from `old` into that of `new`, in one transaction: only the elements that differ. If
/// the table is not as it was left, it is created anew.
///
/// # Errors
///
/// As of [`install`].
pub fn update(old: &Rules, new: &Rules) -> Result<()> {
    let Some(changes) = ruleset::changes(old, new) else { return install(new) };
    if changes.is_empty() {
        return Ok(());
    }
    if let Err(error) = apply(&json!({ "nftables": changes })) {
        tracing::warn!(error = format!("{error:#}"), "change podnet's nftables table; creating it anew");
        return install(new);
    }
    Ok(())
}

/// Removes the table. One that is not there is success.
pub fn remove() -> Result<()> {
    apply(&ruleset::removal())
}

/// Returns whether the table is there and as these rules make it: its chains, the stamp of the rules that it was made
/// from, and in sets of ordinary size the number of elements.
///
/// # Errors
///
/// `nft` is missing or cannot read.
pub fn is_installed(rules: &Rules) -> Result<bool> {
    // Unlike tables and sets, nft lists chains without reading the elements of every set there is.
    let present: BTreeSet<String> = list(&["list", "chains", "inet"])?
        .iter()
        .filter(|object| object["chain"]["table"] == TABLE)
        .filter_map(|object| object["chain"]["name"].as_str().map(str::to_owned))
        .collect();
    if present != ruleset::chains(rules) {
        return Ok(false);
    }
    let expected = ruleset::counts(rules);
    if expected.values().sum::<usize>() > COUNTED_ELEMENTS {
        return Ok(true);
    }
    let mut actual: BTreeMap<String, usize> = BTreeMap::new();
    for object in list(&["list", "table", "inet", TABLE])? {
        if let Some(chain) = object["rule"]["chain"].as_str() {
            *actual.entry(chain.to_owned()).or_default() += 1;
        }
        if let Some(name) = object["set"]["name"].as_str() {
            actual.insert(name.to_owned(), object["set"]["elem"].as_array().map_or(0, Vec::len));
        }
    }
    Ok(expected.iter().all(|(name, count)| actual.get(name).copied().unwrap_or_default() == *count))
}

fn list(arguments: &[&str]) -> Result<Vec<Value>> {
    let text = nft(arguments, "")?;
    let mut answer: Value = serde_json::from_slice(&text).context("read what nft answered")?;
    match answer["nftables"].take() {
        Value::Array(objects) => Ok(objects),
        other => Err(anyhow!("nft answered {other} instead of a list")),
    }
}

fn apply(ruleset: &Value) -> Result<()> {
    nft(&["-f", "-"], &ruleset.to_string()).map(drop)
}

/// Runs nft, which speaks JSON in both directions, in the calling thread's network namespace.
///
/// # Errors
///
/// nft is missing, or what it said.
fn nft(arguments: &[&str], input: &str) -> Result<Vec<u8>> {
    let mut command = Command::new("nft");
    command.arg("-j").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().context("run nft (is the package nftables installed?)")?;
    // One that ends without reading says why.
    let written = process.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = process.wait_with_output().context("wait for nft")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(MAX_COMPLAINT).collect();
        bail!("nft {}: {}: {said}", arguments.join(" "), output.status);
    }
    written.context("give nft its commands")?;
    Ok(output.stdout)
}
