//! `lab`: builds podnet and runs its lab, the cluster of network namespaces on this machine.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    build,
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
    let binary = build::release(args.consent)?;
    if !args.lab.is_empty() {
        return podnet(&binary).arg("lab").args(&args.lab).run();
    }
    podnet(&binary).args(["lab", "up"]).run()?;
    podnet(&binary).args(["lab", "ping"]).run()?;
    println!();
    println!("The lab stays up: `cargo xtask lab status` shows it, `cargo xtask lab down` removes it.");
    Ok(())
}

fn podnet(binary: &Path) -> Cmd {
    Cmd::new(binary).shown_as(&workspace::relative(binary).display().to_string()).dir(workspace::root())
}
