//! `test`: the unit tests, then every privileged suite of the package `podnet-tests`, each for a bounded time.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    build, dist, packages,
    process::is_root,
    setup::{self, Consent},
    supervise::{self, Outcome},
    workspace,
};

/// The package of the privileged suites.
const PACKAGE: &str = "podnet-tests";
/// Name under which the unit tests appear among the suites.
const UNIT: &str = "unit";
/// The suite that looks at what `dist` makes.
const DIST: &str = "dist";
/// Time for compiling a suite, or for compiling and running all unit tests.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Time for one privileged suite.
const SUITE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Order of the suites: what fails first explains what fails later. Suites that are not listed come last.
const ORDER: [&str; 10] =
    ["programs", "cni", "node", "cluster", "upgrade", "etcd", "kubernetes", "runtimes", "provision", DIST];

/// Arguments of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the unit tests and the suites `programs` and `cni`.
    #[arg(long, conflicts_with = "suites")]
    quick: bool,
    #[command(flatten)]
    consent: Consent,
    /// Suites to run; default: `unit` and all suites of podnet-tests.
    suites: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        is_root()?,
        "the suites make network namespaces, load eBPF programs and start containers: run `cargo xtask test` as root \
         (unit tests alone need no root: `cargo test`)"
    );
    let start = Instant::now();
    let known = known_suites()?;
    let chosen = choose(&known, args)?;
    setup::ensure_packages(packages::TESTS, args.consent)?;
    let binary = build::release(args.consent)?;
    let dist = dist::Args::for_tests(args.consent);
    if chosen.iter().any(|suite| suite == DIST) {
        dist::run(&dist)?;
    }

    let mut results = Vec::new();
    for suite in &chosen {
        println!("\n== {suite} ==");
        let start = Instant::now();
        let outcome = run_suite(suite, &binary, dist.out())?;
        results.push((suite, outcome, start.elapsed()));
    }
    println!("\nsuites:");
    for (suite, outcome, time) in &results {
        let text = match outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::TimedOut => "TIMED OUT",
        };
        println!("  {suite:<12} {text:<10} {:>6.1} s", time.as_secs_f64());
    }
    let failed = results.iter().filter(|(_, outcome, _)| *outcome != Outcome::Passed).count();
    println!(
        "{} passed, {failed} failed in {:.0} s (suites; the tests of each are listed above)",
        results.len() - failed,
        start.elapsed().as_secs_f64()
    );
    ensure!(failed == 0, "{failed} of {} suites failed", results.len());
    Ok(())
}

fn run_suite(suite: &str, binary: &Path, dist: &Path) -> Result<Outcome> {
    if suite == UNIT {
        let command = workspace::cargo().args(["test", "--no-fail-fast", "--workspace", "--exclude", PACKAGE]);
        return supervise::run(command, BUILD_LIMIT);
    }
    let test = || {
        workspace::cargo()
            .args(["test", "--release", "--package", PACKAGE, "--test", suite])
            .quiet_env("PODNET_BIN", binary)
            .quiet_env("PODNET_DIST", dist)
            // One test at a time: floods of packets and a thousand ADDs beside one another measure the scheduler.
            .env("RUST_TEST_THREADS", "1")
    };
    match supervise::run(test().arg("--no-run"), BUILD_LIMIT)? {
        // Tests that pass print what they measured.
        Outcome::Passed => supervise::run(test().args(["--", "--show-output"]), SUITE_LIMIT),
        other => Ok(other),
    }
}

/// Returns the suites to run, in order.
fn choose(known: &[String], args: &Args) -> Result<Vec<String>> {
    let all = || std::iter::once(UNIT.to_owned()).chain(known.iter().cloned());
    if args.quick {
        return Ok(all().filter(|suite| [UNIT, "programs", "cni"].contains(&suite.as_str())).collect());
    }
    for suite in &args.suites {
        if !all().any(|one| one == *suite) {
            bail!("there is no suite {suite:?}; there are: {}", all().collect::<Vec<_>>().join(", "));
        }
    }
    Ok(all().filter(|suite| args.suites.is_empty() || args.suites.contains(suite)).collect())
}

/// Returns the names of the suites that the package has.
fn known_suites() -> Result<Vec<String>> {
    let text = workspace::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).capture()?;
    suites_of(&serde_json::from_str(&text).context("parse the output of cargo metadata")?)
}

fn suites_of(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let package = packages.iter().find(|package| package["name"] == PACKAGE).context("podnet-tests is no member")?;
    let mut suites: Vec<String> = package["targets"]
        .as_array()
        .context("cargo metadata lists no targets")?
        .iter()
        .filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"test".into())))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    let rank = |name: &String| ORDER.iter().position(|one| one == name).unwrap_or(ORDER.len());
    suites.sort_by_key(|name| (rank(name), name.clone()));
    Ok(suites)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn args(quick: bool, suites: &[&str]) -> Args {
        Args { quick, consent: Consent::default(), suites: suites.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn suites_come_from_the_metadata_in_order() {
        let target = |kind: &str, name: &str| json!({ "kind": [kind], "name": name });
        let targets =
            [target("lib", "harness"), target("test", "runtimes"), target("test", "new"), target("test", "cni")];
        let metadata =
            json!({ "packages": [{ "name": "podnet", "targets": [] }, { "name": PACKAGE, "targets": targets }] });
        assert_eq!(suites_of(&metadata).unwrap(), ["cni", "runtimes", "new"]);
    }

    #[test]
    fn suites_are_chosen_by_name() {
        let known = ["programs", "cni", "runtimes"].map(str::to_owned);
        assert_eq!(choose(&known, &args(false, &[])).unwrap(), ["unit", "programs", "cni", "runtimes"]);
        assert_eq!(choose(&known, &args(true, &[])).unwrap(), ["unit", "programs", "cni"]);
        assert_eq!(choose(&known, &args(false, &["runtimes", "unit"])).unwrap(), ["unit", "runtimes"]);
        let error = choose(&known, &args(false, &["rutimes"])).unwrap_err().to_string();
        assert!(error.contains("there are: unit, programs, cni, runtimes"), "{error}");
    }
}
