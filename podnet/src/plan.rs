//! Reconciliation, the pure half: what the kernel and the maps should hold, what they hold, and the changes that lead
//! from one to the other. No I/O.
//!
//! The same plan serves crash recovery, repair and the periodic resync. It never removes what is right already, and
//! its order never publishes half a pod: addresses leave the maps before anything of theirs is touched, and enter
//! after their veth is attached.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use podnet_common::{
    address::Address,
    endpoint::{Endpoint, EndpointSource},
};

use crate::{
    api::{AttachmentKey, Mac},
    datapath::device::DeviceHook,
    netlink::link::{Link, PortSettings},
};

/// First letters of the name of every host-side veth that podnet makes.
pub const VETH_PREFIX: &str = "pn";

/// Link group of veths that wait for the reaper.
pub const REAP_GROUP: u32 = 0x706e_dead;

/// The bridge as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Name.
    pub name: String,
    /// MAC; host-side veths have the same, so that frames to the gateway are addressed to the veth, too.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// The gateways, with their pod CIDRs' prefix lengths.
    pub addresses: Vec<IpNetwork>,
    /// Gateways of an earlier configuration, to be removed.
    pub stale_addresses: Vec<IpNetwork>,
}

/// A pod as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// Key of the attachment.
    pub key: AttachmentKey,
    /// Name of the host-side veth.
    pub host_ifname: String,
    /// Index of the host-side veth.
    pub host_ifindex: u32,
    /// MAC of the pod-side veth.
    pub mac: Mac,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// MTU of the veth in bytes.
    pub mtu: u32,
}

impl PodSpec {
    /// Returns what the pod may send, as the maps hold it.
    #[must_use]
    pub fn source(&self) -> EndpointSource {
        let mut source = EndpointSource { v4: [0; 4], flags: 0, v6: [0; 16], mac: self.mac.0, reserved: [0; 2] };
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) => source.v4 = v4.octets(),
                IpAddr::V6(v6) => source.v6 = v6.octets(),
            }
        }
        source
    }

    /// Returns where the pod is, as the maps hold it.
    #[must_use]
    pub const fn endpoint(&self, gateway_mac: Mac) -> Endpoint {
        Endpoint { ifindex: self.host_ifindex, flags: 0, mac: self.mac.0, gateway_mac: gateway_mac.0, mtu: self.mtu }
    }
}

/// What the node should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The bridge.
    pub bridge: BridgeSpec,
    /// Every attached pod.
    pub pods: Vec<PodSpec>,
    /// IDs of the programs that the blocks should hold; `None`: no programs (kernel path).
    pub programs: Option<Programs>,
    /// Settings below /proc/sys/net, which the kernel path needs.
    pub settings: Vec<(String, &'static str)>,
    /// What should be attached to uplinks and overlay device; `None`: not known yet, so it stays as it is.
    pub devices: Option<BTreeSet<DeviceProgram>>,
}

/// A program on an uplink or on the overlay device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceProgram {
    /// Index of the interface.
    pub ifindex: u32,
    /// Where it is attached there.
    pub hook: DeviceHook,
    /// Its ID.
    pub program: u32,
}

/// IDs of two loaded programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Program of the block that sees what pods send.
    pub from_pod: u32,
    /// Program of the block that sees what pods are sent.
    pub to_pod: u32,
}

/// What the node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// All links.
    pub links: Vec<Link>,
    /// Addresses of the bridge.
    pub bridge_addresses: Vec<IpNetwork>,
    /// Values of those settings that the kernel has.
    pub settings: HashMap<String, String>,
    /// Permanent neighbours on the bridge.
    pub neighbors: Vec<(IpAddr, Mac)>,
    /// Static forwarding entries: (port, MAC).
    pub fdb: HashSet<(u32, Mac)>,
    /// Links attached to the shared filter blocks.
    pub attached: HashSet<u32>,
    /// Program in the block that sees what pods send.
    pub from_pod: Option<u32>,
    /// Program in the block that sees what pods are sent.
    pub to_pod: Option<u32>,
    /// Podnet's programs on uplinks and overlay device.
    pub devices: BTreeSet<DeviceProgram>,
    /// Entries of `ENDPOINTS`; `None` if there are no maps.
    pub endpoints: Option<HashMap<Address, Endpoint>>,
    /// Entries of `ENDPOINTS_BY_IFINDEX`; `None` if there are no maps.
    pub sources: Option<HashMap<u32, EndpointSource>>,
    /// Whether podnet's nftables table is as it should be.
    pub nft: bool,
}

/// One step from what is to what should be. Steps that concern the bridge find its index when they are applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A setting below /proc/sys/net has another value.
    SetSetting(String, &'static str),
    /// The bridge is missing.
    CreateBridge,
    /// The bridge has another MAC or MTU, or is down.
    SetBridge,
    /// The bridge lacks a gateway.
    AddBridgeAddress(IpNetwork),
    /// The bridge has the gateway of an earlier configuration.
    DeleteBridgeAddress(IpNetwork),
    /// The maps have an address of no pod, or one that leads elsewhere than to its pod.
    DeleteEndpoint(Address),
    /// The maps allow an interface that is no pod's to send.
    DeleteSource(u32),
    /// A veth is not on the bridge.
    AddPort(u32),
    /// A bridge port has other settings.
    SetPort(u32),
    /// A veth is down.
    BringUp(u32),
    /// A veth has another name.
    Rename(u32, String),
    /// A veth is not attached to the filter blocks.
    Attach(u32),
    /// The blocks hold no programs, or others.
    ReplacePrograms,
    /// The blocks hold programs, but should not.
    RemovePrograms,
    /// An interface has a program that it should not have.
    DetachDevice(u32, DeviceHook),
    /// A veth has another MTU.
    SetMtu(u32, u32),
    /// The maps do not say, or say wrongly, what the pod behind an interface may send.
    PutSource(u32, EndpointSource),
    /// The maps do not say, or say wrongly, where an address is.
    PutEndpoint(Address, Endpoint),
    /// The bridge does not know the MAC of an address.
    AddNeighbor(IpAddr, Mac),
    /// The bridge knows the MAC of an address of no pod.
    DeleteNeighbor(IpAddr),
    /// The bridge does not know behind which port a MAC is.
    AddFdb(u32, Mac),
    /// A veth of podnet's belongs to no pod.
    ReapVeth(u32),
    /// A pod's veth is gone.
    PodLost(AttachmentKey),
    /// The nftables table is missing, or is not as it should be.
    InstallNft,
}

/// Returns the changes that lead from `actual` to `desired`, in the order in which to apply them.
#[must_use]
pub fn plan(desired: &Desired, actual: &Actual) -> Vec<Change> {
    let differs = |(name, value): &&(String, &str)| actual.settings.get(name).is_some_and(|have| have != value);
    let wrong = desired.settings.iter().filter(differs);
    let mut changes: Vec<_> = wrong.map(|(name, value)| Change::SetSetting(name.clone(), value)).collect();
    let by_name: HashMap<&str, &Link> = actual.links.iter().map(|link| (link.name.as_str(), link)).collect();
    let bridge = by_name.get(desired.bridge.name.as_str()).copied();
    plan_bridge(&desired.bridge, bridge, actual, &mut changes);

    // A pod whose veth is gone, or has been replaced by another link of the same name, is lost: nothing of it stays in
    // the maps, where its index might come to mean another pod.
    let by_index: HashMap<u32, &Link> = actual.links.iter().map(|link| (link.ifindex, link)).collect();
    let (alive, lost): (Vec<_>, Vec<_>) = desired.pods.iter().partition(|pod| {
        by_index.get(&pod.host_ifindex).is_some_and(|link| is_veth_of(pod, link, desired.bridge.mac, &by_name))
    });
    let owned: HashSet<u32> = alive.iter().map(|pod| pod.host_ifindex).collect();

    plan_map_removals(&alive, desired.bridge.mac, actual, &mut changes);
    for pod in &alive {
        plan_port(pod, by_index[&pod.host_ifindex], bridge, actual, &mut changes);
    }
    plan_programs(desired, actual, !alive.is_empty(), &mut changes);
    plan_map_entries(&alive, desired.bridge.mac, actual, &mut changes);
    plan_neighbors(&alive, actual, &mut changes);
    for link in &actual.links {
        let ours = link.kind == "veth" && is_veth_name(&link.name);
        if ours && !owned.contains(&link.ifindex) && link.group != REAP_GROUP {
            changes.push(Change::ReapVeth(link.ifindex));
        }
    }
    changes.extend(lost.into_iter().map(|pod| Change::PodLost(pod.key.clone())));
    if !actual.nft {
        changes.push(Change::InstallNft);
    }
    changes
}

/// Returns whether the link with the index of a pod's veth is that veth. Under another name it is so if it has the MAC
/// that podnet gives host-side veths, and no other link has the name: after a boot, indices begin anew.
fn is_veth_of(pod: &PodSpec, link: &Link, host_mac: Mac, by_name: &HashMap<&str, &Link>) -> bool {
    let has_name = link.name == pod.host_ifname;
    let was_renamed =
        link.mac == Some(host_mac) && !is_veth_name(&link.name) && !by_name.contains_key(pod.host_ifname.as_str());
    link.kind == "veth" && (has_name || was_renamed)
}

/// Returns whether a name is one that podnet gives host-side veths: `pn` and eleven hexadecimal digits.
#[must_use]
pub fn is_veth_name(name: &str) -> bool {
    name.strip_prefix(VETH_PREFIX).is_some_and(|digits| {
        digits.len() == 11 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn plan_bridge(spec: &BridgeSpec, bridge: Option<&Link>, actual: &Actual, changes: &mut Vec<Change>) {
    match bridge {
        None => changes.push(Change::CreateBridge),
        Some(link) if link.mac != Some(spec.mac) || link.mtu != spec.mtu || !link.up => changes.push(Change::SetBridge),
        Some(_) => {}
    }
    let has = |address: &&IpNetwork| bridge.is_some() && actual.bridge_addresses.contains(address);
    changes.extend(spec.stale_addresses.iter().filter(has).map(|address| Change::DeleteBridgeAddress(*address)));
    changes.extend(
        spec.addresses.iter().filter(|address| !has(address)).map(|address| Change::AddBridgeAddress(*address)),
    );
}

fn plan_map_removals(alive: &[&PodSpec], gateway_mac: Mac, actual: &Actual, changes: &mut Vec<Change>) {
    let wanted: HashMap<Address, Endpoint> = endpoints(alive, gateway_mac).collect();
    // Sorted, so that the same state gives the same plan.
    let stale: BTreeMap<[u8; 16], Address> = actual
        .endpoints
        .iter()
        .flatten()
        .filter(|(address, endpoint)| wanted.get(address).is_none_or(|want| want.ifindex != endpoint.ifindex))
        .map(|(address, _)| (address.octets, *address))
        .collect();
    changes.extend(stale.into_values().map(Change::DeleteEndpoint));
    let owned: HashSet<u32> = alive.iter().map(|pod| pod.host_ifindex).collect();
    let mut stale: Vec<u32> = actual
        .sources
        .iter()
        .flatten()
        .map(|(ifindex, _)| *ifindex)
        .filter(|ifindex| !owned.contains(ifindex))
        .collect();
    stale.sort_unstable();
    changes.extend(stale.into_iter().map(Change::DeleteSource));
}

fn plan_port(pod: &PodSpec, link: &Link, bridge: Option<&Link>, actual: &Actual, changes: &mut Vec<Change>) {
    let on_bridge = bridge.is_some_and(|bridge| link.master == Some(bridge.ifindex));
    if !on_bridge {
        changes.push(Change::AddPort(link.ifindex));
    }
    if !on_bridge || link.port != Some(PortSettings::POD) {
        changes.push(Change::SetPort(link.ifindex));
    }
    if link.mtu != pod.mtu {
        changes.push(Change::SetMtu(link.ifindex, pod.mtu));
    }
    if link.name != pod.host_ifname {
        changes.push(Change::Rename(link.ifindex, pod.host_ifname.clone()));
    } else if !link.up {
        changes.push(Change::BringUp(link.ifindex));
    }
    if !on_bridge || !actual.fdb.contains(&(link.ifindex, pod.mac)) {
        changes.push(Change::AddFdb(link.ifindex, pod.mac));
    }
    if !actual.attached.contains(&link.ifindex) {
        changes.push(Change::Attach(link.ifindex));
    }
}

fn plan_programs(desired: &Desired, actual: &Actual, any_pod: bool, changes: &mut Vec<Change>) {
    let devices_differ = desired.devices.as_ref().is_some_and(|devices| !devices.is_subset(&actual.devices));
    match desired.programs {
        // Without pods the blocks do not exist; they are filled with the first pod.
        Some(programs)
            if devices_differ
                || any_pod
                    && (actual.from_pod != Some(programs.from_pod) || actual.to_pod != Some(programs.to_pod)) =>
        {
            changes.push(Change::ReplacePrograms);
        }
        None if actual.from_pod.is_some() || actual.to_pod.is_some() => changes.push(Change::RemovePrograms),
        _ => {}
    }
    if let Some(devices) = &desired.devices {
        let wanted: BTreeSet<_> = devices.iter().map(|device| (device.ifindex, device.hook)).collect();
        let stale = actual.devices.iter().filter(|device| !wanted.contains(&(device.ifindex, device.hook)));
        changes.extend(stale.map(|device| Change::DetachDevice(device.ifindex, device.hook)));
    }
}

fn plan_map_entries(alive: &[&PodSpec], gateway_mac: Mac, actual: &Actual, changes: &mut Vec<Change>) {
    if let Some(sources) = &actual.sources {
        for pod in alive {
            let want = pod.source();
            // The flags belong to the programs.
            if sources.get(&pod.host_ifindex).map(|have| EndpointSource { flags: 0, ..*have }) != Some(want) {
                changes.push(Change::PutSource(pod.host_ifindex, want));
            }
        }
    }
    if let Some(actual) = &actual.endpoints {
        for (address, want) in endpoints(alive, gateway_mac) {
            if actual.get(&address).map(|have| Endpoint { flags: 0, ..*have }) != Some(want) {
                changes.push(Change::PutEndpoint(address, want));
            }
        }
    }
}

fn plan_neighbors(alive: &[&PodSpec], actual: &Actual, changes: &mut Vec<Change>) {
    let wanted: HashMap<IpAddr, Mac> =
        alive.iter().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.mac))).collect();
    let have: HashMap<IpAddr, Mac> = actual.neighbors.iter().copied().collect();
    let mut stale: Vec<_> = have.keys().filter(|address| !wanted.contains_key(address)).collect();
    stale.sort_unstable();
    // Permanent entries of multicast groups are the kernel's own.
    changes.extend(
        stale.into_iter().filter(|address| !address.is_multicast()).map(|address| Change::DeleteNeighbor(*address)),
    );
    for pod in alive {
        for address in &pod.addresses {
            if have.get(address) != Some(&pod.mac) {
                changes.push(Change::AddNeighbor(*address, pod.mac));
            }
        }
    }
}

fn endpoints<'a>(pods: &'a [&PodSpec], gateway_mac: Mac) -> impl Iterator<Item = (Address, Endpoint)> + 'a {
    pods.iter().flat_map(move |pod| {
        let endpoint = pod.endpoint(gateway_mac);
        pod.addresses.iter().map(move |address| (Address::from(*address), endpoint))
    })
}

#[cfg(test)]
mod tests;
