//! The distribution's packages: what can be had, and installing it.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::process::{Cmd, find_command, is_root};

/// Where apt keeps the lists of what can be had.
const LISTS: &str = "/var/lib/apt/lists";

/// Lists older than this are renewed before an installation: security updates remove what the old ones name.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Returns whether packages can be installed: this is root on a system with apt.
pub(crate) fn usable() -> Result<bool> {
    Ok(is_root()? && find_command("apt-get").is_some())
}

/// Returns the version of a package that apt would install, or `None` if there is none (or no apt).
pub(crate) fn candidate(package: &str) -> Option<String> {
    let policy = Cmd::new("apt-cache").quiet_env("LC_ALL", "C").args(["policy", package]).capture().ok()?;
    candidate_of(&policy)
}

fn candidate_of(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Returns major and minor number of a package's version, such as `(1, 96)` for `2:1.96.0+dfsg1-1`.
pub(crate) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Returns the commands that [`install`] runs.
pub(crate) fn commands(packages: &[String]) -> Vec<String> {
    vec!["apt-get update".into(), format!("apt-get install --no-install-recommends -y {}", packages.join(" "))]
}

/// Installs packages; renews the lists first when they are missing or stale.
///
/// # Errors
///
/// apt cannot, even in a second try with new lists.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if lists_are_stale() {
        update()?;
    }
    install_once(packages).or_else(|error| {
        println!("{error:#}; trying once more with new lists");
        update()?;
        install_once(packages)
    })
}

/// Renews the lists when they are missing, so that [`candidate`] can answer.
pub(crate) fn ensure_lists() -> Result<()> {
    if lists_age().is_none() { update() } else { Ok(()) }
}

fn update() -> Result<()> {
    apt_get().args(["update", "-qq"]).run().context("renew the package lists")
}

fn install_once(packages: &[String]) -> Result<()> {
    apt_get()
        .args(["install", "--no-install-recommends", "-y", "-qq"])
        .args(packages)
        .run()
        .with_context(|| format!("install {}", packages.join(" ")))
}

fn apt_get() -> Cmd {
    Cmd::new("apt-get").quiet_env("DEBIAN_FRONTEND", "noninteractive").args([
        "-o",
        "Acquire::Retries=3",
        "-o",
        "DPkg::Lock::Timeout=300",
    ])
}

fn lists_are_stale() -> bool {
    lists_age().is_none_or(|age| age > STALE)
}

/// Returns the age of the newest list, or `None` if there is none.
fn lists_age() -> Option<Duration> {
    let newest = fs::read_dir(Path::new(LISTS))
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains("_dists_"))
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max()?;
    // The clock may have been set back since: then the list counts as new.
    Some(SystemTime::now().duration_since(newest).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy = "cargo-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(candidate_of(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(candidate_of("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_of(""), None);
    }

    #[test]
    fn versions_lose_epoch_and_revision() {
        assert_eq!(major_minor("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(major_minor("2:1.85.0-1"), Some((1, 85)));
        assert_eq!(major_minor("none"), None);
    }
}
