//! Follows the Node objects: a list in pages, then a watch from the list's state on, and again where that ends.
//!
//! `kube` has a watcher of its own. It does not tell when a watch is back after a failure, so that the state would be
//! called stale until some node changes; and it asks for ever for a state that the server refused with status 410.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::BackoffBuilder as _;
use futures::StreamExt as _;
use kube::{
    Client,
    api::{ListParams, WatchEvent, WatchParams},
    core::Request,
};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{
    Timing,
    connect::{Refusal, connect, request_text, timed},
    desk::Desk,
    members::Members,
    object::{NodeList, NodeObject},
};
use crate::{cluster::Update, config::kubernetes::KubernetesConfig};

/// The resource that podnet follows.
pub(super) const NODES: &str = "/api/v1/nodes";

/// What is known of the own node's condition `NetworkUnavailable`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Condition {
    /// The own node was not seen yet.
    #[default]
    Unknown,
    /// Its status, if the node has the condition.
    Seen(Option<String>),
}

/// Follows the Node objects, and lays out what follows from them.
#[derive(Debug)]
pub(super) struct Follower {
    config: KubernetesConfig,
    own: String,
    timing: Timing,
    desk: Arc<Desk>,
    condition: watch::Sender<Condition>,
    members: Members,
    /// State of the cluster up to which the members are known; `None`: a list is needed.
    version: Option<String>,
    /// The failure that was told last, unless the server has answered since.
    failure: Option<Failure>,
    /// Faults of nodes that were told.
    faults: BTreeMap<String, String>,
}

/// A failure that was told.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The server cannot be asked. It is now reset, now refused, now late: that is no news.
    Away,
    /// Anything else, in words.
    Other(String),
}

/// How following comes to an end.
enum End {
    /// The watch ended as it may, or its connection did.
    Closed,
    /// The state to go on from is not to be had any more.
    Expired(String),
    /// The server does not answer, or not as it should.
    Failed(Refusal),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        if refusal.is_expired() { Self::Expired(refusal.reason) } else { Self::Failed(refusal) }
    }
}

impl Follower {
    pub(super) fn new(
        config: KubernetesConfig,
        own: String,
        timing: Timing,
        desk: Arc<Desk>,
        condition: watch::Sender<Condition>,
    ) -> Self {
        let members = Members::new(own.clone());
        Self { config, own, timing, desk, condition, members, version: None, failure: None, faults: BTreeMap::new() }
    }

    /// Follows for ever.
    pub(super) async fn run(mut self) {
        let mut delays = self.timing.delays();
        loop {
            let start = Instant::now();
            // A new client each time: it reads files that may have changed, and has no connection that is dead.
            let end = match connect(&self.config, self.timing).await {
                Ok(client) => self.follow(&client).await,
                Err(error) => End::Failed(Refusal::without_answer(format!("{error:#}"))),
            };
            let lived = start.elapsed();
            if lived >= self.timing.settled {
                delays = self.timing.delays();
            }
            let mut delay = Duration::ZERO;
            match end {
                End::Closed if lived >= self.timing.settled => {}
                End::Closed => delay = delays.next().unwrap_or_default(),
                End::Expired(reason) => {
                    info!(reason, "the list of nodes is read anew");
                    self.version = None;
                    delay = delays.next().unwrap_or_default();
                }
                End::Failed(refusal) => {
                    delay = delays.next().unwrap_or_default().max(refusal.retry_after.unwrap_or_default());
                    self.fail(refusal.reason, refusal.is_away);
                }
            }
            debug!(?delay, ?lived, "the watch of nodes has ended");
            tokio::time::sleep(delay).await;
        }
    }

    /// Tells a failure, unless it is the one that was told last.
    fn fail(&mut self, reason: String, is_away: bool) {
        let failure = if is_away { Failure::Away } else { Failure::Other(reason.clone()) };
        if self.failure.as_ref() != Some(&failure) {
            self.desk.put(Update::Failed(reason));
            self.failure = Some(failure);
        }
    }

    async fn follow(&mut self, client: &Client) -> End {
        let ended = match self.version.clone() {
            Some(version) => self.watch(client, version).await,
            None => match self.list(client).await {
                Ok(version) => {
                    self.publish();
                    self.watch(client, version).await
                }
                Err(end) => Err(end),
            },
        };
        ended.err().unwrap_or(End::Closed)
    }

    /// Reads all objects, and returns the state that they show.
    async fn list(&mut self, client: &Client) -> Result<String, End> {
        let start = Instant::now();
        let mut members = Members::new(self.own.clone());
        let mut condition = Condition::Unknown;
        let mut parameters = ListParams::default().limit(self.timing.page);
        loop {
            let request = Request::new(NODES).list(&parameters);
            let request = request.map_err(|error| Refusal::without_answer(format!("list nodes: {error}")))?;
            let text = request_text(client, request, self.timing.answer).await;
            let text = text.map_err(|error| Refusal::new(&error, "list", "nodes"))?;
            let page = parse(text).await?;
            for object in page.items {
                members.put(&object);
                if object.metadata.name == self.own {
                    condition = Condition::Seen(object.network_unavailable().map(str::to_owned));
                }
            }
            if !page.metadata.next.is_empty() {
                parameters = parameters.continue_token(&page.metadata.next);
                continue;
            }
            if page.metadata.resource_version.is_empty() {
                return Err(Refusal::without_answer("list nodes: the list has no resourceVersion".into()).into());
            }
            debug!(nodes = members.len(), milliseconds = start.elapsed().as_millis(), "the nodes are listed");
            self.members = members;
            self.condition.send_replace(condition);
            self.version = Some(page.metadata.resource_version.clone());
            return Ok(page.metadata.resource_version);
        }
    }

    /// Takes events until the watch ends.
    async fn watch(&mut self, client: &Client, version: String) -> Result<(), End> {
        let parameters = WatchParams::default().timeout(self.timing.watch_seconds);
        let request = Request::new(NODES).watch(&parameters, &version);
        let request = request.map_err(|error| Refusal::without_answer(format!("watch nodes: {error}")))?;
        let events = timed(self.timing.answer, client.request_events::<NodeObject>(request)).await;
        let events = events.map_err(|error| Refusal::new(&error, "watch", "nodes"))?;
        let mut events = pin!(events);
        // The server is there again: that is news, once it has told what it has to tell.
        let mut due = self.failure.is_some().then(|| Due::after_news(None, self.timing));
        let mut has_changes = false;
        let end = loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => match self.take(event) {
                        Ok(true) => {
                            due = Some(Due::after_news(due, self.timing));
                            has_changes = true;
                        }
                        Ok(false) => {}
                        Err(end) => break Err(end),
                    },
                    Some(Err(kube::Error::SerdeError(error))) => {
                        break Err(End::Expired(format!("an event makes no sense: {error}")));
                    }
                    Some(Err(error @ kube::Error::Api(_))) => {
                        break Err(Refusal::new(&error, "watch", "nodes").into());
                    }
                    // Whether the server is away is seen when it is asked again.
                    Some(Err(error)) => {
                        debug!(%error, "the watch of nodes broke off");
                        break Ok(());
                    }
                    None => break Ok(()),
                },
                () = tokio::time::sleep_until(due.map_or_else(tokio::time::Instant::now, |due| due.at)),
                    if due.is_some() =>
                {
                    due = None;
                    has_changes = false;
                    self.publish();
                }
            }
        };
        if has_changes {
            self.publish();
        }
        end
    }

    /// Takes an event. Returns whether it means anything for the snapshot.
    fn take(&mut self, event: WatchEvent<NodeObject>) -> Result<bool, End> {
        let (object, news) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let news = self.members.put(&object);
                (object, news)
            }
            WatchEvent::Deleted(object) => {
                let news = self.members.remove(&object.metadata.name);
                (object, news)
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                return Ok(false);
            }
            WatchEvent::Error(status) => return Err(Refusal::of_status(&status, "watch", "nodes").into()),
        };
        if object.metadata.name == self.own {
            let seen = Condition::Seen(object.network_unavailable().map(str::to_owned));
            self.condition.send_if_modified(|condition| {
                let differs = *condition != seen;
                *condition = seen;
                differs
            });
        }
        if object.metadata.resource_version.is_empty() {
            return Err(End::Expired("an event has no resourceVersion".into()));
        }
        self.version = Some(object.metadata.resource_version);
        Ok(news)
    }

    /// Lays out the snapshot that follows from what is known, and tells of faults that are new.
    fn publish(&mut self) {
        let judgement = self.members.judge();
        for (node, fault) in &judgement.faults {
            if self.faults.get(node) != Some(fault) {
                warn!(node, fault, "a Node object is not right");
            }
        }
        self.faults = judgement.faults;
        match judgement.cluster {
            Ok(cluster) => {
                self.failure = None;
                self.desk.put(Update::Snapshot(cluster));
            }
            Err(reason) => self.fail(reason, false),
        }
    }
}

/// When to lay out the next snapshot.
#[derive(Clone, Copy)]
struct Due {
    at: tokio::time::Instant,
    latest: tokio::time::Instant,
}

impl Due {
    /// Puts it off after news, up to a limit: nodes come and go together.
    fn after_news(due: Option<Self>, timing: Timing) -> Self {
        let now = tokio::time::Instant::now();
        let latest = due.map_or(now + timing.settle_limit, |due| due.latest);
        Self { at: latest.min(now + timing.settle), latest }
    }
}

/// Parses a page on another thread: it may have megabytes, and the daemon answers the CNI plugin meanwhile.
async fn parse(text: String) -> Result<NodeList, End> {
    let parsed = tokio::task::spawn_blocking(move || serde_json::from_str(&text)).await;
    let reason = match parsed {
        Ok(Ok(list)) => return Ok(list),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Refusal::without_answer(format!("list nodes: the answer makes no sense: {reason}")).into())
}

impl Timing {
    /// Returns the delays between attempts: each up to twice the one before, at random.
    pub(super) fn delays(self) -> impl Iterator<Item = Duration> + Send + use<> {
        backon::ExponentialBuilder::default()
            .with_min_delay(self.first_delay)
            .with_max_delay(self.last_delay)
            .with_jitter()
            .without_max_times()
            .build()
    }
}
