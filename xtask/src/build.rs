//! `build`: the release binary, with the eBPF object inside, as nodes should run it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    setup::Consent,
    workspace::{self, relative},
};

/// Statically linked, at a fixed address. A runtime executes the CNI plugin twice for each pod: without a dynamic
/// loader and without relocations to apply, that takes half a millisecond less.
const RUSTFLAGS: &str = "-Ctarget-feature=+crt-static -Crelocation-model=static";

/// The profile of what is shipped.
pub(crate) const SHIPPED: &str = "dist";

/// Runs the verb.
pub(crate) fn run(consent: Consent) -> Result<()> {
    let binary = release(consent)?;
    println!("built {}", relative(&binary).display());
    Ok(())
}

/// Builds the eBPF object and the release binary, and returns where the binary lies.
pub(crate) fn release(consent: Consent) -> Result<PathBuf> {
    binary(consent, "release")
}

/// Builds the eBPF object and the binary with one of the workspace's profiles, and returns where the binary lies.
pub(crate) fn binary(consent: Consent, profile: &str) -> Result<PathBuf> {
    build_ebpf::run(&build_ebpf::Args::release(consent))?;
    let host = host()?;
    // The flags must not reach build scripts and procedural macros, which are dynamic; naming the target sees to that.
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", host.to_uppercase().replace('-', "_"));
    let flags = if profile == SHIPPED { format!("{RUSTFLAGS}{}", without_paths()) } else { RUSTFLAGS.to_owned() };
    workspace::cargo()
        .args(["build", "--profile", profile, "--package", "podnet", "--target", &host])
        .env(&variable, flags)
        .run()?;
    Ok(workspace::target().join(host).join(profile).join("podnet"))
}

/// Returns flags that keep this machine's paths out of a binary: it should be the same wherever it is built.
fn without_paths() -> String {
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let folders = [(cargo, "/cargo"), (Some(workspace::root().to_owned()), "/podnet")];
    folders.into_iter().fold(String::new(), |flags, (folder, name)| match folder {
        // Cargo separates flags at blanks.
        Some(folder) if !folder.to_string_lossy().contains(' ') => {
            format!("{flags} --remap-path-prefix={}={name}", folder.display())
        }
        _ => flags,
    })
}

/// Returns the target triple of this machine.
pub(crate) fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = crate::process::Cmd::new(rustc).shown_as("rustc").arg("-vV").capture()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.trim().to_owned())
}
