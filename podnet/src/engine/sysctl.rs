//! Kernel settings under /proc/sys/net, which belong to the network namespace of the thread that opens them.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};

/// Sets `net/<name>` to a value, unless it has it already. Returns false if the kernel has no such setting.
///
/// # Errors
///
/// The setting cannot be read or written.
pub fn set(name: &str, value: &str) -> Result<bool> {
    let path = Path::new("/proc/sys/net").join(name);
    let current = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        current => current.with_context(|| format!("read {}", path.display()))?,
    };
    if current.trim_end() != value {
        fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))?;
    }
    Ok(true)
}
