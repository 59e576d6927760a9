//! What the follower has to tell, until somebody asks: the latest only, since each snapshot is complete.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cluster::Update;

/// A place for one piece of news.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    latest: Mutex<Option<Update>>,
    news: Notify,
}

impl Outlet {
    /// Puts news in place of what was not heard yet.
    pub(super) fn put(&self, update: Update) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(update);
        self.news.notify_one();
    }

    /// Waits for news. Safe to cancel.
    pub(super) async fn next(&self) -> Update {
        loop {
            if let Some(update) = self.latest.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return update;
            }
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_latest_news_is_told_once() {
        let outlet = Outlet::default();
        let later = || tokio::time::timeout(Duration::from_millis(10), outlet.next());
        assert!(later().await.is_err());
        outlet.put(Update::Failed("a".into()));
        outlet.put(Update::Failed("b".into()));
        assert_eq!(outlet.next().await, Update::Failed("b".into()));
        assert!(later().await.is_err());
        outlet.put(Update::Failed("c".into()));
        assert_eq!(later().await.unwrap(), Update::Failed("c".into()));
    }
}
