//! The daemon's API, version 1: HTTP/1.1 with JSON bodies over a root-only unix socket.
//!
//! This file is the schema; `client` (synchronous, used by the CNI plugin and the command line) and `server` (the
//! daemon) are its two ends. Fields are only ever added; a client ignores those it does not know.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub mod client;
pub mod server;

/// Paths of the API.
pub mod path {
    /// `POST` [`super::AddRequest`] -> [`super::Attachment`].
    pub const ADD: &str = "/v1/cni/add";
    /// `POST` [`super::DeleteRequest`] -> empty object. Deleting what does not exist is success.
    pub const DELETE: &str = "/v1/cni/delete";
    /// `POST` [`super::CheckRequest`] -> empty object, or an error that names what differs.
    pub const CHECK: &str = "/v1/cni/check";
    /// `POST` [`super::GcRequest`] -> [`super::GcReply`].
    pub const GC: &str = "/v1/cni/gc";
    /// `GET` -> [`super::Status`].
    pub const STATUS: &str = "/v1/status";
    /// `GET` -> list of [`super::Pod`].
    pub const PODS: &str = "/v1/pods";
    /// `GET` -> list of [`super::NodeInfo`].
    pub const NODES: &str = "/v1/nodes";
    /// `PUT` [`super::LogLevels`] -> [`super::LogLevels`] now in force.
    pub const LOG: &str = "/v1/log";
    /// `PUT` [`super::DatapathRequest`] -> empty object.
    pub const DATAPATH: &str = "/v1/datapath";
    /// `GET` -> 200 while the daemon's loop answers.
    pub const HEALTHZ: &str = "/healthz";
    /// `GET` -> 200 when pods can be added, 503 with the reason otherwise.
    pub const READYZ: &str = "/readyz";
}

/// A MAC address; written `0a:58:0a:f4:01:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    /// Parses six two-digit hexadecimal octets, separated by colons; refuses multicast and all-zero addresses,
    /// which no interface can have.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| {
                    format!("MAC address {text:?} is not six hexadecimal octets such as 0a:58:0a:f4:01:02")
                })?;
        }
        if parts.next().is_some() {
            return Err(format!("MAC address {text:?} has more than six octets"));
        }
        if octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(format!("MAC address {text:?} is a multicast or zero address, which no interface can have"));
        }
        Ok(Self(octets))
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What CNI calls an attachment's key: (container ID, interface name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface inside the pod.
    pub ifname: String,
}

/// Who the pod is, as far as the runtime said; empty strings where it did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// `K8S_POD_NAMESPACE`.
    #[serde(default)]
    pub namespace: String,
    /// `K8S_POD_NAME`.
    #[serde(default)]
    pub name: String,
    /// `K8S_POD_UID`.
    #[serde(default)]
    pub uid: String,
}

/// Asks the daemon to attach a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// Key of the attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Path of the pod's network namespace, as the daemon can open it.
    pub netns: String,
    /// Name of the CNI network (`name` of the network configuration); GC is confined to it.
    pub network: String,
    /// Who the pod is.
    #[serde(default)]
    pub pod: PodIdentity,
    /// Requested addresses, at most one per family; empty: the daemon chooses. A prefix length is ignored.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Requested MAC of the pod-side interface.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Requested MTU; refused if it is more than the node's pod MTU.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// An attached pod, as ADD answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Key of the attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Name of the host-side veth.
    pub host_ifname: String,
    /// MAC of the host-side veth.
    pub host_mac: Mac,
    /// MAC of the pod-side veth.
    pub mac: Mac,
    /// MTU of the pod-side veth in bytes.
    pub mtu: u32,
    /// Addresses with the pod CIDR's prefix length; IPv4 first.
    pub addresses: Vec<IpNetwork>,
    /// Gateway of each address, in the same order.
    pub gateways: Vec<IpAddr>,
    /// Name of the bridge.
    pub bridge: String,
    /// MAC of the bridge.
    pub bridge_mac: Mac,
}

/// Asks the daemon to detach a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// Key of the attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
}

/// Asks the daemon whether an attachment is as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// Key of the attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// Addresses that the runtime's `prevResult` holds for the interface.
    #[serde(default)]
    pub addresses: Vec<IpNetwork>,
    /// MAC that the runtime's `prevResult` holds for the interface.
    #[serde(default)]
    pub mac: Option<Mac>,
}

/// Asks the daemon to release every attachment of a network that is not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// Name of the CNI network.
    pub network: String,
    /// Attachments that stay.
    pub valid: Vec<AttachmentKey>,
}

/// What GC released.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReply {
    /// Attachments that were released.
    pub released: Vec<AttachmentKey>,
}

/// What kind of error a request met. The CNI plugin maps it to a code of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong (a value out of range, an address outside the pod CIDR).
    InvalidRequest,
    /// The network namespace does not exist, is none, or is the node's own.
    InvalidNetns,
    /// The attachment, or its interface, already exists.
    AlreadyExists,
    /// The attachment does not exist (CHECK).
    NotFound,
    /// The attachment is not as it was made (CHECK).
    Mismatch,
    /// No free address is left.
    Exhausted,
    /// A requested address is in use.
    AddressInUse,
    /// The daemon cannot serve yet or any more; try again.
    Unavailable,
    /// Anything else.
    Internal,
}

/// An error answer of the API: the body of every status that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// What went wrong with which object, and what to do about it.
    pub message: String,
}

impl ApiError {
    /// Makes an error.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Which path carries pod-to-pod packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DatapathMode {
    /// The eBPF programs, with the kernel path beneath.
    #[default]
    Ebpf,
    /// The kernel path alone.
    Kernel,
}

impl std::fmt::Display for DatapathMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ebpf => "ebpf",
            Self::Kernel => "kernel",
        })
    }
}

/// An attached pod, as `podnet pods` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Key of the attachment.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Name of the CNI network.
    pub network: String,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// MAC of the pod-side veth.
    pub mac: Mac,
    /// Name of the host-side veth.
    pub host_ifname: String,
    /// Index of the host-side veth in the node's network namespace.
    pub host_ifindex: u32,
    /// Path of the pod's network namespace.
    pub netns: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Seconds since the epoch when the pod was added.
    pub created: u64,
}

impl Pod {
    /// Returns what people call the pod: `namespace/name`, or its container ID.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.pod.display_name(&self.key)
    }
}

impl PodIdentity {
    /// Returns what people call the pod: `namespace/name`, or its container ID.
    #[must_use]
    pub fn display_name(&self, key: &AttachmentKey) -> String {
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => key.container_id.clone(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        }
    }
}

/// How full a pool of addresses is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// The gateway: the bridge's address.
    pub gateway: IpAddr,
    /// Addresses that pods can have; saturates at `u64::MAX`.
    pub capacity: u64,
    /// Addresses that pods have.
    pub used: u64,
}

/// State of the eBPF path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// The mode that the configuration asks for.
    pub mode: DatapathMode,
    /// Whether the programs are attached now.
    pub attached: bool,
    /// Why not, where the configuration asks for them.
    #[serde(default)]
    pub reason: Option<String>,
    /// Folder of the pinned maps.
    pub pins: Option<String>,
    /// Packets and bytes per verdict and drop reason, summed over the CPUs.
    pub counters: Vec<CounterStatus>,
}

/// What the kernel can do of what podnet uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// Its release, as `uname -r` says.
    pub release: String,
    /// Features that the eBPF path needs and the kernel lacks, each with the version that brought it.
    pub lacks: Vec<String>,
    /// Whether it has TCX; without, programs of uplinks and overlay are attached by clsact.
    pub tcx: bool,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// `verdict` or `drop`.
    pub kind: String,
    /// Name of the verdict or drop reason.
    pub name: String,
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the node knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// How pods of other nodes are reached: `auto`, `direct`, `overlay` or `router`.
    pub mode: String,
    /// Where the list of nodes comes from; `None`: the node is alone.
    pub store: Option<String>,
    /// Number of nodes, this one included.
    pub nodes: usize,
    /// For how many seconds the store has not answered, or made no sense; absent while it does.
    pub stale_seconds: Option<u64>,
    /// Why the store does not answer.
    pub failure: Option<String>,
    /// Interfaces that lead to other nodes.
    pub uplinks: Vec<String>,
    /// The overlay device, if it is in use.
    pub overlay: Option<String>,
    /// MTU in bytes of what leaves the node.
    pub pod_route_mtu: u32,
}

/// A node of the cluster, as `podnet nodes` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name of the node.
    pub name: String,
    /// Addresses at which other nodes reach it.
    pub addresses: Vec<IpAddr>,
    /// Whether it is the node that answers.
    pub local: bool,
    /// Pod CIDRs, and how each is reached from here.
    pub pod_cidrs: Vec<NodeCidr>,
}

/// A pod CIDR of a node, and how its pods are reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCidr {
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// `local`, `direct`, `overlay` or `unreachable`.
    pub reach: String,
    /// The next hop; for the overlay, the destination of the outer packets.
    pub next_hop: Option<IpAddr>,
    /// The uplink or overlay device.
    pub interface: Option<String>,
    /// Largest IP packet in bytes.
    pub mtu: Option<u32>,
    /// Why it cannot be reached, or is reached less well than it should.
    #[serde(default)]
    pub problem: Option<String>,
}

/// State of the node, as `podnet status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Process ID of the daemon.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime: u64,
    /// Whether pods can be added now.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub not_ready_reason: Option<String>,
    /// Name of the bridge.
    pub bridge: String,
    /// MAC of the bridge.
    pub bridge_mac: Mac,
    /// MTU of pods in bytes.
    pub mtu: u32,
    /// Address pools: one per family.
    pub pools: Vec<PoolStatus>,
    /// Number of attached pods.
    pub pods: usize,
    /// Veths of deleted pods that the reaper has yet to remove.
    pub reaping: usize,
    /// What the node knows of the cluster.
    #[serde(default)]
    pub cluster: ClusterStatus,
    /// The kernel.
    #[serde(default)]
    pub kernel: KernelStatus,
    /// The eBPF path.
    pub datapath: DatapathStatus,
    /// Things that work less well than they should, in plain words.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What reconciliation repaired since the daemon started.
    #[serde(default)]
    pub repairs: u64,
}

/// Log levels; an absent one stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevels {
    /// Filter of the daemon, in `tracing`'s directive syntax.
    #[serde(default)]
    pub daemon: Option<String>,
    /// Level of the eBPF programs: `off`, `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(default)]
    pub ebpf: Option<String>,
}

/// Asks the daemon to change the eBPF path while traffic flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatapathRequest {
    /// Attach the programs.
    Attach,
    /// Detach the programs: the kernel path takes over until the next attach or start.
    Detach,
    /// Load the programs anew and replace the attached ones atomically.
    Reload,
}
