//! `lab`: builds podnet and runs its lab, the cluster of network namespaces on this machine.

use anyhow::{Result, ensure};

use crate::{
    build_ebpf,
    process::{Cmd, is_root},
    setup::Consent,
    workspace,
};

/// Arguments of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    consent: Consent,
    /// Arguments of `podnet lab`; without any: `up`, then `ping`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    lab: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(is_root()?, "the lab makes network namespaces and loads eBPF programs: run `cargo xtask lab` as root");
    build(args.consent, &["podnet"])?;
    if !args.lab.is_empty() {
        return podnet().arg("lab").args(&args.lab).run();
    }
    podnet().args(["lab", "up"]).run()?;
    podnet().args(["lab", "ping"]).run()?;
    println!();
    println!("The lab stays up: `cargo xtask lab status` shows it, `cargo xtask lab down` removes it.");
    Ok(())
}

/// Builds the eBPF object and, with it inside, packages in the release profile. Packages that are built together share
/// the features of their dependencies: those that are used together are built together, or they would be built twice.
pub(crate) fn build(consent: Consent, packages: &[&str]) -> Result<()> {
    build_ebpf::run(&build_ebpf::Args::release(consent))?;
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    workspace::cargo().args(["build", "--release"]).args(packages).run()
}

fn podnet() -> Cmd {
    Cmd::new(workspace::release_binary()).shown_as("target/release/podnet").dir(workspace::root())
}
