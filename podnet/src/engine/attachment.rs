//! Attaching and detaching one pod: address, veth, guard, pod side, publication, record, answer; and the reverse.

use std::{net::IpAddr, time::SystemTime};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use podnet_common::address::Address;
use tracing::{debug, info, warn};

use super::{Engine, adoption::is_unnamed, pod_side::PodSide};
use crate::{
    api::{AddRequest, ApiError, Attachment, AttachmentKey, ErrorKind, GcReply, GcRequest, Mac},
    config::{Config, validate_ifname},
    database::PodRecord,
    ipam, names,
    netlink::{
        link::{self, PortSettings, VethPair},
        neighbor, tc,
    },
    netns::Netns,
    plan::{PodSpec, REAP_GROUP},
};

/// Smallest MTU that a pod can have: what IPv4 (RFC 791) or IPv6 (RFC 8200) asks of every link.
const MIN_MTU_V4: u32 = 576;
const MIN_MTU_V6: u32 = 1280;

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidRequest, message)
}

impl From<ipam::Error> for ApiError {
    fn from(error: ipam::Error) -> Self {
        let kind = match error {
            ipam::Error::Exhausted { .. } => ErrorKind::Exhausted,
            ipam::Error::InUse { .. } => ErrorKind::AddressInUse,
            ipam::Error::Unusable { .. } => ErrorKind::InvalidRequest,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<&PodRecord> for PodSpec {
    fn from(record: &PodRecord) -> Self {
        Self {
            key: record.key.clone(),
            host_ifname: record.host_ifname.clone(),
            host_ifindex: record.host_ifindex,
            mac: record.mac,
            addresses: record.addresses.clone(),
            mtu: record.mtu,
        }
    }
}

/// Why the kernel side of an attachment could not be made.
enum WireError {
    /// An interface of that name is there already: a leftover of podnet's, or the pod's own.
    Exists,
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for WireError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

impl Engine {
    /// Attaches a pod. On failure everything is undone.
    pub(super) fn add(&mut self, request: &AddRequest) -> Result<Attachment, ApiError> {
        // The address of a pod that is gone is free only when the database says so.
        self.settle().map_err(internal)?;
        if let Some(denial) = self.following.denial() {
            return Err(ApiError::new(ErrorKind::Unavailable, format!("no pod is added: {denial}")));
        }
        let netns = self.validate(request)?;
        let addresses = self.lease(&request.addresses)?;
        let outcome = self.add_leased(request, &netns, &addresses);
        if outcome.is_err() {
            self.release(&addresses);
        }
        outcome
    }

    fn validate(&self, request: &AddRequest) -> Result<Netns, ApiError> {
        if request.key.container_id.is_empty() {
            return Err(invalid("the container ID is empty"));
        }
        validate_ifname(&request.key.ifname).map_err(invalid)?;
        if self.pods.contains_key(&self.known_key(&request.key)) {
            return Err(ApiError::new(
                ErrorKind::AlreadyExists,
                format!(
                    "container {} already has interface {}; DEL it before another ADD",
                    request.key.container_id, request.key.ifname
                ),
            ));
        }
        let minimum = if self.pools.iter().any(|pool| pool.cidr().is_ipv6()) { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if let Some(mtu) = request.mtu
            && !(minimum..=self.mtu).contains(&mtu)
        {
            return Err(invalid(format!(
                "mtu {mtu} is not in {minimum}..={}, the range of this node; change it, or the node's mtu",
                self.mtu
            )));
        }
        if let Some(mac) = request.mac {
            self.validate_mac(mac)?;
        }
        let netns = Netns::open(&request.netns)
            .map_err(|error| ApiError::new(ErrorKind::InvalidNetns, format!("{error:#}")))?;
        if netns.id().map_err(internal)? == self.home.id().map_err(internal)? {
            return Err(ApiError::new(
                ErrorKind::InvalidNetns,
                format!("{} is the node's own network namespace; a pod needs one of its own", request.netns),
            ));
        }
        Ok(netns)
    }

    fn validate_mac(&self, mac: Mac) -> Result<(), ApiError> {
        if mac == self.bridge_mac {
            return Err(invalid(format!("MAC {mac} is the gateway's; choose another")));
        }
        match self.pods.values().find(|record| record.mac == mac) {
            Some(owner) => Err(ApiError::new(
                ErrorKind::AddressInUse,
                format!("MAC {mac} is already in use by container {}; choose another", owner.key.container_id),
            )),
            None => Ok(()),
        }
    }

    /// Returns the MAC of a pod with these addresses, or a substitute if another pod asked for that one.
    fn free_mac(&self, addresses: &[IpAddr]) -> Mac {
        let is_free = |mac: &Mac| *mac != self.bridge_mac && self.pods.values().all(|record| record.mac != *mac);
        let own = names::mac_for(addresses);
        if is_free(&own) {
            return own;
        }
        (0..=u8::MAX).map(|attempt| names::substitute_mac(addresses, attempt)).find(is_free).unwrap_or(own)
    }

    /// Leases one address per family: the requested one, or the next free one.
    fn lease(&mut self, requested: &[IpAddr]) -> Result<Vec<IpAddr>, ApiError> {
        for (position, address) in requested.iter().enumerate() {
            if requested[..position].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                return Err(invalid(format!("{address} is the second address of its family; request one per family")));
            }
            if !self.pools.iter().any(|pool| pool.cidr().is_ipv4() == address.is_ipv4()) {
                return Err(invalid(format!("the node has no pod CIDR of the family of {address}")));
            }
        }
        let mut leased = Vec::with_capacity(self.pools.len());
        for pool in &mut self.pools {
            let wanted = requested.iter().find(|address| address.is_ipv4() == pool.cidr().is_ipv4());
            let lease = match wanted {
                Some(address) => pool.lease(*address).map(|()| *address),
                None => pool.lease_next(),
            };
            match lease {
                Ok(address) => leased.push(address),
                Err(error) => {
                    self.release(&leased);
                    return Err(error.into());
                }
            }
        }
        leased.sort_unstable();
        Ok(leased)
    }

    fn release(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.pools.iter_mut().any(|pool| pool.release(*address));
        }
    }

    fn add_leased(
        &mut self,
        request: &AddRequest,
        netns: &Netns,
        addresses: &[IpAddr],
    ) -> Result<Attachment, ApiError> {
        let mut record = PodRecord {
            key: request.key.clone(),
            network: request.network.clone(),
            pod: request.pod.clone(),
            netns: request.netns.clone(),
            netns_id: netns.id().map_err(internal)?,
            host_ifname: names::host_ifname(&request.key),
            host_ifindex: 0,
            mac: request.mac.unwrap_or_else(|| self.free_mac(addresses)),
            mtu: request.mtu.unwrap_or(self.mtu),
            route_mtu: self.route_mtu.min(request.mtu.unwrap_or(self.mtu)),
            mtu_requested: request.mtu,
            addresses: addresses.to_vec(),
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs()),
        };
        let wired = match self.wire(&mut record, netns) {
            Err(WireError::Exists) => {
                // A veth of this name, or the pod-side end of one that was just deleted, may still wait for the reaper.
                self.reaper.flush();
                self.delete_link(&record.host_ifname);
                self.wire(&mut record, netns)
            }
            outcome => outcome,
        };
        // The record last, but before the answer: what a restart finds without one, it removes.
        let made = wired.and_then(|()| {
            let cursors = self.cursors(addresses);
            let written = self.database.insert(&record, &cursors);
            self.noted(written).context("store the pod").map_err(WireError::Other)
        });
        if let Err(error) = made {
            self.unwire(&record);
            return Err(match error {
                WireError::Exists => ApiError::new(
                    ErrorKind::AlreadyExists,
                    format!("interface {} already exists in {}", record.key.ifname, record.netns),
                ),
                WireError::Other(error) => {
                    internal(error.context(format!("attach container {}", record.key.container_id)))
                }
            });
        }
        let attachment = self.attachment(&record);
        self.pods.insert(record.key.clone(), record);
        Ok(attachment)
    }

    /// Logs that a pod is attached: after the answer, since somebody waits for that.
    pub(super) fn log_attached(&self, key: &AttachmentKey) {
        let Some(record) = self.pods.get(key) else { return };
        info!(
            container = record.key.container_id,
            pod = %record.pod.display_name(&record.key),
            addresses = ?record.addresses,
            veth = record.host_ifname,
            "attached"
        );
    }

    /// Makes the kernel's and the maps' side of a pod.
    fn wire(&mut self, record: &mut PodRecord, netns: &Netns) -> Result<(), WireError> {
        use std::os::fd::AsFd as _;

        let veth = VethPair {
            host_name: &record.host_ifname,
            host_mac: self.bridge_mac,
            bridge: self.bridge_ifindex,
            pod_name: &record.key.ifname,
            pod_mac: record.mac,
            pod_netns: netns.as_fd(),
            mtu: record.mtu,
        };
        match self.netlink.request(veth.create()) {
            Err(error) if error.is_exists() => return Err(WireError::Exists),
            created => created?,
        }
        let ifindex = link::ifindex(&record.host_ifname)?;
        record.host_ifindex = ifindex;

        let mut requests = vec![
            link::omit_link_local(ifindex),
            link::set_port(ifindex, PortSettings::POD),
            tc::attach(ifindex),
            neighbor::add_fdb(ifindex, record.mac),
        ];
        requests.extend(self.program_offers()?);
        requests
            .extend(record.addresses.iter().map(|address| neighbor::add(self.bridge_ifindex, *address, record.mac)));
        self.netlink.batch(requests)?;

        // The guard stands before the pod can send its first packet.
        let spec = PodSpec::from(&*record);
        if let Some(datapath) = &mut self.datapath {
            datapath.maps_mut().upsert_source(ifindex, spec.source())?;
        }
        self.pod_side(record).configure(netns, &self.home)?;
        if let Some(datapath) = &mut self.datapath {
            for address in &record.addresses {
                datapath.maps_mut().upsert_endpoint(Address::from(*address), spec.endpoint(self.bridge_mac))?;
            }
        }
        Ok(())
    }

    /// Undoes [`Engine::wire`] as far as it came. Whatever cannot be undone now, reconciliation will.
    fn unwire(&mut self, record: &PodRecord) {
        self.unpublish(record);
        let neighbors =
            record.addresses.iter().map(|address| neighbor::delete(self.bridge_ifindex, *address)).collect();
        if let Err(error) = self.netlink.batch(neighbors) {
            warn!(%error, "undo an ADD");
        }
        if record.host_ifindex != 0 {
            self.delete_link(&record.host_ifname);
        }
    }

    fn delete_link(&mut self, name: &str) {
        let deleted = self.netlink.link_by_name(name).and_then(|link| match link {
            Some(link) => self.netlink.request(link::delete(link.ifindex)),
            None => Ok(()),
        });
        if let Err(error) = deleted {
            warn!(%error, "delete veth {name}");
        }
    }

    /// Takes a pod out of the maps: addresses first, so that nothing leads to an interface without a guard.
    fn unpublish(&mut self, record: &PodRecord) {
        let Some(datapath) = &mut self.datapath else { return };
        let maps = datapath.maps_mut();
        let mut removed: Vec<Result<bool>> =
            record.addresses.iter().map(|address| maps.remove_endpoint(Address::from(*address))).collect();
        if record.host_ifindex != 0 {
            removed.push(maps.remove_source(record.host_ifindex));
        }
        for error in removed.into_iter().filter_map(Result::err) {
            warn!(error = format!("{error:#}"), "take container {} out of the maps", record.key.container_id);
        }
    }

    /// Detaches a pod. One that does not exist is success. Addresses and maps are free at once; the veth goes with the
    /// reaper's next group.
    pub(super) fn delete(&mut self, key: &AttachmentKey) -> Result<(), ApiError> {
        let key = &self.known_key(key);
        let Some(record) = self.pods.get(key).cloned() else {
            debug!(container = key.container_id, "nothing to detach");
            return Ok(());
        };
        // The database before all else: what is left of a pod without a record is removed at the next start, but a record
        // of which a part is gone would be a broken pod.
        self.delete_record(key)?;
        self.unpublish(&record);
        self.pods.remove(key);
        self.release(&record.addresses);
        let mut requests: Vec<_> =
            record.addresses.iter().map(|address| neighbor::delete(self.bridge_ifindex, *address)).collect();
        // By name: the record may be older than this boot of the node.
        requests.push(link::set_group_by_name(&record.host_ifname, REAP_GROUP));
        if let Err(error) = self.netlink.batch(requests) {
            warn!(%error, "detach container {}; reconciliation finishes it", key.container_id);
        }
        self.reaper.doom();
        info!(container = key.container_id, pod = %record.pod.display_name(&record.key), "detached");
        Ok(())
    }

    /// Releases every attachment of a network that the runtime does not list. Goes on after an error.
    pub(super) fn gc(&mut self, request: &GcRequest) -> Result<GcReply, ApiError> {
        let stale: Vec<AttachmentKey> = self
            .pods
            .values()
            // Of a pod that was taken over nobody knows the network.
            .filter(|record| record.network == request.network && !is_unnamed(&record.key))
            .filter(|record| !request.valid.contains(&record.key))
            .map(|record| record.key.clone())
            .collect();
        let mut reply = GcReply::default();
        let mut errors = Vec::new();
        for key in stale {
            match self.delete(&key) {
                Ok(()) => reply.released.push(key),
                Err(error) => errors.push(format!("container {}: {error}", key.container_id)),
            }
        }
        if errors.is_empty() { Ok(reply) } else { Err(ApiError::new(ErrorKind::Internal, errors.join("; "))) }
    }

    fn attachment(&self, record: &PodRecord) -> Attachment {
        Attachment {
            key: record.key.clone(),
            netns: record.netns.clone(),
            host_ifname: record.host_ifname.clone(),
            host_mac: self.bridge_mac,
            mac: record.mac,
            mtu: record.mtu,
            addresses: self.networks(&record.addresses),
            gateways: self.gateways(&record.addresses),
            bridge: self.config.bridge.clone(),
            bridge_mac: self.bridge_mac,
        }
    }

    /// Returns the pod's end of an attachment.
    pub(super) fn pod_side<'a>(&self, record: &'a PodRecord) -> PodSide<'a> {
        PodSide {
            ifname: &record.key.ifname,
            mac: record.mac,
            mtu: record.mtu,
            route_mtu: record.route_mtu,
            addresses: self.networks(&record.addresses),
            gateways: self.gateways(&record.addresses),
            gateway_mac: self.bridge_mac,
        }
    }

    /// Returns addresses with their pod CIDRs' prefix lengths.
    pub(super) fn networks(&self, addresses: &[IpAddr]) -> Vec<IpNetwork> {
        addresses
            .iter()
            .map(|address| {
                let prefix = self.cidr_of(*address).map(|cidr| cidr.prefix());
                prefix.and_then(|prefix| IpNetwork::new(*address, prefix).ok()).unwrap_or_else(|| (*address).into())
            })
            .collect()
    }

    /// Returns the gateway of each address.
    pub(super) fn gateways(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        addresses.iter().filter_map(|address| self.cidr_of(*address).map(Config::gateway)).collect()
    }

    /// Returns the pod CIDR of an address's family: the one that holds it, or, after a change of the configuration,
    /// the one that replaced it.
    fn cidr_of(&self, address: IpAddr) -> Option<IpNetwork> {
        self.pools.iter().map(ipam::Pool::cidr).find(|cidr| cidr.is_ipv4() == address.is_ipv4())
    }

    /// Returns the settings that let the search for free addresses go on behind these after a restart.
    fn cursors(&self, addresses: &[IpAddr]) -> Vec<(String, String)> {
        let cursor = |address: &IpAddr| Some((names::cursor_setting(self.cidr_of(*address)?), address.to_string()));
        addresses.iter().filter_map(cursor).collect()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for `map_err`")]
pub(super) fn internal(error: anyhow::Error) -> ApiError {
    ApiError::new(ErrorKind::Internal, format!("{error:#}"))
}
