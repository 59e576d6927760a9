//! Nodes that do not report: since when this observer has known it, and when their grace ends.
//!
//! Every observer counts by its own clock from when it heard of it, so that clocks of different machines are never
//! compared; what is released in the end, a transaction checks once more.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{keys::Owner, mirror::Mirror};

/// Longest delay of a release, so that not all observers try at the same moment.
const MAX_SPREAD: Duration = Duration::from_secs(30);

/// After a disconnection no grace ends before the events meanwhile were heard.
const CATCH_UP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Absent {
    /// When the others forget the node.
    gone_at: Instant,
    /// When this observer releases what it has.
    release_at: Instant,
}

/// The installations that have something in etcd, but do not report.
#[derive(Debug, Default)]
pub(super) struct Absence {
    absent: HashMap<Owner, Absent>,
}

impl Absence {
    /// Compares with what was heard. `default_grace` is for what has no record. `own` is never absent to itself.
    pub(super) fn update(&mut self, mirror: &Mirror, own: &Owner, default_grace: u32, now: Instant) {
        let mut seen: HashSet<Owner> = HashSet::new();
        let mut note = |node: &str, id: &str, grace: u32| {
            if mirror.is_alive(node, id) || (own.node == node && own.id == id) {
                return;
            }
            let owner = Owner { node: node.to_owned(), id: id.to_owned() };
            self.absent.entry(owner.clone()).or_insert_with(|| {
                let grace = Duration::from_secs(grace.into());
                let spread = MAX_SPREAD.min(grace / 4).mul_f64(fastrand::f64());
                Absent { gone_at: now + grace, release_at: now + grace + spread }
            });
            seen.insert(owner);
        };
        for (name, entry) in &mirror.nodes {
            note(name, &entry.value.id, entry.value.grace_seconds);
        }
        for owner in mirror.owners.values().map(|entry| &entry.value) {
            // A record with that installation has its own grace, and was noted above.
            note(&owner.node, &owner.id, default_grace);
        }
        self.absent.retain(|owner, _| seen.contains(owner));
    }

    /// Notes that the observer was away itself for some time, and has yet to hear what happened.
    pub(super) fn resume(&mut self, now: Instant) {
        for absent in self.absent.values_mut() {
            let late = (now + CATCH_UP).saturating_duration_since(absent.gone_at);
            absent.gone_at += late;
            absent.release_at += late;
        }
    }

    /// Forgets everything: what was heard has a gap, so that a node may have been back in between.
    pub(super) fn restart(&mut self) {
        self.absent.clear();
    }

    /// Returns whether the grace of an installation has ended.
    pub(super) fn is_gone(&self, node: &str, id: &str, now: Instant) -> bool {
        let owner = Owner { node: node.to_owned(), id: id.to_owned() };
        self.absent.get(&owner).is_some_and(|absent| absent.gone_at <= now)
    }

    /// Returns an installation whose belongings this observer should release now.
    pub(super) fn due(&self, now: Instant) -> Option<Owner> {
        let due = self.absent.iter().filter(|(_, absent)| absent.release_at <= now);
        due.min_by_key(|(_, absent)| absent.release_at).map(|(owner, _)| owner.clone())
    }

    /// Puts off a release that did not succeed.
    pub(super) fn postpone(&mut self, owner: &Owner, until: Instant) {
        if let Some(absent) = self.absent.get_mut(owner) {
            absent.release_at = until;
        }
    }

    /// Returns when something is to be done next, later than `now` or at once.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        let next = |absent: &Absent| if absent.gone_at > now { absent.gone_at } else { absent.release_at };
        self.absent.values().map(next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::etcd::keys::Keys;

    fn own() -> Owner {
        Owner { node: "own".into(), id: "own".into() }
    }

    fn mirror() -> Mirror {
        let mut mirror = Mirror::new(Keys::new("/p"));
        mirror.put("/p/nodes/a", br#"{"id":"i","addresses":[],"podCIDRs":[],"graceSeconds":100}"#, 2, 0);
        mirror.put("/p/cidrs/10.0.0.0/24", br#"{"node":"a","id":"i"}"#, 2, 0);
        mirror.put("/p/alive/a", br#"{"id":"i"}"#, 2, 7);
        mirror
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_grace_of_the_absent_node_counts_from_when_it_was_seen() {
        let (mut absence, mut mirror, start) = (Absence::default(), mirror(), Instant::now());
        absence.update(&mirror, &own(), 5, start);
        assert_eq!(absence.next_at(start), None);
        mirror.delete("/p/alive/a", 3);
        absence.update(&mirror, &own(), 5, start);
        absence.update(&mirror, &own(), 5, start + seconds(50));
        assert!(!absence.is_gone("a", "i", start + seconds(99)));
        assert_eq!(absence.next_at(start), Some(start + seconds(100)));
        assert!(absence.is_gone("a", "i", start + seconds(100)));
        let later = start + seconds(125);
        assert_eq!(absence.due(later).unwrap().node, "a");
        absence.postpone(&absence.due(later).unwrap(), later + seconds(1));
        assert_eq!((absence.due(later), absence.next_at(later)), (None, Some(later + seconds(1))));
        // It is back, and away again: that counts anew.
        mirror.put("/p/alive/a", br#"{"id":"i"}"#, 4, 8);
        absence.update(&mirror, &own(), 5, later);
        mirror.delete("/p/alive/a", 5);
        absence.update(&mirror, &own(), 5, later);
        assert!(!absence.is_gone("a", "i", later + seconds(99)));
    }

    #[test]
    fn another_installation_of_the_name_is_not_the_same_node() {
        let (mut absence, mut mirror, start) = (Absence::default(), mirror(), Instant::now());
        mirror.put("/p/alive/a", br#"{"id":"new"}"#, 3, 7);
        mirror.put("/p/nodes/a", br#"{"id":"new","addresses":[],"podCIDRs":[],"graceSeconds":100}"#, 3, 0);
        absence.update(&mirror, &own(), 5, start);
        assert!(absence.is_gone("a", "i", start + seconds(5)), "what it left has the observer's own grace");
        assert!(!absence.is_gone("a", "new", start + seconds(500)));
    }

    #[test]
    fn an_observer_that_was_away_waits_for_what_it_missed() {
        let (mut absence, mut mirror, start) = (Absence::default(), mirror(), Instant::now());
        mirror.delete("/p/alive/a", 3);
        absence.update(&mirror, &own(), 5, start);
        let back = start + seconds(1000);
        absence.resume(back);
        assert!(!absence.is_gone("a", "i", back) && absence.due(back).is_none());
        assert!(absence.is_gone("a", "i", back + CATCH_UP));
    }
}
