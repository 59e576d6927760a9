//! Where the follower lays out news, and the store picks them up: the newest of each kind only.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cluster::{Cluster, Update};

/// News that nobody has picked up yet.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pending: Mutex<Pending>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    snapshot: Option<Cluster>,
    /// A failure that came after the snapshot.
    failure: Option<String>,
}

impl Desk {
    /// Lays out news. A snapshot takes the place of all that came before; a failure leaves the snapshot before it.
    pub(super) fn put(&self, update: Update) {
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            match update {
                Update::Snapshot(cluster) => *pending = Pending { snapshot: Some(cluster), failure: None },
                Update::Failed(reason) | Update::Disowned(reason) => pending.failure = Some(reason),
            }
        }
        self.news.notify_one();
    }

    /// Waits for news and picks them up. Safe to cancel.
    pub(super) async fn pick_up(&self) -> Update {
        loop {
            if let Some(update) = self.take() {
                return update;
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<Update> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = pending.snapshot.take().map(Update::Snapshot);
        snapshot.or_else(|| pending.failure.take().map(Update::Failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(reason: &str) -> Update {
        Update::Failed(reason.into())
    }

    #[test]
    fn the_newest_counts_and_none_is_lost() {
        let desk = Desk::default();
        assert_eq!(desk.take(), None);
        desk.put(failed("a"));
        desk.put(Update::Snapshot(Cluster::default()));
        assert_eq!(desk.take(), Some(Update::Snapshot(Cluster::default())));
        assert_eq!(desk.take(), None, "a failure that is over");
        desk.put(Update::Snapshot(Cluster::default()));
        desk.put(failed("b"));
        desk.put(failed("c"));
        assert_eq!(desk.take(), Some(Update::Snapshot(Cluster::default())));
        assert_eq!(desk.take(), Some(failed("c")));
    }
}
