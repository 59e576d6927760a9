//! What the fake API server holds: objects, their history, what was asked of it, and the faults it shall show.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use serde_json::{Value, json};

use crate::objects::FakeNode;

/// A request that came, as RBAC sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `list`, `watch` or `patch`.
    pub(crate) verb: &'static str,
    /// `nodes` or `nodes/status`.
    pub(crate) resource: &'static str,
    /// The query, decoded.
    pub(crate) query: BTreeMap<String, String>,
}

/// How the next request of a verb is answered.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// With this status code and body.
    Status(u16, Value),
    /// As usual, but later.
    Late(Duration),
    /// A watch: these events, half of another one, and the end of the connection.
    CutAfter(usize),
    /// A watch: an event of type `ERROR` with this status, then the end.
    ErrorEvent(Value),
}

/// A page of a list: its items, and where the next one begins and how many are left.
pub(crate) struct Page {
    pub(crate) version: u64,
    pub(crate) items: Vec<Value>,
    pub(crate) next: Option<(String, usize)>,
}

/// What the server holds.
#[derive(Debug)]
pub(crate) struct State {
    /// Nodes and the version of their last change.
    pub(crate) nodes: BTreeMap<String, (u64, FakeNode)>,
    /// Events by version.
    history: BTreeMap<u64, Value>,
    /// The newest version.
    pub(crate) version: u64,
    /// Versions below this one are forgotten.
    pub(crate) compacted: u64,
    /// States that unfinished lists show, by version.
    lists: BTreeMap<u64, BTreeMap<String, (u64, FakeNode)>>,
    pub(crate) seen: Vec<Seen>,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    /// Bodies of the patches that were accepted.
    pub(crate) patches: Vec<Value>,
    /// What the credentials may do: verb and resource.
    pub(crate) allowed: BTreeSet<(&'static str, &'static str)>,
    /// The only token that is accepted; `None`: credentials are not looked at.
    pub(crate) token: Option<String>,
    /// Time between two bookmarks.
    pub(crate) bookmarks: Duration,
    /// Whether open watches keep silent, bookmarks included, as if the network swallowed what they send.
    pub(crate) silent: bool,
    /// Watches that are open.
    pub(crate) watches: usize,
}

impl State {
    pub(crate) fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            history: BTreeMap::new(),
            version: 1000,
            compacted: 0,
            lists: BTreeMap::new(),
            seen: Vec::new(),
            faults: BTreeMap::new(),
            patches: Vec::new(),
            allowed: [("list", "nodes"), ("watch", "nodes"), ("patch", "nodes/status")].into(),
            token: None,
            bookmarks: Duration::from_secs(60),
            silent: false,
            watches: 0,
        }
    }

    /// Adds or replaces an object.
    pub(crate) fn put(&mut self, node: FakeNode) {
        self.version += 1;
        let kind = if self.nodes.contains_key(&node.name) { "MODIFIED" } else { "ADDED" };
        let event = json!({ "type": kind, "object": node.object(self.version) });
        self.history.insert(self.version, event);
        self.nodes.insert(node.name.clone(), (self.version, node));
    }

    /// Changes an object.
    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut FakeNode)) {
        let mut node = self.nodes[name].1.clone();
        change(&mut node);
        self.put(node);
    }

    /// Deletes an object.
    pub(crate) fn delete(&mut self, name: &str) {
        self.version += 1;
        let (_, node) = self.nodes.remove(name).unwrap();
        let event = json!({ "type": "DELETED", "object": node.object(self.version) });
        self.history.insert(self.version, event);
    }

    /// Forgets the history, as etcd does every five minutes. Unfinished lists are lost, too.
    pub(crate) fn compact(&mut self) {
        // Other objects change as well: the version grows without an event of a node.
        self.version += 10;
        self.compacted = self.version;
        self.history.clear();
        self.lists.clear();
    }

    /// Returns the first event after a version.
    pub(crate) fn event_after(&self, version: u64) -> Option<(u64, Value)> {
        self.history.range(version + 1..).next().map(|(version, event)| (*version, event.clone()))
    }

    /// Notes a request, and returns what shall be wrong with its answer.
    pub(crate) fn note(&mut self, seen: Seen) -> Option<Fault> {
        let verb = seen.verb;
        self.seen.push(seen);
        self.faults.get_mut(verb)?.pop_front()
    }

    /// Lets the next requests of a verb fail in these ways.
    pub(crate) fn fail(&mut self, verb: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.faults.entry(verb).or_default().extend(faults);
    }

    /// Returns how many requests of a verb came.
    pub(crate) fn count(&self, verb: &str) -> usize {
        self.seen.iter().filter(|seen| seen.verb == verb).count()
    }

    /// Returns a page of a list. `None`: the state of which `token` tells is forgotten.
    pub(crate) fn page(&mut self, limit: usize, token: Option<&str>) -> Option<Page> {
        let (version, start) = match token {
            None => (self.version, String::new()),
            Some(token) => {
                let token: Value = serde_json::from_str(token).unwrap();
                (token["rv"].as_u64().unwrap(), token["start"].as_str().unwrap().to_owned())
            }
        };
        let whole = match token {
            None => &self.nodes,
            Some(_) => self.lists.get(&version)?,
        };
        let mut rest = whole.range(start..);
        let items = rest.by_ref().take(limit).map(|(_, (version, node))| node.item(*version)).collect();
        let next = rest.next().map(|(name, _)| name.clone()).map(|name| {
            let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": name });
            (token.to_string(), rest.count() + 1)
        });
        match (&next, token) {
            (Some(_), None) => drop(self.lists.insert(version, self.nodes.clone())),
            (None, Some(_)) => drop(self.lists.remove(&version)),
            _ => {}
        }
        Some(Page { version, items, next })
    }
}
