//! The MTUs of pods, which follow from the uplinks and the overlay.

use anyhow::Result;
use podnet_common::address::Address;
use tracing::{info, warn};

use super::Engine;
use crate::{api::AttachmentKey, netlink::link, netns::Netns, plan::PodSpec, routing};

impl Engine {
    /// Gives pods the MTUs that follow from the uplinks.
    pub(super) fn adopt_mtus(&mut self) {
        let uplinks: Vec<u32> = self
            .following
            .uplinks(&self.config.uplinks)
            .keys()
            .filter_map(|ifindex| self.following.links.get(ifindex))
            .map(|(_, mtu)| *mtu)
            .collect();
        // Nothing is known of the way out before the first snapshot.
        if !self.following.is_known() && self.config.mtu.is_none() {
            return;
        }
        // While every uplink is down, pods keep what they have.
        if uplinks.is_empty() && self.mtu_is_derived && self.config.mtu.is_none() {
            return;
        }
        let overlay_mtu = self.following.routing.overlay_mtu;
        (self.mtu, self.route_mtu) = routing::pod_mtus(self.config.mtu, &uplinks, overlay_mtu);
        self.mtu_is_derived = !uplinks.is_empty();
        let stale: Vec<AttachmentKey> = self
            .pods
            .values()
            .filter(|record| {
                !record.netns.is_empty() && (record.mtu, record.route_mtu) != self.mtus_for(record.mtu_requested)
            })
            .map(|record| record.key.clone())
            .collect();
        for key in stale {
            if let Err(error) = self.change_mtus(&key) {
                warn!(container = key.container_id, error = format!("{error:#}"), "change the MTU of a pod");
            }
        }
    }

    /// Returns MTU and route MTU of a pod that asked for at most this.
    pub(super) fn mtus_for(&self, requested: Option<u32>) -> (u32, u32) {
        let mtu = requested.map_or(self.mtu, |requested| requested.min(self.mtu));
        (mtu, self.route_mtu.min(mtu))
    }

    fn change_mtus(&mut self, key: &AttachmentKey) -> Result<()> {
        let Some(mut record) = self.pods.get(key).cloned() else { return Ok(()) };
        let netns = Netns::open(&record.netns)?;
        if netns.id()? != record.netns_id {
            // The pod is gone; reconciliation takes care of it.
            return Ok(());
        }
        (record.mtu, record.route_mtu) = self.mtus_for(record.mtu_requested);
        self.pod_side(&record).change_mtus(&netns, &self.home)?;
        self.netlink.request(link::set_mtu(record.host_ifindex, record.mtu))?;
        let endpoint = PodSpec::from(&record).endpoint(self.bridge_mac);
        if let Some(datapath) = &mut self.datapath {
            for address in &record.addresses {
                let address = Address::from(*address);
                // One that was not published yet is, elsewhere, and with more care.
                if datapath.maps().endpoint(address)?.is_some() {
                    datapath.maps_mut().upsert_endpoint(address, endpoint)?;
                }
            }
        }
        self.database.set_mtus(key, record.mtu, record.route_mtu)?;
        info!(container = key.container_id, mtu = record.mtu, route_mtu = record.route_mtu, "MTU changed");
        self.pods.insert(key.clone(), record);
        Ok(())
    }
}
