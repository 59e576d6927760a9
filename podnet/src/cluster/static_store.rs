//! The store `static`: a JSON file of nodes, read at start and again whenever it changes.

use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{
    Store, Update, file,
    watch::{Change, PathWatch},
};

/// How long nothing must happen after a change before the file is read: whoever changes it may do so in several steps.
const SETTLE: Duration = Duration::from_millis(5);

/// The same while somebody has the file open for writing.
const SETTLE_WRITING: Duration = Duration::from_millis(100);

/// After this time the file is read, whatever goes on.
const SETTLE_LIMIT: Duration = Duration::from_millis(500);

/// How often the file is read although nothing was noticed: a network file system tells nothing, nor does a mount.
const POLL: Duration = Duration::from_secs(5);

/// Longest file. 10,000 nodes take about two megabytes.
const MAX_BYTES: u64 = 64 << 20;

/// Nodes out of a file.
#[derive(Debug)]
pub struct StaticStore {
    path: PathBuf,
    /// `None` before the first look, and while the kernel has no watch to give.
    watch: Option<PathWatch>,
    /// Whether it was said that there is no watch.
    warned: bool,
    /// The next reading that a change caused, and when it must not be put off any more.
    due: Option<(Instant, Instant)>,
    poll_at: Instant,
    /// Digest of the content that was judged last.
    content: Option<[u8; 32]>,
    /// The failure that was told last, unless the file has become good since.
    failure: Option<String>,
}

impl StaticStore {
    /// Makes a store of the file at an absolute path, which need not exist yet.
    ///
    /// # Errors
    ///
    /// The path is relative.
    pub fn new(path: &Path) -> Result<Self> {
        ensure!(path.is_absolute(), "{} is not an absolute path", path.display());
        Ok(Self {
            path: path.to_owned(),
            watch: None,
            warned: false,
            due: None,
            poll_at: Instant::now(),
            content: None,
            failure: None,
        })
    }

    /// Reads the file, and says what is new. The watch is armed before, so that no change is missed after.
    fn look(&mut self) -> Option<Update> {
        self.arm();
        let bytes = match read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.content = None;
                return self.fail(&error);
            }
        };
        let digest = Sha256::digest(&bytes).into();
        if self.content.replace(digest) == Some(digest) {
            return None;
        }
        match file::parse(&bytes).with_context(|| format!("nodes file {}", self.path.display())) {
            Ok(cluster) => {
                self.failure = None;
                Some(Update::Snapshot(cluster))
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Tells a failure, unless it is the one that was told last.
    fn fail(&mut self, error: &anyhow::Error) -> Option<Update> {
        let message = format!("{error:#}");
        if self.failure.as_ref() == Some(&message) {
            return None;
        }
        self.failure = Some(message.clone());
        Some(Update::Failed(message))
    }

    fn arm(&mut self) {
        if self.watch.is_none() {
            match PathWatch::new(&self.path) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) if !self.warned => {
                    self.warned = true;
                    let (path, seconds) = (self.path.display(), POLL.as_secs());
                    warn!(%error, "cannot watch {path}: changes are seen within {seconds} s only");
                }
                Err(_) => {}
            }
        }
        if let Some(watch) = &mut self.watch {
            watch.arm();
        }
    }

    /// Notes that the file changes, and lets it settle.
    fn postpone(&mut self, change: Change) {
        let now = Instant::now();
        let latest = self.due.map_or(now + SETTLE_LIMIT, |(_, latest)| latest);
        let settle = if change == Change::Writing { SETTLE_WRITING } else { SETTLE };
        self.due = Some((latest.min(now + settle), latest));
    }
}

impl Store for StaticStore {
    fn describe(&self) -> String {
        format!("static file {}", self.path.display())
    }

    async fn next(&mut self) -> Update {
        loop {
            let look_at = self.due.map_or(self.poll_at, |(due, _)| due);
            tokio::select! {
                change = next_change(self.watch.as_mut()) => match change {
                    Ok(change) => self.postpone(change),
                    Err(error) => {
                        warn!(%error, "the watch of {} is lost; a new one is made", self.path.display());
                        self.watch = None;
                    }
                },
                () = sleep_until(look_at) => {
                    self.due = None;
                    self.poll_at = Instant::now() + POLL;
                    // Nothing is awaited between looking and telling, so that no news is lost when this is cancelled.
                    if let Some(update) = self.look() {
                        return update;
                    }
                }
            }
        }
    }
}

async fn next_change(watch: Option<&mut PathWatch>) -> std::io::Result<Change> {
    match watch {
        Some(watch) => watch.changed().await,
        None => pending().await,
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let operation = || format!("read nodes file {}", path.display());
    let metadata = path.metadata().with_context(operation)?;
    // To open a FIFO would wait for its writer.
    ensure!(metadata.is_file(), "{}: it is no regular file", operation());
    ensure!(metadata.len() <= MAX_BYTES, "{}: it has {} bytes, more than {MAX_BYTES}", operation(), metadata.len());
    std::fs::read(path).with_context(operation)
}

#[cfg(test)]
mod tests;
