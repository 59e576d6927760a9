//! The Debian package: an `ar` archive of a version, the control files and the data (deb(5)).

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use jiff::tz::TimeZone;
use md5::{Digest as _, Md5};

use super::{
    Release, hex,
    tree::{Root, Tree, gzip},
};
use crate::workspace;

/// Maintainer scripts: they are written for podnet, with the lines that debhelper makes for a unit that is neither
/// enabled nor started by its installation.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Returns the package.
///
/// # Errors
///
/// A file of deploy/ is missing.
pub(super) fn package(release: &Release, binary: &[u8], notices: &str) -> Result<Vec<u8>> {
    let data = data(release, binary, notices)?;
    let mut control = Tree::default();
    control.file("control", 0o644, control_file(release, &data));
    let (mut conffiles, mut sums) = (String::new(), String::new());
    for (path, content) in data.files() {
        if path.starts_with("etc/") {
            writeln!(conffiles, "/{path}")?;
        } else {
            writeln!(sums, "{}  {path}", hex(&Md5::digest(content)))?;
        }
    }
    control.file("conffiles", 0o644, conffiles);
    control.file("md5sums", 0o644, sums);
    for script in SCRIPTS {
        control.file(script, 0o755, deploy(&format!("debian/{script}"))?);
    }

    let mut archive = ar::Builder::new(Vec::new());
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", gzip(&control.tar(Root::Dot, release.epoch)?)?),
        ("data.tar.gz", gzip(&data.tar(Root::Dot, release.epoch)?)?),
    ];
    for (name, content) in members {
        let mut header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
        header.set_mode(0o100_644);
        header.set_mtime(release.epoch);
        archive.append(&header, &content[..]).with_context(|| format!("append {name}"))?;
    }
    archive.into_inner().context("end the package")
}

/// What the package installs.
fn data(release: &Release, binary: &[u8], notices: &str) -> Result<Tree> {
    let mut data = Tree::default();
    data.file("usr/bin/podnet", 0o755, binary);
    data.file("usr/lib/systemd/system/podnet.service", 0o644, deploy("systemd/podnet.service")?);
    data.file("etc/podnet/podnet.toml", 0o644, deploy("podnet.toml")?);
    data.file("etc/default/podnet", 0o644, deploy("debian/default")?);
    for (shell, path) in [
        ("bash", "usr/share/bash-completion/completions/podnet"),
        ("zsh", "usr/share/zsh/vendor-completions/_podnet"),
        ("fish", "usr/share/fish/vendor_completions.d/podnet.fish"),
    ] {
        data.file(path, 0o644, release.completions(shell)?);
    }
    let doc = "usr/share/doc/podnet";
    data.file(&format!("{doc}/copyright"), 0o644, deploy("debian/copyright")?);
    data.file(&format!("{doc}/README.md.gz"), 0o644, gzip(&workspace_file("README.md")?)?);
    data.file(&format!("{doc}/THIRD-PARTY-NOTICES.gz"), 0o644, gzip(notices.as_bytes())?);
    data.file(&format!("{doc}/changelog.gz"), 0o644, gzip(changelog(release)?.as_bytes())?);
    data.file(&format!("{doc}/examples/10-podnet.conflist"), 0o644, deploy("10-podnet.conflist")?);
    data.file("usr/share/lintian/overrides/podnet", 0o644, deploy("debian/lintian-overrides")?);
    Ok(data)
}

fn control_file(release: &Release, data: &Tree) -> String {
    // Reserved words of deb-control(5). The binary is static: it needs nft alone, for masquerading.
    format!(
        "Package: podnet\nVersion: {}\nArchitecture: {}\nMaintainer: {}\nInstalled-Size: {}\n\
         Pre-Depends: init-system-helpers (>= 1.54~)\nDepends: nftables\n\
         Suggests: containernetworking-plugins, containerd | cri-o\nSection: net\nPriority: optional\nHomepage: {}\n\
         Description: eBPF-accelerated pod networking for Kubernetes nodes\n \
         The daemon, the CNI plugin and the command line of podnet, which gives the\n \
         pods of a node unique addresses and paths to every other pod, carried by\n \
         eBPF programs above a complete path of the kernel.\n",
        release.version,
        release.arch.debian,
        release.maintainer,
        data.size().div_ceil(1024),
        release.repository,
    )
}

fn changelog(release: &Release) -> Result<String> {
    let date = release.date()?.to_zoned(TimeZone::UTC);
    Ok(format!(
        "podnet ({}) unstable; urgency=medium\n\n  * Release {}; see the history of {}\n\n -- {}  {}\n",
        release.version,
        release.version,
        release.repository,
        release.maintainer,
        jiff::fmt::rfc2822::to_string(&date).context("format the date")?,
    ))
}

fn deploy(name: &str) -> Result<Vec<u8>> {
    workspace_file(&format!("deploy/{name}"))
}

fn workspace_file(name: &str) -> Result<Vec<u8>> {
    let path = workspace::root().join(name);
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conffiles_and_control_are_as_dpkg_wants_them() {
        let mut data = Tree::default();
        data.file("usr/bin/podnet", 0o755, vec![0; 3000]);
        let text = control_file(&Release::test(), &data);
        assert!(text.contains("\nArchitecture: amd64\n") && text.contains("\nInstalled-Size: 3\n"), "{text}");
        assert!(text.lines().all(|line| line.starts_with(' ') || line.contains(": ")), "{text}");
        assert!(text.ends_with("kernel.\n"), "{text}");
    }
}
