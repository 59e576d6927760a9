//! `bpf-linker`: found in `PATH` or cargo's bin folder. Its LLVM must be at least as new as the compiler's, because
//! bitcode is read by the same or a newer LLVM only.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt,
    process::{Cmd, find_command},
    setup::Consent,
    toolchain::Toolchain,
};

/// Release of bpf-linker per LLVM version that it can be built with.
const RELEASES: [(u32, &str); 5] = [(19, "0.9.15"), (20, "0.9.15"), (21, "0.13.0"), (22, "0.13.0"), (23, "0.13.0")];

/// A bpf-linker.
#[derive(Clone, Debug)]
pub(crate) struct Linker {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// Major version of its LLVM; `None` if the file does not tell (it loads the compiler's own).
    llvm: Option<u32>,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.llvm {
            Some(llvm) => write!(f, " (LLVM {llvm})"),
            None => f.write_str(" (LLVM version unknown)"),
        }
    }
}

impl Linker {
    /// Returns the linkers that are installed.
    pub(crate) fn all() -> Vec<Self> {
        let mut paths: Vec<PathBuf> = find_command("bpf-linker").into_iter().collect();
        paths.extend(cargo_bin().map(|bin| bin.join("bpf-linker")).filter(|path| path.is_file()));
        paths.dedup();
        paths.into_iter().map(Self::at).collect()
    }

    fn at(path: PathBuf) -> Self {
        let llvm = std::fs::read(&path).ok().and_then(|binary| llvm_of(&binary));
        Self { path, llvm }
    }

    /// Returns whether it can read the output of a compiler with this LLVM.
    pub(crate) fn reads(&self, llvm: u32) -> bool {
        self.llvm.is_none_or(|own| own >= llvm)
    }

    /// Builds and installs a linker for the first compiler for which the distribution has an LLVM.
    ///
    /// # Errors
    ///
    /// There is no such LLVM, or it may not be installed; the message says what to do.
    pub(crate) fn install(toolchains: &[Toolchain], consent: Consent) -> Result<(Toolchain, Self)> {
        let by_hand = "or place a release of https://github.com/aya-rs/bpf-linker/releases in PATH";
        let found = toolchains.iter().find_map(|toolchain| Some((toolchain, buildable(toolchain.llvm)?)));
        let Some((toolchain, (llvm, release))) = found else {
            let wanted = toolchains.first().map_or(0, |toolchain| toolchain.llvm);
            bail!(
                "no bpf-linker with LLVM {wanted} or newer is installed, and the distribution has no such LLVM to build \
                 one with: install llvm-{wanted}-dev from another source, {by_hand}"
            );
        };
        let packages: Vec<String> =
            [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"), "zlib1g-dev".into(), "libzstd-dev".into()]
                .into_iter()
                .chain(["g++".to_owned()])
                .collect();
        let cargo = Cmd::new("cargo")
            .env(&format!("LLVM_SYS_{llvm}1_PREFIX"), format!("/usr/lib/llvm-{llvm}"))
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("LD_LIBRARY_PATH")
            .args(["install", "bpf-linker", "--version", release, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
        let mut commands = apt::commands(&packages);
        commands.push(cargo.shown().to_owned());
        consent.obtain(&commands).with_context(|| format!("bpf-linker is needed; {by_hand}"))?;
        apt::install(&packages)?;
        cargo.run()?;
        let linker = Self::all()
            .into_iter()
            .find(|linker| linker.reads(toolchain.llvm))
            .context("bpf-linker is installed, but an older one comes first in PATH")?;
        Ok((toolchain.clone(), linker))
    }
}

/// Returns the oldest LLVM of the distribution that reads the output of `llvm`, and the linker's release for it.
fn buildable(llvm: u32) -> Option<(u32, &'static str)> {
    RELEASES
        .into_iter()
        .filter(|(own, _)| *own >= llvm)
        .find(|(own, _)| apt::candidate(&format!("llvm-{own}-dev")).is_some())
}

fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))?;
    Some(Path::new(&home).join("bin"))
}

/// Returns the LLVM version that a binary names: in the library that it is linked with (`libLLVM.so.22.1`,
/// `libLLVM-18.so.1`), or in the text that LLVM itself writes into bitcode (`LLVM22.1.8`).
fn llvm_of(binary: &[u8]) -> Option<u32> {
    ["libLLVM.so.", "libLLVM-", "LLVM"].into_iter().find_map(|prefix| {
        let dotted = prefix == "LLVM";
        binary
            .windows(prefix.len() + 8)
            .filter(|window| window.starts_with(prefix.as_bytes()))
            .find_map(|window| version_at(&window[prefix.len()..], dotted))
    })
}

/// Returns the number that text starts with; if `dotted`, only when two numbers after dots follow.
fn version_at(text: &[u8], dotted: bool) -> Option<u32> {
    let printable: String =
        text.iter().map_while(|byte| byte.is_ascii_graphic().then_some(char::from(*byte))).collect();
    let mut parts = printable.split('.');
    let digits: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    if dotted && (digits.len() != 2 || parts.filter(|part| part.starts_with(|c: char| c.is_ascii_digit())).count() < 2)
    {
        return None;
    }
    digits.parse().ok().filter(|version| (10..100).contains(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_found_in_the_binary() {
        assert_eq!(llvm_of(b"\0libLLVM.so.22.1\0libc.so.6\0padding"), Some(22));
        assert_eq!(llvm_of(b"\0libLLVM-18.so.1\0libc.so.6\0padding"), Some(18));
        assert_eq!(llvm_of(b"some LLVM text\0LLVM21.1.8\0padding"), Some(21));
        assert_eq!(llvm_of(b"LLVM is a compiler, LLVM3 was old, padding"), None);
    }

    #[test]
    fn newer_reads_older() {
        let linker = |llvm| Linker { path: "/bpf-linker".into(), llvm };
        assert!(linker(Some(22)).reads(22));
        assert!(linker(Some(23)).reads(22));
        assert!(!linker(Some(21)).reads(22));
        assert!(linker(None).reads(22));
    }
}
