//! podnet's build, test and release verbs: `cargo xtask VERB`. One file per verb; continuous integration calls only
//! these.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod build;
mod build_ebpf;
mod dist;
mod lab;
mod lint;
mod setup;
mod test;
mod tidy;
mod vm_test;

mod apt;
mod linker;
mod packages;
mod process;
mod supervise;
mod toolchain;
mod workspace;

/// Builds, checks, tests and shows podnet.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds the eBPF object and places it at target/bpf/podnet-ebpf.o.
    BuildEbpf(build_ebpf::Args),
    /// Builds the release binary, statically linked, with the eBPF object inside.
    Build(setup::Consent),
    /// Makes what is shipped: a tarball, a Debian package and a container image, with checksums.
    Dist(dist::Args),
    /// Installs what building needs and, with --tests, what the privileged test suites need.
    Setup(setup::Args),
    /// Checks format, lints (host and BPF target), import rules, documentation and dependencies.
    Lint(setup::Consent),
    /// Checks the rules that no other tool checks: who imports what, file sizes, forbidden words.
    Tidy,
    /// Runs the unit tests and the privileged test suites (as root).
    Test(test::Args),
    /// Boots the distribution's kernel under QEMU and runs the program tests and a lab there.
    VmTest(vm_test::Args),
    /// Builds podnet and runs `podnet lab ARGS`; without arguments, shows a cluster of three nodes and the paths in it.
    Lab(lab::Args),
}

fn main() -> ExitCode {
    match run(Args::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Build(consent) => build::run(consent),
        Verb::Dist(args) => dist::run(&args),
        Verb::Setup(args) => setup::run(&args),
        Verb::Lint(consent) => lint::run(consent),
        Verb::Tidy => tidy::run(),
        Verb::Test(args) => test::run(&args),
        Verb::VmTest(args) => vm_test::run(&args),
        Verb::Lab(args) => lab::run(&args),
    }
}
