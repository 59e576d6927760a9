//! The lab as data: which nodes and pods there are, their addresses, names and files. Pure, except for reading and
//! writing `state.json`, which is what `podnet lab down` goes by.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::{
    network::{Network, Subnet},
    options::{Families, Options, node_name, validate_name},
    process::Process,
};
use crate::{
    api::{DatapathMode, Mac},
    config::{Config, Family, LogConfig, OverlayConfig, RoutingMode, StoreConfig, UplinkAttach},
};

/// Folder of all labs; one folder per lab below it.
pub const LABS_DIR: &str = "/run/podnet/lab";

/// Name of the file of nodes in the lab's folder.
pub const NODES_FILE: &str = "nodes.json";

/// A lab that exists, wholly or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// Name of the lab: prefix of its network namespaces.
    pub name: String,
    /// The `podnet` binary that its nodes run.
    pub binary: PathBuf,
    /// How pods of other nodes are reached.
    pub mode: RoutingMode,
    /// The network between the nodes; a lab of one node has none.
    pub network: Option<Network>,
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// A node of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name of the node, such as `node1`.
    pub name: String,
    /// Name of its network namespace under `/run/netns`.
    pub netns: String,
    /// Folder of its files.
    pub dir: PathBuf,
    /// Where the node is on the network between the nodes; `None` if there is no network.
    pub subnet: Option<Subnet>,
    /// Addresses on the network between the nodes, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs: at most one per family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// How pods of other nodes are reached.
    pub mode: RoutingMode,
    /// Addresses of the central router in mode `router`.
    pub routers: Vec<IpAddr>,
    /// Which path carries pod-to-pod packets.
    pub datapath: DatapathMode,
    /// MTU of pods in bytes; `None`: the daemon's choice.
    pub mtu: Option<u32>,
    /// Filter of the daemon's log.
    pub log: String,
    /// The node's daemon, once it was started.
    pub daemon: Option<Process>,
    /// The pods.
    pub pods: Vec<Pod>,
}

/// A pod of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Name of the pod, such as `pod1`; unique in the lab.
    pub name: String,
    /// Name of its network namespace under `/run/netns`.
    pub netns: String,
    /// Container ID that the CNI plugin is given.
    pub container_id: String,
    /// Addresses that CNI ADD answered; empty before.
    pub addresses: Vec<IpNetwork>,
    /// MAC that CNI ADD answered.
    pub mac: Option<Mac>,
}

impl Lab {
    /// Draws a lab; makes nothing.
    ///
    /// # Errors
    ///
    /// The name or a number is out of range, or a pod CIDR is unusable.
    pub fn plan(options: &Options) -> Result<Self> {
        options.validate()?;
        let mut pod_number = 0;
        let nodes = (1..=options.nodes)
            .map(|number| {
                let pods = (0..options.pods)
                    .map(|_| {
                        pod_number += 1;
                        Pod::new(&options.name, format!("pod{pod_number}"))
                    })
                    .collect();
                Node::plan(options, number, pods)
            })
            .collect::<Result<_>>()?;
        // Direct routes across a router need one that knows where to.
        let router_knows_pods = match options.mode {
            RoutingMode::Router => true,
            RoutingMode::Direct => !options.second_subnet().is_empty(),
            RoutingMode::Overlay | RoutingMode::Auto => false,
        };
        let network = (options.nodes > 1)
            .then(|| Network::new(&options.name, options.uplink_mtu, options.families, router_knows_pods));
        Ok(Self { name: options.name.clone(), binary: options.binary.clone(), mode: options.mode, network, nodes })
    }

    /// Reads the lab of this name.
    ///
    /// # Errors
    ///
    /// There is no such lab, or its state cannot be read.
    pub fn load(name: &str) -> Result<Self> {
        validate_name(name)?;
        let path = lab_dir(name).join("state.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no lab {name:?}; make it with `podnet lab up --name {name}`")
            }
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Writes the lab's state; a reader sees the old or the new one, never half of it.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).context("encode the lab's state")?;
        write_atomically(&self.dir().join("state.json"), &text)
    }

    /// Returns the folder of the lab's files.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        lab_dir(&self.name)
    }

    /// Returns all pods, each with its node.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    /// Returns the names of all network namespaces of the lab.
    pub fn netns_names(&self) -> impl Iterator<Item = &str> {
        self.places().map(|place| place.netns)
    }

    /// Returns every network namespace of the lab.
    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let nodes = self.nodes.iter().map(|node| Place { name: &node.name, netns: &node.netns, node: Some(node) });
        let pods = self.pods().map(|(node, pod)| Place { name: &pod.name, netns: &pod.netns, node: Some(node) });
        let network = self.network.iter().flat_map(Network::netns_names);
        nodes.chain(pods).chain(network.map(|(name, netns)| Place { name, netns, node: None }))
    }

    /// Returns the node, pod or part of the network with this name.
    ///
    /// # Errors
    ///
    /// Lists the names that there are.
    pub fn find(&self, name: &str) -> Result<Place<'_>> {
        if let Some(place) = self.places().find(|place| place.name == name) {
            return Ok(place);
        }
        let names: Vec<_> = self.places().map(|place| place.name).collect();
        bail!("lab {} has no {name:?}; it has: {}", self.name, names.join(", "))
    }
}

/// A network namespace of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// What people call it: `node1`, `pod1`, `router`.
    pub name: &'a str,
    /// Name of the network namespace under `/run/netns`.
    pub netns: &'a str,
    /// The node that it is, or that a pod is on.
    pub node: Option<&'a Node>,
}

impl Node {
    fn plan(options: &Options, number: u8, pods: Vec<Pod>) -> Result<Self> {
        let name = node_name(number);
        let reference = [
            IpNetwork::V4(Ipv4Network::new(Ipv4Addr::new(10, 244, number, 0), 24)?),
            IpNetwork::V6(Ipv6Network::new([0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0].into(), 64)?),
        ];
        let pod_cidrs = match (options.pod_cidrs.is_empty(), options.families) {
            (false, _) => options.pod_cidrs.clone(),
            (true, Families::Dual) => reference.to_vec(),
            (true, Families::V4) => reference[..1].to_vec(),
        };
        let subnet = (options.nodes > 1)
            .then(|| if options.second_subnet().contains(&name) { Subnet::Second } else { Subnet::First });
        let (addresses, routers) = match subnet {
            Some(subnet) => (subnet.addresses(10 + number, options.families)?, subnet.router(options.families)?),
            None => (Vec::new(), Vec::new()),
        };
        let node = Self {
            netns: format!("{}-{name}", options.name),
            dir: lab_dir(&options.name).join(&name),
            subnet,
            addresses: addresses.iter().map(IpNetwork::ip).collect(),
            pod_cidrs,
            mode: options.mode,
            routers: if options.mode == RoutingMode::Router { routers } else { Vec::new() },
            datapath: if options.kernel_nodes.contains(&name) { DatapathMode::Kernel } else { options.datapath },
            mtu: options.mtu,
            log: options.log.clone(),
            daemon: None,
            pods,
            name,
        };
        // The daemon would refuse it as well, but later and in its log.
        Config::parse(&node.config_text()?)?;
        Ok(node)
    }

    /// Returns the daemon's configuration.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            node: self.name.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
            bridge: "v-net-0".into(),
            cluster_cidrs: self.cluster_cidrs(),
            mode: self.mode,
            routers: self.routers.clone(),
            uplinks: Vec::new(),
            uplink_attach: UplinkAttach::default(),
            masquerade: vec![Family::Ipv4, Family::Ipv6],
            overlay: OverlayConfig::default(),
            store: self.subnet.map(|_| StoreConfig::Static { path: self.nodes_path() }),
            mtu: self.mtu,
            datapath: self.datapath,
            socket: self.socket(),
            state_dir: self.state_dir(),
            bpffs: self.bpffs(),
            http: None,
            resync_seconds: 30,
            log: LogConfig { daemon: self.log.clone(), ..LogConfig::default() },
        }
    }

    /// Returns the reference ranges of all pods, in the families of this node's.
    fn cluster_cidrs(&self) -> Vec<IpNetwork> {
        if self.subnet.is_none() {
            return Vec::new();
        }
        let range = |cidr: &IpNetwork| match cidr {
            IpNetwork::V4(_) => IpNetwork::new(Ipv4Addr::new(10, 244, 0, 0).into(), 16),
            IpNetwork::V6(_) => IpNetwork::new(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0).into(), 48),
        };
        self.pod_cidrs.iter().filter_map(|cidr| range(cidr).ok()).collect()
    }

    /// Returns the path of the file of nodes, which all nodes of the lab share.
    #[must_use]
    pub fn nodes_path(&self) -> PathBuf {
        self.dir.with_file_name(NODES_FILE)
    }

    /// Returns the daemon's configuration as its file holds it.
    pub fn config_text(&self) -> Result<String> {
        toml::to_string(&self.config()).context("encode the daemon's configuration")
    }

    /// Returns the path of the daemon's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Returns the path of the daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("podnet.sock")
    }

    /// Returns the folder of the daemon's database.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Returns the mount point of the node's bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Returns the path of the daemon's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }
}

impl Pod {
    /// Draws a pod of a lab; makes nothing.
    #[must_use]
    pub fn new(lab: &str, name: String) -> Self {
        Self {
            netns: format!("{lab}-{name}"),
            container_id: format!("{lab}-{name}"),
            name,
            addresses: Vec::new(),
            mac: None,
        }
    }
}

/// Replaces a file at once.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().context("the path has no folder")?)?;
        file.write_all(content)?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Returns the folder of the lab of this name.
#[must_use]
pub fn lab_dir(name: &str) -> PathBuf {
    Path::new(LABS_DIR).join(name)
}

#[cfg(test)]
mod tests;
