//! Transactions: each states what must not have changed since it was heard.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use super::{
    keys::{Alive, Keys, Owner},
    mirror::Mirror,
    registration::{Own, Proposal},
};

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Key, value and lease; lease zero: none.
    Put(String, Vec<u8>, i64),
    /// Key.
    Delete(String),
}

/// A transaction, and the keys that it compares: if it is refused, their values are answered.
#[derive(Debug)]
pub(super) struct Checked {
    /// The transaction.
    pub(super) txn: Txn,
    /// What to note in the mirror if it succeeds.
    pub(super) writes: Vec<Write>,
    /// The keys that it compares.
    pub(super) compared: Vec<String>,
}

/// Collects comparisons and writes.
struct Builder<'a> {
    mirror: &'a Mirror,
    compared: BTreeSet<String>,
    writes: Vec<Write>,
}

impl<'a> Builder<'a> {
    const fn new(mirror: &'a Mirror) -> Self {
        Self { mirror, compared: BTreeSet::new(), writes: Vec::new() }
    }

    fn put(&mut self, key: String, value: Vec<u8>, lease: i64) {
        self.compared.insert(key.clone());
        self.writes.push(Write::Put(key, value, lease));
    }

    fn delete(&mut self, key: String) {
        self.compared.insert(key.clone());
        self.writes.push(Write::Delete(key));
    }

    fn build(self) -> Checked {
        let conditions: Vec<Compare> = self
            .compared
            .iter()
            .map(|key| match self.mirror.revision_of(key) {
                0 => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                revision => Compare::mod_revision(key.as_str(), CompareOp::Equal, revision),
            })
            .collect();
        let writes: Vec<TxnOp> = self
            .writes
            .iter()
            .map(|write| match write {
                Write::Put(key, value, 0) => TxnOp::put(key.as_str(), value.clone(), None),
                Write::Put(key, value, lease) => {
                    TxnOp::put(key.as_str(), value.clone(), Some(PutOptions::new().with_lease(*lease)))
                }
                Write::Delete(key) => TxnOp::delete(key.as_str(), None),
            })
            .collect();
        let reads: Vec<TxnOp> = self.compared.iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
        let txn = Txn::new().when(conditions).and_then(writes).or_else(reads);
        Checked { txn, writes: self.writes, compared: self.compared.into_iter().collect() }
    }
}

/// Registers the node as proposed: its record and its sign of life are as they were heard, and each pod CIDR that it
/// claims belongs to nobody, or to it.
///
/// # Errors
///
/// A value cannot be encoded.
pub(super) fn register(own: &Own, proposal: &Proposal, keys: &Keys, mirror: &Mirror, lease: i64) -> Result<Checked> {
    let mut builder = Builder::new(mirror);
    let layout = keys.layout();
    if mirror.layout.is_none() {
        builder.put(layout, serde_json::to_vec(&own.layout).context("encode the layout")?, 0);
    } else {
        builder.compared.insert(layout);
    }
    let name = &own.identity.node;
    builder.put(keys.node(name), serde_json::to_vec(&proposal.record).context("encode the node")?, 0);
    let alive = Alive { id: own.identity.id.clone() };
    builder.put(keys.alive(name), serde_json::to_vec(&alive).context("encode the sign of life")?, lease);
    for cidr in &proposal.claim {
        let key = keys.cidr(*cidr);
        if mirror.owners.get(cidr).is_some_and(|entry| entry.value == own.identity) {
            builder.compared.insert(key);
        } else {
            builder.put(key, serde_json::to_vec(&own.identity).context("encode the owner")?, 0);
        }
    }
    for cidr in &proposal.release {
        builder.delete(keys.cidr(*cidr));
    }
    Ok(builder.build())
}

/// Deletes all that belongs to an installation of a node, if it does not report and nothing of it has changed. With
/// `also_alive` its sign of life goes, too: the node itself leaves.
pub(super) fn release(owner: &Owner, keys: &Keys, mirror: &Mirror, also_alive: bool) -> Checked {
    let mut builder = Builder::new(mirror);
    let alive = keys.alive(&owner.node);
    if also_alive && mirror.is_alive(&owner.node, &owner.id) {
        builder.delete(alive);
    } else {
        builder.compared.insert(alive);
    }
    if mirror.nodes.get(&owner.node).is_some_and(|entry| entry.value.id == owner.id) {
        builder.delete(keys.node(&owner.node));
    }
    for cidr in mirror.owned_by(&owner.node, &owner.id) {
        builder.delete(keys.cidr(cidr));
    }
    builder.build()
}
