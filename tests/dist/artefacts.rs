//! The artefacts that `cargo xtask dist` made, which `PODNET_DIST` names.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::machine::output;

/// Returns the folder of the artefacts.
pub(crate) fn folder() -> PathBuf {
    let folder = std::env::var_os("PODNET_DIST").map(PathBuf::from);
    let folder = folder.expect("PODNET_DIST is not set: run `cargo xtask test dist`, which makes the artefacts first");
    assert!(folder.join("SHA256SUMS").is_file(), "{} holds no artefacts", folder.display());
    folder
}

/// Returns the artefact whose name ends so.
pub(crate) fn ending(end: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder()).expect("read the folder of the artefacts");
    let found =
        entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(end));
    found.unwrap_or_else(|| panic!("there is no artefact *{end}"))
}

/// Runs a program of this machine and returns what it prints.
pub(crate) fn run(program: impl AsRef<Path>, args: &[&str]) -> String {
    output(Command::new(program.as_ref()).args(args)).unwrap_or_else(|error| panic!("{error}"))
}

/// What `podnet --version` prints.
pub(crate) fn version() -> String {
    run(harness::binary(), &["--version"])
}

#[test]
fn checksums_are_those_of_the_artefacts() {
    let script = format!("cd '{}' && sha256sum --check --strict SHA256SUMS && wc -l < SHA256SUMS", folder().display());
    let checked = run("sh", &["-ec", &script]);
    assert_eq!(checked.matches(": OK").count(), 3, "{checked}");
}

#[test]
fn the_tarball_holds_what_a_node_needs() {
    let dir = tempfile::tempdir().expect("make a folder");
    let tarball = ending("-linux.tar.gz");
    run("tar", &["-xzf", &tarball.to_string_lossy(), "-C", &dir.path().to_string_lossy()]);
    let name = tarball.file_name().expect("a name").to_string_lossy().trim_end_matches(".tar.gz").to_owned();
    let root = dir.path().join(name);
    assert_eq!(run(root.join("podnet"), &["--version"]), version());
    for file in [
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "completions/podnet.bash",
        "deploy/podnet.toml",
        "deploy/systemd/podnet.service",
    ] {
        assert!(root.join(file).is_file(), "{file} is missing");
    }
    let notices = std::fs::read_to_string(root.join("THIRD-PARTY-NOTICES")).expect("the notices");
    for library in ["aya ", "tokio ", "rusqlite ", "the GNU C library"] {
        assert!(notices.contains(&format!("\n  {library}")), "{library} is not listed");
    }
    // What the template says is what the binary installs.
    run(
        root.join("podnet"),
        &[
            "install",
            "--cni-bin-dir",
            &root.join("bin").to_string_lossy(),
            "--cni-conf-dir",
            &root.join("conf").to_string_lossy(),
        ],
    );
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(read("conf/10-podnet.conflist"), read("deploy/10-podnet.conflist"));
}
