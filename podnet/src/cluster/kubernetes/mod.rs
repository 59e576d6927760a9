//! The store `kubernetes`: Node objects, listed and watched.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};

use self::{
    announce::Announcer,
    desk::Desk,
    follow::{Condition, Follower},
};
use super::{Store, Update};
use crate::config::kubernetes::KubernetesConfig;

mod announce;
mod connect;
mod desk;
mod follow;
mod members;
mod object;

/// Nodes out of Node objects.
#[derive(Debug)]
pub struct KubernetesStore {
    config: KubernetesConfig,
    own: String,
    timing: Timing,
    desk: Arc<Desk>,
    ready: watch::Sender<bool>,
    /// The follower and the announcer, once somebody asks for news; they end with the store.
    tasks: JoinSet<()>,
}

/// How long the store waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first delay after a failure, and the longest.
    pub first_delay: Duration,
    /// See `first_delay`.
    pub last_delay: Duration,
    /// Longest time until the server begins to answer, and until it has sent a page.
    pub answer: Duration,
    /// A connection on which nothing comes for so long is dead. The server sends a bookmark each minute.
    pub silence: Duration,
    /// After so many seconds the server ends a watch, which is then asked for anew.
    pub watch_seconds: u32,
    /// A watch that has lasted so long was a good one.
    pub settled: Duration,
    /// How long nothing must change until a snapshot is made.
    pub settle: Duration,
    /// After this time a snapshot is made, whatever changes.
    pub settle_limit: Duration,
    /// Time between two writings of the condition.
    pub reassert: Duration,
    /// Objects in a page of a list.
    pub page: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_delay: Duration::from_millis(500),
            last_delay: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(90),
            watch_seconds: 290,
            settled: Duration::from_secs(5),
            settle: Duration::from_millis(50),
            settle_limit: Duration::from_millis(500),
            reassert: Duration::from_secs(5),
            page: 500,
        }
    }
}

impl KubernetesStore {
    /// Makes a store, seen from the node of this name.
    #[must_use]
    pub fn new(config: KubernetesConfig, own: String) -> Self {
        Self::with_timing(config, own, Timing::default())
    }

    /// Makes a store that waits for other times.
    #[must_use]
    pub fn with_timing(config: KubernetesConfig, own: String, timing: Timing) -> Self {
        let (ready, _) = watch::channel(false);
        Self { config, own, timing, desk: Arc::default(), ready, tasks: JoinSet::new() }
    }

    fn start(&mut self) {
        let (sender, condition) = watch::channel(Condition::default());
        let (config, own, timing) = (self.config.clone(), self.own.clone(), self.timing);
        let follower = Follower::new(config.clone(), own.clone(), timing, Arc::clone(&self.desk), sender);
        self.tasks.spawn(follower.run());
        self.tasks.spawn(Announcer { config, own, timing, ready: self.ready.subscribe(), condition }.run());
    }
}

impl Store for KubernetesStore {
    fn describe(&self) -> String {
        let KubernetesConfig { kubeconfig, api_server, .. } = &self.config;
        match (api_server, kubeconfig) {
            (Some(url), _) => format!("kubernetes at {url}"),
            (None, Some(path)) => format!("kubernetes by {}", path.display()),
            (None, None) => "kubernetes".into(),
        }
    }

    async fn next(&mut self) -> Update {
        if self.tasks.is_empty() {
            self.start();
        }
        tokio::select! {
            biased;
            update = self.desk.pick_up() => update,
            // Neither task ends by itself. What one of them has panicked about stands in the log.
            _ = self.tasks.join_next() => {
                self.tasks.abort_all();
                Update::Failed("following the nodes came to an unexpected end; it begins anew".into())
            }
        }
    }

    fn allots_pod_cidrs(&self) -> bool {
        true
    }

    fn announce_ready(&mut self) {
        self.ready.send_replace(true);
    }
}
