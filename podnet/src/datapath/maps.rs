//! The pinned maps, typed. The daemon writes them; commands read them while it is down.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Pod,
    maps::{
        HashMap, Map, MapData, MapError, MapInfo, MapType, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use podnet_common::{
    LAYOUT_VERSION,
    address::Address,
    endpoint::{Endpoint, EndpointSource},
    flow::{Flow, FlowKey},
    map_name,
    node::{Node, NodeAddress, NodePrefix},
    verdict::{COUNTER_SLOTS, Counter, DropReason, Verdict},
};

use crate::api::CounterStatus;

/// What a pinned map must be for this build to use it.
struct Layout {
    name: &'static str,
    kind: MapType,
    key_size: usize,
    value_size: usize,
    /// Where the size is part of the contract: it is mapped into memory, or indexed.
    max_entries: Option<u32>,
}

/// Size of the ring buffer `EVENTS` in bytes, as the object declares it.
const EVENTS_SIZE: u32 = 256 * 1024;

const LAYOUTS: [Layout; map_name::ALL.len()] = [
    Layout::hash::<Address, Endpoint>(map_name::ENDPOINTS, MapType::Hash),
    Layout::hash::<u32, EndpointSource>(map_name::ENDPOINTS_BY_IFINDEX, MapType::Hash),
    Layout::hash::<Address, Node>(map_name::NODES, MapType::Hash),
    Layout::hash::<NodePrefix, Node>(map_name::NODES_LPM, MapType::LpmTrie),
    Layout::hash::<Address, NodeAddress>(map_name::NODE_ADDRESSES, MapType::Hash),
    Layout::hash::<FlowKey, Flow>(map_name::KERNEL_FLOWS, MapType::LruHash),
    Layout {
        name: map_name::COUNTERS,
        kind: MapType::PerCpuArray,
        key_size: size_of::<u32>(),
        value_size: size_of::<Counter>(),
        max_entries: Some(COUNTER_SLOTS),
    },
    Layout {
        name: map_name::EVENTS,
        kind: MapType::RingBuf,
        key_size: 0,
        value_size: 0,
        max_entries: Some(EVENTS_SIZE),
    },
];

impl Layout {
    const fn hash<K, V>(name: &'static str, kind: MapType) -> Self {
        Self { name, kind, key_size: size_of::<K>(), value_size: size_of::<V>(), max_entries: None }
    }

    /// Checks a pinned map. `None`: nothing is pinned there.
    fn check(&self, path: &Path) -> Result<Option<()>> {
        let info = match MapInfo::from_pin(path) {
            Ok(info) => info,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("open pinned map {}", path.display())),
        };
        let kind = info.map_type().with_context(|| format!("examine pinned map {}", path.display()))?;
        let (key_size, value_size, max_entries) = (info.key_size(), info.value_size(), info.max_entries());
        ensure!(
            kind == self.kind
                && key_size as usize == self.key_size
                && value_size as usize == self.value_size
                && self.max_entries.is_none_or(|expected| expected == max_entries),
            "pinned map {} is a {kind:?} with keys of {key_size} bytes, values of {value_size} bytes and {max_entries} \
             entries; layout version {LAYOUT_VERSION} of {} is a {:?} with keys of {} bytes and values of {} bytes{}. \
             Another version of podnet made it: stop the daemon and remove the folder {}",
            path.display(),
            self.name,
            self.kind,
            self.key_size,
            self.value_size,
            self.max_entries.map(|entries| format!(" and {entries} entries")).unwrap_or_default(),
            path.parent().unwrap_or(path).display(),
        );
        Ok(Some(()))
    }
}

/// Checks every map that is pinned in a folder; absent ones are made by the loader.
pub(super) fn check_pins(pin_dir: &Path) -> Result<()> {
    LAYOUTS.iter().try_for_each(|layout| layout.check(&pin_dir.join(layout.name)).map(drop))
}

/// Checks one pinned map.
pub(super) fn check_pin(pin: &Path) -> Result<()> {
    let layout = LAYOUTS.iter().find(|layout| pin.ends_with(layout.name)).context("a pin has the name of its map")?;
    layout.check(pin).map(drop)
}

/// Opens a pinned map.
pub(super) fn open(pin_dir: &Path, name: &str) -> Result<Map> {
    let path = pin_dir.join(name);
    let Some(layout) = LAYOUTS.iter().find(|layout| layout.name == name) else { bail!("{name} is no map of podnet") };
    layout.check(&path)?.with_context(|| {
        format!("no map is pinned at {}; has the daemon run with the eBPF path on this node?", path.display())
    })?;
    let data = MapData::from_pin(&path).with_context(|| format!("open pinned map {}", path.display()))?;
    Map::from_map_data(data).with_context(|| format!("open pinned map {}", path.display()))
}

/// The pinned maps of a node, except the ring buffer, which has one reader (see [`super::events`]).
pub struct Maps {
    pin_dir: PathBuf,
    endpoints: HashMap<MapData, Address, Endpoint>,
    sources: HashMap<MapData, u32, EndpointSource>,
    nodes: HashMap<MapData, Address, Node>,
    node_prefixes: LpmTrie<MapData, Address, Node>,
    node_addresses: HashMap<MapData, Address, NodeAddress>,
    flows: HashMap<MapData, FlowKey, Flow>,
    counters: PerCpuArray<MapData, Counter>,
}

impl Maps {
    /// Opens the maps that are pinned in a folder.
    ///
    /// # Errors
    ///
    /// A map is not pinned there, or has another layout; the error names the path.
    pub fn from_pins(pin_dir: &Path) -> Result<Self> {
        let typed = |name| move || format!("open pinned map {}", pin_dir.join(name).display());
        Ok(Self {
            pin_dir: pin_dir.to_owned(),
            endpoints: open(pin_dir, map_name::ENDPOINTS)?.try_into().with_context(typed(map_name::ENDPOINTS))?,
            sources: open(pin_dir, map_name::ENDPOINTS_BY_IFINDEX)?
                .try_into()
                .with_context(typed(map_name::ENDPOINTS_BY_IFINDEX))?,
            nodes: open(pin_dir, map_name::NODES)?.try_into().with_context(typed(map_name::NODES))?,
            node_prefixes: open(pin_dir, map_name::NODES_LPM)?.try_into().with_context(typed(map_name::NODES_LPM))?,
            node_addresses: open(pin_dir, map_name::NODE_ADDRESSES)?
                .try_into()
                .with_context(typed(map_name::NODE_ADDRESSES))?,
            flows: open(pin_dir, map_name::KERNEL_FLOWS)?.try_into().with_context(typed(map_name::KERNEL_FLOWS))?,
            counters: open(pin_dir, map_name::COUNTERS)?.try_into().with_context(typed(map_name::COUNTERS))?,
        })
    }

    /// Returns the folder in which the maps are pinned.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Returns the endpoint of an address.
    pub fn endpoint(&self, address: Address) -> Result<Option<Endpoint>> {
        found(self.endpoints.get(&address, 0)).with_context(|| format!("look up {} in ENDPOINTS", address.to_ip()))
    }

    /// Returns every endpoint with its address, in no order. Entries that come or go meanwhile may be missed.
    pub fn endpoints(&self) -> Result<Vec<(Address, Endpoint)>> {
        entries(&self.endpoints).context("read ENDPOINTS")
    }

    /// Makes the entry of an address what it should be, and returns whether it was something else. Flags that the
    /// programs have set stay; flags of `endpoint` are added.
    ///
    /// An entry that is right is not written: a write replaces it, and would lose a flag that a program sets at that
    /// very moment.
    pub fn upsert_endpoint(&mut self, address: Address, endpoint: Endpoint) -> Result<bool> {
        let current = self.endpoint(address)?;
        let flags = endpoint.flags | current.map_or(0, |current| current.flags);
        let wanted = Endpoint { flags, ..endpoint };
        upsert(&mut self.endpoints, address, current, wanted)
            .with_context(|| format!("write {} to ENDPOINTS", address.to_ip()))
    }

    /// Removes an address; an absent one is success. Returns whether it was there.
    pub fn remove_endpoint(&mut self, address: Address) -> Result<bool> {
        removed(self.endpoints.remove(&address)).with_context(|| format!("remove {} from ENDPOINTS", address.to_ip()))
    }

    /// Returns what the pod behind a host-side veth may send.
    pub fn source(&self, ifindex: u32) -> Result<Option<EndpointSource>> {
        found(self.sources.get(&ifindex, 0))
            .with_context(|| format!("look up interface {ifindex} in ENDPOINTS_BY_IFINDEX"))
    }

    /// Returns every source with its interface index; see [`Maps::endpoints`].
    pub fn sources(&self) -> Result<Vec<(u32, EndpointSource)>> {
        entries(&self.sources).context("read ENDPOINTS_BY_IFINDEX")
    }

    /// Makes the entry of an interface what it should be; see [`Maps::upsert_endpoint`].
    pub fn upsert_source(&mut self, ifindex: u32, source: EndpointSource) -> Result<bool> {
        let current = self.source(ifindex)?;
        let flags = source.flags | current.map_or(0, |current| current.flags);
        let wanted = EndpointSource { flags, ..source };
        upsert(&mut self.sources, ifindex, current, wanted)
            .with_context(|| format!("write interface {ifindex} to ENDPOINTS_BY_IFINDEX"))
    }

    /// Removes an interface; an absent one is success. Returns whether it was there.
    pub fn remove_source(&mut self, ifindex: u32) -> Result<bool> {
        removed(self.sources.remove(&ifindex))
            .with_context(|| format!("remove interface {ifindex} from ENDPOINTS_BY_IFINDEX"))
    }

    /// Sets the `KERNEL_TOUCHED` flags of every endpoint: after a time without the programs, any flow may be one that
    /// the kernel translates.
    pub fn set_kernel_touched_all(&mut self) -> Result<()> {
        for (address, endpoint) in self.endpoints()? {
            let flags = endpoint.flags | Endpoint::KERNEL_TOUCHED;
            self.upsert_endpoint(address, Endpoint { flags, ..endpoint })?;
        }
        for (ifindex, source) in self.sources()? {
            let flags = source.flags | EndpointSource::KERNEL_TOUCHED_V4 | EndpointSource::KERNEL_TOUCHED_V6;
            self.upsert_source(ifindex, EndpointSource { flags, ..source })?;
        }
        Ok(())
    }

    /// Returns the node that has the pod CIDR of the usual size with this network address.
    pub fn node(&self, network: Address) -> Result<Option<Node>> {
        found(self.nodes.get(&network, 0)).with_context(|| format!("look up {} in NODES", network.to_ip()))
    }

    /// Returns every node by the network addresses of its pod CIDRs of the usual size; see [`Maps::endpoints`].
    pub fn nodes(&self) -> Result<Vec<(Address, Node)>> {
        entries(&self.nodes).context("read NODES")
    }

    /// Makes the entry of a pod CIDR of the usual size what it should be, and returns whether it was something else. The
    /// programs see the old entry or the new one, and nothing between.
    pub fn upsert_node(&mut self, network: Address, node: Node) -> Result<bool> {
        let current = self.node(network)?;
        upsert(&mut self.nodes, network, current, node).with_context(|| format!("write {} to NODES", network.to_ip()))
    }

    /// Removes a pod CIDR of the usual size; an absent one is success. Returns whether it was there.
    pub fn remove_node(&mut self, network: Address) -> Result<bool> {
        removed(self.nodes.remove(&network)).with_context(|| format!("remove {} from NODES", network.to_ip()))
    }

    /// Returns every node by its pod CIDRs of other sizes; see [`Maps::endpoints`].
    pub fn node_prefixes(&self) -> Result<Vec<(NodePrefix, Node)>> {
        self.node_prefixes
            .iter()
            .map(|entry| {
                let (key, node) = entry?;
                Ok((NodePrefix { prefix_len: key.prefix_len(), address: key.data() }, node))
            })
            .collect::<Result<_, MapError>>()
            .context("read NODES_LPM")
    }

    /// Makes the entry of a pod CIDR of another size what it should be, and returns whether its addresses led elsewhere.
    /// It is written in any case: a look-up may find a shorter prefix, and cannot tell.
    pub fn upsert_node_prefix(&mut self, prefix: NodePrefix, node: Node) -> Result<bool> {
        let key = Key::new(prefix.prefix_len, prefix.address);
        let operation = || format!("write {prefix} to NODES_LPM");
        let current = found(self.node_prefixes.get(&key, 0)).with_context(operation)?;
        self.node_prefixes.insert(&key, node, 0).with_context(operation)?;
        Ok(current != Some(node))
    }

    /// Removes a pod CIDR of another size; an absent one is success. Returns whether it was there.
    pub fn remove_node_prefix(&mut self, prefix: NodePrefix) -> Result<bool> {
        removed(self.node_prefixes.remove(&Key::new(prefix.prefix_len, prefix.address)))
            .with_context(|| format!("remove {prefix} from NODES_LPM"))
    }

    /// Returns whose every address of a node is; see [`Maps::endpoints`].
    pub fn node_addresses(&self) -> Result<Vec<(Address, NodeAddress)>> {
        entries(&self.node_addresses).context("read NODE_ADDRESSES")
    }

    /// Makes the entry of a node's address what it should be; see [`Maps::upsert_node`].
    pub fn upsert_node_address(&mut self, address: Address, owner: NodeAddress) -> Result<bool> {
        let operation = || format!("write {} to NODE_ADDRESSES", address.to_ip());
        let current = found(self.node_addresses.get(&address, 0)).with_context(operation)?;
        upsert(&mut self.node_addresses, address, current, owner).with_context(operation)
    }

    /// Removes a node's address; an absent one is success. Returns whether it was there.
    pub fn remove_node_address(&mut self, address: Address) -> Result<bool> {
        removed(self.node_addresses.remove(&address))
            .with_context(|| format!("remove {} from NODE_ADDRESSES", address.to_ip()))
    }

    /// Returns the flows, in no order.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>> {
        entries(&self.flows).context("read KERNEL_FLOWS")
    }

    /// Returns one flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<Flow>> {
        found(self.flows.get(key, 0)).context("look up a flow in KERNEL_FLOWS")
    }

    /// Writes a flow: for tests of the programs.
    pub fn set_flow(&mut self, key: &FlowKey, flow: Flow) -> Result<()> {
        self.flows.insert(key, flow, 0).context("write a flow to KERNEL_FLOWS")
    }

    /// Forgets a flow; an absent one is success. Its packets take the kernel path until it is claimed again.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<bool> {
        removed(self.flows.remove(key)).context("remove a flow from KERNEL_FLOWS")
    }

    /// Returns every counter, summed over the CPUs: verdicts first, then drop reasons.
    pub fn counters(&self) -> Result<Vec<CounterStatus>> {
        let verdicts = Verdict::ALL.iter().map(|verdict| ("verdict", verdict.as_str(), verdict.counter_index()));
        let reasons = DropReason::ALL.iter().map(|reason| ("drop", reason.as_str(), reason.counter_index()));
        verdicts
            .chain(reasons)
            .map(|(kind, name, index)| {
                let Counter { packets, bytes } = self.counter(index)?;
                Ok(CounterStatus { kind: kind.into(), name: name.into(), packets, bytes })
            })
            .collect()
    }

    /// Returns one counter, summed over the CPUs.
    pub fn counter(&self, index: u32) -> Result<Counter> {
        let per_cpu = self.counters.get(&index, 0).with_context(|| format!("read counter {index} of COUNTERS"))?;
        Ok(per_cpu.iter().fold(Counter { packets: 0, bytes: 0 }, |sum, one| Counter {
            packets: sum.packets.wrapping_add(one.packets),
            bytes: sum.bytes.wrapping_add(one.bytes),
        }))
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("pin_dir", &self.pin_dir).finish_non_exhaustive()
    }
}

fn upsert<K: Pod, V: Pod + PartialEq>(
    map: &mut HashMap<MapData, K, V>,
    key: K,
    current: Option<V>,
    wanted: V,
) -> Result<bool> {
    if current == Some(wanted) {
        return Ok(false);
    }
    map.insert(key, wanted, 0)?;
    Ok(true)
}

fn found<V>(result: Result<V, MapError>) -> Result<Option<V>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn removed(result: Result<(), MapError>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn entries<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>> {
    map.iter().map(|entry| entry.map_err(Into::into)).collect()
}
