//! A node of a test's lab: its daemon, its pods, its counters.

use std::{net::IpAddr, path::Path, process::Command, time::Duration};

use podnet::{
    api::{DatapathRequest, NodeInfo, Pod, Status, client::Client},
    config::Config,
    lab::{Node, node::READY_DEADLINE, node_api, process::Process, runtime::Runtime},
    netns::Netns,
};

use crate::{
    Family, binary,
    counters::Counters,
    lab::SharedLab,
    pod::{self, TestPod},
    wait_for,
};

/// A node.
#[derive(Debug)]
pub struct TestNode {
    lab: SharedLab,
    position: usize,
    node: Node,
    netns: Netns,
}

impl TestNode {
    pub(crate) fn new(lab: &SharedLab, position: usize) -> Self {
        let node = lab.lock().nodes[position].clone();
        Self { lab: lab.clone(), position, netns: Netns::open_named(&node.netns).unwrap(), node }
    }

    /// Returns the node's name.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Returns the node's present address of a family on the network between the nodes.
    pub fn address(&self, family: Family) -> IpAddr {
        let lab = self.lab.lock();
        let mut all = lab.nodes[self.position].addresses.iter().copied();
        all.find(|address| Family::of(*address) == family)
            .unwrap_or_else(|| panic!("{} has no {family:?} address", self.node.name))
    }

    /// Returns the gateway of the node's pods of a family.
    pub fn gateway(&self, family: Family) -> IpAddr {
        let gateways = self.node.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr));
        gateways.into_iter().find(|gateway| Family::of(*gateway) == family).unwrap()
    }

    /// Returns the node; its `daemon` is the first one: see [`TestNode::daemon`].
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
        format!("{}-{pod}", self.lab.lock().name)
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

    /// Returns the cluster's nodes as the daemon lists them.
    pub fn cluster(&self) -> Vec<NodeInfo> {
        let nodes = Client::new(&self.node.socket()).nodes();
        nodes.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_tail()))
    }

    /// Runs `podnet` with these arguments as an operator of the node does, and returns what it printed.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new(binary()).args(arguments).arg("--socket").arg(self.node.socket()).output().unwrap();
        assert!(output.status.success(), "podnet {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
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
        self.lab.lock().nodes[self.position].daemon.unwrap()
    }

    /// Starts a daemon after the last one ended; returns when it is ready.
    pub fn start_daemon(&self) {
        self.try_start_daemon().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Starts a daemon after the last one ended; returns when it is ready.
    ///
    /// # Errors
    ///
    /// It ended; with the end of its log.
    pub fn try_start_daemon(&self) -> anyhow::Result<()> {
        self.node.wait_ready(self.spawn_daemon(&binary()), READY_DEADLINE)
    }

    /// Starts a daemon, by this program, after the last one ended; does not wait for it.
    pub fn spawn_daemon(&self, program: &Path) -> Process {
        let daemon = self.node.spawn_daemon(program).unwrap();
        let mut lab = self.lab.lock();
        lab.nodes[self.position].daemon = Some(daemon);
        lab.save().unwrap();
        daemon
    }

    /// Starts a daemon, by this program, and returns when it answers, ready or not.
    pub fn start_daemon_by(&self, program: &Path) {
        let daemon = self.spawn_daemon(program);
        wait_for("the daemon to answer", || {
            assert!(daemon.is_running().unwrap(), "the daemon ended:\n{}", self.log_tail());
            node_api::status(&self.node.socket()).ok()
        });
    }

    /// Starts a daemon that must end by itself, and returns what it said.
    pub fn refused_start(&self) -> String {
        let before = self.log().len();
        let daemon = self.spawn_daemon(&binary());
        wait_for("the daemon to end", || (!daemon.is_running().unwrap()).then_some(()));
        self.log()[before..].to_owned()
    }

    /// Changes the configuration file, which the daemon reads when it starts.
    pub fn edit_config(&self, change: impl FnOnce(&mut Config)) {
        let path = self.node.config_path();
        let mut config = Config::load(&path).unwrap_or_else(|error| panic!("{error:#}"));
        change(&mut config);
        std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    }

    /// Ends the daemon and starts one with another configuration.
    pub fn restart_with(&self, change: impl FnOnce(&mut Config)) {
        self.stop_daemon();
        self.edit_config(change);
        self.start_daemon();
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
