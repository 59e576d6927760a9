//! Embeds the eBPF object: copies it to `OUT_DIR`, where `datapath::object` includes it.
//!
//! `cargo xtask build-ebpf` leaves the object in `target/bpf/podnet-ebpf.o`; `PODNET_EBPF_OBJECT` names another one. A
//! build without it succeeds, so that work on the rest needs no BPF toolchain; such a binary says so when it is asked
//! to load the programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const OVERRIDE: &str = "PODNET_EBPF_OBJECT";

fn main() -> std::io::Result<()> {
    let crate_dir = env_path("CARGO_MANIFEST_DIR");
    let object = env::var_os(OVERRIDE).map_or_else(|| crate_dir.join("../target/bpf/podnet-ebpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    fs::write(env_path("OUT_DIR").join("podnet-ebpf.o"), read(&object))
}

/// Returns the object, or nothing and a warning.
fn read(object: &Path) -> Vec<u8> {
    fs::read(object).unwrap_or_else(|error| {
        println!(
            "cargo::warning=no eBPF object at {} ({error}): this build has no eBPF path; run `cargo xtask build-ebpf`",
            object.display()
        );
        Vec::new()
    })
}

fn env_path(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_default().into()
}
