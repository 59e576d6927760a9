//! Routing, the pure half: from the cluster's nodes and the kernel's ways to them, what the routing table and the node
//! maps should hold; and the changes that lead there. No I/O.
//!
//! Everything is derived here once, for the kernel path (routes, neighbours) and the eBPF path (map entries) alike.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use podnet_common::{
    address::Address,
    endpoint::link_local_address,
    node::{Node, NodePrefix},
};

use crate::{
    api::Mac,
    cluster::{Cluster, ClusterNode},
    config::{Config, RoutingMode},
    names,
    netlink::route::{NextHop, Route, Tunnel},
};

/// Bytes that VXLAN puts before an inner IP packet: outer IP (20 or 40), UDP (8), VXLAN (8), inner Ethernet (14).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// Smallest MTU of a link that carries IPv6 (RFC 8200, section 5). On one with less the kernel has no IPv6 at all.
const IPV6_MIN_MTU: u32 = 1280;

/// What routing follows from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// How pods of other nodes are reached.
    pub mode: RoutingMode,
    /// Name of this node.
    pub name: &'a str,
    /// Pod CIDRs of this node.
    pub own_cidrs: &'a [IpNetwork],
    /// Central routers, at most one per family.
    pub routers: &'a [IpAddr],
    /// Ranges that hold all pods of the cluster.
    pub cluster_cidrs: &'a [IpNetwork],
    /// Network identifier of the overlay.
    pub vni: u32,
    /// The cluster's nodes; `None`: not known yet.
    pub cluster: Option<&'a Cluster>,
    /// The kernel's way to each address of [`addresses`]; `None`: there is none.
    pub ways: &'a HashMap<IpAddr, Option<NextHop>>,
    /// Name and MTU of each interface that is up.
    pub links: &'a HashMap<u32, (String, u32)>,
    /// The overlay device, once it is there.
    pub overlay: Option<u32>,
}

/// How the pods of a pod CIDR are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They are this node's own.
    Local,
    /// By a next hop on an uplink.
    Direct {
        /// The uplink.
        ifindex: u32,
        /// The next hop.
        next_hop: IpAddr,
        /// MTU of the uplink.
        mtu: u32,
    },
    /// Through the overlay.
    Overlay {
        /// The uplink that the outer packets leave by.
        uplink: u32,
        /// Destination of the outer packets.
        remote: IpAddr,
        /// Largest inner IP packet.
        mtu: u32,
    },
}

/// What the routing table and the node maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Routes by destination.
    pub routes: BTreeMap<IpNetwork, Route>,
    /// Permanent neighbours on the overlay device.
    pub neighbors: BTreeMap<IpAddr, Mac>,
    /// How pods are reached, by pod CIDR.
    pub nodes: BTreeMap<IpNetwork, Node>,
    /// Numbers of the nodes, by address.
    pub node_addresses: BTreeMap<IpAddr, u64>,
    /// Interfaces that lead to other nodes.
    pub uplinks: BTreeSet<u32>,
    /// Smallest MTU of the ways through the overlay, if there is any, be its device there or not.
    pub overlay_mtu: Option<u32>,
    /// Largest of them: the overlay device's.
    pub overlay_device_mtu: Option<u32>,
    /// Nodes that cannot be reached, and why.
    pub problems: Vec<String>,
}

/// Which pod CIDRs are the usual ones: a constant of the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Prefix length of the usual IPv4 pod CIDR.
    pub v4: Option<u8>,
    /// Prefix length of the usual IPv6 pod CIDR.
    pub v6: Option<u8>,
    /// Whether there are others.
    pub others: bool,
}

/// Returns the addresses whose ways routing asks for, each once.
#[must_use]
pub fn addresses(mode: RoutingMode, own_name: &str, routers: &[IpAddr], cluster: Option<&Cluster>) -> Vec<IpAddr> {
    if mode == RoutingMode::Router {
        return routers.to_vec();
    }
    let others = cluster.into_iter().flat_map(Cluster::nodes).filter(|node| node.name != own_name);
    others.flat_map(|node| node.addresses.iter().copied()).collect()
}

impl Inputs<'_> {
    /// Returns how the pods of a node's pod CIDR are reached.
    ///
    /// # Errors
    ///
    /// They cannot be reached; the reason in words.
    pub fn reach(&self, node: &ClusterNode, cidr: IpNetwork) -> Result<Reach, String> {
        if node.name == self.name {
            return Ok(Reach::Local);
        }
        if let Some(own) = self.own_overlap(cidr) {
            return Err(format!("this node still runs with {own}"));
        }
        match self.mode {
            RoutingMode::Router => self.by_router(cidr),
            RoutingMode::Direct => self.direct(node, cidr),
            RoutingMode::Overlay => self.overlay(node, cidr),
            RoutingMode::Auto => match self.direct(node, cidr) {
                Ok(direct) if self.is_on_link(node, cidr) => Ok(direct),
                _ => self.overlay(node, cidr),
            },
        }
    }

    /// Returns the pod CIDR of this node that shares addresses with another. The store may have given it away, but pods of
    /// this node have addresses of it.
    fn own_overlap(&self, cidr: IpNetwork) -> Option<IpNetwork> {
        let overlaps = |own: &&IpNetwork| own.contains(cidr.network()) || cidr.contains(own.network());
        self.own_cidrs.iter().find(overlaps).copied()
    }

    fn way(&self, address: IpAddr) -> Result<(NextHop, u32), String> {
        let way =
            self.ways.get(&address).copied().flatten().ok_or_else(|| format!("there is no route to {address}"))?;
        let mtu = self.links.get(&way.ifindex).map(|(_, mtu)| *mtu);
        Ok((way, mtu.ok_or_else(|| format!("the interface that leads to {address} is down"))?))
    }

    fn is_on_link(&self, node: &ClusterNode, cidr: IpNetwork) -> bool {
        node.address(cidr.is_ipv6())
            .and_then(|address| self.ways.get(&address).copied().flatten())
            .is_some_and(|way| way.gateway.is_none())
    }

    fn direct(&self, node: &ClusterNode, cidr: IpNetwork) -> Result<Reach, String> {
        let address = node.address(cidr.is_ipv6()).ok_or_else(|| {
            format!("it has no address of the family of {cidr}, which mode \"direct\" needs; mode \"overlay\" does not")
        })?;
        self.next_hop(address, cidr)
    }

    fn by_router(&self, cidr: IpNetwork) -> Result<Reach, String> {
        let router = self.routers.iter().copied().find(|router| router.is_ipv4() == cidr.is_ipv4());
        self.next_hop(router.ok_or_else(|| format!("routers has no address of the family of {cidr}"))?, cidr)
    }

    fn next_hop(&self, address: IpAddr, cidr: IpNetwork) -> Result<Reach, String> {
        let (way, mtu) = self.way(address)?;
        let next_hop = way.gateway.unwrap_or(address);
        if next_hop.is_ipv4() != cidr.is_ipv4() {
            return Err(format!("the next hop {next_hop} towards {address} is not of the family of {cidr}"));
        }
        Ok(Reach::Direct { ifindex: way.ifindex, next_hop, mtu })
    }

    fn overlay(&self, node: &ClusterNode, cidr: IpNetwork) -> Result<Reach, String> {
        let remote = self.outer_address(node)?;
        let (way, mtu) = self.way(remote)?;
        let overhead = if remote.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let inner = mtu.saturating_sub(overhead);
        if cidr.is_ipv6() && inner < IPV6_MIN_MTU {
            return Err(format!(
                "IPv6 needs an overlay MTU of {IPV6_MIN_MTU}, and there is one of {inner}: give the uplinks {} or more",
                IPV6_MIN_MTU + overhead
            ));
        }
        Ok(Reach::Overlay { uplink: way.ifindex, remote, mtu: inner })
    }

    /// Returns where outer packets to a node go: IPv4 if both ends have it, as the other end decides, too.
    fn outer_address(&self, node: &ClusterNode) -> Result<IpAddr, String> {
        let own = self.cluster.and_then(|cluster| cluster.node(self.name));
        [false, true]
            .into_iter()
            .filter(|v6| own.is_none_or(|own| own.address(*v6).is_some()))
            .find_map(|v6| node.address(v6))
            .ok_or_else(|| "it has no address of a family that this node has, too".into())
    }

    fn own_gateway(&self, v6: bool) -> Option<IpAddr> {
        self.own_cidrs.iter().find(|cidr| cidr.is_ipv6() == v6).map(|cidr| Config::gateway(*cidr))
    }

    /// Derives what the routing table and the node maps should hold.
    #[must_use]
    pub fn routing(&self) -> Routing {
        let mut routing = Routing::default();
        let own_mac = names::mac_for(&self.own_cidrs.iter().map(|cidr| Config::gateway(*cidr)).collect::<Vec<_>>());
        let families: BTreeSet<bool> = self.own_cidrs.iter().map(IpNetwork::is_ipv6).collect();
        let own_id = names::node_id(self.name);
        for cidr in self.own_cidrs {
            routing.nodes.insert(*cidr, Node { flags: Node::LOCAL, ..empty_node(own_id) });
        }
        for node in self.cluster.into_iter().flat_map(Cluster::nodes) {
            let id = names::node_id(&node.name);
            routing.node_addresses.extend(node.addresses.iter().map(|address| (*address, id)));
            // In mode router with known ranges, the router alone knows the pod CIDRs.
            let by_range = self.mode == RoutingMode::Router && !self.cluster_cidrs.is_empty();
            if node.name == self.name || by_range {
                continue;
            }
            let mac = names::mac_for(&node.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr)).collect::<Vec<_>>());
            for cidr in node.pod_cidrs.iter().filter(|cidr| families.contains(&cidr.is_ipv6())) {
                let entry = Node { mac: mac.0, own_mac: own_mac.0, ..empty_node(id) };
                let reach = self.reach(node, *cidr);
                if self.own_overlap(*cidr).is_none() {
                    self.add(&mut routing, *cidr, entry, reach, &node.name);
                }
            }
        }
        if self.mode == RoutingMode::Router {
            for cidr in self.cluster_cidrs.iter().filter(|cidr| families.contains(&cidr.is_ipv6())) {
                let reach = self.by_router(*cidr);
                self.add(&mut routing, *cidr, empty_node(names::node_id("")), reach, "the router");
            }
        }
        routing
    }

    fn add(&self, routing: &mut Routing, cidr: IpNetwork, entry: Node, reach: Result<Reach, String>, name: &str) {
        let entry = match reach {
            Ok(Reach::Local) => return,
            Ok(Reach::Direct { ifindex, next_hop, mtu }) => {
                routing.uplinks.insert(ifindex);
                routing
                    .routes
                    .insert(cidr, Route { metric: metric(cidr), ..Route::new(cidr, Some(next_hop), ifindex) });
                let next_hop = Address::from(next_hop);
                Node { next_hop, ifindex, mtu, flags: Node::DIRECT, ..entry }
            }
            Ok(Reach::Overlay { uplink, remote, mtu }) => {
                routing.uplinks.insert(uplink);
                routing.overlay_mtu = Some(routing.overlay_mtu.map_or(mtu, |smallest| smallest.min(mtu)));
                routing.overlay_device_mtu = routing.overlay_device_mtu.max(Some(mtu));
                let entry = Node { address: Address::from(remote), ..entry };
                match self.overlay {
                    Some(ifindex) => {
                        let gateway = overlay_gateway(cidr, entry.mac);
                        routing.neighbors.insert(gateway, Mac(entry.mac));
                        routing.routes.insert(
                            cidr,
                            Route {
                                source: self.own_gateway(cidr.is_ipv6()),
                                mtu: Some(mtu),
                                metric: metric(cidr),
                                tunnel: Some(Tunnel { vni: self.vni, remote }),
                                ..Route::new(cidr, Some(gateway), ifindex)
                            },
                        );
                        Node { ifindex, mtu, flags: Node::OVERLAY, ..entry }
                    }
                    None => entry,
                }
            }
            Err(reason) => {
                routing.problems.push(format!("{cidr} of {name} cannot be reached: {reason}"));
                entry
            }
        };
        routing.nodes.insert(cidr, entry);
    }
}

/// Returns the metric of a route: of no meaning, since there is one route to each pod CIDR, but different for neighbours.
/// The kernel looks through all IPv4 routes of one interface and metric whenever it adds one (`fib_find_info` in
/// net/ipv4/fib_semantics.c), which would take seconds for ten thousand.
fn metric(cidr: IpNetwork) -> Option<u32> {
    const METRICS: u32 = 1024;
    match cidr {
        IpNetwork::V4(v4) => {
            let number = u32::from(v4.network()).checked_shr(32 - u32::from(v4.prefix())).unwrap_or(0);
            Some(1 + number % METRICS)
        }
        IpNetwork::V6(_) => None,
    }
}

/// Returns the next hop on the overlay device for a pod CIDR: a name for the node's MAC there. The kernel takes no global
/// IPv6 address to which another route leads (`ip6_route_check_nh_onlink` in net/ipv6/route.c), as one does when a
/// node that was reached directly moves behind the overlay.
fn overlay_gateway(cidr: IpNetwork, mac: [u8; 6]) -> IpAddr {
    match cidr {
        IpNetwork::V4(_) => Config::gateway(cidr),
        IpNetwork::V6(_) => IpAddr::from(link_local_address(mac)),
    }
}

const fn empty_node(id: u64) -> Node {
    let nowhere = Address::from_v6_octets([0; 16]);
    Node { id, address: nowhere, next_hop: nowhere, ifindex: 0, flags: 0, mtu: 0, mac: [0; 6], own_mac: [0; 6] }
}

impl Routing {
    /// Returns which prefix lengths are the usual ones; with as many of one as of another, the longer.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let mut counts = [[0_usize; 129]; 2];
        for cidr in self.nodes.keys() {
            counts[usize::from(cidr.is_ipv6())][usize::from(cidr.prefix())] += 1;
        }
        let usual = |v6: bool| {
            let counts = (0_u8..).zip(counts[usize::from(v6)]).filter(|(_, count)| *count > 0);
            counts.max_by_key(|(prefix, count)| (*count, *prefix)).map(|(prefix, _)| prefix)
        };
        let (v4, v6) = (usual(false), usual(true));
        let is_other = |cidr: &IpNetwork| Some(cidr.prefix()) != if cidr.is_ipv4() { v4 } else { v6 };
        Shape { v4, v6, others: self.nodes.keys().any(is_other) }
    }
}

impl Shape {
    /// Returns the IPv4 mask as it stands in the programs' settings.
    #[must_use]
    pub fn mask_v4(&self) -> [u8; 4] {
        self.v4.map_or([0; 4], |prefix| (!u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)).to_be_bytes())
    }

    /// Returns the IPv6 mask as it stands in the programs' settings.
    #[must_use]
    pub fn mask_v6(&self) -> [u8; 16] {
        self.v6.map_or([0; 16], |prefix| (!u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)).to_be_bytes())
    }

    /// Returns which map holds a pod CIDR, and under which key.
    #[must_use]
    pub fn key(&self, cidr: IpNetwork) -> NodeKey {
        let address = Address::from(cidr.network());
        let usual = if cidr.is_ipv4() { self.v4 } else { self.v6 };
        if usual == Some(cidr.prefix()) {
            return NodeKey::Usual(address);
        }
        let prefix_len = u32::from(cidr.prefix()) + if cidr.is_ipv4() { 96 } else { 0 };
        NodeKey::Other(NodePrefix { prefix_len, address })
    }
}

/// Where the maps hold a pod CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKey {
    /// In `NODES`.
    Usual(Address),
    /// In `NODES_LPM`.
    Other(NodePrefix),
}

/// What the routing table and the node maps hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// Podnet's routes.
    pub routes: HashMap<IpNetwork, Route>,
    /// Destinations to which others have routes, as far as they matter.
    pub taken: BTreeSet<IpNetwork>,
    /// Permanent neighbours on the overlay device.
    pub neighbors: HashMap<IpAddr, Mac>,
    /// Entries of `NODES` and `NODES_LPM`; `None` if there are no maps.
    pub nodes: Option<HashMap<NodeKey, Node>>,
    /// Entries of `NODE_ADDRESSES`; `None` if there are no maps.
    pub node_addresses: Option<HashMap<IpAddr, u64>>,
}

/// One step from what is to what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The maps have a pod CIDR that no node has, or under a key of another shape.
    DeleteNode(NodeKey),
    /// The overlay device does not know the MAC of a node's gateway.
    PutNeighbor(IpAddr, Mac),
    /// A route is missing.
    AddRoute(Route),
    /// A route leads elsewhere.
    ReplaceRoute(Route),
    /// Another route to the same pod CIDR is there.
    RefuseRoute(IpNetwork),
    /// The maps do not say, or say wrongly, whose an address is.
    PutNodeAddress(IpAddr, u64),
    /// The maps do not say, or say wrongly, how a pod CIDR is reached.
    PutNode(NodeKey, Node),
    /// A route leads to a pod CIDR that no node has.
    DeleteRoute(IpNetwork),
    /// The overlay device knows a gateway that no node has.
    DeleteNeighbor(IpAddr),
    /// The maps have an address that no node has.
    DeleteNodeAddress(IpAddr),
}

/// How one map differs from another.
#[derive(Debug)]
struct Differences<K, V> {
    gone: Vec<K>,
    new: Vec<(K, V)>,
    changed: Vec<(K, V)>,
}

impl<K, V> Default for Differences<K, V> {
    fn default() -> Self {
        Self { gone: Vec::new(), new: Vec::new(), changed: Vec::new() }
    }
}

impl<K: Copy + Eq + Hash, V: Copy + PartialEq> Differences<K, V> {
    fn from_actual(actual: &HashMap<K, V>, desired: impl Iterator<Item = (K, V)> + Clone) -> Self {
        let mut differences = Self::default();
        let mut present = 0;
        for (key, value) in desired.clone() {
            match actual.get(&key) {
                None => differences.new.push((key, value)),
                Some(other) => {
                    present += 1;
                    if *other != value {
                        differences.changed.push((key, value));
                    }
                }
            }
        }
        if present < actual.len() {
            let wanted: HashSet<K> = desired.map(|(key, _)| key).collect();
            differences.gone.extend(actual.keys().filter(|key| !wanted.contains(key)));
        }
        differences
    }

    /// Walks through both maps at once.
    fn between(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> Self
    where
        K: Ord,
    {
        let mut differences = Self::default();
        let mut before = before.iter().peekable();
        for (key, value) in after {
            while let Some((gone, _)) = before.next_if(|(other, _)| *other < key) {
                differences.gone.push(*gone);
            }
            match before.next_if(|(other, _)| *other == key) {
                None => differences.new.push((*key, *value)),
                Some((_, other)) if other != value => differences.changed.push((*key, *value)),
                Some(_) => {}
            }
        }
        differences.gone.extend(before.map(|(key, _)| *key));
        differences
    }

    fn map_keys<L>(self, key: impl Fn(K) -> L) -> Differences<L, V> {
        let pairs = |pairs: Vec<(K, V)>| pairs.into_iter().map(|(one, value)| (key(one), value)).collect();
        Differences {
            new: pairs(self.new),
            changed: pairs(self.changed),
            gone: self.gone.into_iter().map(&key).collect(),
        }
    }

    fn put(&self) -> impl Iterator<Item = (K, V)> {
        self.new.iter().chain(&self.changed).copied()
    }
}

/// Returns the changes that lead from `actual` to `desired`, in the order in which to apply them: the kernel's path to a
/// node is there before the maps lead to it, and until they do not any more.
#[must_use]
pub fn plan(desired: &Routing, shape: &Shape, actual: &Actual) -> Vec<Change> {
    let nodes = desired.nodes.iter().map(|(cidr, node)| (shape.key(*cidr), *node));
    let mut neighbors = Differences::from_actual(&actual.neighbors, pairs(&desired.neighbors));
    // The kernel's own.
    neighbors.gone.retain(|address| !address.is_multicast());
    in_order(
        actual.nodes.as_ref().map(|actual| Differences::from_actual(actual, nodes)).unwrap_or_default(),
        &neighbors,
        &Differences::from_actual(&actual.routes, pairs(&desired.routes)),
        &actual.taken,
        &actual
            .node_addresses
            .as_ref()
            .map(|actual| Differences::from_actual(actual, pairs(&desired.node_addresses)))
            .unwrap_or_default(),
    )
}

/// Returns the changes that lead from routing in force to other routing of the same shape, in order as [`plan`] does. It
/// looks at nothing else, so that one node of ten thousand is changed within milliseconds. `taken`: destinations to which
/// others have routes.
#[must_use]
pub fn update(
    before: &Routing,
    after: &Routing,
    shape: &Shape,
    taken: &BTreeSet<IpNetwork>,
    has_maps: bool,
) -> Vec<Change> {
    let (nodes, addresses) = if has_maps {
        let nodes = Differences::between(&before.nodes, &after.nodes).map_keys(|cidr| shape.key(cidr));
        (nodes, Differences::between(&before.node_addresses, &after.node_addresses))
    } else {
        Default::default()
    };
    let neighbors = Differences::between(&before.neighbors, &after.neighbors);
    in_order(nodes, &neighbors, &Differences::between(&before.routes, &after.routes), taken, &addresses)
}

fn pairs<K: Copy, V: Copy>(map: &BTreeMap<K, V>) -> impl Iterator<Item = (K, V)> + Clone {
    map.iter().map(|(key, value)| (*key, *value))
}

fn in_order(
    nodes: Differences<NodeKey, Node>,
    neighbors: &Differences<IpAddr, Mac>,
    routes: &Differences<IpNetwork, Route>,
    taken: &BTreeSet<IpNetwork>,
    addresses: &Differences<IpAddr, u64>,
) -> Vec<Change> {
    let put_nodes: Vec<_> = nodes.put().map(|(key, node)| Change::PutNode(key, node)).collect();
    let mut changes: Vec<Change> = nodes.gone.into_iter().map(Change::DeleteNode).collect();
    changes.extend(neighbors.put().map(|(address, mac)| Change::PutNeighbor(address, mac)));
    changes.extend(
        routes.new.iter().map(
            |(cidr, route)| {
                if taken.contains(cidr) { Change::RefuseRoute(*cidr) } else { Change::AddRoute(*route) }
            },
        ),
    );
    changes.extend(routes.changed.iter().map(|(_, route)| Change::ReplaceRoute(*route)));
    changes.extend(addresses.put().map(|(address, id)| Change::PutNodeAddress(address, id)));
    changes.extend(put_nodes);
    changes.extend(routes.gone.iter().map(|cidr| Change::DeleteRoute(*cidr)));
    changes.extend(neighbors.gone.iter().map(|address| Change::DeleteNeighbor(*address)));
    changes.extend(addresses.gone.iter().map(|address| Change::DeleteNodeAddress(*address)));
    changes
}

/// Returns the MTU of pods, and that of their default routes where it is smaller: `uplinks` are the MTUs of the uplinks,
/// `configured` what the configuration asks for.
#[must_use]
pub fn pod_mtus(configured: Option<u32>, uplinks: &[u32], overlay_mtu: Option<u32>) -> (u32, u32) {
    /// Ethernet's (RFC 894), where nothing says otherwise.
    const ETHERNET_MTU: u32 = 1500;
    let mtu = configured.unwrap_or_else(|| uplinks.iter().copied().min().unwrap_or(ETHERNET_MTU));
    (mtu, overlay_mtu.map_or(mtu, |overlay| overlay.min(mtu)))
}

#[cfg(test)]
mod tests;
