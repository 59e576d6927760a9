//! CHECK: compares an attachment with what was made, in the kernel, in the maps and in the database.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use podnet_common::address::Address;

use super::{Engine, adoption::is_unnamed};
use crate::{
    api::{ApiError, CheckRequest, ErrorKind},
    database::PodRecord,
    netns::Netns,
    plan::PodSpec,
};

impl Engine {
    /// Compares a pod with what was made.
    ///
    /// # Errors
    ///
    /// `NotFound` if the attachment does not exist, `Mismatch` with the first difference otherwise.
    pub(super) fn check(&mut self, request: &CheckRequest) -> Result<(), ApiError> {
        let Some(mut record) = self.pods.get(&self.known_key(&request.key)).cloned() else {
            return Err(ApiError::new(
                ErrorKind::NotFound,
                format!("container {} has no interface {}", request.key.container_id, request.key.ifname),
            ));
        };
        if is_unnamed(&record.key) {
            record.key = request.key.clone();
        }
        let mismatch = |error: anyhow::Error| {
            ApiError::new(ErrorKind::Mismatch, format!("container {}: {error:#}", request.key.container_id))
        };
        self.check_request(request, &record).map_err(mismatch)?;
        self.check_pod_side(request, &record).map_err(mismatch)?;
        self.check_host_side(&record).map_err(mismatch)?;
        self.check_maps(&record).map_err(mismatch)
    }

    fn check_request(&self, request: &CheckRequest, record: &PodRecord) -> Result<()> {
        let leased: HashSet<_> = self.networks(&record.addresses).into_iter().collect();
        for address in &request.addresses {
            ensure!(leased.contains(address), "prevResult has address {address}, which is not leased to the pod");
        }
        if let Some(mac) = request.mac {
            ensure!(mac == record.mac, "prevResult has MAC {mac}, the pod was given {}", record.mac);
        }
        Ok(())
    }

    fn check_pod_side(&self, request: &CheckRequest, record: &PodRecord) -> Result<()> {
        let netns = Netns::open(&request.netns)?;
        ensure!(
            netns.id()? == record.netns_id || record.netns.is_empty(),
            "{} is another network namespace than the one that was attached",
            request.netns
        );
        self.pod_side(record).check(&netns, &self.home)
    }

    fn check_host_side(&mut self, record: &PodRecord) -> Result<()> {
        let link = self
            .netlink
            .link_by_name(&record.host_ifname)?
            .with_context(|| format!("veth {} is missing on the node", record.host_ifname))?;
        ensure!(
            link.ifindex == record.host_ifindex,
            "veth {} has index {}, not {}: someone made it anew",
            record.host_ifname,
            link.ifindex,
            record.host_ifindex
        );
        ensure!(link.up, "veth {} is down", record.host_ifname);
        ensure!(
            link.master == Some(self.bridge_ifindex),
            "veth {} is not on bridge {}",
            record.host_ifname,
            self.config.bridge
        );
        ensure!(
            self.netlink.attached_links()?.contains(&link.ifindex),
            "veth {} is not attached to the filter blocks",
            record.host_ifname
        );
        Ok(())
    }

    fn check_maps(&mut self, record: &PodRecord) -> Result<()> {
        let spec = PodSpec::from(record);
        let Some(datapath) = &self.datapath else { return Ok(()) };
        let source = datapath.maps().source(record.host_ifindex)?;
        ensure!(
            source.is_some_and(|source| source.v4 == spec.source().v4
                && source.v6 == spec.source().v6
                && source.mac == spec.source().mac),
            "map ENDPOINTS_BY_IFINDEX does not hold the pod's own addresses for veth {}",
            record.host_ifname
        );
        for address in &record.addresses {
            let endpoint = datapath.maps().endpoint(Address::from(*address))?;
            ensure!(
                endpoint
                    .is_some_and(|endpoint| endpoint.ifindex == record.host_ifindex && endpoint.mac == record.mac.0),
                "map ENDPOINTS does not lead from {address} to veth {}",
                record.host_ifname
            );
        }
        Ok(())
    }
}
