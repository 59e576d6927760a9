//! `podnet lab up` and `podnet lab down`: make a lab, or leave nothing of it.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    network::Network,
    node::Unmade,
    options::{Options, validate_name},
    topology::{LABS_DIR, Lab, lab_dir},
};
use crate::netns::{NAMED_DIR, Netns};

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
        if let Some(network) = &self.network {
            network.make(&self.nodes)?;
            self.nodes_file().write(&self.cluster_nodes())?;
        }
        for position in 0..self.nodes.len() {
            let daemon = self.nodes[position].spawn_daemon(&self.binary)?;
            self.nodes[position].daemon = Some(daemon);
            self.save()?;
        }
        // While the daemons start.
        self.configure_router()?;
        let binary = &self.binary;
        at_once(self.nodes.iter_mut(), |node| node.make_pods(binary)).into_iter().collect::<Result<()>>()?;
        self.save()
    }

    /// Removes all there is of the lab; returns what was not as it should be, but did not stand in the way.
    fn unmake(&self) -> Result<Vec<String>> {
        let mut unmade = Unmade::default();
        for part in at_once(self.nodes.iter(), |node| node.unmake(&self.binary)) {
            unmade.warnings.extend(part.warnings);
            unmade.errors.extend(part.errors);
        }
        for (_, netns) in self.network.iter().flat_map(Network::netns_names) {
            unmade.errors.extend(Netns::delete_named(netns).err());
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

/// Handles each item on a thread of its own; returns the results in the order of the items.
pub(super) fn at_once<I: Send, T: Send>(items: impl Iterator<Item = I>, handle: impl Fn(I) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let handle = &handle;
        let threads: Vec<_> = items.map(|item| scope.spawn(move || handle(item))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
