//! The pinned maps of a node, read as any program could, without the daemon.

use std::path::PathBuf;

use aya::maps::{HashMap, Map, MapData};
use podnet::lab::Node;
use podnet_common::{
    LAYOUT_VERSION,
    address::Address,
    endpoint::{Endpoint, EndpointSource},
    flow::{Flow, FlowKey},
    map_name,
    node::{Node as NodeEntry, NodeAddress},
};

/// A pinned hash map.
pub type PinnedHash<K, V> = HashMap<MapData, K, V>;

/// Opens `ENDPOINTS`.
pub fn endpoints(node: &Node) -> PinnedHash<Address, Endpoint> {
    open(node, map_name::ENDPOINTS)
}

/// Opens `ENDPOINTS_BY_IFINDEX`.
pub fn endpoints_by_ifindex(node: &Node) -> PinnedHash<u32, EndpointSource> {
    open(node, map_name::ENDPOINTS_BY_IFINDEX)
}

/// Opens `NODES`.
pub fn nodes(node: &Node) -> PinnedHash<Address, NodeEntry> {
    open(node, map_name::NODES)
}

/// Opens `NODE_ADDRESSES`.
pub fn node_addresses(node: &Node) -> PinnedHash<Address, NodeAddress> {
    open(node, map_name::NODE_ADDRESSES)
}

/// Returns the entry of a pod CIDR of the usual size in `NODES`.
pub fn node_of(node: &Node, cidr: ipnetwork::IpNetwork) -> Option<NodeEntry> {
    nodes(node).get(&Address::from(cidr.network()), 0).ok()
}

/// Opens `KERNEL_FLOWS`.
pub fn kernel_flows(node: &Node) -> PinnedHash<FlowKey, Flow> {
    open(node, map_name::KERNEL_FLOWS)
}

/// Removes every entry of `KERNEL_FLOWS`, as if all of them had been evicted; returns how many there were.
pub fn evict_kernel_flows(node: &Node) -> usize {
    let mut flows = kernel_flows(node);
    let keys: Vec<FlowKey> = flows.keys().filter_map(Result::ok).collect();
    // An entry may have gone meanwhile.
    keys.iter().filter(|key| flows.remove(key).is_ok()).count()
}

fn open<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> PinnedHash<K, V> {
    let pin = pins(node).join(name);
    let open = || -> anyhow::Result<PinnedHash<K, V>> {
        Ok(HashMap::try_from(Map::from_map_data(MapData::from_pin(&pin)?)?)?)
    };
    open().unwrap_or_else(|error| panic!("open the pinned map {}: {error:#}", pin.display()))
}

/// Returns the folder of the node's pins.
pub fn pins(node: &Node) -> PathBuf {
    node.bpffs().join(format!("v{LAYOUT_VERSION}"))
}
