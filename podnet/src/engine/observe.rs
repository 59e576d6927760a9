//! Reconciliation, the observing third: reads what the kernel and the maps hold.

use anyhow::{Context as _, Result};
use tracing::warn;

use super::{Engine, sysctl};
use crate::{
    datapath::{device::attached_devices, loader::pin_dir},
    netlink::tc::Block,
    nft,
    plan::{Actual, DeviceProgram},
};

impl Engine {
    /// Reads the node's state.
    pub(super) fn observe(&mut self, settings: &[(String, &'static str)]) -> Result<Actual> {
        let links = self.netlink.links()?;
        let bridge = links.iter().find(|link| link.name == self.config.bridge).map(|link| link.ifindex);
        let (bridge_addresses, neighbors) = match bridge {
            Some(ifindex) => (self.netlink.addresses(ifindex)?, self.netlink.permanent_neighbors(ifindex)?),
            None => (Vec::new(), Vec::new()),
        };
        let (endpoints, sources) = match &self.datapath {
            Some(datapath) => (
                Some(datapath.maps().endpoints()?.into_iter().collect()),
                Some(datapath.maps().sources()?.into_iter().collect()),
            ),
            None => (None, None),
        };
        Ok(Actual {
            links,
            bridge_addresses,
            settings: settings.iter().filter_map(|(name, _)| Some((name.clone(), sysctl::get(name)?))).collect(),
            neighbors,
            fdb: self.netlink.fdb()?.into_iter().collect(),
            attached: self.netlink.attached_links()?.into_iter().collect(),
            from_pod: self.netlink.filter_program(Block::FromPod).context("read the programs of pods")?,
            to_pod: self.netlink.filter_program(Block::ToPod).context("read the programs of pods")?,
            devices: attached_devices(&pin_dir(&self.config.bpffs))?
                .into_iter()
                .map(|(ifindex, hook, program)| DeviceProgram { ifindex, hook, program })
                .collect(),
            endpoints,
            sources,
            nft: self.is_nft_installed(),
        })
    }

    /// Returns whether there is nothing to repair. A node without nft says so once, at start. One whose nft fails later
    /// is repaired in everything else.
    fn is_nft_installed(&self) -> bool {
        !self.nft_usable
            || !self.following.is_known()
            || nft::is_installed(&self.nft_rules()).unwrap_or_else(|error| {
                warn!(error = format!("{error:#}"), "podnet's nftables table cannot be checked");
                true
            })
    }
}
