//! `vm-test`: boots the distribution's own kernel under QEMU and runs the program tests and a lab there, so that what an
//! older kernel lacks, and how podnet works around it, is seen and not supposed. Nothing is installed, and the machine
//! has no network.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build, packages,
    process::Cmd,
    setup::{self, Consent},
    supervise::{self, Outcome},
    workspace::{self, relative},
};

mod image;
mod kernel;

/// Time for the whole machine, from its start to its end.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Memory of the machine: the initramfs is unpacked into it.
const MEMORY: &str = "1536M";

/// First word of the lines by which the machine reports.
const REPORT: &str = "VM-TEST:";

/// Arguments of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    consent: Consent,
    /// Package of the kernel; default: the distribution's newest.
    #[arg(long)]
    kernel: Option<String>,
    /// Show the whole console, not only what is reported.
    #[arg(long)]
    console: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure_packages(packages::VM, args.consent)?;
    let folder = workspace::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("create folder {}", folder.display()))?;
    let kernel = kernel::ensure(&folder, args.kernel.as_deref(), args.consent)?;
    let podnet = build::release(args.consent)?;
    let tests = build_program_tests()?;
    let initramfs = image::make(&folder, &kernel, &podnet, &tests)?;
    println!("booting {}", kernel.package);
    let console = folder.join("console.log");
    let outcome = supervise::run(machine(&kernel, &initramfs, &console), LIMIT)?;
    let text = String::from_utf8_lossy(&fs::read(&console).with_context(|| format!("read {}", console.display()))?)
        .replace('\r', "");
    if args.console {
        println!("{text}");
    }
    judge(&text, outcome, &console)
}

/// Builds the suite `programs`, and returns where it lies.
fn build_program_tests() -> Result<std::path::PathBuf> {
    let messages = workspace::cargo()
        .args(["test", "--release", "--package", "podnet-tests", "--test", "programs", "--no-run"])
        .args(["--message-format", "json"])
        .capture()?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "programs")
        .find_map(|message| message["executable"].as_str().map(Into::into))
        .context("cargo names no executable of the suite `programs`")
}

/// The machine, emulated: where a machine is virtual itself, acceleration may be announced and not work.
fn machine(kernel: &kernel::Kernel, initramfs: &Path, console: &Path) -> Cmd {
    Cmd::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"])
}

/// Decides by what the machine reported.
fn judge(text: &str, outcome: Outcome, console: &Path) -> Result<()> {
    let reports: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(REPORT)).map(str::trim).collect();
    for report in &reports {
        println!("  {report}");
    }
    let tail = || {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    };
    let all = || format!("the whole console is in {}", relative(console).display());
    match outcome {
        Outcome::TimedOut => {
            bail!("the machine did not end within {} s; its console ends:\n{}\n{}", LIMIT.as_secs(), tail(), all())
        }
        Outcome::Failed => bail!("qemu failed; the console ends:\n{}", tail()),
        Outcome::Passed => {}
    }
    let result = reports.iter().find_map(|report| report.strip_prefix("result "));
    let Some(result) = result else {
        bail!("the machine reported no result; its console ends:\n{}\n{}", tail(), all())
    };
    ensure!(result == "passed", "{result}; the console ends:\n{}\n{}", tail(), all());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_reports_success_has_passed() {
        let console = workspace::target().join("vm/console.log");
        let check = |text: &str, outcome| judge(text, outcome, &console).map_err(|error| error.to_string());
        assert_eq!(check("booting\nVM-TEST: programs 84 passed\nVM-TEST: result passed\n", Outcome::Passed), Ok(()));
        for (text, outcome, words) in [
            ("VM-TEST: result 1 of 4 failed\n", Outcome::Passed, "1 of 4 failed"),
            ("Kernel panic - not syncing\n", Outcome::Passed, "Kernel panic"),
            ("VM-TEST: result passed\n", Outcome::Failed, "qemu failed"),
            ("waiting\n", Outcome::TimedOut, "did not end within 600 s"),
        ] {
            let error = check(text, outcome).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
