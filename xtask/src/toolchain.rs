//! The compiler of the eBPF programs: one with the library's source, because no compiler brings `core` for BPF.
//!
//! Toolchains of rustup come first (nightly before others), then the distribution's. A compiler that is not nightly
//! builds `core` with `RUSTC_BOOTSTRAP=1`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt,
    linker::Linker,
    process::{Cmd, find_command},
    setup::Consent,
    workspace,
};

/// Edition 2024 and the build of `core` for BPF need this compiler at least.
const MINIMUM: (u32, u32) = (1, 85);

/// The distribution's packages, best first: compiler, cargo, library source, clippy. Debian keeps a recent compiler for
/// its browsers under the names with `-web`.
const DISTRIBUTION: [[&str; 4]; 2] =
    [["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"], ["rustc", "cargo", "rust-src", "rust-clippy"]];

/// A compiler that can build `core`.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    label: String,
    bin: PathBuf,
    release: (u32, u32),
    nightly: bool,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release;
        write!(f, "rustc {major}.{minor} ({}, LLVM {})", self.label, self.llvm)
    }
}

impl Toolchain {
    /// Returns a compiler and a linker that can read its output; installs what is missing, if it may.
    ///
    /// # Errors
    ///
    /// There is no such pair; the message says what was found and which commands install one.
    pub(crate) fn ensure(consent: Consent) -> Result<(Self, Linker)> {
        let (mut candidates, rejected) = candidates();
        if candidates.is_empty() {
            for reason in &rejected {
                println!("{reason}");
            }
            install(consent)?;
            candidates = self::candidates().0;
        }
        let linkers = Linker::all();
        for toolchain in &candidates {
            if let Some(linker) = linkers.iter().find(|linker| linker.reads(toolchain.llvm)) {
                return Ok((toolchain.clone(), linker.clone()));
            }
        }
        for linker in &linkers {
            println!(
                "{linker} is too old for {}",
                candidates.iter().map(Self::to_string).collect::<Vec<_>>().join(", ")
            );
        }
        Linker::install(&candidates, consent)
    }

    /// Returns this toolchain's cargo, shielded from the environment of the cargo that runs this program.
    pub(crate) fn cargo(&self) -> Cmd {
        self.command("cargo")
    }

    /// Returns this toolchain's clippy, if it has one.
    pub(crate) fn clippy(&self) -> Option<Cmd> {
        let has = |name| self.bin.join(name).is_file();
        (has("cargo-clippy") && has("clippy-driver"))
            .then(|| self.command("cargo-clippy").quiet_env("CARGO", self.bin.join("cargo")).arg("clippy"))
    }

    /// Returns the package that would bring this toolchain's clippy.
    pub(crate) fn clippy_package(&self) -> Option<&'static str> {
        DISTRIBUTION.iter().find(|[rustc, ..]| self.label == *rustc).map(|[.., clippy]| *clippy)
    }

    fn command(&self, program: &str) -> Cmd {
        let mut command = Cmd::new(self.bin.join(program)).env("RUSTC", self.bin.join("rustc")).dir(workspace::root());
        if !self.nightly {
            command = command.env("RUSTC_BOOTSTRAP", "1");
        }
        // Set by rustup, and by cargo for the programs that it runs; they would lead to another toolchain.
        for name in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTDOC", "RUSTFLAGS", "CARGO", "LD_LIBRARY_PATH"] {
            command = command.env_remove(name);
        }
        command
    }
}

/// Returns the usable compilers, best first, and why the others are not usable.
fn candidates() -> (Vec<Toolchain>, Vec<String>) {
    let (mut found, mut rejected) = (Vec::new(), Vec::new());
    for (label, bin) in rustup_toolchains().into_iter().chain(distribution_toolchain()) {
        match probe(&label, &bin) {
            Ok(toolchain) => found.push(toolchain),
            Err(reason) => rejected.push(format!("rustc of {label} is not usable for eBPF: {reason:#}")),
        }
    }
    (found, rejected)
}

/// Returns name and bin folder of rustup's toolchains, nightly first.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".rustup")));
    let Some(Ok(entries)) = home.map(|home| std::fs::read_dir(home.join("toolchains"))) else { return Vec::new() };
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().into_string().ok()?, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(name, _)| (!name.starts_with("nightly"), name.clone()));
    found
}

/// Returns the distribution's compiler under its package's name.
fn distribution_toolchain() -> Option<(String, PathBuf)> {
    let bin = Path::new("/usr/bin");
    if !bin.join("rustc").is_file() || !bin.join("cargo").is_file() {
        return None;
    }
    let owner = Cmd::new("dpkg-query").args(["-S", "/usr/bin/rustc"]).capture().unwrap_or_default();
    let package = owner.split([':', ',']).next().filter(|name| !name.is_empty()).unwrap_or("the distribution");
    Some((package.to_owned(), bin.to_owned()))
}

/// Examines a compiler.
fn probe(label: &str, bin: &Path) -> Result<Toolchain> {
    let rustc = bin.join("rustc");
    let query = |argument: &[&str]| Cmd::new(&rustc).args(argument).env_remove("LD_LIBRARY_PATH").capture();
    let sysroot = query(&["--print", "sysroot"])?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.is_file() {
        bail!("it has no library source ({} is absent)", source.display());
    }
    let (release, nightly, llvm) = parse_version(&query(&["-vV"])?)?;
    if release < MINIMUM {
        bail!("it is version {}.{}, and {}.{} is the oldest that does", release.0, release.1, MINIMUM.0, MINIMUM.1);
    }
    Ok(Toolchain { label: label.to_owned(), bin: bin.to_owned(), release, nightly, llvm })
}

/// Reads release, channel and LLVM version from `rustc -vV`.
fn parse_version(text: &str) -> Result<((u32, u32), bool, u32)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("`rustc -vV` has no line {name:?}"))
    };
    let release = field("release: ")?;
    let numbers = apt::major_minor(release).with_context(|| format!("version {release:?} of rustc is no version"))?;
    let llvm = field("LLVM version: ")?;
    let (llvm, _) = apt::major_minor(llvm).with_context(|| format!("LLVM version {llvm:?} of rustc is no version"))?;
    Ok((numbers, release.contains("nightly") || release.contains("dev"), llvm))
}

/// Installs a compiler with the library's source: the distribution's, whose LLVM a linker can be built with; else
/// rustup's nightly, whose LLVM is often newer than any that a linker exists for.
fn install(consent: Consent) -> Result<()> {
    if let Some(packages) = distribution_packages()? {
        consent.obtain(&apt::commands(&packages))?;
        return apt::install(&packages);
    }
    let rustup = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    if find_command("rustup").is_none() {
        bail!(
            "no compiler with library source is found, and neither packages of one (Debian: {}) nor rustup are there; \
             install rustup (https://rustup.rs), then run:\n    rustup {}",
            DISTRIBUTION[0][..3].join(" "),
            rustup.join(" ")
        );
    }
    let command = Cmd::new("rustup").args(rustup);
    consent.obtain(&[command.shown().to_owned()])?;
    command.run()
}

/// Returns the distribution's packages of a compiler that is new enough, if it has one.
fn distribution_packages() -> Result<Option<Vec<String>>> {
    if !apt::usable()? {
        return Ok(None);
    }
    apt::ensure_lists()?;
    let new_enough = |package: &&str| {
        apt::candidate(package).and_then(|version| apt::major_minor(&version)).is_some_and(|version| version >= MINIMUM)
    };
    Ok(DISTRIBUTION
        .iter()
        .find(|[rustc, _, source, _]| new_enough(rustc) && new_enough(source))
        .map(|[rustc, cargo, source, _]| [rustc, cargo, source].map(|name| (*name).to_owned()).to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_version(text).unwrap(), ((1, 97), true, 22));
        assert_eq!(parse_version("release: 1.96.0\nLLVM version: 21.1\n").unwrap(), ((1, 96), false, 21));
        assert!(parse_version("release: 1.96.0\n").unwrap_err().to_string().contains("LLVM version"));
    }

    #[test]
    fn a_compiler_without_library_source_is_refused_with_the_reason() {
        let error = probe("none", Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/rustc"), "{error}");
    }
}
