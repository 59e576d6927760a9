//! podnet's own nftables table: the little that only netfilter can do for the kernel path.
//!
//! A pod that reaches itself through a translated service address would receive a packet from its own address, which
//! its kernel refuses. Such packets are masqueraded behind the gateway. nftables cannot compare the source with the
//! destination; so the first packet of each flow from a pod puts the pair (source, source) into a set, and what leaves
//! for a pod with (source, destination) in that set goes to itself.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Name of the table, in family `inet`.
pub const TABLE: &str = "podnet";

/// Creates the table anew, in one transaction.
///
/// # Errors
///
/// `nft` is missing or refuses; the message says which.
pub fn install(bridge: &str) -> Result<()> {
    apply(&ruleset(bridge))
}

/// Removes the table. One that is not there is success.
pub fn remove() -> Result<()> {
    apply(&json!({"nftables": [table("add"), table("delete")]}))
}

/// Returns whether the table is there.
pub fn is_installed() -> Result<bool> {
    let tables = nftables::helper::get_current_ruleset_raw(nftables::helper::DEFAULT_NFT, ["list", "tables"].to_vec())
        .context("list nftables tables (is the package nftables installed?)")?;
    let tables: Value = serde_json::from_str(&tables).context("read what nft answered")?;
    Ok(tables["nftables"].as_array().is_some_and(|objects| {
        objects.iter().any(|object| object["table"]["name"] == TABLE && object["table"]["family"] == "inet")
    }))
}

fn apply(ruleset: &Value) -> Result<()> {
    nftables::helper::apply_ruleset_raw(ruleset.to_string().as_str(), nftables::helper::DEFAULT_NFT, Vec::<&str>::new())
        .map(drop)
        .context("change nftables (is the package nftables installed?)")
}

fn table(command: &str) -> Value {
    json!({command: {"table": {"family": "inet", "name": TABLE}}})
}

fn ruleset(bridge: &str) -> Value {
    // Adding before deleting makes the deletion succeed whether or not the table exists.
    let mut commands = vec![table("add"), table("delete"), table("add")];
    // Before DNAT (-100), when the destination is still the service address; and before others' masquerading (100).
    commands.push(chain("prerouting", -105));
    commands.push(chain("postrouting", 90));
    for (set, protocol, set_type) in [("hairpin4", "ip", "ipv4_addr"), ("hairpin6", "ip6", "ipv6_addr")] {
        let field = |name: &str| json!({"payload": {"protocol": protocol, "field": name}});
        let reference = format!("@{set}");
        commands.push(json!({"add": {"set": {
            "family": "inet", "table": TABLE, "name": set, "type": [set_type, set_type],
            "flags": ["timeout"], "timeout": 60, "size": 65535
        }}}));
        commands.push(rule(
            "prerouting",
            &[
                interface("iifname", bridge),
                json!({"set": {"op": "update", "elem": {"concat": [field("saddr"), field("saddr")]}, "set": reference}}),
            ],
        ));
        commands.push(rule(
            "postrouting",
            &[
                interface("oifname", bridge),
                json!({"match": {"op": "==", "left": {"concat": [field("saddr"), field("daddr")]}, "right": reference}}),
                json!({"masquerade": null}),
            ],
        ));
    }
    json!({"nftables": commands})
}

fn chain(hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": "inet", "table": TABLE, "name": hook, "type": "nat", "hook": hook, "prio": priority, "policy": "accept"
    }}})
}

fn rule(chain: &str, expressions: &[Value]) -> Value {
    json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": expressions}}})
}

fn interface(key: &str, name: &str) -> Value {
    json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}})
}
