//! `lint`: everything that finds faults without running podnet. Goes on after a failure and reports all.

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf, packages,
    process::{Cmd, find_command},
    setup::{self, Consent},
    tidy,
    toolchain::Toolchain,
    workspace,
};

/// How a check ended.
enum Outcome {
    Passed,
    Failed(String),
    /// It could not run; the text says why.
    NotRun(String),
}

impl From<Result<()>> for Outcome {
    fn from(result: Result<()>) -> Self {
        result.map_or_else(|error| Self::Failed(format!("{error:#}")), |()| Self::Passed)
    }
}

/// Runs the verb.
pub(crate) fn run(consent: Consent) -> Result<()> {
    setup::ensure_packages(packages::BUILD, consent)?;
    let cargo = workspace::cargo;
    let deny_warnings = |command: Cmd| command.env("RUSTDOCFLAGS", "-D warnings");
    let checks: [(&str, Outcome); 6] = [
        ("format", cargo().args(["fmt", "--all", "--check"]).run().into()),
        ("tidy", tidy::run().into()),
        ("clippy", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]).run().into()),
        ("clippy for BPF", clippy_for_bpf(consent)),
        (
            "documentation",
            deny_warnings(cargo().args(["doc", "--workspace", "--no-deps", "--document-private-items"])).run().into(),
        ),
        ("dependencies", dependencies(consent).into()),
    ];

    println!("\nlint:");
    let mut failed = 0;
    for (name, outcome) in &checks {
        match outcome {
            Outcome::Passed => println!("  {name:<16} passed"),
            Outcome::Failed(reason) => {
                failed += 1;
                println!("  {name:<16} FAILED: {reason}");
            }
            Outcome::NotRun(reason) => println!("  {name:<16} NOT RUN: {reason}"),
        }
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed", checks.len());
    }
    Ok(())
}

fn clippy_for_bpf(consent: Consent) -> Outcome {
    let (toolchain, linker) = match Toolchain::ensure(consent) {
        Ok(pair) => pair,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let Some(clippy) = toolchain.clippy() else {
        let package = toolchain.clippy_package().unwrap_or("the component clippy");
        return Outcome::NotRun(format!("{toolchain} has no clippy ({package} brings it)"));
    };
    build_ebpf::bpf_arguments(build_ebpf::bpf_environment(clippy, &linker)).args(["--", "-D", "warnings"]).run().into()
}

fn dependencies(consent: Consent) -> Result<()> {
    if find_command("cargo-deny").is_none() {
        // A debug build takes a fraction of the time, and checks for seconds.
        let install = workspace::cargo().args(["install", "--locked", "--debug", "cargo-deny"]);
        consent.obtain(&[install.shown().to_owned()]).context("cargo-deny is needed")?;
        install.run()?;
    }
    // Advisories come from a git repository; a check that needs the network of the moment would fail at random.
    workspace::cargo().args(["deny", "--workspace", "check", "bans", "licenses", "sources"]).run()
}
