//! The eBPF programs: load, attach to the shared blocks, replace, detach.

use std::{
    collections::{BTreeSet, HashSet},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result, ensure};
use podnet_common::{program_name, settings::Settings};
use tracing::{error, info};

use super::{Engine, Why, attachment::internal};
use crate::{
    api::{ApiError, DatapathMode, DatapathRequest, ErrorKind, KernelStatus},
    datapath::{
        device::{DeviceHook, attached_devices, detach_device, name_of},
        loader::{Datapath, ensure_bpffs, pin_dir},
        logs::LogLevel,
    },
    netlink::{
        Request,
        tc::{self, Block},
    },
    plan::{DeviceProgram, Programs},
};

/// How long packets that passed the hook before it had a program may still be under way inside the kernel. The
/// program that watches deliveries is attached only after that, or it would take them for translated ones.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(50);

impl Engine {
    /// Loads the eBPF path if the configuration asks for it. A node that cannot load it serves pods all the same, by
    /// the kernel path, and says so.
    pub(super) fn load_datapath(&mut self) {
        if self.config.datapath == DatapathMode::Kernel {
            return;
        }
        match self.load() {
            Ok(()) => self.datapath_failure = None,
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    "the eBPF path cannot be loaded; pods are served by the kernel path"
                );
                self.datapath_failure = Some(format!("{error:#}"));
            }
        }
    }

    /// Loads the programs, and fills their maps if they are new ones. The programs that are attached stay attached.
    fn load(&mut self) -> Result<()> {
        let KernelStatus { release, lacks, .. } = &self.kernel;
        ensure!(lacks.is_empty(), "the kernel {release} lacks what the eBPF path needs: {}", lacks.join(", "));
        ensure_bpffs(&self.config.bpffs)?;
        let mut datapath = Datapath::load(&pin_dir(&self.config.bpffs), self.wanted_settings(), self.ebpf_log)?;
        if let Some(logs) = datapath.take_logs()
            && self.logs.send(logs).is_err()
        {
            info!("nobody reads the logs of the eBPF programs");
        }
        let before = self.datapath.replace(datapath);
        self.fill_maps().context("fill the maps").inspect_err(|_| self.datapath = before)
    }

    /// Returns the requests that give the blocks their programs where they have none.
    pub(super) fn program_offers(&self) -> Result<Vec<Request>> {
        let Some(datapath) = self.datapath.as_ref().filter(|_| self.programs_wanted) else { return Ok(Vec::new()) };
        Ok(vec![
            tc::offer_filter(Block::FromPod, program_name::FROM_POD, datapath.from_pod_fd()?.as_raw_fd()),
            tc::offer_filter(Block::ToPod, program_name::TO_POD, datapath.to_pod_fd()?.as_raw_fd()),
        ])
    }

    /// Returns the IDs of the programs that the blocks should hold.
    pub(super) fn wanted_programs(&self) -> Result<Option<Programs>> {
        self.datapath
            .as_ref()
            .filter(|_| self.programs_wanted)
            .map(|datapath| Ok(Programs { from_pod: datapath.from_pod_id()?, to_pod: datapath.to_pod_id()? }))
            .transpose()
    }

    /// Returns the constants of the programs.
    fn wanted_settings(&self) -> Settings {
        let shape = &self.following.shape;
        Settings {
            node_mask_v4: shape.mask_v4(),
            node_mask_v6: shape.mask_v6(),
            nodes_lpm: u32::from(shape.others),
            bridge_ifindex: self.bridge_ifindex,
            vni: self.config.overlay.vni,
            ..Settings::DEFAULT
        }
    }

    /// Loads the programs anew if their constants are not right any more.
    pub(super) fn refresh_constants(&mut self) -> Result<()> {
        let wanted = self.wanted_settings();
        if self.datapath.as_ref().is_none_or(|datapath| datapath.settings() == wanted) {
            return Ok(());
        }
        info!(?wanted, "the programs' constants change");
        // New programs look for nodes under keys of the new shape.
        self.put_nodes()?;
        self.load()?;
        if self.programs_wanted { self.replace_programs() } else { Ok(()) }
    }

    /// Returns what should be attached to uplinks and overlay device; `None` before anything is known of the cluster.
    pub(super) fn wanted_devices(&self) -> Result<Option<BTreeSet<DeviceProgram>>> {
        let Some(datapath) = self.datapath.as_ref().filter(|_| self.programs_wanted) else {
            return Ok(Some(BTreeSet::new()));
        };
        if !self.following.is_known() {
            return Ok(None);
        }
        let mut wanted = BTreeSet::new();
        for (ifindex, hook, _) in self.device_hooks() {
            wanted.insert(DeviceProgram { ifindex, hook, program: datapath.program_id(hook.program())? });
        }
        Ok(Some(wanted))
    }

    /// Lists the hooks of uplinks and overlay device: index, hook, name of the interface.
    fn device_hooks(&self) -> Vec<(u32, DeviceHook, String)> {
        let mut hooks = Vec::new();
        for (ifindex, name) in self.following.uplinks(&self.config.uplinks) {
            hooks.push((ifindex, DeviceHook::FromUplink, name.clone()));
            hooks.push((ifindex, DeviceHook::ToUplink, name));
        }
        if let Some(ifindex) = self.following.overlay() {
            hooks.push((ifindex, DeviceHook::FromOverlay, self.config.overlay.device.clone()));
            hooks.push((ifindex, DeviceHook::ToOverlay, self.config.overlay.device.clone()));
        }
        hooks
    }

    /// Puts the programs into their blocks and onto their devices, replacing others atomically. Where there were none,
    /// flows have gone the kernel's way unseen: then every endpoint counts as touched by the kernel, so that each flow is
    /// looked at once before it is redirected. Likewise where programs are replaced that have other maps.
    ///
    /// Those that see what is sent come before those that see what the kernel delivers: a packet that passed the former
    /// unseen would look translated to the latter.
    pub(super) fn replace_programs(&mut self) -> Result<()> {
        let attached: HashSet<_> = attached_devices(&pin_dir(&self.config.bpffs))?
            .into_iter()
            .map(|(ifindex, hook, _)| (ifindex, hook))
            .collect();
        let hooks = if self.following.is_known() {
            self.device_hooks()
        } else {
            // Nothing is known that should be attached, or not; but programs of two loads must not work beside one another.
            attached.iter().filter_map(|(ifindex, hook)| Some((*ifindex, *hook, name_of(*ifindex)?))).collect()
        };
        let has_pods = !self.pods.is_empty();
        let gap = has_pods
            && (!self.shares_maps()?
                || self.netlink.filter_program(Block::FromPod)?.is_none()
                || self.netlink.filter_program(Block::ToPod)?.is_none()
                || hooks.iter().any(|(ifindex, hook, _)| !attached.contains(&(*ifindex, *hook))));
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        if gap {
            datapath.maps_mut().set_kernel_touched_all()?;
        }
        let how = self.config.uplink_attach;
        let (from_pod, to_pod) = (datapath.from_pod_fd()?.as_raw_fd(), datapath.to_pod_fd()?.as_raw_fd());
        // Without pods the blocks do not exist.
        if has_pods {
            self.netlink.request(tc::replace_filter(Block::FromPod, program_name::FROM_POD, from_pod))?;
        }
        for (ifindex, hook, name) in hooks.iter().filter(|(_, hook, _)| hook.is_ingress()) {
            datapath.attach_device(name, *ifindex, *hook, how)?;
        }
        if gap {
            std::thread::sleep(SETTLE);
        }
        if has_pods {
            self.netlink.request(tc::replace_filter(Block::ToPod, program_name::TO_POD, to_pod))?;
        }
        for (ifindex, hook, name) in hooks.iter().filter(|(_, hook, _)| !hook.is_ingress()) {
            datapath.attach_device(name, *ifindex, *hook, how)?;
        }
        info!(gap, devices = hooks.len(), "programs attached");
        Ok(())
    }

    /// Takes the programs out of their blocks and off their devices: the kernel path takes over.
    pub(super) fn remove_programs(&mut self) -> Result<()> {
        let pins = pin_dir(&self.config.bpffs);
        for (ifindex, hook, _) in attached_devices(&pins)? {
            detach_device(&pins, ifindex, hook)?;
        }
        self.netlink.batch(vec![tc::delete_filter(Block::FromPod), tc::delete_filter(Block::ToPod)])?;
        info!("programs detached");
        Ok(())
    }

    /// Changes the eBPF path while traffic flows.
    pub(super) fn change_datapath(&mut self, request: DatapathRequest) -> Result<(), ApiError> {
        if self.config.datapath == DatapathMode::Kernel {
            return Err(ApiError::new(
                ErrorKind::InvalidRequest,
                "the node runs with datapath = \"kernel\"; change the configuration and restart the daemon",
            ));
        }
        match request {
            DatapathRequest::Detach => {
                self.programs_wanted = false;
                self.remove_programs().map_err(internal)
            }
            DatapathRequest::Attach => {
                self.programs_wanted = true;
                if self.datapath.is_none() {
                    self.load().map_err(internal)?;
                }
                self.reconcile(Why::Change("attach")).map_err(internal)
            }
            DatapathRequest::Reload => self.reload().map_err(internal),
        }
    }

    /// Changes the level of the programs' logs: a constant of the programs, so they are loaded anew.
    pub(super) fn set_ebpf_log(&mut self, level: LogLevel) -> Result<(), ApiError> {
        let before = std::mem::replace(&mut self.ebpf_log, level);
        if self.datapath.is_none() || before == level {
            return Ok(());
        }
        self.reload().map_err(|error| {
            self.ebpf_log = before;
            internal(error)
        })
    }

    /// Loads the programs anew and replaces the attached ones; the maps stay.
    fn reload(&mut self) -> Result<()> {
        self.load()?;
        self.datapath_failure = None;
        self.reconcile(Why::Change("reload"))
    }
}
