//! What etcd holds below the prefix, as far as it was heard: the listing, then each event. No I/O.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;

use super::keys::{Alive, Key, Keys, Layout, NodeRecord, Owner};

/// A value, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<T> {
    /// The value.
    pub(super) value: T,
    /// Revision of etcd that wrote it.
    pub(super) revision: i64,
    /// Lease that it goes with; zero: none.
    pub(super) lease: i64,
}

/// The keys below the prefix.
#[derive(Clone, Debug)]
pub(super) struct Mirror {
    keys: Keys,
    /// Everything up to this revision was heard.
    pub(super) revision: i64,
    /// The etcd cluster. Revisions of another one mean nothing.
    pub(super) cluster_id: u64,
    /// How ranges are cut.
    pub(super) layout: Option<Entry<Layout>>,
    /// Records by node name.
    pub(super) nodes: BTreeMap<String, Entry<NodeRecord>>,
    /// Nodes that report.
    pub(super) alive: HashMap<String, Entry<Alive>>,
    /// Owners of pod CIDRs.
    pub(super) owners: BTreeMap<IpNetwork, Entry<Owner>>,
    /// Keys whose values make no sense, why, and the revision.
    pub(super) broken: BTreeMap<String, Entry<String>>,
}

impl Mirror {
    /// Makes an empty mirror.
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: 0,
            cluster_id: 0,
            layout: None,
            nodes: BTreeMap::new(),
            alive: HashMap::new(),
            owners: BTreeMap::new(),
            broken: BTreeMap::new(),
        }
    }

    /// Notes a value. What was heard of a later revision stays: an answer may overtake the events before it.
    pub(super) fn put(&mut self, key: &str, value: &[u8], revision: i64, lease: i64) {
        if self.revision_of(key) > revision {
            return;
        }
        self.remove(key);
        if let Err(error) = self.try_put(key, value, revision, lease) {
            self.broken.insert(key.to_owned(), Entry { value: format!("{error:#}"), revision, lease });
        }
    }

    fn try_put(&mut self, key: &str, value: &[u8], revision: i64, lease: i64) -> Result<()> {
        match self.keys.parse(key)? {
            Key::Layout => self.layout = Some(entry(value, revision, lease)?),
            Key::Node(name) => {
                self.nodes.insert(name, entry(value, revision, lease)?);
            }
            Key::Alive(name) => {
                self.alive.insert(name, entry(value, revision, lease)?);
            }
            Key::Cidr(cidr) => {
                self.owners.insert(cidr, entry(value, revision, lease)?);
            }
            Key::Unknown => {}
        }
        Ok(())
    }

    /// Notes that a key was deleted.
    pub(super) fn delete(&mut self, key: &str, revision: i64) {
        if self.revision_of(key) <= revision {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &str) {
        self.broken.remove(key);
        match self.keys.parse(key) {
            Ok(Key::Layout) => self.layout = None,
            Ok(Key::Node(name)) => drop(self.nodes.remove(&name)),
            Ok(Key::Alive(name)) => drop(self.alive.remove(&name)),
            Ok(Key::Cidr(cidr)) => drop(self.owners.remove(&cidr)),
            Ok(Key::Unknown) | Err(_) => {}
        }
    }

    /// Returns the revision that wrote a key; zero: it is not there.
    pub(super) fn revision_of(&self, key: &str) -> i64 {
        if let Some(broken) = self.broken.get(key) {
            return broken.revision;
        }
        let revision = match self.keys.parse(key) {
            Ok(Key::Layout) => self.layout.as_ref().map(|entry| entry.revision),
            Ok(Key::Node(name)) => self.nodes.get(&name).map(|entry| entry.revision),
            Ok(Key::Alive(name)) => self.alive.get(&name).map(|entry| entry.revision),
            Ok(Key::Cidr(cidr)) => self.owners.get(&cidr).map(|entry| entry.revision),
            Ok(Key::Unknown) | Err(_) => None,
        };
        revision.unwrap_or_default()
    }

    /// Returns the pod CIDRs that belong to an installation of a node.
    pub(super) fn owned_by<'a>(&'a self, node: &'a str, id: &'a str) -> impl Iterator<Item = IpNetwork> + 'a {
        let is_its = move |owner: &Owner| owner.node == node && owner.id == id;
        self.owners.iter().filter(move |(_, entry)| is_its(&entry.value)).map(|(cidr, _)| *cidr)
    }

    /// Returns whether an installation of a node reports.
    pub(super) fn is_alive(&self, node: &str, id: &str) -> bool {
        self.alive.get(node).is_some_and(|entry| entry.value.id == id)
    }
}

fn entry<T: DeserializeOwned>(value: &[u8], revision: i64, lease: i64) -> Result<Entry<T>> {
    Ok(Entry { value: serde_json::from_slice(value).context("read the value")?, revision, lease })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &[u8] = br#"{"id":"i","addresses":["10.0.0.1"],"podCIDRs":["10.244.0.0/24"],"graceSeconds":9}"#;

    fn mirror() -> Mirror {
        Mirror::new(Keys::new("/p"))
    }

    #[test]
    fn values_come_and_go() {
        let mut mirror = mirror();
        mirror.put("/p/layout", br#"{"nodePrefixIPv4":24,"nodePrefixIPv6":64}"#, 2, 0);
        mirror.put("/p/nodes/a", NODE, 3, 0);
        mirror.put("/p/alive/a", br#"{"id":"i"}"#, 3, 77);
        mirror.put("/p/cidrs/10.244.0.0/24", br#"{"node":"a","id":"i"}"#, 3, 0);
        mirror.put("/p/later", b"?", 3, 0);
        assert!(mirror.is_alive("a", "i") && !mirror.is_alive("a", "j") && mirror.broken.is_empty());
        assert_eq!(mirror.owned_by("a", "i").count(), 1);
        assert_eq!(mirror.alive["a"].lease, 77);
        mirror.delete("/p/alive/a", 4);
        mirror.delete("/p/cidrs/10.244.0.0/24", 4);
        assert!(!mirror.is_alive("a", "i"));
        assert_eq!(mirror.owned_by("a", "i").count(), 0);
        assert_eq!(mirror.revision_of("/p/nodes/a"), 3);
        assert_eq!(mirror.revision_of("/p/alive/a"), 0);
    }

    #[test]
    fn events_that_an_answer_overtook_change_nothing() {
        let mut mirror = mirror();
        mirror.put("/p/alive/a", br#"{"id":"new"}"#, 9, 2);
        mirror.put("/p/alive/a", br#"{"id":"old"}"#, 5, 1);
        mirror.delete("/p/alive/a", 7);
        assert!(mirror.is_alive("a", "new"));
        mirror.put("/p/alive/a", br#"{"id":"new"}"#, 9, 2);
        mirror.delete("/p/alive/a", 10);
        assert!(mirror.alive.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_set_aside() {
        let mut mirror = mirror();
        mirror.put("/p/nodes/a", NODE, 3, 0);
        mirror.put("/p/nodes/a", b"{", 4, 0);
        mirror.put("/p/cidrs/x", b"{}", 5, 0);
        assert!(mirror.nodes.is_empty());
        assert_eq!(mirror.broken.keys().collect::<Vec<_>>(), ["/p/cidrs/x", "/p/nodes/a"]);
        assert_eq!(mirror.revision_of("/p/nodes/a"), 4);
        mirror.put("/p/nodes/a", NODE, 6, 0);
        mirror.delete("/p/cidrs/x", 7);
        assert!(mirror.broken.is_empty() && mirror.nodes.contains_key("a"));
    }
}
