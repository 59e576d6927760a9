//! `dist`: makes what is shipped, for this machine's architecture: a tarball, a Debian package, a container image, and
//! their checksums. The same commit, toolchain and distribution make the same bytes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    build, packages,
    process::Cmd,
    setup::{self, Consent},
    workspace,
};

mod base;
mod debian;
mod image;
mod notices;
mod tree;

use tree::{Root, Tree, gzip};

/// Arguments of the verb.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the artefacts.
    #[arg(long, default_value = "dist", value_name = "DIR")]
    out: PathBuf,
    /// Cargo's profile: `dist` is what is shipped, `release` is built faster.
    #[arg(long, default_value = build::SHIPPED)]
    profile: String,
    /// Name of the image without its tag, which is the version.
    #[arg(long, default_value = "ghcr.io/podnet/podnet", value_name = "NAME")]
    image: String,
    #[command(flatten)]
    consent: Consent,
}

impl Args {
    /// Arguments for the suite that looks at the artefacts: those of a binary that is built anyway.
    pub(crate) fn for_tests(consent: Consent) -> Self {
        let out = workspace::target().join("dist-test");
        Self { out, profile: "release".into(), image: "podnet.test/podnet".into(), consent }
    }

    /// Returns the folder of the artefacts.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }
}

/// What all artefacts say of themselves.
#[derive(Debug)]
struct Release {
    binary: PathBuf,
    version: String,
    /// The commit; none outside of a git repository.
    revision: Option<String>,
    /// Time of all files, in seconds since 1970.
    epoch: u64,
    arch: Arch,
    description: String,
    license: String,
    repository: String,
    maintainer: &'static str,
}

/// One architecture's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arch {
    /// In a target triple and in the tarball's name.
    rust: &'static str,
    /// In Debian, and in the image-spec, which takes Go's names.
    debian: &'static str,
}

const ARCHES: [Arch; 2] = [Arch { rust: "x86_64", debian: "amd64" }, Arch { rust: "aarch64", debian: "arm64" }];

const MAINTAINER: &str = "podnet authors <podnet@users.noreply.github.com>";

/// Runs the verb.
///
/// # Errors
///
/// The binary cannot be built, or something that an artefact needs is missing.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure_packages(packages::DIST, args.consent)?;
    let binary = build::binary(args.consent, &args.profile)?;
    let target = build::host()?;
    let release = Release::gather(binary, &target)?;
    let binary = fs::read(&release.binary).with_context(|| format!("read {}", release.binary.display()))?;
    let notices = notices::gather(&target)?;

    let name = format!("podnet-{}-{}-linux", release.version, release.arch.rust);
    let podnet = image::Layer { tree: podnet_layer(&binary, &notices)?, holds: "podnet".into() };
    let base = image::Layer { tree: base::tree()?, holds: "nft, with its libraries, and certificates".into() };
    let image = format!("{}:{}", args.image, release.version);
    let layers = [("base", base.tree.size()), ("podnet", podnet.tree.size())];
    let artefacts = [
        (format!("{name}.tar.gz"), gzip(&tarball(&release, &name, &binary, &notices)?)?),
        (
            format!("podnet_{}_{}.deb", release.version, release.arch.debian),
            debian::package(&release, &binary, &notices)?,
        ),
        (
            format!("podnet-{}-{}-oci.tar", release.version, release.arch.rust),
            image::archive(&release, &[base, podnet], &image)?,
        ),
    ];

    let out = workspace::root().join(&args.out);
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let mut sums = String::new();
    let mut table = vec![("podnet (in all of them)".to_owned(), binary.len() as u64)];
    for (name, content) in &artefacts {
        writeln!(sums, "{}  {name}", sha256(content))?;
        place(&out.join(name), content)?;
        table.push((name.clone(), content.len() as u64));
    }
    place(&out.join("SHA256SUMS"), sums.as_bytes())?;
    table.extend(layers.map(|(layer, size)| (format!("  image's layer {layer}, unpacked"), size)));
    println!("\n{}: image {image}", workspace::relative(&out).display());
    for (name, size) in table {
        println!("  {name:<40} {:>8} KiB", size.div_ceil(1024));
    }
    Ok(())
}

/// Replaces a file in one step.
fn place(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, content).with_context(|| format!("write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("place {}", path.display()))
}

impl Release {
    fn gather(binary: PathBuf, target: &str) -> Result<Self> {
        let metadata = workspace::cargo().args(["metadata", "--format-version", "1", "--no-deps"]).capture()?;
        let metadata: Value = serde_json::from_str(&metadata).context("parse the output of cargo metadata")?;
        let package = metadata["packages"]
            .as_array()
            .and_then(|packages| packages.iter().find(|package| package["name"] == "podnet"))
            .context("cargo metadata lists no podnet")?;
        let field = |name: &str| {
            package[name].as_str().map(str::to_owned).with_context(|| format!("podnet/Cargo.toml has no {name}"))
        };
        let git = |format: &str| {
            let text = Cmd::new("git").dir(workspace::root()).args(["log", "-1", format]).capture().ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        // https://reproducible-builds.org/specs/source-date-epoch/
        let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(|| git("--format=%ct")).unwrap_or_default();
        let epoch = if epoch.is_empty() {
            0
        } else {
            epoch.parse().with_context(|| format!("SOURCE_DATE_EPOCH: {epoch:?}"))?
        };
        Ok(Self {
            binary,
            version: field("version")?,
            revision: git("--format=%H"),
            epoch,
            arch: arch_of(target)?,
            description: field("description")?,
            license: field("license")?,
            repository: field("repository")?,
            maintainer: MAINTAINER,
        })
    }

    /// Returns the time of all files.
    fn date(&self) -> Result<Timestamp> {
        i64::try_from(self.epoch)
            .ok()
            .and_then(|epoch| Timestamp::from_second(epoch).ok())
            .with_context(|| format!("SOURCE_DATE_EPOCH: {} is no time", self.epoch))
    }

    /// Returns the completions for a shell, which the binary itself prints.
    fn completions(&self, shell: &str) -> Result<String> {
        Cmd::new(&self.binary).args(["completions", shell]).capture()
    }

    #[cfg(test)]
    fn test() -> Self {
        Self {
            binary: "podnet".into(),
            version: "1.2.3".into(),
            revision: None,
            epoch: 1_700_000_000,
            arch: ARCHES[0],
            description: "pod networking".into(),
            license: "Apache-2.0 OR MIT".into(),
            repository: "https://podnet.test".into(),
            maintainer: MAINTAINER,
        }
    }
}

fn arch_of(target: &str) -> Result<Arch> {
    let rust = target.split('-').next().unwrap_or_default();
    let arch = ARCHES.into_iter().find(|arch| arch.rust == rust);
    arch.with_context(|| format!("{target}: artefacts are made for x86_64 and aarch64"))
}

/// The tarball: one folder with everything.
fn tarball(release: &Release, name: &str, binary: &[u8], notices: &str) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.file(&format!("{name}/podnet"), 0o755, binary);
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        let content = fs::read(workspace::root().join(file)).with_context(|| format!("read {file}"))?;
        tree.file(&format!("{name}/{file}"), 0o644, content);
    }
    tree.file(&format!("{name}/THIRD-PARTY-NOTICES"), 0o644, notices);
    for (shell, file) in [("bash", "podnet.bash"), ("zsh", "_podnet"), ("fish", "podnet.fish")] {
        tree.file(&format!("{name}/completions/{file}"), 0o644, release.completions(shell)?);
    }
    tree.copy(&workspace::root().join("deploy"), &format!("{name}/deploy"))?;
    tree.tar(Root::Unnamed, release.epoch)
}

/// The image's upper layer.
fn podnet_layer(binary: &[u8], notices: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.file("usr/bin/podnet", 0o755, binary);
    let doc = "usr/share/doc/podnet";
    for file in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let content = fs::read(workspace::root().join(file)).with_context(|| format!("read {file}"))?;
        tree.file(&format!("{doc}/{file}"), 0o644, content);
    }
    tree.file(&format!("{doc}/THIRD-PARTY-NOTICES.gz"), 0o644, gzip(notices.as_bytes())?);
    Ok(tree)
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_their_names() {
        assert_eq!(arch_of("x86_64-unknown-linux-gnu").unwrap().debian, "amd64");
        assert_eq!(arch_of("aarch64-unknown-linux-musl").unwrap().debian, "arm64");
        let error = arch_of("riscv64gc-unknown-linux-gnu").unwrap_err().to_string();
        assert!(error.contains("x86_64 and aarch64"), "{error}");
    }

    #[test]
    fn digests_are_hexadecimal() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
