//! The task behind the store: keeps the node registered, follows the others, and tells what is new.
//!
//! One member of etcd at a time: whatever goes wrong ends the session, and the next member is tried. What was heard
//! survives, and is followed up from where it ended.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, WatchStream};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::{
    absence::Absence,
    connect::{REQUEST_TIMEOUT, connect, hint},
    identity,
    keys::Keys,
    mirror::Mirror,
    outlet::Outlet,
    registration::{Own, Step},
    session::{self, Heard, Lease},
    snapshot::assemble,
    transaction,
};
use crate::{
    cluster::{Cluster, Update},
    config::{etcd::EtcdConfig, show},
};

/// How long nothing must happen after an event before it is told: many nodes may change at once.
const SETTLE: Duration = Duration::from_millis(20);

/// After this time it is told, whatever goes on.
const SETTLE_LIMIT: Duration = Duration::from_millis(250);

/// How long to wait after a resumption for what was missed.
const SETTLE_RESUMED: Duration = Duration::from_millis(150);

/// Time between the first two rounds of attempts to reach any member; it doubles, and is shortened at random.
const MIN_BACKOFF: Duration = Duration::from_millis(200);

/// Longest time between two rounds.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Time after a conflict with other nodes until the next attempt; it doubles some times, and is shortened at random.
const CONFLICT_DELAY: Duration = Duration::from_millis(10);

/// How often a failure to reach etcd is told again if its reason has changed.
const REPEAT: Duration = Duration::from_secs(60);

/// How long a release that did not succeed is put off.
const RELEASE_RETRY: Duration = Duration::from_secs(10);

/// After this time the daemon may have started without an answer; less than it waits for one.
const HOLD_AFTER: Duration = Duration::from_secs(3);

/// A failure that was told, and is in force.
#[derive(Debug)]
struct Failure {
    reason: String,
    told_at: Instant,
    /// etcd is away, rather than in disagreement with the node.
    is_outage: bool,
}

/// Follows etcd.
#[derive(Debug)]
pub(super) struct Follower {
    config: EtcdConfig,
    keys: Keys,
    own: Own,
    outlet: Arc<Outlet>,
    mirror: Option<Mirror>,
    absence: Absence,
    lease: Option<i64>,
    /// Conflicts with other nodes in a row.
    attempt: u32,
    told: Option<Cluster>,
    failure: Option<Failure>,
    /// Keys that were left out, with the reasons that were logged.
    left_out: BTreeMap<String, String>,
    /// Whether the session has come so far that etcd counts as reached: the node is registered, or etcd says why not.
    reached: bool,
    started: Instant,
}

impl Follower {
    /// Makes a follower for a node.
    pub(super) fn new(config: EtcdConfig, own: Own, outlet: Arc<Outlet>) -> Self {
        Self {
            keys: Keys::new(&config.prefix),
            config,
            own,
            outlet,
            mirror: None,
            absence: Absence::default(),
            lease: None,
            attempt: 0,
            told: None,
            failure: None,
            left_out: BTreeMap::new(),
            reached: false,
            started: Instant::now(),
        }
    }

    /// Follows etcd for ever.
    pub(super) async fn run(mut self) {
        let endpoints = self.config.endpoints.clone();
        let mut position = fastrand::usize(..endpoints.len());
        let mut failures: Vec<String> = Vec::new();
        let mut rounds = 0_u32;
        loop {
            let endpoint = &endpoints[position % endpoints.len()];
            position += 1;
            self.reached = false;
            let Err(error) = Box::pin(self.session(endpoint)).await;
            let mut reason = format!("{endpoint}: {error:#}");
            let hint = hint(&self.config, &reason);
            reason.push_str(hint);
            debug!(reason, "the session with etcd has ended");
            if self.reached {
                failures.clear();
                rounds = 0;
                // All nodes lose a member at the same moment.
                sleep(SETTLE_LIMIT.mul_f64(fastrand::f64())).await;
                continue;
            }
            failures.push(reason);
            if failures.len() >= endpoints.len() {
                self.tell_outage(&failures.join("; "));
                failures.clear();
                let delay = MIN_BACKOFF.saturating_mul(1 << rounds.min(10)).min(MAX_BACKOFF);
                rounds += 1;
                sleep(delay.mul_f64(f64::midpoint(1.0, fastrand::f64()))).await;
            }
        }
    }

    /// Works with one member until something goes wrong.
    async fn session(&mut self, endpoint: &str) -> Result<Infallible> {
        let mut client = connect(&self.config, endpoint).await?;
        if let Some(mirror) = &self.mirror
            && !session::is_continued(&mut client, &self.keys, mirror).await?
        {
            self.mirror = None;
            self.lease = None;
        }
        let mut lease = Lease::take_up(&mut client, self.lease, self.config.lease_seconds).await?;
        self.lease = Some(lease.id);
        loop {
            let now = Instant::now();
            let is_resumed = self.mirror.is_some();
            if !is_resumed {
                self.mirror = Some(session::list(&mut client, &self.keys).await?);
                self.absence.restart();
            }
            let Some(mirror) = &self.mirror else { bail!("nothing was listed") };
            let watch = session::watch(&client, &self.keys, mirror).await?;
            let settled_at = if is_resumed { now + SETTLE_RESUMED } else { now };
            self.absence.resume(now);
            debug!(endpoint, revision = mirror.revision, nodes = mirror.nodes.len(), "following etcd");
            self.follow(&mut client, &mut lease, watch, settled_at).await?;
            info!("etcd has compacted what was missed; reading it anew");
            self.mirror = None;
        }
    }

    /// Follows the watch until it says that what was missed is gone.
    async fn follow(
        &mut self,
        client: &mut Client,
        lease: &mut Lease,
        mut watch: WatchStream,
        settled_at: Instant,
    ) -> Result<()> {
        let interval = Duration::from_secs(self.config.lease_seconds.into()) / 3;
        let mut report_at = Instant::now() + interval;
        let mut answer_by: Option<Instant> = None;
        // When what was heard is acted upon, and when that must not be put off any more.
        let mut settle: Option<(Instant, Instant)> = Some((settled_at, settled_at));
        loop {
            let settle_at = settle.map(|(at, _)| at);
            let absence_at = self.absence.next_at(Instant::now());
            let wake_at = [settle_at, absence_at, answer_by].into_iter().flatten().fold(report_at, Instant::min);
            tokio::select! {
                message = watch.message() => {
                    let Some(mirror) = &mut self.mirror else { bail!("nothing was listed") };
                    match session::hear(message, mirror)? {
                        Heard::Events => {
                            let now = Instant::now();
                            let latest = settle.map_or(now + SETTLE_LIMIT, |(_, latest)| latest);
                            settle = Some((latest.min(now + SETTLE), latest));
                        }
                        Heard::Nothing => {}
                        Heard::Compacted => return Ok(()),
                    }
                }
                answer = lease.answer() => {
                    answer_by = None;
                    if !answer.context("keep the lease")? {
                        *lease = Lease::take_up(client, Some(lease.id), self.config.lease_seconds).await?;
                        self.lease = Some(lease.id);
                        settle = Some((Instant::now(), Instant::now()));
                    }
                }
                () = sleep_until(wake_at) => {}
            }
            let now = Instant::now();
            if answer_by.is_some_and(|at| at <= now) {
                bail!("no sign of life since {:.0} s", (now + interval - report_at).as_secs_f32());
            }
            if report_at <= now {
                lease.report().await?;
                report_at = now + interval;
                answer_by = answer_by.or(Some(now + REQUEST_TIMEOUT.min(interval)));
                if self.look_for_addresses() {
                    settle = Some((now, now));
                }
            }
            if absence_at.is_some_and(|at| at <= now) {
                self.release_due(client, now).await?;
                settle = settle.or(Some((now, now)));
            }
            if settle.is_some_and(|(at, _)| at <= now) {
                settle = self.settle(client, lease.id).await?.map(|at| (at, at));
            }
        }
    }

    /// Acts upon what was heard: writes what is missing of the node, and tells the others. Returns when to try again.
    async fn settle(&mut self, client: &mut Client, lease: i64) -> Result<Option<Instant>> {
        let Some(mirror) = &mut self.mirror else { bail!("nothing was listed") };
        let now = Instant::now();
        self.absence.update(mirror, &self.own.identity, self.config.grace_seconds, now);
        if self.told.is_none() && (self.failure.is_some() || self.started.elapsed() > HOLD_AFTER) {
            // The daemon may have started with what it knew, and have pods by now.
            self.own.held.clone_from(&self.own.preferred);
        }
        match self.own.next(mirror, lease, self.attempt, fastrand::u64(..)) {
            Step::Done => {
                self.attempt = 0;
                self.reached = true;
                self.own.held = mirror.owned_by(&self.own.identity.node, &self.own.identity.id).collect();
                self.tell_nodes(now);
                Ok(None)
            }
            Step::Propose(proposal) => {
                let checked = transaction::register(&self.own, &proposal, &self.keys, mirror, lease)?;
                if session::execute(client, checked, mirror).await.context("register the node")? {
                    info!(
                        node = self.own.identity.node,
                        addresses = ?proposal.record.addresses,
                        pod_cidrs = show(&proposal.claim),
                        conflicts = self.attempt,
                        "registered in etcd"
                    );
                    return Ok(Some(now));
                }
                self.attempt = self.attempt.saturating_add(1);
                let delay = CONFLICT_DELAY.saturating_mul(1 << self.attempt.min(7)).mul_f64(fastrand::f64());
                Ok(Some(now + delay))
            }
            Step::Blocked(reason) => {
                self.reached = true;
                self.tell_blocked(&reason);
                Ok(None)
            }
        }
    }

    /// Releases what belongs to a node whose grace has ended, unless it reports or somebody else was faster.
    async fn release_due(&mut self, client: &mut Client, now: Instant) -> Result<()> {
        let (Some(mirror), Some(owner)) = (&mut self.mirror, self.absence.due(now)) else { return Ok(()) };
        let pod_cidrs: Vec<_> = mirror.owned_by(&owner.node, &owner.id).collect();
        let checked = transaction::release(&owner, &self.keys, mirror, false);
        if session::execute(client, checked, mirror).await.context("release an absent node")? {
            info!(node = owner.node, pod_cidrs = show(&pod_cidrs), "released what a node had that is gone");
        }
        self.absence.postpone(&owner, now + RELEASE_RETRY);
        Ok(())
    }

    /// Looks whether the node's addresses have changed, where they are not configured.
    fn look_for_addresses(&mut self) -> bool {
        if !self.config.node_addresses.is_empty() {
            return false;
        }
        let found = identity::default_addresses();
        // A node whose uplink is down for a moment has not moved.
        if found.is_empty() || found == self.own.addresses {
            return false;
        }
        self.own.addresses = found;
        true
    }

    fn tell_nodes(&mut self, now: Instant) {
        let Some(mirror) = &self.mirror else { return };
        let absence = &self.absence;
        let assembled =
            assemble(mirror, &self.keys, &self.own.identity.node, |node, id| absence.is_gone(node, id, now));
        for (key, reason) in &assembled.left_out {
            if self.left_out.get(key) != Some(reason) {
                warn!(key, reason, "a record in etcd is left out");
            }
        }
        self.left_out = assembled.left_out;
        if self.failure.take().is_none() && self.told.as_ref() == Some(&assembled.cluster) {
            return;
        }
        self.told = Some(assembled.cluster.clone());
        self.outlet.put(Update::Snapshot(assembled.cluster));
    }

    /// Tells that etcd is away: once, and again now and then if the reason is another one.
    fn tell_outage(&mut self, reason: &str) {
        let is_known = self.failure.as_ref().is_some_and(|failure| {
            failure.is_outage && (failure.reason == reason || failure.told_at.elapsed() < REPEAT)
        });
        if !is_known {
            self.tell_failure(reason, true);
        }
    }

    /// Tells that the node cannot be registered. The last known nodes stay in force: to follow others that believe the
    /// node away, or another to be it, would break what still works.
    fn tell_blocked(&mut self, reason: &str) {
        let is_known = self.failure.as_ref().is_some_and(|failure| !failure.is_outage && failure.reason == reason);
        if !is_known {
            self.tell_failure(reason, false);
        }
    }

    fn tell_failure(&mut self, reason: &str, is_outage: bool) {
        self.failure = Some(Failure { reason: reason.to_owned(), told_at: Instant::now(), is_outage });
        let tell = if is_outage { Update::Failed } else { Update::Disowned };
        self.outlet.put(tell(reason.to_owned()));
    }
}
