//! What the engine tells of the node.

use super::Engine;
use crate::{
    api::{DatapathStatus, Pod, PoolStatus, Status},
    config::Config,
    ipam::Pool,
};

impl Engine {
    /// Describes the node.
    pub(super) fn status(&self) -> Status {
        let not_ready_reason = self.not_ready_reason();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.config.node.clone(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            ready: not_ready_reason.is_none(),
            not_ready_reason,
            bridge: self.config.bridge.clone(),
            bridge_mac: self.bridge_mac,
            mtu: self.mtu,
            pools: self.pools.iter().map(pool_status).collect(),
            pods: self.pods.len(),
            reaping: self.reaper.waiting(),
            cluster: self.cluster_status(),
            kernel: self.kernel.clone(),
            datapath: self.datapath_status(),
            warnings: self.warnings.iter().cloned().chain(self.cluster_warnings()).collect(),
            repairs: self.repairs,
        }
    }

    /// Says why no pod could be added now.
    fn not_ready_reason(&self) -> Option<String> {
        let exhausted = self.pools.iter().find(|pool| pool.used() >= pool.capacity()).map(|pool| {
            format!("no free address: all {} pod addresses of {} are in use", pool.capacity(), pool.cidr())
        });
        self.write_failure.clone().or_else(|| self.following.denial().map(str::to_owned)).or(exhausted)
    }

    fn datapath_status(&self) -> DatapathStatus {
        let detached = || "detached on request; `podnet datapath attach` attaches the programs".to_owned();
        let counters = self.datapath.as_ref().and_then(|datapath| datapath.maps().counters().ok()).unwrap_or_default();
        DatapathStatus {
            mode: self.config.datapath,
            attached: self.datapath.is_some() && self.programs_wanted,
            reason: self
                .datapath_failure
                .clone()
                .or_else(|| (self.datapath.is_some() && !self.programs_wanted).then(detached)),
            pins: self.datapath.as_ref().map(|datapath| datapath.maps().pin_dir().display().to_string()),
            counters,
        }
    }

    /// Lists the pods, in order of their keys.
    pub(super) fn list_pods(&self) -> Vec<Pod> {
        self.pods
            .values()
            .map(|record| Pod {
                key: record.key.clone(),
                network: record.network.clone(),
                pod: record.pod.clone(),
                addresses: record.addresses.clone(),
                mac: record.mac,
                host_ifname: record.host_ifname.clone(),
                host_ifindex: record.host_ifindex,
                netns: record.netns.clone(),
                mtu: record.mtu,
                created: record.created,
            })
            .collect()
    }
}

fn pool_status(pool: &Pool) -> PoolStatus {
    PoolStatus {
        cidr: pool.cidr(),
        gateway: Config::gateway(pool.cidr()),
        capacity: pool.capacity(),
        used: pool.used(),
    }
}
