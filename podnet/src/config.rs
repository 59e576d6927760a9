//! The daemon's configuration: a TOML file, parsed and validated once; every later function takes plain values.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use self::{etcd::EtcdConfig, kubernetes::KubernetesConfig};
use crate::api::DatapathMode;

pub mod etcd;
pub mod kubernetes;

/// Configuration of one node's daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Name of the node; default: the host name.
    #[serde(default = "default_node")]
    pub node: String,
    /// Pod CIDRs of the node: one, or one per family. The first address of each is the gateway. Empty: the store knows.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNetwork>,
    /// Ranges that hold all pods of the cluster. Pods' packets to them are never masqueraded; in mode `router` they are
    /// what goes to the router.
    #[serde(default)]
    pub cluster_cidrs: Vec<IpNetwork>,
    /// How pods of other nodes are reached.
    #[serde(default)]
    pub mode: RoutingMode,
    /// Mode `router`: addresses of the central router, at most one per family.
    #[serde(default)]
    pub routers: Vec<IpAddr>,
    /// Interfaces that lead to other nodes, besides those that routes name.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// Hook of the uplinks' programs.
    #[serde(default)]
    pub uplink_attach: UplinkAttach,
    /// Families whose packets to addresses outside of the cluster are masqueraded.
    #[serde(default = "default_masquerade")]
    pub masquerade: Vec<Family>,
    /// The overlay.
    #[serde(default)]
    pub overlay: OverlayConfig,
    /// Where the list of nodes comes from; none: this node is alone.
    #[serde(default)]
    pub store: Option<StoreConfig>,
    /// Name of the bridge.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// MTU of pods in bytes; none: it follows from the uplinks and the mode.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Which path carries pod-to-pod packets.
    #[serde(default)]
    pub datapath: DatapathMode,
    /// Unix socket of the API; its folder also holds the queue of deletions made while the daemon was down.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Folder of the database. It must survive a restart of the daemon.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Folder on which the node's bpffs is, or will be, mounted.
    #[serde(default = "default_bpffs")]
    pub bpffs: PathBuf,
    /// Optional TCP address that serves `/healthz` and `/readyz`.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// Seconds between two resyncs, which compare everything with what should be.
    #[serde(default = "default_resync")]
    pub resync_seconds: u64,
    /// Log levels.
    #[serde(default)]
    pub log: LogConfig,
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RoutingMode {
    /// By the node's address on a shared layer 2, or the kernel's next hop towards it, which must know the pod CIDRs.
    Direct,
    /// By VXLAN.
    Overlay,
    /// Direct where the node is on-link, overlay otherwise.
    #[default]
    Auto,
    /// By a central router, which holds the table of pod CIDRs.
    Router,
}

impl std::fmt::Display for RoutingMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Overlay => "overlay",
            Self::Auto => "auto",
            Self::Router => "router",
        })
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Hook of the programs on uplinks and on the overlay device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkAttach {
    /// TCX where the kernel has it (6.6), clsact elsewhere.
    #[default]
    Auto,
    /// TCX.
    Tcx,
    /// clsact.
    Clsact,
}

/// The overlay: VXLAN (RFC 7348).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct OverlayConfig {
    /// Name of the device.
    pub device: String,
    /// VXLAN network identifier, 24 bits; the same on all nodes.
    pub vni: u32,
    /// UDP port, the same on all nodes.
    pub port: u16,
}

impl Default for OverlayConfig {
    fn default() -> Self {
        Self { device: "podnet-vxlan".into(), vni: 1, port: 4789 }
    }
}

/// Where the list of nodes comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum StoreConfig {
    /// A file, re-read when it changes.
    Static {
        /// The JSON file of nodes.
        path: PathBuf,
    },
    /// An etcd, where nodes register and claim their pod CIDRs.
    Etcd(Box<EtcdConfig>),
    /// Node objects of Kubernetes.
    Kubernetes(KubernetesConfig),
}

/// Log levels at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LogConfig {
    /// Filter of the daemon, in `tracing`'s directive syntax.
    pub daemon: String,
    /// Level of the eBPF programs: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub ebpf: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { daemon: "info".into(), ebpf: "off".into(), format: LogFormat::Text }
    }
}

/// Format of the daemon's log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

fn default_node() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

fn default_bridge() -> String {
    "v-net-0".into()
}

fn default_masquerade() -> Vec<Family> {
    vec![Family::Ipv4, Family::Ipv6]
}

/// Unix socket of the daemon unless the configuration names another.
pub const DEFAULT_SOCKET: &str = "/run/podnet/podnet.sock";

/// Configuration file of the daemon unless the command line names another.
pub const DEFAULT_CONFIG: &str = "/etc/podnet/podnet.toml";

/// Mount point of the node's bpffs unless the configuration names another.
pub const DEFAULT_BPFFS: &str = "/run/podnet/bpf";

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/podnet".into()
}

fn default_bpffs() -> PathBuf {
    DEFAULT_BPFFS.into()
}

const fn default_resync() -> u64 {
    5
}

impl Config {
    /// Reads and validates a configuration file.
    ///
    /// # Errors
    ///
    /// Names the file, the line and column of a syntax error, or the field whose value is unusable and why.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {}", path.display()))
    }

    /// Parses and validates a configuration.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    /// Gives the node another name, if there is one: the same file may serve all nodes.
    ///
    /// # Errors
    ///
    /// The name is empty.
    pub fn named(self, node: Option<String>) -> Result<Self> {
        let config = Self { node: node.unwrap_or(self.node), ..self };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        ensure!(!self.node.is_empty(), "node: the name is empty; give the node's name");
        ensure!(
            !self.pod_cidrs.is_empty() || self.store.is_some(),
            "pod-cidrs: the list is empty and there is no [store] that knows the node; give one CIDR per family, such as [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]"
        );
        for (position, cidr) in self.pod_cidrs.iter().enumerate() {
            validate_pod_cidr(*cidr).context("pod-cidrs")?;
            ensure!(
                !self.pod_cidrs[..position].iter().any(|other| other.is_ipv4() == cidr.is_ipv4()),
                "pod-cidrs: {cidr} is the second CIDR of its family; a node has at most one per family"
            );
        }
        validate_ifname(&self.bridge).map_err(|reason| anyhow::anyhow!("bridge: {reason}"))?;
        if let Some(mtu) = self.mtu {
            let minimum = Self::min_mtu(&self.pod_cidrs);
            ensure!(
                (minimum..=65_535).contains(&mtu),
                "mtu: {mtu} is not in {minimum}..=65535, which the families of pod-cidrs need"
            );
        }
        self.validate_cluster()?;
        for (field, path) in [("socket", &self.socket), ("state-dir", &self.state_dir), ("bpffs", &self.bpffs)] {
            ensure!(path.is_absolute(), "{field}: {} is not an absolute path", path.display());
        }
        // `sun_path` of sockaddr_un holds 108 bytes with the terminating zero (unix(7)).
        ensure!(
            self.socket.as_os_str().len() < 108,
            "socket: {} is longer than the 107 bytes of a unix socket's path",
            self.socket.display()
        );
        ensure!(
            (1..=86_400).contains(&self.resync_seconds),
            "resync-seconds: {} is not in 1..=86400 (a day)",
            self.resync_seconds
        );
        Ok(())
    }

    fn validate_cluster(&self) -> Result<()> {
        for cidr in &self.cluster_cidrs {
            ensure!(
                cidr.ip() == cidr.network(),
                "cluster-cidrs: {cidr} has host bits set; did you mean {}/{}?",
                cidr.network(),
                cidr.prefix()
            );
        }
        for (position, router) in self.routers.iter().enumerate() {
            ensure!(
                self.routers[..position].iter().all(|other| other.is_ipv4() != router.is_ipv4()),
                "routers: {router} is the second address of its family; give one per family"
            );
        }
        ensure!(
            self.mode != RoutingMode::Router || !self.routers.is_empty(),
            "routers: the list is empty, but mode = \"router\" needs the address of the central router"
        );
        ensure!(
            self.mode != RoutingMode::Router || self.store.is_some() || !self.cluster_cidrs.is_empty(),
            "cluster-cidrs: the list is empty and there is no [store]; mode = \"router\" needs one of them to know what goes to the router"
        );
        for uplink in &self.uplinks {
            validate_ifname(uplink).map_err(|reason| anyhow::anyhow!("uplinks: {reason}"))?;
        }
        validate_ifname(&self.overlay.device).map_err(|reason| anyhow::anyhow!("overlay.device: {reason}"))?;
        ensure!(self.overlay.device != self.bridge, "overlay.device: {} is the bridge; name another", self.bridge);
        ensure!(
            (1..1 << 24).contains(&self.overlay.vni),
            "overlay.vni: {} is not in 1..=16777215, the 24 bits of RFC 7348",
            self.overlay.vni
        );
        ensure!(self.overlay.port != 0, "overlay.port: 0 is no UDP port; the usual one is 4789");
        match &self.store {
            Some(StoreConfig::Static { path }) => {
                ensure!(path.is_absolute(), "store.path: {} is not an absolute path", path.display());
                Ok(())
            }
            Some(StoreConfig::Etcd(etcd)) => etcd.validate(&self.cluster_cidrs, &self.pod_cidrs),
            Some(StoreConfig::Kubernetes(kubernetes)) => kubernetes.validate(),
            None => Ok(()),
        }
    }

    /// Returns the smallest MTU that the families of these pod CIDRs allow (RFC 791, RFC 8200).
    #[must_use]
    pub fn min_mtu(pod_cidrs: &[IpNetwork]) -> u32 {
        if pod_cidrs.iter().any(IpNetwork::is_ipv6) { 1280 } else { 576 }
    }

    /// Returns the gateway of a pod CIDR: its first address after the network address.
    #[must_use]
    pub fn gateway(cidr: IpNetwork) -> IpAddr {
        match cidr {
            IpNetwork::V4(v4) => IpAddr::V4((u32::from(v4.network()) + 1).into()),
            IpNetwork::V6(v6) => IpAddr::V6((u128::from(v6.network()) + 1).into()),
        }
    }

    /// Returns the folder that holds deletions queued while the daemon was down.
    #[must_use]
    pub fn deletions_dir(socket: &Path) -> PathBuf {
        socket.parent().unwrap_or(Path::new("/")).join("deletions")
    }
}

/// Shows a list of CIDRs as people write it.
#[must_use]
pub fn show(cidrs: &[IpNetwork]) -> String {
    format!("[{}]", cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// Checks that pods can have the addresses of a CIDR.
///
/// # Errors
///
/// Says what is wrong with the CIDR.
pub fn validate_pod_cidr(cidr: IpNetwork) -> Result<()> {
    ensure!(
        cidr.ip() == cidr.network(),
        "{cidr} has host bits set; did you mean {}/{}?",
        cidr.network(),
        cidr.prefix()
    );
    let longest = if cidr.is_ipv4() { 30 } else { 126 };
    let shortest = if cidr.is_ipv4() { 8 } else { 16 };
    ensure!(
        (shortest..=longest).contains(&cidr.prefix()),
        "{cidr}: the prefix length must be in {shortest}..={longest} to hold a gateway and pods"
    );
    let network = cidr.network();
    let (link_local, mapped) = match network {
        IpAddr::V4(v4) => (v4.is_link_local(), false),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.to_ipv4_mapped().is_some()),
    };
    if network.is_multicast() || network.is_loopback() || network.is_unspecified() || link_local || mapped {
        bail!("{cidr} is a multicast, loopback, link-local, v4-mapped or unspecified range, which pods cannot have");
    }
    Ok(())
}

/// Checks that the kernel accepts a name for an interface (`dev_valid_name` in net/core/dev.c).
///
/// # Errors
///
/// Says what is wrong with the name.
pub fn validate_ifname(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the interface name is empty".into());
    }
    if name.len() > 15 {
        return Err(format!("interface name {name:?} is longer than 15 bytes"));
    }
    if name == "." || name == ".." || name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace()) {
        return Err(format!("interface name {name:?} is \".\" or \"..\", or has '/', ':' or white space"));
    }
    // The kernel takes "%d" for "choose a number", and keeps settings of all interfaces under two names.
    if name == "all" || name == "default" || name.bytes().any(|b| b == b'%' || b.is_ascii_control()) {
        return Err(format!("interface name {name:?} is \"all\" or \"default\", or has '%' or control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", Config::parse(text).unwrap_err())
    }

    #[test]
    fn a_minimal_file_takes_the_defaults() {
        let config = Config::parse("pod-cidrs = [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]").unwrap();
        assert_eq!(config.bridge, "v-net-0");
        assert_eq!((config.mtu, config.mode), (None, RoutingMode::Auto));
        assert_eq!(config.datapath, DatapathMode::Ebpf);
        let gateways: Vec<_> = config.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr).to_string()).collect();
        assert_eq!(gateways, ["10.244.1.1", "fd00:10:244:1::1"]);
    }

    #[test]
    fn the_example_can_be_used() {
        let config = Config::parse(include_str!("../../deploy/podnet.toml")).unwrap();
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET), "the network configuration names no other");
    }

    #[test]
    fn errors_name_the_field_and_the_fix() {
        assert!(error("pod-cidrs = [").contains("line 1, column"));
        assert!(error("pod-cidrs = []").contains("pod-cidrs: the list is empty"));
        assert!(error("pod-cidrs = [\"10.244.1.7/24\"]").contains("did you mean 10.244.1.0/24?"));
        assert!(error("pod-cidrs = [\"10.0.0.0/24\", \"10.0.1.0/24\"]").contains("second CIDR of its family"));
        assert!(error("pod-cidrs = [\"10.0.0.0/31\"]").contains("prefix length"));
        for cidr in ["224.0.0.0/24", "169.254.0.0/16", "fe80::/64", "::ffff:10.0.0.0/120"] {
            assert!(error(&format!("pod-cidrs = [\"{cidr}\"]")).contains("link-local"), "{cidr}");
        }
        for seconds in ["0", "86401", "9223372036854775807"] {
            let text = format!("pod-cidrs = [\"10.0.0.0/24\"]\nresync-seconds = {seconds}");
            assert!(error(&text).contains("resync-seconds"), "{seconds}");
        }
        for name in ["all", "default", "br%d", "a\u{1}b"] {
            assert!(validate_ifname(name).is_err(), "{name:?}");
        }
        assert!(error("pod-cidrs = [\"10.0.0.0/24\"]\nmtu = 100").contains("mtu: 100 is not in 576..=65535"));
        assert!(error("pod-cidrs = [\"fd00::/64\"]\nmtu = 1000").contains("1280"));
        assert!(error("pod-cidrs = [\"10.0.0.0/24\"]\nbridge = \"a/b\"").contains("bridge: interface name"));
        assert!(
            error("pod-cidrs = [\"10.0.0.0/24\"]\nsocket = \"podnet.sock\"")
                .contains("socket: podnet.sock is not an absolute")
        );
        assert!(error("pod-cidrs = [\"10.0.0.0/24\"]\nmtuu = 1").contains("unknown field `mtuu`"));
    }
}
