//! The kernel of the machine: a package of the distribution, unpacked and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, process::Cmd, setup::Consent};

/// The package that depends on the distribution's newest kernel.
const NEWEST: &str = "linux-image-amd64";

/// A kernel, unpacked.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Name of its package.
    pub(crate) package: String,
    /// Its release, as `uname -r` says.
    pub(crate) release: String,
    /// The file to boot.
    pub(crate) image: PathBuf,
    /// The folder of its modules: `kernel/net` and so on.
    pub(crate) modules: PathBuf,
}

/// Returns the kernel, downloading its package unless that was done before.
pub(crate) fn ensure(folder: &Path, package: Option<&str>, consent: Consent) -> Result<Kernel> {
    apt::ensure_lists()?;
    let package = match package {
        Some(package) => package.to_owned(),
        None => newest()?,
    };
    let unpacked = folder.join(&package);
    let release = package.strip_prefix("linux-image-").context("a kernel's package is named linux-image-RELEASE")?;
    let kernel = Kernel {
        image: unpacked.join(format!("boot/vmlinuz-{release}")),
        modules: unpacked.join(format!("lib/modules/{release}")),
        release: release.to_owned(),
        package,
    };
    // The image is moved last.
    if !kernel.image.exists() {
        download(folder, &kernel, &unpacked, consent)?;
    }
    Ok(kernel)
}

fn newest() -> Result<String> {
    let text = Cmd::new("apt-cache").quiet_env("LC_ALL", "C").args(["depends", NEWEST]).capture()?;
    newest_of(&text).with_context(|| format!("{NEWEST} depends on no kernel; name one by --kernel"))
}

fn newest_of(depends: &str) -> Option<String> {
    let mut packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.find(|package| package.starts_with("linux-image-")).map(str::to_owned)
}

fn download(folder: &Path, kernel: &Kernel, unpacked: &Path, consent: Consent) -> Result<()> {
    consent.obtain(&[format!("apt-get download {}", kernel.package)])?;
    Cmd::new("apt-get").args(["download", "-qq", &kernel.package]).dir(folder).run()?;
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    let prefix = format!("{}_", kernel.package);
    let archive = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    let Some(archive) = archive else { bail!("apt-get downloaded no {}", kernel.package) };
    let part = folder.join("part");
    remove(&part)?;
    Cmd::new("dpkg-deb").arg("--extract").arg(&archive).arg(&part).run()?;
    remove(unpacked)?;
    fs::rename(&part, unpacked).with_context(|| format!("move {} to {}", part.display(), unpacked.display()))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_newest_kernel_is_what_the_distribution_depends_on() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(super::newest_of(depends).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(super::newest_of("linux-image-amd64\n"), None);
    }
}
