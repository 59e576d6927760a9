//! Kernel settings under `/proc/sys/net`, which belong to the network namespace of the thread that opens them.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

/// Where the settings are unless the command line says otherwise.
pub const DEFAULT_ROOT: &str = "/proc/sys";

/// Where the settings are. It is one place for the whole process, and known before anything is set.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Uses the settings below another folder, at which `/proc/sys` or `/proc/sys/net` of a procfs is mounted. A container
/// has its own `/proc/sys` read-only, while a mount of the node's elsewhere can be written. Which namespace a setting
/// belongs to follows from the thread in either case, not from the mount. Only the first call counts.
///
/// # Errors
///
/// There is no procfs at `<root>/net`.
pub fn use_root(root: &Path) -> Result<()> {
    let net = root.join("net");
    let filesystem = statfs(&net).with_context(|| format!("find the kernel's settings at {}", net.display()))?;
    ensure!(
        filesystem.filesystem_type() == PROC_SUPER_MAGIC,
        "{} does not lie in a procfs; mount the node's /proc/sys/net there, writable",
        net.display()
    );
    ROOT.get_or_init(|| root.to_owned());
    Ok(())
}

/// Returns the path of `net/<name>`.
pub fn path(name: &str) -> PathBuf {
    ROOT.get().map_or(Path::new(DEFAULT_ROOT), PathBuf::as_path).join("net").join(name)
}

/// Sets `net/<name>` to a value. Returns false if the kernel has no such setting.
///
/// # Errors
///
/// The setting cannot be written.
pub fn set(name: &str, value: &str) -> Result<bool> {
    let path = path(name);
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            // A container may have /proc/sys read-only; what is right already need not be written.
            if fs::read_to_string(&path).is_ok_and(|current| current.trim_end() == value) {
                return Ok(true);
            }
            let hint = match error.kind() {
                ErrorKind::ReadOnlyFilesystem => " (in a container: mount the node's and name it by --proc-sys)",
                _ => "",
            };
            Err(error).with_context(|| format!("set {} to {value}{hint}", path.display()))
        }
    }
}

/// Returns the value of `net/<name>`; `None` if the kernel has no such setting, or it cannot be read.
#[must_use]
pub fn get(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|value| value.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_procfs_is_taken_for_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        let missing = format!("{:#}", use_root(folder.path()).unwrap_err());
        assert!(missing.contains("find the kernel's settings at"), "{missing}");
        fs::create_dir(folder.path().join("net")).unwrap();
        let other = format!("{:#}", use_root(folder.path()).unwrap_err());
        assert!(other.contains("does not lie in a procfs"), "{other}");
        use_root(Path::new(DEFAULT_ROOT)).unwrap();
        assert_eq!(path("ipv4/ip_forward"), Path::new("/proc/sys/net/ipv4/ip_forward"));
    }
}
