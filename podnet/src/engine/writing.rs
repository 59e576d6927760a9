//! What becomes of pods when the database cannot be written: the disk is full, or its file system read-only. Pods that
//! run are served on; none is added, which the node's readiness says; and those that go are freed, since a pod in
//! termination cannot wait for room.

use anyhow::{Context as _, Result};
use tracing::{error, info, warn};

use super::{Engine, attachment::internal};
use crate::{
    api::{ApiError, AttachmentKey, DeleteRequest},
    cni::deletions,
    config::Config,
    database::current_boot,
};

/// A setting that is written to see whether one can be.
const PROBE: &str = "probe";

impl Engine {
    /// Notes whether the database could be written.
    pub(super) fn note_write(&mut self, written: Result<()>) {
        if let Err(error) = self.noted(written) {
            warn!(error = format!("{error:#}"), "the node is not ready");
        }
    }

    /// Notes whether the database could be written, and returns what it said.
    pub(super) fn noted(&mut self, written: Result<()>) -> Result<()> {
        self.write_failure = written.as_ref().err().map(|error| format!("{error:#}"));
        written
    }

    /// Tries again what could not be written, if there was such a thing.
    pub(super) fn retry_writing(&mut self) {
        if self.write_failure.is_none() {
            return;
        }
        let written = self.settle().and_then(|()| self.database.set_setting(PROBE, ""));
        if self.noted(written).is_ok() {
            info!("the database can be written again");
        }
    }

    /// Commits that a pod is gone. Where the database cannot be written, the queue of deletions on disk holds it until it
    /// can, also over a restart.
    pub(super) fn delete_record(&mut self, key: &AttachmentKey) -> Result<(), ApiError> {
        let written = self.database.delete(key).context("remove the pod from the database");
        let Err(error) = self.noted(written) else { return Ok(()) };
        let folder = Config::deletions_dir(&self.config.socket);
        if let Err(queue) = deletions::enqueue(&folder, &DeleteRequest { key: key.clone() }, "") {
            return Err(internal(error.context(format!("{queue:#}"))));
        }
        warn!(container = key.container_id, error = format!("{error:#}"), "the deletion is queued and done meanwhile");
        self.database.owe(key.clone());
        Ok(())
    }

    /// Commits the deletions that could not be written.
    pub(super) fn settle(&mut self) -> Result<()> {
        let folder = Config::deletions_dir(&self.config.socket);
        for key in self.database.settle()? {
            if let Err(error) = deletions::forget(&folder, &key) {
                warn!(%error, container = key.container_id, "take back a queued deletion");
            }
        }
        Ok(())
    }

    /// Does the deletions that are queued on disk: by plugins while no daemon answered, or by [`Engine::delete_record`].
    pub(super) fn drain_deletions(&mut self) {
        let folder = Config::deletions_dir(&self.config.socket);
        let done = deletions::drain(&folder, |request: DeleteRequest| {
            self.delete(&request.key)?;
            // The file goes only when the database knows.
            self.settle()
        });
        match done {
            Ok(0) => {}
            Ok(count) => info!(count, "did queued deletions"),
            Err(error) => error!(error = format!("{error:#}"), "drain the queue of deletions"),
        }
    }

    /// Forgets the pods of an earlier boot of the node.
    pub(super) fn forget_earlier_boot(&mut self) {
        let Some(boot) = current_boot() else { return };
        match self.database.begin_boot(&boot) {
            Ok(0) => {}
            Ok(count) => info!(count, "the node was booted; released the pods of the time before"),
            // Each pod is looked at then.
            Err(error) => self.note_write(Err(error)),
        }
    }
}
