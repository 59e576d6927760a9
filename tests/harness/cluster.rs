//! A lab of several nodes for one test, with switch, router and outside host.

use std::net::IpAddr;

use podnet::{
    config::RoutingMode,
    lab::{Options, store::NodesFile},
    netns::Netns,
};

use crate::{Family, TestNode, crowd, interfaces, lab::SharedLab, pod::TestPod, wait_for};

/// A lab of several nodes.
#[derive(Debug)]
pub struct TestCluster {
    nodes: Vec<TestNode>,
    switch: Netns,
    router: Netns,
    outside: Netns,
    lab: SharedLab,
}

impl TestCluster {
    /// Makes the reference cluster of three nodes in a mode, without pods.
    pub fn new(mode: RoutingMode) -> Self {
        Self::with(|options| options.mode = mode)
    }

    /// Makes a cluster with other options, without pods. Its daemons are ready; see [`TestCluster::wait_for_routes`].
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let lab = SharedLab::new(change);
        let network = lab.lock().network.clone().unwrap_or_else(|| panic!("a cluster has 2 nodes or more"));
        let count = lab.lock().nodes.len();
        let open = |name: &str| Netns::open_named(name).unwrap();
        Self {
            nodes: (0..count).map(|position| TestNode::new(&lab, position)).collect(),
            switch: open(&network.switch),
            router: open(&network.router),
            outside: open(&network.outside),
            lab,
        }
    }

    /// Returns the nodes; the first is `node1`.
    pub fn nodes(&self) -> &[TestNode] {
        &self.nodes
    }

    /// Returns the network namespace of the switch.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// Returns the network namespace of the router.
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// Returns the network namespace of the host outside of the cluster.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// Returns an address of the host outside of the cluster.
    pub fn outside_address(&self, family: Family) -> IpAddr {
        let addresses = self.lab.lock().network.as_ref().unwrap().outside_addresses().unwrap();
        addresses.into_iter().find(|address| Family::of(*address) == family).unwrap()
    }

    /// Waits until every node has routes to the pods of every other node that the file of nodes names.
    pub fn wait_for_routes(&self) {
        let mode = self.lab.lock().mode;
        let cluster = self.nodes_file().read().unwrap();
        for node in &self.nodes {
            for family in Family::ALL {
                let others = cluster.iter().filter(|other| other.name != node.name());
                let wanted: Vec<_> = others
                    .flat_map(|other| other.pod_cidrs.iter())
                    .filter(|cidr| Family::of(cidr.ip()) == family)
                    .map(ToString::to_string)
                    .collect();
                wait_for(&format!("{} to have {family:?} routes to {wanted:?}", node.name()), || {
                    let own = interfaces::own_destinations(node.netns(), family);
                    let complete = match mode {
                        // One route to the router may stand for all.
                        RoutingMode::Router => !own.is_empty(),
                        _ => wanted.iter().all(|cidr| own.contains(cidr)),
                    };
                    complete.then_some(())
                });
            }
        }
    }

    /// Adds so many pods to each node through the CNI plugin; returns those of each node. Named `pod1` and so on.
    pub fn add_pods(&self, per_node: usize) -> Vec<Vec<TestPod>> {
        let jobs = self.nodes.iter().enumerate().collect();
        let add = |(position, node): (usize, &TestNode)| {
            let numbers = position * per_node + 1..=(position + 1) * per_node;
            (position, numbers.map(|number| node.add_pod(&format!("pod{number}"))).collect::<Vec<_>>())
        };
        let mut pods = crowd::run(self.nodes.len(), jobs, add).results;
        pods.sort_by_key(|(position, _)| *position);
        for node in &self.nodes {
            interfaces::wait_for_carriers(node.netns());
        }
        pods.into_iter().map(|(_, pods)| pods).collect()
    }

    /// Returns the file of nodes that all daemons follow.
    pub fn nodes_file(&self) -> NodesFile {
        self.lab.lock().nodes_file()
    }

    /// Gives a node other addresses in its subnet, with this host number, and tells the file of nodes; and the router if
    /// it has the table of pod CIDRs.
    pub fn readdress(&self, position: usize, host: u8) {
        let mut lab = self.lab.lock();
        lab.readdress(position, host).unwrap_or_else(|error| panic!("{error:#}"));
        let node = &lab.nodes[position];
        lab.nodes_file().readdress(&node.name, node.addresses.clone()).unwrap_or_else(|error| panic!("{error:#}"));
        lab.configure_router().unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Gives the router its table of pod CIDRs anew, if it shall have one.
    pub fn configure_router(&self) {
        self.lab.lock().configure_router().unwrap_or_else(|error| panic!("{error:#}"));
    }
}
