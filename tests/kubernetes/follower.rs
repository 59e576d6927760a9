//! A store inside of the test's process, in a network namespace of its own together with the fake API server.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use harness::{pod::OwnedNetns, require_root};
use podnet::{
    cluster::{
        Cluster, Store as _, Update,
        kubernetes::{KubernetesStore, Timing},
    },
    config::kubernetes::KubernetesConfig,
};
use tokio::runtime::Runtime;

use crate::{api::FakeApi, objects::FakeNode};

/// How long news may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a new network namespace, of which only the loopback interface exists.
pub(crate) fn inside(test: impl FnOnce() + Send) {
    require_root();
    let owned = OwnedNetns::new(harness::lab::new_name());
    owned
        .netns
        .run(|| {
            test();
            Ok(())
        })
        .unwrap();
}

/// Times for tests: failures are noticed and retried soon.
pub(crate) fn timing() -> Timing {
    Timing {
        first_delay: Duration::from_millis(20),
        last_delay: Duration::from_millis(200),
        answer: Duration::from_secs(2),
        silence: Duration::from_secs(1),
        settled: Duration::from_millis(500),
        reassert: Duration::from_millis(200),
        ..Timing::default()
    }
}

/// A store, and the runtime on which it works.
pub(crate) struct Follower {
    runtime: Runtime,
    store: KubernetesStore,
    /// Holds the kubeconfig.
    folder: tempfile::TempDir,
}

impl Follower {
    /// Makes a store of `node1` that asks this server by a kubeconfig with a token.
    pub(crate) fn new(api: &FakeApi) -> Self {
        Self::with_timing(api, timing())
    }

    /// Makes one that waits for other times.
    pub(crate) fn with_timing(api: &FakeApi, timing: Timing) -> Self {
        Self::with_kubeconfig(&kubeconfig(&api.url(), "", "token: secret"), timing)
    }

    /// Makes one by this kubeconfig.
    pub(crate) fn with_kubeconfig(text: &str, timing: Timing) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        let config = KubernetesConfig { kubeconfig: Some(path), ..KubernetesConfig::default() };
        Self::with_config(config, timing, folder)
    }

    /// Makes one by this configuration; keeps the folder.
    pub(crate) fn with_config(config: KubernetesConfig, timing: Timing, folder: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, store: KubernetesStore::with_timing(config, "node1".into(), timing), folder }
    }

    /// Returns the store.
    pub(crate) fn store(&mut self) -> &mut KubernetesStore {
        &mut self.store
    }

    /// Returns the path of the kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Waits for the next news.
    pub(crate) fn next(&mut self) -> Update {
        self.within(PATIENCE).unwrap_or_else(|| panic!("no news within {PATIENCE:?}"))
    }

    /// Waits for news for a time.
    pub(crate) fn within(&mut self, time: Duration) -> Option<Update> {
        self.runtime.block_on(async { tokio::time::timeout(time, self.store.next()).await }).ok()
    }

    /// Waits for the next news, which must be a snapshot.
    pub(crate) fn snapshot(&mut self) -> Cluster {
        match self.next() {
            Update::Snapshot(cluster) => cluster,
            Update::Failed(reason) | Update::Disowned(reason) => panic!("the store failed: {reason}"),
        }
    }

    /// Waits for the next news, which must be a failure.
    pub(crate) fn failure(&mut self) -> String {
        match self.next() {
            Update::Failed(reason) | Update::Disowned(reason) => reason,
            Update::Snapshot(cluster) => panic!("not a failure: {:?}", names(&cluster)),
        }
    }

    /// Lets the store work until something is true.
    pub(crate) fn until(&mut self, what: &str, mut is_true: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_true() {
            assert!(Instant::now() < deadline, "in vain: {what}");
            // The store works on the runtime's own thread.
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
        }
    }

    /// Panics if there is news within a time.
    pub(crate) fn quiet(&mut self, time: Duration) {
        let news = self.within(time);
        assert_eq!(news, None);
    }
}

/// Returns a kubeconfig.
pub(crate) fn kubeconfig(server: &str, cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         contexts:\n- name: here\n  context: {{ cluster: here, user: podnet }}\n\
         clusters:\n- name: here\n  cluster:\n    server: {server}\n{}\n\
         users:\n- name: podnet\n  user:\n{}\n",
        indent(cluster),
        indent(user),
    )
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Starts a server with so many nodes of the reference cluster.
pub(crate) fn api_of(nodes: u32) -> FakeApi {
    let api = FakeApi::start("127.0.0.1:0");
    api.put((1..=nodes).map(FakeNode::numbered));
    api
}

/// Returns the names of a snapshot's nodes.
pub(crate) fn names(cluster: &Cluster) -> Vec<&str> {
    cluster.nodes().iter().map(|node| node.name.as_str()).collect()
}
