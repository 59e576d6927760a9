//! The eBPF programs: load, attach to the shared blocks, replace, detach.

use std::os::fd::AsRawFd as _;

use anyhow::Result;
use podnet_common::{program_name, settings::Settings};
use tracing::{error, info};

use super::{Engine, attachment::internal};
use crate::{
    api::{ApiError, DatapathMode, DatapathRequest, ErrorKind},
    datapath::{
        loader::{Datapath, ensure_bpffs, pin_dir},
        logs::LogLevel,
    },
    netlink::{
        Request,
        tc::{self, Block},
    },
    plan::Programs,
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
            Ok(datapath) => {
                self.datapath = Some(datapath);
                self.datapath_failure = None;
            }
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    "the eBPF path cannot be loaded; pods are served by the kernel path"
                );
                self.datapath_failure = Some(format!("{error:#}"));
            }
        }
    }

    fn load(&self) -> Result<Datapath> {
        ensure_bpffs(&self.config.bpffs)?;
        let mut datapath = Datapath::load(&pin_dir(&self.config.bpffs), Settings::DEFAULT, self.ebpf_log)?;
        if let Some(logs) = datapath.take_logs()
            && self.logs.send(logs).is_err()
        {
            info!("nobody reads the logs of the eBPF programs");
        }
        Ok(datapath)
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

    /// Puts the programs into their blocks, replacing others atomically. Where there were none, flows have gone the
    /// kernel's way unseen: then every endpoint counts as touched by the kernel, so that each flow is looked at once
    /// before it is redirected.
    pub(super) fn replace_programs(&mut self) -> Result<()> {
        let gap = self.netlink.filter_program(Block::FromPod)?.is_none()
            || self.netlink.filter_program(Block::ToPod)?.is_none();
        let Some(datapath) = &mut self.datapath else { return Ok(()) };
        if gap {
            datapath.maps_mut().set_kernel_touched_all()?;
        }
        let from_pod = datapath.from_pod_fd()?.as_raw_fd();
        let to_pod = datapath.to_pod_fd()?.as_raw_fd();
        self.netlink.request(tc::replace_filter(Block::FromPod, program_name::FROM_POD, from_pod))?;
        if gap {
            std::thread::sleep(SETTLE);
        }
        self.netlink.request(tc::replace_filter(Block::ToPod, program_name::TO_POD, to_pod))?;
        info!(gap, "programs attached");
        Ok(())
    }

    /// Takes the programs out of their blocks: the kernel path takes over.
    pub(super) fn remove_programs(&mut self) -> Result<()> {
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
                    self.datapath = Some(self.load().map_err(internal)?);
                }
                self.reconcile("attach").map_err(internal)
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
        self.datapath = Some(self.load()?);
        self.datapath_failure = None;
        self.reconcile("reload")
    }
}
