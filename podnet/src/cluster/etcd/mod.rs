//! The store `etcd`: nodes register under a lease, claim pod CIDRs by transaction, and follow each other by watch.
//!
//! Reading order: `keys` (what is in etcd), `mirror` (what of it was heard), `registration` and `claim` (what the node
//! writes next), `transaction`, `absence` (nodes that are away), `snapshot` (the nodes that follow), `session` and
//! `connect` (etcd itself), `follower` (the task that puts them together). Only this folder uses `etcd_client`.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::IpNetwork;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::{
    claim::Range,
    connect::connect,
    follower::Follower,
    keys::{Keys, Layout, Owner},
    outlet::Outlet,
    registration::Own,
};
use super::{Store, Update, last_known};
use crate::{
    config::{Config, etcd::EtcdConfig, show},
    database::Database,
};

mod keys;
mod mirror;
mod claim;
mod registration;
mod transaction;
mod absence;
mod snapshot;
mod identity;
mod connect;
mod session;
mod outlet;
mod follower;

/// Nodes out of etcd.
#[derive(Debug)]
pub struct EtcdStore {
    description: String,
    outlet: Arc<Outlet>,
    /// Until it is asked for the first time.
    idle: Option<Box<Follower>>,
    task: Option<JoinHandle<()>>,
}

impl EtcdStore {
    /// Makes the store of a node; connects only when it is asked.
    ///
    /// # Errors
    ///
    /// The state folder cannot be read or written.
    pub fn new(config: &Config, etcd: &EtcdConfig) -> Result<Self> {
        let own = own(config, etcd)?;
        let outlet = Arc::new(Outlet::default());
        let follower = Follower::new(etcd.clone(), own, Arc::clone(&outlet));
        let description = format!("etcd {} {}", etcd.endpoints.join(","), etcd.prefix);
        Ok(Self { description, outlet, idle: Some(Box::new(follower)), task: None })
    }
}

impl Store for EtcdStore {
    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn next(&mut self) -> Update {
        if let Some(follower) = self.idle.take() {
            self.task = Some(tokio::spawn(follower.run()));
        }
        let Some(task) = &mut self.task else { return self.outlet.next().await };
        tokio::select! {
            update = self.outlet.next() => update,
            ended = task => {
                self.task = None;
                Update::Failed(format!("following etcd has ended; start the daemon again ({ended:?})"))
            }
        }
    }

    fn allots_pod_cidrs(&self) -> bool {
        true
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Gathers what the node wants to be known as.
fn own(config: &Config, etcd: &EtcdConfig) -> Result<Own> {
    let range = |cidr: &IpNetwork| Range { cidr: *cidr, node_prefix: etcd.node_prefix(*cidr) };
    // A broken file was reported by the daemon already.
    let earlier = last_known::load(&config.state_dir).ok().flatten();
    let preferred: Vec<IpNetwork> =
        earlier.and_then(|cluster| Some(cluster.node(&config.node)?.pod_cidrs.clone())).unwrap_or_default();
    // A database that cannot be read may hold pods, and so may one that somebody moved away; the engine will say more.
    let held = match Database::leased(&config.state_dir) {
        Ok(Some(addresses)) => {
            let is_used = |cidr: &&IpNetwork| addresses.iter().any(|address| cidr.contains(*address));
            preferred.iter().filter(is_used).copied().collect()
        }
        Ok(None) | Err(_) => preferred.clone(),
    };
    let addresses =
        if etcd.node_addresses.is_empty() { identity::default_addresses() } else { etcd.node_addresses.clone() };
    Ok(Own {
        identity: Owner { node: config.node.clone(), id: identity::installation(&config.state_dir)? },
        addresses,
        grace_seconds: etcd.grace_seconds,
        layout: Layout { node_prefix_ipv4: etcd.node_prefix_ipv4, node_prefix_ipv6: etcd.node_prefix_ipv6 },
        ranges: config.cluster_cidrs.iter().map(range).collect(),
        exact: config.pod_cidrs.clone(),
        held,
        preferred,
    })
}

/// Takes the node out of etcd: its registration, and its claims of pod CIDRs. Without an answer it says that the others
/// will do so when the grace has passed. The node's ID goes in any case.
///
/// # Errors
///
/// The node's ID cannot be removed.
pub fn leave(config: &Config, etcd: &EtcdConfig) -> Result<()> {
    if let Some(id) = identity::known_installation(&config.state_dir)? {
        let owner = Owner { node: config.node.clone(), id };
        match take_out(etcd, &owner) {
            Ok(pod_cidrs) => info!(node = owner.node, pod_cidrs = show(&pod_cidrs), "released the node in etcd"),
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot release the node in etcd; the other nodes do when it was away for {} s", etcd.grace_seconds
            ),
        }
    }
    identity::forget(&config.state_dir)
}

/// Asks one member after the other.
fn take_out(etcd: &EtcdConfig, owner: &Owner) -> Result<Vec<IpNetwork>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let mut last = anyhow!("there is no endpoint");
    for endpoint in &etcd.endpoints {
        match runtime.block_on(take_out_of(etcd, endpoint, owner)) {
            Ok(pod_cidrs) => return Ok(pod_cidrs),
            Err(error) => last = error.context(endpoint.clone()),
        }
    }
    Err(last)
}

async fn take_out_of(etcd: &EtcdConfig, endpoint: &str, owner: &Owner) -> Result<Vec<IpNetwork>> {
    let mut client = connect(etcd, endpoint).await?;
    let keys = Keys::new(&etcd.prefix);
    let mut mirror = session::list(&mut client, &keys).await?;
    // Once more if the node's lease runs out meanwhile.
    for _ in 0..2 {
        let pod_cidrs = mirror.owned_by(&owner.node, &owner.id).collect();
        let checked = transaction::release(owner, &keys, &mirror, true);
        if session::execute(&mut client, checked, &mut mirror).await? {
            return Ok(pod_cidrs);
        }
    }
    Err(anyhow!("somebody else changes what the node has"))
}
