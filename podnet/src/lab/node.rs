//! Makes and unmakes one node: network namespace, bpffs, daemon; and the pods on it through the CNI plugin.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{
    node_api, poll,
    process::{Process, Stopped},
    runtime::{Added, Request, Runtime},
    topology::{Node, Pod},
};
use crate::{
    netlink::{Socket, link},
    netns::Netns,
};

/// How long a daemon may take until it is ready.
pub const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a daemon may take to end after SIGTERM.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// How many lines of a daemon's log an error shows.
const LOG_LINES: usize = 20;

impl Node {
    /// Makes the node's files, network namespace and bpffs.
    pub fn make(&self) -> Result<()> {
        for dir in [&self.dir, &self.state_dir(), &self.bpffs()] {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let config = self.config_path();
        std::fs::write(&config, self.config_text()?).with_context(|| format!("write {}", config.display()))?;
        make_netns(&self.netns)?;
        let bpffs = self.bpffs();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a bpffs on {}", bpffs.display()))
    }

    /// Starts the daemon; does not wait until it is ready.
    pub fn spawn_daemon(&self, binary: &Path) -> Result<Process> {
        let mut command = Command::new(binary);
        command.arg("daemon").arg("--config").arg(self.config_path());
        Process::spawn(&Netns::open_named(&self.netns)?, command, &self.log_path())
            .with_context(|| format!("start the daemon of {}", self.name))
    }

    /// Makes the node's pods, once its daemon is ready.
    pub fn make_pods(&mut self, binary: &Path) -> Result<()> {
        if let Some(daemon) = self.daemon {
            self.wait_ready(daemon, READY_DEADLINE)?;
        }
        let runtime = self.runtime(binary);
        for position in 0..self.pods.len() {
            if let Err(error) = self.pods[position].make(&runtime) {
                return Err(error.context(format!("the log of {} ends:\n{}", self.name, self.log_tail(10))));
            }
        }
        Ok(())
    }

    /// Waits until the daemon can add pods.
    ///
    /// # Errors
    ///
    /// It ended, or is not ready in time; shows the end of its log.
    pub fn wait_ready(&self, daemon: Process, deadline: Duration) -> Result<()> {
        let start = Instant::now();
        let mut reason = String::new();
        let ready = poll::until(deadline, || {
            if !daemon.is_running()? {
                bail!("the daemon of {} ended at once; its log:\n{}", self.name, self.log_tail(LOG_LINES));
            }
            Ok(match node_api::not_ready_reason(&self.socket()) {
                None => Some(()),
                Some(missing) => {
                    reason = missing;
                    None
                }
            })
        })?;
        ready.with_context(|| {
            format!(
                "the daemon of {} is not ready after {:.1} s ({reason}); its log:\n{}",
                self.name,
                start.elapsed().as_secs_f32(),
                self.log_tail(LOG_LINES)
            )
        })
    }

    /// Returns the last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let path = self.log_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => return format!("  (no log {}: {error})", path.display()),
        };
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<_> = text.lines().collect();
        if all.is_empty() {
            return format!("  ({} is empty)", path.display());
        }
        let tail = &all[all.len().saturating_sub(lines)..];
        tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }

    /// Returns the runtime that adds pods to this node.
    #[must_use]
    pub fn runtime(&self, binary: &Path) -> Runtime {
        Runtime { binary: binary.to_owned(), socket: self.socket() }
    }

    /// Unmakes the node, whatever there is of it: pods, daemon, bpffs, network namespaces. Goes on after an error.
    #[must_use]
    pub fn unmake(&self, binary: &Path) -> Unmade {
        let mut unmade = Unmade::default();
        // Without a daemon there is nothing to ask: the node's veths go with its namespace.
        if node_api::not_ready_reason(&self.socket()).is_none() {
            for pod in &self.pods {
                if let Err(error) = self.runtime(binary).del(&pod.request()) {
                    unmade.warnings.push(format!("{error:#}"));
                }
            }
        }
        let daemons = match self.daemon {
            Some(daemon) => Ok(vec![daemon]),
            // An `up` that was killed may have started it, and not have got to write that down.
            None => Process::find(&["daemon".as_ref(), "--config".as_ref(), self.config_path().as_os_str()]),
        };
        for daemon in daemons.unwrap_or_else(|error| {
            unmade.errors.push(error);
            Vec::new()
        }) {
            match daemon.stop(STOP_GRACE) {
                Ok(Stopped::Killed) => unmade.warnings.push(format!(
                    "the daemon of {} did not end within {} s of SIGTERM and was killed",
                    self.name,
                    STOP_GRACE.as_secs()
                )),
                Err(error) => unmade.errors.push(error),
                Ok(_) => {}
            }
        }
        unmade.errors.extend(self.pods.iter().filter_map(|pod| Netns::delete_named(&pod.netns).err()));
        unmade.errors.extend(unmount_all(&self.bpffs()).err());
        unmade.errors.extend(Netns::delete_named(&self.netns).err());
        unmade
    }
}

/// What went wrong while a node was unmade.
#[derive(Debug, Default)]
pub struct Unmade {
    /// Did not keep anything from being removed.
    pub warnings: Vec<String>,
    /// Something is left.
    pub errors: Vec<anyhow::Error>,
}

impl Pod {
    /// Makes the pod's network namespace and attaches it.
    pub fn make(&mut self, runtime: &Runtime) -> Result<Added> {
        make_netns(&self.netns)?;
        let added = runtime.add(&self.request())?;
        self.addresses.clone_from(&added.addresses);
        self.mac = Some(added.mac);
        Ok(added)
    }

    /// Returns what the plugin is told about the pod.
    #[must_use]
    pub fn request(&self) -> Request {
        Request {
            container_id: self.container_id.clone(),
            netns: Some(Path::new(crate::netns::NAMED_DIR).join(&self.netns)),
            pod_name: self.name.clone(),
            ..Request::default()
        }
    }
}

/// Makes a network namespace whose loopback interface is up.
pub fn make_netns(name: &str) -> Result<Netns> {
    let netns = Netns::create_named(name)?;
    netns.run(set_loopback_up).with_context(|| format!("set lo up in network namespace {name}"))?;
    Ok(netns)
}

/// Sets `lo` up in the calling thread's namespace.
fn set_loopback_up() -> Result<()> {
    Ok(Socket::open()?.request(link::set_up(link::LOOPBACK))?)
}

/// Unmounts every bpffs from a folder; one that does not exist, or on which nothing is mounted, is success.
fn unmount_all(dir: &Path) -> Result<()> {
    loop {
        match statfs(dir) {
            Ok(filesystem) if filesystem.filesystem_type() == BPF_FS_MAGIC => {}
            Ok(_) | Err(Errno::ENOENT) => return Ok(()),
            Err(error) => bail!("examine {}: {error}", dir.display()),
        }
        match umount2(dir, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(error) => bail!("unmount {}: {error}", dir.display()),
        }
    }
}
