//! Deletions that wait on disk for the daemon: one file each.
//!
//! The plugin puts a DEL there when it cannot reach the daemon, so that pods do not hang in termination; the daemon
//! drains the folder. The daemon puts one there itself when its database cannot be written. Both sides hold a file's lock while they act on it, so a deletion that is being applied can
//! never hit a later ADD of the same attachment: such an ADD takes the deletion first ([`claim`]).

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::{AttachmentKey, DeleteRequest};

/// Most deletions that may wait.
pub const LIMIT: usize = 65_536;

const EXTENSION: &str = "json";

/// Content of a file.
#[derive(Serialize, Deserialize)]
struct Deletion {
    #[serde(flatten)]
    request: DeleteRequest,
    /// For whoever reads the folder; the daemon knows an attachment's network itself.
    #[serde(default)]
    network: String,
}

/// Puts a deletion into the folder, durably; the same deletion twice is one.
pub fn enqueue(dir: &Path, request: &DeleteRequest, network: &str) -> Result<()> {
    let folder = || format!("queue deletion in {}", dir.display());
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).with_context(folder)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).with_context(folder),
        _ => {}
    }
    let path = path_of(dir, &request.key);
    if !path.exists() {
        let waiting = fs::read_dir(dir).with_context(folder)?.count();
        ensure!(
            waiting < LIMIT,
            "{}: {waiting} files wait there already; start the daemon, which works them off",
            folder()
        );
    }
    let content = serde_json::to_vec(&Deletion { request: request.clone(), network: network.to_owned() })?;
    // Renamed when complete, so that the daemon never sees half a file; the suffix keeps it out of `drain` before.
    let mut file = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(dir).with_context(folder)?;
    file.write_all(&content).and_then(|()| file.as_file().sync_all()).with_context(folder)?;
    file.persist(&path).with_context(folder)?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(folder)
}

/// A waiting deletion that is locked by its holder.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Holds the lock until it is dropped.
    _file: File,
}

impl Claim {
    /// Takes the deletion out of the folder.
    pub fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// Locks the waiting deletion of an attachment, if there is one; waits while the daemon applies it.
pub fn claim(dir: &Path, key: &AttachmentKey) -> io::Result<Option<Claim>> {
    let path = path_of(dir, key);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.lock()?;
    Ok(is_linked(&file)?.then_some(Claim { path, _file: file }))
}

/// Takes a deletion out of the folder that its own writer has made up for. One that is not there is success.
pub fn forget(dir: &Path, key: &AttachmentKey) -> io::Result<()> {
    remove(&path_of(dir, key))
}

/// Applies every waiting deletion and removes it from the folder; returns how many.
///
/// Whoever serves the API must listen before it drains, and refuse ADD until it has drained: a plugin that found
/// nobody listening has its file in the folder by then, or finds the daemon when it tries again. Draining now and
/// then is right, too. A file that does not parse is renamed to `.broken` and logged; one that a plugin is about to
/// apply itself is left to it.
///
/// # Errors
///
/// Goes on after an error, then reports all of them; the files concerned stay.
pub fn drain(dir: &Path, mut apply: impl FnMut(DeleteRequest) -> Result<()>) -> Result<usize> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).with_context(|| format!("read queued deletions in {}", dir.display())),
    };
    let mut drained = 0;
    let mut errors = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read queued deletions in {}", dir.display()))?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        match drain_one(&path, &mut apply).with_context(|| format!("queued deletion {}", path.display())) {
            Ok(applied) => drained += usize::from(applied),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    if !errors.is_empty() {
        bail!("{} of {} queued deletions remain: {}", errors.len(), errors.len() + drained, errors.join("; "));
    }
    Ok(drained)
}

fn drain_one(path: &Path, apply: &mut impl FnMut(DeleteRequest) -> Result<()>) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error).context("lock"),
    }
    if !is_linked(&file)? {
        return Ok(false);
    }
    match serde_json::from_reader::<_, Deletion>(io::BufReader::new(&file)) {
        Ok(deletion) => {
            apply(deletion.request)?;
            remove(path)?;
            Ok(true)
        }
        Err(error) if error.is_io() => Err(error.into()),
        Err(error) => {
            let broken = path.with_extension("broken");
            fs::rename(path, &broken)?;
            tracing::warn!(file = %broken.display(), %error, "set a broken queued deletion aside");
            Ok(false)
        }
    }
}

fn path_of(dir: &Path, key: &AttachmentKey) -> PathBuf {
    // Neither part can have a zero byte, so no two keys have the same text.
    let hash = Sha256::new().chain_update(&key.container_id).chain_update([0]).chain_update(&key.ifname).finalize();
    let name = hash[..16].iter().fold(String::with_capacity(32), |name, byte| name + &format!("{byte:02x}"));
    dir.join(name).with_extension(EXTENSION)
}

fn is_linked(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() > 0)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn request(id: &str) -> DeleteRequest {
        DeleteRequest { key: AttachmentKey { container_id: id.into(), ifname: "eth0".into() } }
    }

    fn drained(dir: &Path) -> Vec<String> {
        let mut ids = Vec::new();
        let count = drain(dir, |request| {
            ids.push(request.key.container_id);
            Ok(())
        })
        .unwrap();
        assert_eq!(count, ids.len());
        ids.sort();
        ids
    }

    #[test]
    fn what_is_queued_is_drained_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("podnet/deletions");
        assert_eq!(drained(&dir), [""; 0]);
        for id in ["a", "b", "a"] {
            enqueue(&dir, &request(id), "podnet").unwrap();
        }
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(drained(&dir), ["a", "b"]);
        assert_eq!(drained(&dir), [""; 0]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn a_failed_deletion_stays_and_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["a", "b", "c"] {
            enqueue(dir.path(), &request(id), "podnet").unwrap();
        }
        let error = drain(dir.path(), |request| {
            ensure!(request.key.container_id != "b", "no");
            Ok(())
        })
        .unwrap_err();
        assert!(error.to_string().contains("1 of 3"), "{error}");
        assert_eq!(drained(dir.path()), ["b"]);
    }

    #[test]
    fn broken_files_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        enqueue(dir.path(), &request("a"), "podnet").unwrap();
        fs::write(dir.path().join("x.json"), "{").unwrap();
        fs::write(dir.path().join(".half.tmp"), "{").unwrap();
        assert_eq!(drained(dir.path()), ["a"]);
        assert_eq!(fs::read_to_string(dir.path().join("x.broken")).unwrap(), "{");
        assert_eq!(drained(dir.path()), [""; 0]);
    }

    #[test]
    fn a_claimed_deletion_is_left_to_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let key = request("a").key;
        assert!(claim(dir.path(), &key).unwrap().is_none());
        enqueue(dir.path(), &request("a"), "podnet").unwrap();
        let held = claim(dir.path(), &key).unwrap().unwrap();
        assert_eq!(drained(dir.path()), [""; 0]);
        drop(held);
        let held = claim(dir.path(), &key).unwrap().unwrap();
        held.remove().unwrap();
        assert!(claim(dir.path(), &key).unwrap().is_none());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let error = format!("{:#}", enqueue(&root.path().join("file/deletions"), &request("a"), "n").unwrap_err());
        assert!(error.contains("file/deletions"), "{error}");
    }

    #[test]
    fn keys_do_not_collide() {
        let path = |id: &str, ifname: &str| {
            path_of(Path::new("/q"), &AttachmentKey { container_id: id.into(), ifname: ifname.into() })
        };
        assert_ne!(path("a", "be"), path("ab", "e"));
        assert_ne!(path("a", "eth0"), path("a", "eth1"));
    }
}
