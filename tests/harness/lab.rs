//! A lab of one node for one test: made under a name of its own, removed when the value is dropped, also by a panic.

use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use podnet::{
    api::{DatapathMode, DatapathRequest, Pod, Status},
    lab::{Lab, Node, Options, node::READY_DEADLINE, node_api, process::Process, runtime::Runtime, topology::LABS_DIR},
    netns::{NAMED_DIR, Netns},
};

use crate::{
    binary,
    counters::Counters,
    pod::{self, TestPod},
    require_root, wait_for,
};

/// Prefix of the names of test labs; the process ID follows.
const PREFIX: &str = "pt-";

/// A lab of one node.
#[derive(Debug)]
pub struct TestLab {
    node: Node,
    netns: Netns,
    lab: Mutex<Lab>,
}

impl TestLab {
    /// Makes the reference lab with the eBPF path and without pods.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Makes the reference lab with this path and without pods.
    pub fn with_datapath(datapath: DatapathMode) -> Self {
        Self::with(|options| options.datapath = datapath)
    }

    /// Makes a lab with other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        require_root();
        remove_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut options = Options {
            name: format!("{PREFIX}{}-{number}", std::process::id()),
            nodes: 1,
            pods: 0,
            log: "debug".into(),
            binary: binary(),
            ..Options::reference().unwrap()
        };
        change(&mut options);
        let lab = Lab::up(&options).unwrap_or_else(|error| panic!("make a lab: {error:#}"));
        let node = lab.nodes[0].clone();
        Self { netns: Netns::open_named(&node.netns).unwrap(), node, lab: Mutex::new(lab) }
    }

    /// Returns the node; its `daemon` is the first one: see [`TestLab::daemon`].
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Returns the node's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns the runtime that calls the CNI plugin on this node.
    pub fn runtime(&self) -> Runtime {
        self.node.runtime(&binary())
    }

    /// Returns the name of a network namespace of this lab.
    pub fn netns_name(&self, pod: &str) -> String {
        format!("{}-{pod}", self.lab.lock().unwrap().name)
    }

    /// Adds a pod through the CNI plugin.
    pub fn add_pod(&self, name: &str) -> TestPod {
        self.try_add_pod(name).unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// Adds a pod through the CNI plugin; leaves nothing if that fails.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn try_add_pod(&self, name: &str) -> anyhow::Result<TestPod> {
        pod::Unattached::new(self, name).add()
    }

    /// Returns the daemon's status.
    pub fn status(&self) -> Status {
        node_api::status(&self.node.socket()).unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// Returns the pods that the daemon has.
    pub fn pods(&self) -> Vec<Pod> {
        node_api::pods(&self.node.socket()).unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// Returns the eBPF path's counters.
    pub fn counters(&self) -> Counters {
        Counters::of(&self.status())
    }

    /// Attaches, detaches or reloads the eBPF programs.
    pub fn set_datapath(&self, change: DatapathRequest) {
        node_api::set_datapath(&self.node.socket(), change)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()));
    }

    /// Returns the daemon that runs, or ran last.
    pub fn daemon(&self) -> Process {
        self.lab.lock().unwrap().nodes[0].daemon.unwrap()
    }

    /// Starts a daemon after the last one ended; returns when it is ready.
    pub fn start_daemon(&self) {
        let daemon = self.node.spawn_daemon(&binary()).unwrap();
        {
            let mut lab = self.lab.lock().unwrap();
            lab.nodes[0].daemon = Some(daemon);
            lab.save().unwrap();
        }
        self.node.wait_ready(daemon, READY_DEADLINE).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Ends the daemon by SIGTERM, and panics if that does not end it.
    pub fn stop_daemon(&self) {
        let how = self.daemon().stop(Duration::from_secs(60)).unwrap();
        assert_eq!(how, podnet::lab::process::Stopped::Terminated, "{}", self.log_tail());
    }

    /// Ends the daemon by SIGKILL.
    pub fn kill_daemon(&self) {
        self.daemon().kill().unwrap();
    }

    /// Runs `podnet daemon --cleanup`.
    pub fn run_cleanup(&self) {
        let output = self
            .netns
            .run(|| {
                let mut command = Command::new(binary());
                Ok(command.args(["daemon", "--cleanup", "--config"]).arg(self.node.config_path()).output()?)
            })
            .unwrap();
        assert!(output.status.success(), "podnet daemon --cleanup: {output:?}");
    }

    /// Returns the daemon's whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.node.log_path()).unwrap()
    }

    /// Waits until a line of the log holds all of these words.
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        let log = || self.log().lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned);
        wait_for(&format!("a line of the daemon's log with {words:?}; the log ends:\n{}", self.log_tail()), log)
    }

    /// Returns the end of the daemon's log.
    pub fn log_tail(&self) -> String {
        self.node.log_tail(60)
    }
}

impl Default for TestLab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.node.netns, self.log_tail());
        }
        let lab = self.lab.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        match Lab::down(&lab.name) {
            Err(error) if std::thread::panicking() => eprintln!("remove the lab: {error:#}"),
            result => drop(result.unwrap_or_else(|error| panic!("remove the lab: {error:#}"))),
        }
    }
}

/// Removes what test processes left that were killed: `Drop` did not run there.
fn remove_leftovers() {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_left(name)).collect()
    };
    for name in names(LABS_DIR) {
        Lab::down(&name).unwrap_or_else(|error| panic!("remove what an earlier test left: {error:#}"));
    }
    for name in names(NAMED_DIR) {
        Netns::delete_named(&name).unwrap();
    }
}

/// Returns whether a name is that of a test process which does not exist any more.
fn is_left(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_test_processes_are_left_over() {
        assert!(!is_left(&format!("pt-{}-0", std::process::id())));
        assert!(is_left("pt-4194305-0-node1"));
        assert!(!is_left("podnet-lab-node1") && !is_left("pt-x-0"));
    }
}
