//! `build-ebpf`: compiles podnet-ebpf for the BPF target and places the object where the build of `podnet` finds it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::{
    linker::Linker,
    packages,
    process::Cmd,
    setup::{self, Consent},
    toolchain::Toolchain,
    workspace,
};

/// The BPF target of this host's byte order: programs run on the kernel of the machine that loads them.
pub(crate) const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Arguments of the verb.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisation (the verifier may refuse such programs).
    #[arg(long)]
    debug: bool,
    /// Build with optimisation: the default.
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    #[command(flatten)]
    consent: Consent,
}

impl Args {
    /// The release build with this permission to install what is missing.
    pub(crate) fn release(consent: Consent) -> Self {
        Self { debug: false, release: true, consent }
    }
}

/// Runs the verb.
///
/// # Errors
///
/// The toolchain is missing, the programs do not compile, or the object lacks what the loader needs.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure_packages(packages::BUILD, args.consent)?;
    let (toolchain, linker) = Toolchain::ensure(args.consent)?;
    println!("building podnet-ebpf with {toolchain} and {linker}");
    let cargo = bpf_environment(toolchain.cargo(), &linker).arg("build");
    let cargo = bpf_arguments(cargo);
    if args.debug { cargo } else { cargo.arg("--release") }.run()?;

    let profile = if args.debug { "debug" } else { "release" };
    let built = workspace::target().join("ebpf-build").join(TARGET).join(profile).join("podnet-ebpf");
    let object = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let report = examine(&object).with_context(|| format!("examine {}", built.display()))?;
    let state = if place(&object)? { "new" } else { "unchanged" };
    let shown = workspace::ebpf_object();
    println!("{}: {} bytes, {report} ({state})", workspace::relative(&shown).display(), object.len());
    Ok(())
}

/// Sets flags and profile of a cargo that compiles for BPF.
pub(crate) fn bpf_environment(cargo: Cmd, linker: &Linker) -> Cmd {
    let linker = format!("-Clinker={}", linker.path.display());
    cargo
        .quiet_env("CARGO_ENCODED_RUSTFLAGS", ["-Cdebuginfo=2", "-Clink-arg=--btf", &linker].join("\x1f"))
        // Those of the workspace are for the host: bpf-linker optimises the whole program, and BTF comes from the
        // debug information.
        .quiet_env("CARGO_PROFILE_RELEASE_LTO", "off")
        .quiet_env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .quiet_env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .quiet_env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .quiet_env("CARGO_PROFILE_RELEASE_PANIC", "abort")
}

/// Appends the arguments that select package and target.
pub(crate) fn bpf_arguments(cargo: Cmd) -> Cmd {
    cargo
        .args(["--package", "podnet-ebpf", "--bin", "podnet-ebpf"])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(workspace::relative(&workspace::target().join("ebpf-build")))
}

/// Checks that an object can be loaded, and describes it.
fn examine(object: &[u8]) -> Result<String> {
    let file = object::File::parse(object).context("parse the object")?;
    let size =
        |wanted: &str| file.sections().find(|section| section.name() == Ok(wanted)).map(|section| section.size());
    let btf = size(".BTF").filter(|size| *size > 0);
    let btf = btf.context("it has no .BTF section: the linker ignored --btf or saw no debug information")?;
    let is_program = |section: &object::Section<'_, '_>| {
        section.name().is_ok_and(|name| name.split('/').next() == Some("classifier"))
    };
    let sections: Vec<_> = file.sections().filter(is_program).map(|section| section.index()).collect();
    let mut programs: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.is_global() && symbol.section_index().is_some_and(|index| sections.contains(&index)))
        .filter_map(|symbol| symbol.name().ok())
        .collect();
    programs.sort_unstable();
    ensure!(!programs.is_empty(), "it has no program: no function is in a section `classifier`");
    ensure!(size("license").is_some(), "it has no license section, without which the kernel refuses helpers");
    Ok(format!(".BTF {btf} bytes, programs {}", programs.join(", ")))
}

/// Places an object for the build of `podnet`, atomically, and only if it differs: an untouched file causes no rebuild.
/// Returns whether it differed.
fn place(object: &[u8]) -> Result<bool> {
    let destination = workspace::ebpf_object();
    if fs::read(&destination).is_ok_and(|present| present == object) {
        return Ok(false);
    }
    let temporary = destination.with_extension(format!("o.{}", std::process::id()));
    if let Some(folder) = destination.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(&temporary, object).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, &destination).with_context(|| format!("place {}", destination.display()))?;
    Ok(true)
}
