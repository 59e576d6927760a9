//! A node's store in this process: on a thread of its own, inside of a network namespace, with what it told.

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use harness::wait_for;
use ipnetwork::IpNetwork;
use podnet::{
    cluster::{self, Cluster, ClusterNode, Store as _, Update},
    config::{Config, StoreConfig, etcd::EtcdConfig},
    netns::Netns,
};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A node without a datapath: its configuration and its state folder.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    state: Arc<TempDir>,
}

/// Seconds of leases in tests, the shortest that podnet allows.
pub(crate) const LEASE: u32 = 3;

impl Node {
    /// Makes a node with an address `192.168.HIGH.LOW` out of its number.
    pub(crate) fn new(number: u16, urls: &[String]) -> Self {
        Self::with(number, urls, |_, _| {})
    }

    pub(crate) fn with(number: u16, urls: &[String], change: impl FnOnce(&mut Config, &mut EtcdConfig)) -> Self {
        let state = tempfile::tempdir().unwrap();
        let [high, low] = number.to_be_bytes();
        let mut config = Config::parse("pod-cidrs = [\"10.0.0.0/24\"]").unwrap();
        config.node = format!("node{number}");
        config.pod_cidrs = Vec::new();
        config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
        config.state_dir = state.path().join("state");
        let mut etcd = EtcdConfig::new(urls.to_vec());
        etcd.node_addresses = vec![format!("192.168.{high}.{low}").parse().unwrap()];
        (etcd.lease_seconds, etcd.grace_seconds) = (LEASE, 300);
        change(&mut config, &mut etcd);
        config.store = Some(StoreConfig::Etcd(Box::new(etcd)));
        // As the daemon would have read it.
        let config = Config::parse(&toml::to_string(&config).unwrap()).unwrap_or_else(|error| panic!("{error:#}"));
        Self { config, state: Arc::new(state) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.node
    }

    /// Starts the node's store inside of a network namespace.
    pub(crate) fn start(&self, netns: &Netns) -> Running {
        Running::start(netns, self)
    }

    /// Takes the node out of etcd, as `podnet daemon --cleanup` does.
    pub(crate) fn leave(&self, netns: &Netns) {
        netns.run(|| cluster::leave(&self.config)).unwrap();
    }
}

/// What a store told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The last snapshot.
    pub(crate) cluster: Option<Cluster>,
    /// The failure in force.
    pub(crate) failure: Option<String>,
    pub(crate) snapshots: usize,
    pub(crate) failures: usize,
    /// When the first snapshot came.
    pub(crate) first: Option<Instant>,
}

/// A store that runs.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    told: Arc<Mutex<Told>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Goes not before the thread has ended.
    _state: Arc<TempDir>,
}

impl Running {
    fn start(netns: &Netns, node: &Node) -> Self {
        let config = node.config.clone();
        let told = Arc::new(Mutex::new(Told::default()));
        let (stop, mut stopped) = oneshot::channel::<()>();
        let (name, notes) = (config.node.clone(), Arc::clone(&told));
        let netns = Netns::open(netns.path()).unwrap();
        let follow = move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut store = cluster::open(&config)?.context("there is a store")?;
                loop {
                    // Cancelled again and again: nothing may be lost by that.
                    let next = tokio::time::timeout(Duration::from_millis(30), store.next());
                    let update = tokio::select! {
                        update = next => update,
                        _ = &mut stopped => return Ok(()),
                    };
                    if let Ok(update) = update {
                        notes.lock().unwrap().note(update);
                    }
                }
            })
        };
        let thread = std::thread::spawn(move || netns.run(follow).unwrap());
        Self { name, told, stop: Some(stop), thread: Some(thread), _state: Arc::clone(&node.state) }
    }

    /// Looks at what the store told.
    pub(crate) fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.told.lock().unwrap())
    }

    /// Returns the node's own pod CIDRs, once they are known.
    pub(crate) fn pod_cidrs(&self) -> Vec<IpNetwork> {
        wait_for(&format!("{} to know its pod CIDRs; {:?}", self.name, self.told(|told| told.failure.clone())), || {
            self.knows(&self.name).map(|node| node.pod_cidrs)
        })
    }

    /// Returns a node of the last snapshot.
    pub(crate) fn knows(&self, name: &str) -> Option<ClusterNode> {
        self.told(|told| told.cluster.as_ref()?.node(name).cloned())
    }

    /// Waits for a snapshot with the node.
    pub(crate) fn wait_for_node(&self, name: &str) -> ClusterNode {
        wait_for(&format!("{} to know {name}", self.name), || self.knows(name))
    }

    /// Waits for a snapshot with all of these nodes.
    pub(crate) fn wait_for_nodes(&self, nodes: &[Node]) {
        for node in nodes {
            self.wait_for_node(node.name());
        }
    }

    /// Waits for a snapshot without the node.
    pub(crate) fn wait_without_node(&self, name: &str) {
        wait_for(&format!("{} to forget {name}", self.name), || self.knows(name).is_none().then_some(()));
    }

    /// Waits for a failure with these words.
    pub(crate) fn wait_for_failure(&self, words: &str) -> String {
        wait_for(
            &format!("{} to fail with {words:?}; it told {:?}", self.name, self.told(|told| told.failure.clone())),
            || self.told(|told| told.failure.clone().filter(|failure| failure.contains(words))),
        )
    }

    /// Waits until no failure is in force.
    pub(crate) fn wait_until_well(&self) {
        wait_for(&format!("{} to be well", self.name), || {
            self.told(|told| (told.failure.is_none() && told.cluster.is_some()).then_some(()))
        });
    }
}

impl Told {
    fn note(&mut self, update: Update) {
        match update {
            Update::Snapshot(cluster) => {
                self.first.get_or_insert_with(Instant::now);
                self.snapshots += 1;
                self.failure = None;
                self.cluster = Some(cluster);
            }
            Update::Failed(reason) | Update::Disowned(reason) => {
                self.failures += 1;
                self.failure = Some(reason);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // If it does not listen any more, it has panicked, which the thread tells.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the store of {} panicked", self.name);
        }
    }
}
