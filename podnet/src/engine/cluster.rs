//! Following the cluster: the ways to its nodes, routes and node maps.
//!
//! A snapshot that concerns known uplinks only is applied as its difference to the one before, so that one node of ten
//! thousand costs what one node costs. Everything else goes through a whole reconciliation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::Instant,
};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use podnet_common::{address::Address, node::NodeAddress};
use tracing::{info, warn};

use super::{Engine, Why};
use crate::{
    cluster::{Cluster, Update, last_known},
    config::{self, Config},
    netlink::{
        Request, link, neighbor,
        route::{self, NextHop},
    },
    nft,
    routing::{self, Actual, Change, Inputs, NodeKey, Routing, Shape},
};

/// What the engine knows of the cluster.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Names the store; `None`: there is none, the node is alone.
    pub(super) store: Option<String>,
    /// The last snapshot. `None`: none was ever seen, so nothing of an earlier one is removed.
    pub(super) cluster: Option<Cluster>,
    /// Why the store tells nothing, and since when.
    pub(super) failure: Option<(String, Instant)>,
    /// The kernel's way to each node.
    ways: HashMap<IpAddr, Option<NextHop>>,
    /// Name and MTU of each interface that is up.
    pub(super) links: HashMap<u32, (String, u32)>,
    /// Index of the overlay device.
    pub(super) overlay: Option<u32>,
    /// What was derived last; applied unless [`Following::pending`].
    pub(super) routing: Routing,
    /// Which prefix lengths `routing` makes the usual ones.
    pub(super) shape: Shape,
    /// `routing` has not been compared with the kernel and the maps yet.
    pending: bool,
    /// Routes that others' routes stand in the way of.
    pub(super) refused: BTreeMap<IpNetwork, String>,
    /// What the store says of this node's pod CIDRs, if it is something else than the node runs with.
    pub(super) own_mismatch: Option<Mismatch>,
    /// Why the store denies the node its pod CIDRs, until the next snapshot.
    disowned: Option<String>,
}

/// The store and the node disagree about the node's pod CIDRs.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// What is wrong, and the fix.
    pub(super) text: String,
    /// The pod CIDRs that the node runs with may be another's.
    denies: bool,
}

impl Following {
    /// Starts with what is known: the store's first snapshot, or the last one of an earlier life.
    pub(super) fn new(store: Option<String>, first: Option<Update>, earlier: Option<Cluster>) -> Self {
        let new = Self { pending: true, ..Self::default() };
        let Some(store) = store else { return Self { cluster: Some(Cluster::default()), ..new } };
        match first {
            Some(Update::Snapshot(cluster)) => Self { store: Some(store), cluster: Some(cluster), ..new },
            Some(Update::Failed(reason)) => {
                warn!(store, reason, "the store failed; starting with the last known nodes");
                Self { store: Some(store), cluster: earlier, failure: Some((reason, Instant::now())), ..new }
            }
            Some(Update::Disowned(reason)) => {
                warn!(store, reason, "the store denies the node its pod CIDRs; starting with the last known nodes");
                let failure = Some((reason.clone(), Instant::now()));
                Self { store: Some(store), cluster: earlier, failure, disowned: Some(reason), ..new }
            }
            None => Self { store: Some(store), cluster: earlier, ..new },
        }
    }

    /// Returns the interfaces that lead to other nodes, with their names; `extra` by name.
    pub(super) fn uplinks(&self, extra: &[String]) -> BTreeMap<u32, String> {
        let named = self.links.iter().filter(|(_, (name, _))| extra.contains(name)).map(|(ifindex, _)| ifindex);
        let all: BTreeSet<u32> = self.routing.uplinks.iter().chain(named).copied().collect();
        all.into_iter().filter_map(|ifindex| Some((ifindex, self.links.get(&ifindex)?.0.clone()))).collect()
    }

    /// Returns the overlay device, where it is in use.
    pub(super) fn overlay(&self) -> Option<u32> {
        self.overlay.filter(|_| self.routing.overlay_mtu.is_some())
    }

    /// Returns why the store tells nothing.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_ref().map(|(reason, _)| reason.as_str())
    }

    /// Returns why no pod may get an address: the node's pod CIDRs may be another's.
    pub(super) fn denial(&self) -> Option<&str> {
        let mismatch = self.own_mismatch.as_ref().filter(|mismatch| mismatch.denies).map(|mismatch| &mismatch.text);
        self.disowned.as_ref().or(mismatch).map(String::as_str)
    }

    /// Notes that the store tells nothing. It may fail in another way now, but it has since the first.
    fn fail(&mut self, reason: String) {
        let since = self.failure.take().map_or_else(Instant::now, |(_, since)| since);
        self.failure = Some((reason, since));
    }

    /// Notes that somebody else has a route to a pod CIDR.
    fn refuse(&mut self, destination: IpNetwork) {
        let text = format!(
            "another route to {destination} is in the way, which podnet leaves alone: remove it, or the node from the cluster"
        );
        self.refused.insert(destination, text);
    }

    /// Returns whether anything is known of the cluster.
    pub(super) fn is_known(&self) -> bool {
        self.cluster.is_some()
    }
}

impl Engine {
    /// Takes news of the store.
    pub(super) fn follow(&mut self, update: Update) {
        match update {
            Update::Failed(reason) => {
                warn!(store = self.following.store, reason, "the store failed; the last known nodes stay in force");
                self.following.fail(reason);
            }
            Update::Disowned(reason) => {
                let store = &self.following.store;
                warn!(store, reason, "the store denies the node its pod CIDRs; no pod is added, the others stay");
                self.following.disowned = Some(reason.clone());
                self.following.fail(reason);
            }
            Update::Snapshot(cluster) => {
                self.following.disowned = None;
                if self.following.failure.take().is_some() {
                    info!(store = self.following.store, "the store is back");
                }
                if self.following.cluster.as_ref() == Some(&cluster) {
                    return;
                }
                let start = Instant::now();
                let nodes = cluster.nodes().len();
                self.following.cluster = Some(cluster);
                let applied = self.apply_cluster();
                let milliseconds = start.elapsed().as_millis();
                match applied.and(self.remember_cluster()) {
                    Ok(()) => info!(nodes, milliseconds, "the cluster changed"),
                    Err(error) => warn!(nodes, error = format!("{error:#}"), "the cluster changed"),
                }
            }
        }
    }

    /// Stores the snapshot in force for the next start.
    pub(super) fn remember_cluster(&self) -> Result<()> {
        match &self.following.cluster {
            Some(cluster) if self.following.store.is_some() => last_known::store(&self.config.state_dir, cluster),
            _ => Ok(()),
        }
    }

    fn apply_cluster(&mut self) -> Result<()> {
        self.check_own_cidrs();
        self.ask_ways(false)?;
        let routing = self.inputs().routing();
        let known = &self.following.routing;
        let same_shape = routing.shape() == self.following.shape;
        let same_devices = routing.uplinks == known.uplinks
            && routing.overlay_mtu == known.overlay_mtu
            && routing.overlay_device_mtu == known.overlay_device_mtu;
        if self.following.pending || !same_shape || !same_devices {
            return self.reconcile(Why::Change("cluster"));
        }
        let new: Vec<route::Route> =
            routing.routes.values().filter(|route| !known.routes.contains_key(&route.destination)).copied().collect();
        let taken = self.netlink.taken_destinations(&new)?.into_iter().collect();
        let has_maps = self.datapath.is_some();
        let mut changes = routing::update(known, &routing, &self.following.shape, &taken, has_maps);
        // A route that was refused is not there to be replaced.
        let refused = &self.following.refused;
        changes.retain(
            |change| !matches!(change, Change::ReplaceRoute(route) if refused.contains_key(&route.destination)),
        );
        self.following.routing = routing;
        let applied = self.apply_routing(changes, Why::Change("cluster"));
        self.update_nft().and(applied)
    }

    /// Notes when the store gives the node other pod CIDRs than it runs with: its pods have addresses of those.
    fn check_own_cidrs(&mut self) {
        let following = &self.following;
        let mismatch = match &following.cluster {
            Some(cluster) if following.store.is_some() => own_mismatch(&self.config, cluster),
            _ => None,
        };
        if let Some(Mismatch { text, denies: true }) = &mismatch
            && self.following.denial() != Some(text)
        {
            warn!(reason = text, "no pod is added, the others stay");
        }
        self.following.own_mismatch = mismatch;
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs {
            mode: self.config.mode,
            name: &self.config.node,
            own_cidrs: &self.config.pod_cidrs,
            routers: &self.config.routers,
            cluster_cidrs: &self.config.cluster_cidrs,
            vni: self.config.overlay.vni,
            cluster: self.following.cluster.as_ref(),
            ways: &self.following.ways,
            links: &self.following.links,
            overlay: self.following.overlay,
        }
    }

    /// Asks the kernel for the ways to the nodes: to all, or to those that are new.
    fn ask_ways(&mut self, all: bool) -> Result<()> {
        let cluster = self.following.cluster.as_ref();
        let wanted = routing::addresses(self.config.mode, &self.config.node, &self.config.routers, cluster);
        let known = &mut self.following.ways;
        let is_new = |address: &&IpAddr| all || !known.contains_key(*address);
        let ask: Vec<IpAddr> = wanted.iter().filter(is_new).copied().collect();
        let ways = self.netlink.ways_to(&ask).context("ask for the ways to the nodes")?;
        known.extend(ask.into_iter().zip(ways));
        if known.len() > wanted.len() {
            let wanted: HashSet<IpAddr> = wanted.into_iter().collect();
            known.retain(|address, _| wanted.contains(address));
        }
        Ok(())
    }

    /// Looks at links and ways, and derives routing anew; makes the overlay device if it is needed.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked, or refuses the overlay device.
    pub(super) fn derive_routing(&mut self) -> Result<()> {
        let links = self.netlink.links()?;
        self.following.links =
            links.iter().filter(|link| link.up).map(|link| (link.ifindex, (link.name.clone(), link.mtu))).collect();
        self.check_own_cidrs();
        self.ask_ways(true)?;
        self.find_overlay(&links)?;
        let mut routing = self.inputs().routing();
        if let Some(mtu) = routing.overlay_device_mtu {
            match self.following.overlay {
                None => {
                    self.create_overlay(mtu)?;
                    routing = self.inputs().routing();
                }
                Some(ifindex) if links.iter().any(|link| link.ifindex == ifindex && link.mtu != mtu) => {
                    self.netlink.request(link::set_mtu(ifindex, mtu))?;
                }
                Some(_) => {}
            }
        }
        if routing != self.following.routing {
            self.following.pending = true;
        }
        self.following.shape = routing.shape();
        self.following.routing = routing;
        Ok(())
    }

    /// Compares routes and node maps with what routing says, and mends the differences. Before the first snapshot
    /// everything stays as it is.
    pub(super) fn reconcile_routing(&mut self, why: Why<'_>) -> Result<()> {
        if !self.following.is_known() {
            return Ok(());
        }
        let (actual, connected) = self.observe_routing()?;
        for address in self.gateway_networks() {
            if !connected.contains(&route::network_of(address)) {
                self.netlink.request(route::restore_connected(address, self.bridge_ifindex))?;
                // Whatever made the comparison: the address that is there did not lose its route by itself.
                let cause = if why == Why::START { why } else { Why::Loss(why.text()) };
                self.count_repair(cause, "the bridge lacked the route to its own network");
            }
        }
        let changes = routing::plan(&self.following.routing, &self.following.shape, &actual);
        self.following.refused.clear();
        for destination in &actual.taken {
            self.following.refuse(*destination);
        }
        self.apply_routing(changes, why)?;
        self.following.pending = false;
        Ok(())
    }

    /// Reads routes and node maps; and to what the bridge has routes.
    fn observe_routing(&mut self) -> Result<(Actual, HashSet<IpNetwork>)> {
        let neighbors = match self.following.overlay {
            Some(ifindex) => self.netlink.permanent_neighbors(ifindex)?.into_iter().collect(),
            None => HashMap::new(),
        };
        let (nodes, node_addresses) = match &self.datapath {
            Some(datapath) => {
                let maps = datapath.maps();
                let usual = maps.nodes()?.into_iter().map(|(address, node)| (NodeKey::Usual(address), node));
                let other = maps.node_prefixes()?.into_iter().map(|(prefix, node)| (NodeKey::Other(prefix), node));
                let addresses = maps.node_addresses()?.into_iter().map(|(address, owner)| (address.to_ip(), owner.id));
                (Some(usual.chain(other).collect()), Some(addresses.collect()))
            }
            None => (None, None),
        };
        let (own, others) = self.netlink.node_routes()?;
        let bridge = self.bridge_ifindex;
        let connected = others.iter().filter(|route| route.ifindex == bridge).map(|route| route.destination).collect();
        let routes = own.into_iter().map(|route| (route.destination, route)).collect();
        let wanted = &self.following.routing.routes;
        let is_taken = |other: &route::Route| wanted.get(&other.destination).is_some_and(|own| other.comes_before(own));
        let taken = others.into_iter().filter(is_taken).map(|route| route.destination).collect();
        Ok((Actual { routes, taken, neighbors, nodes, node_addresses }, connected))
    }

    /// Applies changes in order. Goes on after one that fails.
    ///
    /// # Errors
    ///
    /// The first change that failed, except for routes that others' stand in the way of: the status tells those.
    fn apply_routing(&mut self, changes: Vec<Change>, why: Why<'_>) -> Result<()> {
        let mut failure = None;
        let mut changes = changes.into_iter().peekable();
        while let Some(change) = changes.peek().copied() {
            if let Change::RefuseRoute(destination) = change {
                changes.next();
                self.following.refuse(destination);
                continue;
            }
            let mut batch = Vec::new();
            let mut requests = Vec::new();
            while let Some((change, request)) =
                changes.peek().and_then(|change| Some((*change, self.request_for(*change)?)))
            {
                changes.next();
                batch.push(change);
                requests.push(request);
            }
            let outcome = if batch.is_empty() {
                changes.next();
                batch.push(change);
                self.apply_to_node_maps(change)
            } else {
                self.send_routes(&batch, requests)
            };
            match outcome {
                Ok(()) if why.is_repair() => {
                    for change in &batch {
                        info!(?change, reason = why.text(), "repaired");
                    }
                    self.repairs += batch.len() as u64;
                }
                Ok(()) => {}
                Err(error) => {
                    warn!(error = format!("{error:#}"), "reach another node");
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Returns the netlink request of a change that is one.
    fn request_for(&self, change: Change) -> Option<Request> {
        let overlay = self.following.overlay;
        match change {
            Change::PutNeighbor(address, mac) => Some(neighbor::add(overlay?, address, mac)),
            Change::DeleteNeighbor(address) => Some(neighbor::delete(overlay?, address)),
            Change::AddRoute(route) => Some(route::add_to_node(route)),
            Change::ReplaceRoute(route) => Some(route::replace_on_node(route)),
            Change::DeleteRoute(destination) => Some(route::delete_from_node(destination)),
            _ => None,
        }
    }

    fn send_routes(&mut self, batch: &[Change], requests: Vec<Request>) -> Result<()> {
        let refusals = self.netlink.batch_each(requests)?;
        for change in batch {
            if let Change::AddRoute(route::Route { destination, .. }) | Change::DeleteRoute(destination) = change {
                self.following.refused.remove(destination);
            }
        }
        let mut failure = None;
        for (position, refusal) in refusals {
            match batch.get(position) {
                Some(Change::AddRoute(route)) if refusal.is_exists() => {
                    self.following.refuse(route.destination);
                }
                _ => {
                    failure.get_or_insert(refusal);
                }
            }
        }
        failure.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    fn apply_to_node_maps(&mut self, change: Change) -> Result<()> {
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        let maps = datapath.maps_mut();
        match change {
            Change::PutNode(NodeKey::Usual(address), node) => maps.upsert_node(address, node).map(drop),
            Change::PutNode(NodeKey::Other(prefix), node) => maps.upsert_node_prefix(prefix, node).map(drop),
            Change::DeleteNode(NodeKey::Usual(address)) => maps.remove_node(address).map(drop),
            Change::DeleteNode(NodeKey::Other(prefix)) => maps.remove_node_prefix(prefix).map(drop),
            Change::PutNodeAddress(address, id) => {
                maps.upsert_node_address(Address::from(address), NodeAddress { id }).map(drop)
            }
            Change::DeleteNodeAddress(address) => maps.remove_node_address(Address::from(address)).map(drop),
            // The overlay device is gone, and its routes and neighbours with it.
            _ => Ok(()),
        }
    }

    /// Puts every node under the keys of the shape in force, before programs that know no other are loaded.
    pub(super) fn put_nodes(&mut self) -> Result<()> {
        let shape = self.following.shape;
        let routing = &self.following.routing;
        let nodes = routing.nodes.iter().map(|(cidr, node)| Change::PutNode(shape.key(*cidr), *node));
        let addresses = routing.node_addresses.iter().map(|(address, id)| Change::PutNodeAddress(*address, *id));
        let all: Vec<Change> = nodes.chain(addresses).collect();
        all.into_iter().try_for_each(|change| self.apply_to_node_maps(change))
    }

    /// Returns podnet's nftables rules as they should be.
    pub(super) fn nft_rules(&self) -> nft::Rules {
        nft::Rules::new(&self.config, &self.config.pod_cidrs, self.following.cluster.as_ref())
    }

    fn update_nft(&mut self) -> Result<()> {
        if !self.nft_usable {
            return Ok(());
        }
        let rules = self.nft_rules();
        if rules != self.nft_rules {
            nft::update(&self.nft_rules, &rules)?;
            self.nft_rules = rules;
        }
        Ok(())
    }
}

/// Compares the pod CIDRs that a node runs with with those of the cluster.
fn own_mismatch(config: &Config, cluster: &Cluster) -> Option<Mismatch> {
    let name = &config.node;
    let running = &config.pod_cidrs;
    let overlaps = |a: &IpNetwork, b: &IpNetwork| a.contains(b.network()) || b.contains(a.network());
    let taken = cluster.nodes().iter().filter(|node| node.name != *name).find_map(|node| {
        let cidr = node.pod_cidrs.iter().find(|cidr| running.iter().any(|own| overlaps(own, cidr)))?;
        Some(format!(
            "{cidr} is node {}'s now, but {name} runs with {}; remove the pods of {name}, then restart its daemon",
            node.name,
            config::show(running)
        ))
    });
    if let Some(text) = taken {
        return Some(Mismatch { text, denies: true });
    }
    let Some(node) = cluster.node(name) else {
        let text = format!("the store does not know {name}: other nodes do not reach its pods");
        return Some(Mismatch { text, denies: false });
    };
    let same = node.pod_cidrs.len() == running.len() && node.pod_cidrs.iter().all(|cidr| running.contains(cidr));
    (!same).then(|| Mismatch {
        text: format!(
            "the store gives {name} the pod CIDRs {}, but it runs with {}; restart the daemon after removing its pods",
            config::show(&node.pod_cidrs),
            config::show(running)
        ),
        denies: true,
    })
}
