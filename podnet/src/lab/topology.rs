//! The lab as data: which nodes and pods there are, their addresses, names and files. Pure, except for reading and
//! writing `state.json`, which is what `podnet lab down` goes by.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::{
    api::{DatapathMode, Mac},
    config::{Config, Family, LogConfig, OverlayConfig, RoutingMode, UplinkAttach},
};

/// Folder of all labs; one folder per lab below it.
pub const LABS_DIR: &str = "/run/podnet/lab";

/// Name of the lab unless another is given.
pub const DEFAULT_NAME: &str = "podnet-lab";

/// What kind of lab to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the lab.
    pub name: String,
    /// Number of nodes.
    pub nodes: u8,
    /// Pods per node.
    pub pods: u16,
    /// Which path carries pod-to-pod packets.
    pub datapath: DatapathMode,
    /// Address families of the reference pod CIDRs.
    pub families: Families,
    /// Pod CIDRs of the first node, instead of the reference ones; at most one per family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of pods in bytes.
    pub mtu: u32,
    /// Filter of the daemons' logs, in `tracing`'s directive syntax.
    pub log: String,
    /// The `podnet` binary: daemon and CNI plugin.
    pub binary: PathBuf,
}

impl Options {
    /// Returns the reference lab of one node and three pods, run by this executable.
    pub fn reference() -> Result<Self> {
        Ok(Self {
            name: DEFAULT_NAME.into(),
            nodes: 1,
            pods: 3,
            datapath: DatapathMode::Ebpf,
            families: Families::Dual,
            pod_cidrs: Vec::new(),
            mtu: 1500,
            log: "info".into(),
            binary: std::env::current_exe().context("find this executable")?,
        })
    }
}

/// Address families that pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 alone.
    V4,
}

/// A lab that exists, wholly or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// Name of the lab: prefix of its network namespaces.
    pub name: String,
    /// The `podnet` binary that its nodes run.
    pub binary: PathBuf,
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
    /// Address on the network between the nodes.
    pub address: Ipv4Addr,
    /// Pod CIDRs: at most one per family.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Which path carries pod-to-pod packets.
    pub datapath: DatapathMode,
    /// MTU of pods in bytes.
    pub mtu: u32,
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
        validate_name(&options.name)?;
        ensure!(options.nodes == 1, "nodes: {}: a lab has one node as yet; leave --nodes out or give 1", options.nodes);
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
        Ok(Self { name: options.name.clone(), binary: options.binary.clone(), nodes })
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
        let dir = self.dir();
        let text = serde_json::to_vec_pretty(self).context("encode the lab's state")?;
        let write = || -> Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&dir)?;
            file.write_all(&text)?;
            file.persist(dir.join("state.json"))?;
            Ok(())
        };
        write().with_context(|| format!("write the lab's state into {}", dir.display()))
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
        self.nodes
            .iter()
            .flat_map(|node| std::iter::once(node.netns.as_str()).chain(node.pods.iter().map(|pod| pod.netns.as_str())))
    }

    /// Returns the node, and the network namespace, of the node or pod with this name.
    ///
    /// # Errors
    ///
    /// Lists the names that there are.
    pub fn find(&self, name: &str) -> Result<(&Node, &str)> {
        let node = self.nodes.iter().map(|node| (node, node.name.as_str(), node.netns.as_str()));
        let pods = self.pods().map(|(node, pod)| (node, pod.name.as_str(), pod.netns.as_str()));
        let all: Vec<_> = node.chain(pods).collect();
        if let Some((node, _, netns)) = all.iter().find(|(_, candidate, _)| *candidate == name) {
            return Ok((node, netns));
        }
        let names: Vec<_> = all.iter().map(|(_, name, _)| *name).collect();
        bail!("lab {} has no node or pod {name:?}; it has: {}", self.name, names.join(", "))
    }
}

impl Node {
    fn plan(options: &Options, number: u8, pods: Vec<Pod>) -> Result<Self> {
        let name = format!("node{number}");
        let reference = [
            IpNetwork::V4(Ipv4Network::new(Ipv4Addr::new(10, 244, number, 0), 24)?),
            IpNetwork::V6(Ipv6Network::new([0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0].into(), 64)?),
        ];
        let pod_cidrs = match (options.pod_cidrs.is_empty(), options.families) {
            (false, _) => options.pod_cidrs.clone(),
            (true, Families::Dual) => reference.to_vec(),
            (true, Families::V4) => reference[..1].to_vec(),
        };
        let node = Self {
            netns: format!("{}-{name}", options.name),
            dir: lab_dir(&options.name).join(&name),
            address: Ipv4Addr::new(192, 168, 1, 10 + number),
            pod_cidrs,
            datapath: options.datapath,
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
            cluster_cidrs: Vec::new(),
            mode: RoutingMode::default(),
            routers: Vec::new(),
            uplinks: Vec::new(),
            uplink_attach: UplinkAttach::default(),
            masquerade: vec![Family::Ipv4, Family::Ipv6],
            overlay: OverlayConfig::default(),
            store: None,
            mtu: Some(self.mtu),
            datapath: self.datapath,
            socket: self.socket(),
            state_dir: self.state_dir(),
            bpffs: self.bpffs(),
            http: None,
            resync_seconds: 30,
            log: LogConfig { daemon: self.log.clone(), ..LogConfig::default() },
        }
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

/// Returns the folder of the lab of this name.
#[must_use]
pub fn lab_dir(name: &str) -> PathBuf {
    Path::new(LABS_DIR).join(name)
}

/// Checks that a name can be part of namespace names and of a socket's path.
pub fn validate_name(name: &str) -> Result<()> {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    ensure!(
        (1..=32).contains(&name.len()) && name.bytes().all(valid) && !name.starts_with('-'),
        "lab name {name:?}: give 1 to 32 lower-case letters, digits and dashes, the first no dash"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(name: &str) -> Options {
        Options { name: name.into(), ..Options::reference().unwrap() }
    }

    #[test]
    fn the_plan_is_the_reference_topology() {
        let lab = Lab::plan(&options("a")).unwrap();
        let node = &lab.nodes[0];
        assert_eq!(node.address.to_string(), "192.168.1.11");
        let cidrs: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(lab.netns_names().collect::<Vec<_>>(), ["a-node1", "a-pod1", "a-pod2", "a-pod3"]);
        assert_eq!(node.socket(), Path::new("/run/podnet/lab/a/node1/podnet.sock"));
        assert_eq!(lab.find("pod2").unwrap().1, "a-pod2");
        assert!(lab.find("web").unwrap_err().to_string().contains("it has: node1, pod1, pod2, pod3"));
    }

    #[test]
    fn the_configuration_file_is_what_the_daemon_reads() {
        let mut options = options("a");
        options.families = Families::V4;
        options.datapath = DatapathMode::Kernel;
        let node = Lab::plan(&options).unwrap().nodes.remove(0);
        assert_eq!(Config::parse(&node.config_text().unwrap()).unwrap(), node.config());
        assert_eq!(node.pod_cidrs.len(), 1);
    }

    #[test]
    fn unusable_options_are_refused_before_anything_is_made() {
        for name in ["", "-a", "A", "a/b", "..", &"a".repeat(33)] {
            assert!(Lab::plan(&options(name)).is_err(), "{name:?}");
        }
        let cidrs = Options { pod_cidrs: vec!["10.0.0.0/31".parse().unwrap()], ..options("a") };
        assert!(Lab::plan(&cidrs).unwrap_err().to_string().contains("prefix length"));
        let nodes = Options { nodes: 2, ..options("a") };
        assert!(Lab::plan(&nodes).unwrap_err().to_string().contains("one node"));
    }

    #[test]
    fn the_state_survives_a_round_trip() {
        let mut lab = Lab::plan(&options("a")).unwrap();
        lab.nodes[0].daemon = Some(Process { pid: 4, start_time: 2 });
        lab.nodes[0].pods[0].addresses = vec!["10.244.1.2/24".parse().unwrap()];
        let text = serde_json::to_string(&lab).unwrap();
        assert_eq!(serde_json::from_str::<Lab>(&text).unwrap(), lab);
    }
}
