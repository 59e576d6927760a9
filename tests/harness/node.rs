//! A node of a test's lab: its daemon, its pods, its counters.

use std::{net::IpAddr, process::Command, time::Duration};

use podnet::{
    api::{DatapathRequest, Pod, Status},
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
        let gateways = self.node.pod_cidrs.iter().map(|cidr| podnet::config::Config::gateway(*cidr));
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
        let daemon = self.node.spawn_daemon(&binary()).unwrap();
        {
            let mut lab = self.lab.lock();
            lab.nodes[self.position].daemon = Some(daemon);
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
