//! Kernel settings under /proc/sys/net, which belong to the network namespace of the thread that opens them.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};

/// Sets `net/<name>` to a value. Returns false if the kernel has no such setting.
///
/// # Errors
///
/// The setting cannot be written.
pub fn set(name: &str, value: &str) -> Result<bool> {
    let path = Path::new("/proc/sys/net").join(name);
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => {
            // A container may have /proc/sys read-only; what is right already need not be written.
            if fs::read_to_string(&path).is_ok_and(|current| current.trim_end() == value) {
                return Ok(true);
            }
            Err(error).with_context(|| format!("set {} to {value}", path.display()))
        }
    }
}

/// Returns the value of `net/<name>`; `None` if the kernel has no such setting, or it cannot be read.
#[must_use]
pub fn get(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok().map(|value| value.trim_end().to_owned())
}
