//! `podnet lab up` and `podnet lab down`: make a lab, or leave nothing of it.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    node::{READY_DEADLINE, Unmade},
    topology::{LABS_DIR, Lab, Options, lab_dir, validate_name},
};
use crate::netns::NAMED_DIR;

impl Lab {
    /// Makes a lab; returns when its daemons are ready and its pods attached.
    ///
    /// # Errors
    ///
    /// What went wrong; nothing is left of the lab then.
    pub fn up(options: &Options) -> Result<Self> {
        require_root("makes network namespaces and mounts")?;
        let mut lab = Self::plan(options)?;
        ensure!(
            lab.binary.is_file(),
            "there is no binary {}; build it with `cargo build` or give its path",
            lab.binary.display()
        );
        lab.ensure_names_are_free()?;
        std::fs::create_dir_all(LABS_DIR).with_context(|| format!("create {LABS_DIR}"))?;
        let dir = lab.dir();
        // One of two simultaneous calls gets the folder; only that one goes on, or cleans up.
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => bail!(
                "lab {0:?} exists ({1}); see it with `podnet lab status --name {0}`, remove it with `podnet lab down --name {0}`",
                lab.name,
                dir.display()
            ),
            other => other.with_context(|| format!("create {}", dir.display()))?,
        }
        match lab.make() {
            Ok(()) => Ok(lab),
            Err(error) => Err(match lab.unmake() {
                Ok(_) => error,
                Err(left) => error.context(format!("after the error that follows, cleaning up met another: {left:#}")),
            }),
        }
    }

    /// Removes the lab of this name, whole or half-made; one that does not exist is success.
    ///
    /// # Errors
    ///
    /// Everything that could not be removed; the rest is gone, and `down` can be repeated.
    pub fn down(name: &str) -> Result<Removed> {
        require_root("removes network namespaces and mounts")?;
        validate_name(name)?;
        if !lab_dir(name).exists() {
            return Ok(Removed::Nothing);
        }
        if lab_dir(name).join("state.json").exists() {
            return Ok(Removed::Lab { warnings: Self::load(name)?.unmake()? });
        }
        // `up` writes the state before it makes anything, and `unmake` removes it last.
        remove_dir(&lab_dir(name))?;
        Ok(Removed::Lab { warnings: Vec::new() })
    }

    fn ensure_names_are_free(&self) -> Result<()> {
        // `unmake` deletes namespaces by name, so a foreign one of the same name must not come under it.
        if self.dir().exists() {
            return Ok(());
        }
        match self.netns_names().find(|name| Path::new(NAMED_DIR).join(name).exists()) {
            Some(name) => bail!(
                "network namespace {name} exists, and is of no lab; remove it with `ip netns delete {name}` or give the lab another --name"
            ),
            None => Ok(()),
        }
    }

    fn make(&mut self) -> Result<()> {
        self.save()?;
        for node in &self.nodes {
            node.make()?;
        }
        for position in 0..self.nodes.len() {
            let daemon = self.nodes[position].spawn_daemon(&self.binary)?;
            self.nodes[position].daemon = Some(daemon);
            self.save()?;
        }
        for node in &mut self.nodes {
            if let Some(daemon) = node.daemon {
                node.wait_ready(daemon, READY_DEADLINE)?;
            }
            let runtime = node.runtime(&self.binary);
            for position in 0..node.pods.len() {
                if let Err(error) = node.pods[position].make(&runtime) {
                    return Err(error.context(format!("the log of {} ends:\n{}", node.name, node.log_tail(10))));
                }
            }
        }
        self.save()
    }

    /// Removes all there is of the lab; returns what was not as it should be, but did not stand in the way.
    fn unmake(&self) -> Result<Vec<String>> {
        let mut unmade = Unmade::default();
        for node in &self.nodes {
            node.unmake(&self.binary, &mut unmade);
        }
        if unmade.errors.is_empty() {
            remove_dir(&self.dir())?;
            return Ok(unmade.warnings);
        }
        let list: Vec<_> = unmade.errors.iter().map(|error| format!("{error:#}")).collect();
        // What is left may be a mount: its content must not be deleted through it.
        bail!("lab {}: {}", self.name, list.join("; "))
    }
}

/// What `down` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A lab, which is gone now.
    Lab {
        /// What was not as it should be.
        warnings: Vec<String>,
    },
    /// There was none.
    Nothing,
}

/// Checks that the process is root's.
pub fn require_root(why: &str) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab {why}: run it as root, for example with sudo");
    Ok(())
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
