//! What the image needs besides podnet: the command `nft` of this machine's distribution with the libraries that it
//! loads, certificate authorities, and the few files that programs expect.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::tree::Tree;
use crate::process::{Cmd, find_command};

/// Certificate authorities that the distribution trusts: for stores outside of the cluster. etcd and Kubernetes usually
/// bring an authority of their own.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Folders that a merged `/usr` has links to.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Returns the image's lower layer.
///
/// # Errors
///
/// The distribution's nft is missing, or is no program that `ldd` understands.
pub(super) fn tree() -> Result<Tree> {
    let mut tree = Tree::default();
    for name in MERGED {
        tree.folder(&format!("usr/{name}"), 0o755);
        tree.link(name, &format!("usr/{name}"));
    }
    for (folder, mode) in [("tmp", 0o1777), ("run", 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)] {
        tree.folder(folder, mode);
    }
    for folder in ["etc/podnet", "etc/cni/net.d", "opt/cni/bin", "run/podnet", "run/netns", "var/lib/podnet"] {
        tree.folder(folder, 0o755);
    }
    tree.link("var/run", "../run");
    tree.file("etc/passwd", 0o644, *b"root:x:0:0:root:/:/sbin/nologin\n");
    tree.file("etc/group", 0o644, *b"root:x:0:\n");
    // Without it the C library asks DNS alone, and a node's name may stand in /etc/hosts.
    tree.file("etc/nsswitch.conf", 0o644, *b"hosts: files dns\n");
    let authorities = fs::read(AUTHORITIES).with_context(|| format!("read {AUTHORITIES} (package ca-certificates)"))?;
    tree.file("etc/ssl/certs/ca-certificates.crt", 0o644, authorities);

    let nft = find_command("nft").context("find nft, which the image contains; install the package nftables")?;
    let nft = fs::canonicalize(&nft).with_context(|| format!("resolve {}", nft.display()))?;
    let libraries = libraries(&Cmd::new("ldd").arg(&nft).quiet_env("LC_ALL", "C").capture()?);
    let mut packages = BTreeSet::new();
    let mut add = |source: &Path, to: &str| -> Result<()> {
        let real = fs::canonicalize(source).with_context(|| format!("resolve {}", source.display()))?;
        let content = fs::read(&real).with_context(|| format!("read {}", real.display()))?;
        tree.file(to, 0o755, content);
        packages.extend(package_of(&real));
        Ok(())
    };
    add(&nft, "usr/sbin/nft")?;
    for library in libraries {
        let name = library.file_name().and_then(|name| name.to_str()).context("a library has no name")?;
        let folder = library.parent().unwrap_or(Path::new("/"));
        let folder = fs::canonicalize(folder).with_context(|| format!("resolve {}", folder.display()))?;
        // Where /usr is not merged, what lies in /lib lies in /usr/lib of the image, to which its /lib is a link.
        let folder = folder.to_string_lossy().trim_start_matches("/usr").trim_start_matches('/').to_owned();
        add(&library, &format!("usr/{folder}/{name}"))?;
    }
    for package in packages {
        describe(&mut tree, &package)?;
    }
    if let Ok(release) = fs::read("/etc/os-release") {
        // Scanners for vulnerabilities ask whose packages these are.
        tree.file("etc/os-release", 0o644, release);
    }
    Ok(tree)
}

/// Returns the paths that `ldd` prints.
fn libraries(printed: &str) -> Vec<PathBuf> {
    let path_of = |line: &str| {
        let line = line.trim();
        let path = line.split_once(" => ").map_or(line, |(_, path)| path).split(" (").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    printed.lines().filter_map(path_of).collect()
}

/// Returns the distribution's package of a file, if dpkg knows it; it may know it by the path before `/usr` was merged.
fn package_of(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    [path, path.strip_prefix("/usr").unwrap_or(path)].into_iter().find_map(|path| {
        let found = Cmd::new("dpkg-query").args(["--search", path]).capture().ok()?;
        // `libc6:amd64: /usr/lib/...`
        Some(found.lines().next()?.split(':').next()?.to_owned())
    })
}

/// Adds a package's terms, and its record, where scanners look for packages of images without a package manager.
fn describe(tree: &mut Tree, package: &str) -> Result<()> {
    let terms = format!("usr/share/doc/{package}/copyright");
    let source = Path::new("/").join(&terms);
    tree.file(&terms, 0o644, fs::read(&source).with_context(|| format!("read {}", source.display()))?);
    let record = Cmd::new("dpkg-query").args(["--status", package]).capture()?;
    tree.file(&format!("var/lib/dpkg/status.d/{package}"), 0o644, record);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let printed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(printed), expected);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
