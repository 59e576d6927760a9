//! `setup`: installs what building and testing need. Other verbs use it for what they find missing.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result, bail};

use crate::{apt, packages, toolchain::Toolchain};

/// Whether missing software may be installed.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Consent {
    /// Install what is missing without a question (also when CI=true).
    #[arg(long, conflicts_with = "no_setup")]
    yes: bool,
    /// Never install anything; say what is missing and fail.
    #[arg(long)]
    no_setup: bool,
}

/// Arguments of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also install what the privileged test suites need.
    #[arg(long)]
    tests: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure_packages(packages::BUILD, args.consent)?;
    if args.tests {
        ensure_packages(packages::TESTS, args.consent)?;
    }
    let (toolchain, linker) = Toolchain::ensure(args.consent)?;
    println!("eBPF toolchain: {toolchain}, {linker}");
    println!("setup: nothing is missing");
    Ok(())
}

/// Installs those packages of a list that are absent.
///
/// # Errors
///
/// Something is absent and may not, or cannot, be installed; the message holds the commands that would.
pub(crate) fn ensure_packages(list: &[packages::Package], consent: Consent) -> Result<()> {
    let missing = packages::missing(list);
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing packages:");
    for package in &missing {
        println!("  {:<28} {}", package.name, package.reason);
    }
    let names: Vec<String> = missing.iter().map(|package| package.name.to_owned()).collect();
    consent.obtain(&apt::commands(&names))?;
    apt::install(&names)?;
    let still: Vec<_> = packages::missing(list).iter().map(|package| package.name).collect();
    if !still.is_empty() {
        bail!("installed, but still not found: {}", still.join(", "));
    }
    Ok(())
}

impl Consent {
    /// Obtains the permission to run commands that install software, which are shown.
    ///
    /// # Errors
    ///
    /// The permission is refused, or this is not root with apt. The message holds the commands.
    pub(crate) fn obtain(self, commands: &[String]) -> Result<()> {
        let listed = format!("\n    {}", commands.join("\n    "));
        if self.no_setup {
            bail!("something is missing and --no-setup forbids to install it; run as root:{listed}");
        }
        if !apt::usable()? {
            bail!("something is missing, and only root on a system with apt can install it here; run as root:{listed}");
        }
        println!("to be run now:{listed}");
        if self.yes || std::env::var("CI").is_ok_and(|value| value == "true" || value == "1") {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            bail!("something is missing; run the commands above, or this one again with --yes");
        }
        print!("Install? [y/N] ");
        std::io::stdout().flush().context("ask for permission")?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("read the answer")?;
        if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { bail!("not installed, as you wished") }
    }
}
