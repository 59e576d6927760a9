//! One connection's worth of etcd: requests in, mirror up to date. Knows nothing of what the node wants.

use anyhow::{Context as _, Result, anyhow, bail};
use etcd_client::{
    Client, Error, EventType, GetOptions, LeaseKeepAliveStream, LeaseKeeper, TxnOpResponse, WatchOptions,
    WatchResponse, WatchStream,
};
use tracing::{info, warn};

use super::{
    connect::{explain, within},
    keys::Keys,
    mirror::Mirror,
    transaction::{Checked, Write},
};

/// Keys per answer of a listing.
const PAGE: i64 = 1000;

/// Longest message of a watch in bytes: a thousand revisions that were missed may come at once.
const MAX_WATCH_MESSAGE: usize = 64 << 20;

/// A lease under way.
pub(super) struct Lease {
    /// Its number.
    pub(super) id: i64,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

impl Lease {
    /// Takes up a lease, or gets a new one of so many seconds if there is none any more.
    ///
    /// # Errors
    ///
    /// etcd does not answer.
    pub(super) async fn take_up(client: &mut Client, id: Option<i64>, seconds: u32) -> Result<Self> {
        if let Some(id) = id {
            let answer = within(async {
                match client.lease_keep_alive(id).await {
                    // What the library makes of a lease without time left.
                    Err(Error::LeaseKeepAliveError(_)) => Ok(None),
                    answer => answer.map(Some),
                }
            });
            if let Some((keeper, answers)) = answer.await.context("keep the lease")? {
                return Ok(Self { id, keeper, answers });
            }
            info!("the lease has run out; registering again");
        }
        let id = within(client.lease_grant(seconds.into(), None)).await.context("get a lease")?.id();
        let (keeper, answers) = within(client.lease_keep_alive(id)).await.context("keep the lease")?;
        Ok(Self { id, keeper, answers })
    }

    /// Reports once. The answer comes by [`Lease::answer`].
    pub(super) async fn report(&mut self) -> Result<()> {
        within(self.keeper.keep_alive()).await.context("keep the lease")
    }

    /// Waits for the next answer; returns whether the lease is still there. Safe to cancel.
    pub(super) async fn answer(&mut self) -> Result<bool> {
        match self.answers.message().await {
            Ok(Some(answer)) => Ok(answer.ttl() > 0),
            Ok(None) => bail!("etcd ended the keeping of the lease"),
            Err(error) => Err(explain(&error)),
        }
    }
}

/// Reads all keys below the prefix, as of one revision.
///
/// # Errors
///
/// etcd does not answer, or refuses the user.
pub(super) async fn list(client: &mut Client, keys: &Keys) -> Result<Mirror> {
    let mut mirror = Mirror::new(keys.clone());
    let (first, end) = keys.all();
    let mut from = first.into_bytes();
    loop {
        let options = GetOptions::new().with_range(end.as_str()).with_limit(PAGE).with_revision(mirror.revision);
        let answer = within(client.get(from, Some(options))).await.context("list the keys")?;
        if mirror.revision == 0 {
            let header = answer.header().context("an answer without header")?;
            (mirror.revision, mirror.cluster_id) = (header.revision(), header.cluster_id());
        }
        for pair in answer.kvs() {
            mirror.put(&String::from_utf8_lossy(pair.key()), pair.value(), pair.mod_revision(), pair.lease());
        }
        match answer.kvs().last() {
            Some(last) if answer.more() => from = [last.key(), &[0]].concat(),
            _ => return Ok(mirror),
        }
    }
}

/// Returns whether a mirror still fits: it is that etcd, and it has not gone back to a backup.
///
/// # Errors
///
/// etcd does not answer, or has no leader.
pub(super) async fn is_continued(client: &mut Client, keys: &Keys, mirror: &Mirror) -> Result<bool> {
    let answer = within(client.get(keys.layout(), None)).await.context("read the layout")?;
    let header = answer.header().context("an answer without header")?;
    let continued = header.cluster_id() == mirror.cluster_id && header.revision() >= mirror.revision;
    if !continued {
        warn!("etcd was replaced or restored from a backup; reading it anew");
    }
    Ok(continued)
}

/// Watches all keys below the prefix, from what the mirror has not heard.
///
/// # Errors
///
/// etcd does not answer, or refuses the user.
pub(super) async fn watch(client: &Client, keys: &Keys, mirror: &Mirror) -> Result<WatchStream> {
    let (first, end) = keys.all();
    // Not in fragments: nothing would tell whether a revision was heard to its end.
    let options = WatchOptions::new().with_range(end).with_start_revision(mirror.revision + 1).with_progress_notify();
    let mut client = client.watch_client().max_decoding_message_size(MAX_WATCH_MESSAGE);
    within(client.watch(first, Some(options))).await.context("watch the keys")
}

/// What a message of a watch meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Keys changed.
    Events,
    /// Nothing changed.
    Nothing,
    /// What was missed is not there any more: everything must be listed anew.
    Compacted,
}

/// Takes a message of the watch into the mirror.
///
/// # Errors
///
/// The watch has ended, and why.
pub(super) fn hear(message: Result<Option<WatchResponse>, Error>, mirror: &mut Mirror) -> Result<Heard> {
    let message = message.map_err(|error| explain(&error))?.ok_or_else(|| anyhow!("etcd ended the watch"))?;
    if message.canceled() {
        if message.compact_revision() > 0 {
            return Ok(Heard::Compacted);
        }
        bail!("etcd ended the watch: {}", message.cancel_reason());
    }
    for event in message.events() {
        let Some(pair) = event.kv() else { continue };
        let key = String::from_utf8_lossy(pair.key());
        match event.event_type() {
            EventType::Put => mirror.put(&key, pair.value(), pair.mod_revision(), pair.lease()),
            EventType::Delete => mirror.delete(&key, pair.mod_revision()),
        }
        // The header's revision may be ahead of events that are still to come.
        mirror.revision = mirror.revision.max(pair.mod_revision());
    }
    if !message.events().is_empty() {
        return Ok(Heard::Events);
    }
    if let Some(header) = message.header().filter(|_| !message.created()) {
        // A notification of progress: all up to it was heard, so that a later compaction does no harm.
        mirror.revision = mirror.revision.max(header.revision());
    }
    Ok(Heard::Nothing)
}

/// Runs a transaction, and takes what it did, or what stood in its way, into the mirror. Returns whether it was done.
///
/// # Errors
///
/// etcd does not answer: it may have been done or not.
pub(super) async fn execute(client: &mut Client, checked: Checked, mirror: &mut Mirror) -> Result<bool> {
    let answer = within(client.txn(checked.txn)).await?;
    let revision = answer.header().context("an answer without header")?.revision();
    if answer.succeeded() {
        for write in checked.writes {
            match write {
                Write::Put(key, value, lease) => mirror.put(&key, &value, revision, lease),
                Write::Delete(key) => mirror.delete(&key, revision),
            }
        }
        return Ok(true);
    }
    for (key, found) in checked.compared.iter().zip(answer.op_responses()) {
        let TxnOpResponse::Get(found) = found else { continue };
        match found.kvs().first() {
            Some(pair) => mirror.put(key, pair.value(), pair.mod_revision(), pair.lease()),
            None => mirror.delete(key, revision),
        }
    }
    Ok(false)
}
