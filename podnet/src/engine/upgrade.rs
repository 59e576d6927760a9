//! Takes the node over from another version of podnet, whose programs carry packets until they are replaced.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use podnet_common::{
    LAYOUT_VERSION,
    address::Address,
    endpoint::{Endpoint, EndpointSource},
};
use tracing::{info, warn};

use super::Engine;
use crate::{
    datapath::{device::attached_devices, layouts, loader::pin_dir},
    netlink::tc::Block,
    plan::PodSpec,
};

impl Engine {
    /// Looks at what other versions left: refuses to go on beside a later one, and takes over the links and maps of earlier
    /// ones.
    ///
    /// # Errors
    ///
    /// Programs of a later version are attached. Nothing has been changed then.
    pub(super) fn meet_other_layouts(&mut self) -> Result<()> {
        self.other_layouts = layouts::others(&self.config.bpffs)?;
        if self.other_layouts.is_empty() {
            return Ok(());
        }
        let attached = self.attached_programs()?;
        layouts::refuse_later(&self.config.bpffs, &attached)?;
        let from = layouts::take_over(&self.config.bpffs).context("take over from another version of podnet")?;
        if !from.is_empty() {
            info!(?from, to = LAYOUT_VERSION, "taking over from other versions of the layouts");
        }
        Ok(())
    }

    /// Removes the pins of other versions, once nothing that is attached uses them.
    pub(super) fn retire_other_layouts(&mut self) {
        if self.other_layouts.is_empty() {
            return;
        }
        let retired = self.shares_maps().and_then(|is_replaced| {
            if is_replaced {
                layouts::retire(&self.other_layouts)?;
            }
            Ok(is_replaced)
        });
        match retired {
            Ok(true) => {
                let versions: Vec<u32> = self.other_layouts.drain(..).map(|layout| layout.version).collect();
                info!(?versions, "the pins of other versions of the layouts are removed");
            }
            Ok(false) => info!("programs of another version are still attached; their pins stay"),
            Err(error) => warn!(error = format!("{error:#}"), "remove the pins of other versions of the layouts"),
        }
    }

    /// Returns the numbers of all attached programs of podnet.
    fn attached_programs(&mut self) -> Result<BTreeSet<u32>> {
        let mut programs = BTreeSet::new();
        for block in [Block::FromPod, Block::ToPod] {
            programs.extend(self.netlink.filter_program(block).context("read the programs of pods")?);
        }
        let devices = attached_devices(&pin_dir(&self.config.bpffs))?;
        programs.extend(devices.into_iter().map(|(_, _, program)| program));
        Ok(programs)
    }

    /// Returns whether every attached program uses the maps in force, so that another one can take its place at any packet.
    pub(super) fn shares_maps(&mut self) -> Result<bool> {
        layouts::share_maps(&self.attached_programs()?, &pin_dir(&self.config.bpffs))
    }

    /// Fills the maps of new programs before they replace those that are attached: what these know is in other maps, which
    /// another version made, or whose pins somebody removed.
    pub(super) fn fill_maps(&mut self) -> Result<()> {
        if self.datapath.is_none() || self.shares_maps()? {
            return Ok(());
        }
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        let maps = datapath.maps_mut();
        for pod in self.pods.values().map(PodSpec::from) {
            // The attached programs have seen flows of which these maps know nothing.
            let flags = EndpointSource::KERNEL_TOUCHED_V4 | EndpointSource::KERNEL_TOUCHED_V6;
            maps.upsert_source(pod.host_ifindex, EndpointSource { flags, ..pod.source() })?;
            let endpoint = Endpoint { flags: Endpoint::KERNEL_TOUCHED, ..pod.endpoint(self.bridge_mac) };
            for address in &pod.addresses {
                maps.upsert_endpoint(Address::from(*address), endpoint)?;
            }
        }
        self.put_nodes()?;
        info!(pods = self.pods.len(), nodes = self.following.routing.nodes.len(), "the maps are made anew");
        Ok(())
    }
}
