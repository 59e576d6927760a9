//! `podnet install`: puts the CNI plugin and its network configuration where the container runtime looks for them.
//!
//! Every file is written under another name in its own folder, and renamed when it is complete. The configuration
//! comes last: the moment it is there, the runtime calls the plugin.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    cni::env::{IDENTIFIER_RULE, is_identifier},
    config::DEFAULT_SOCKET,
};

pub mod keep;

/// Name of the plugin: of its binary, and `type` in the network configuration.
const PLUGIN: &str = "podnet";

/// The binary of this very process.
const OWN_BINARY: &str = "/proc/self/exe";

/// How the names of files begin and end that are not complete yet.
const NEW_PREFIX: &str = ".podnet-";
const NEW_SUFFIX: &str = ".tmp";

/// Arguments of `podnet install`.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// What is installed where.
    #[command(flatten)]
    pub target: Target,
    /// Unix socket of the daemon.
    #[arg(long, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Remove the network configuration and the plugin instead.
    #[arg(long)]
    pub uninstall: bool,
}

/// What is installed where.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// Folder of CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin", env = "PODNET_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: PathBuf,
    /// Folder of CNI network configurations.
    #[arg(long, default_value = "/etc/cni/net.d", env = "PODNET_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: PathBuf,
    /// Name of the network.
    #[arg(long, default_value = "podnet", value_name = "NAME")]
    pub network_name: String,
    /// Whether to chain the `portmap` plugin, which serves `hostPort`; `auto`: if it is installed.
    #[arg(long, value_enum, default_value_t)]
    pub portmap: Portmap,
    /// File name of the network configuration; the runtime takes the first in lexical order.
    #[arg(long, default_value = "10-podnet.conflist", value_name = "FILE")]
    pub conf_name: String,
}

/// Whether the `portmap` plugin follows podnet in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Portmap {
    /// If the folder of plugins has it.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The file is new, or has new content.
    Written,
    /// The file was as it should be.
    Unchanged,
    /// The file is gone.
    Removed,
    /// The file was not there.
    Absent,
}

/// What [`install`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallReport {
    /// Files, in the order in which they were treated.
    pub files: Vec<(PathBuf, Action)>,
    /// What will not work as expected, in plain words.
    pub warnings: Vec<String>,
}

impl fmt::Display for InstallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, action) in &self.files {
            let action = match action {
                Action::Written => "wrote",
                Action::Unchanged => "unchanged",
                Action::Removed => "removed",
                Action::Absent => "not there",
            };
            writeln!(f, "{action}: {}", path.display())?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

impl Target {
    /// Returns the path of the plugin.
    fn binary(&self) -> PathBuf {
        self.cni_bin_dir.join(PLUGIN)
    }

    /// Returns the path of the network configuration.
    fn conf(&self) -> PathBuf {
        self.cni_conf_dir.join(&self.conf_name)
    }
}

/// Installs or uninstalls; doing it twice is the same as once.
pub fn install(args: &InstallArgs) -> Result<InstallReport> {
    validate(args)?;
    let target = &args.target;
    let (binary, conf) = (target.binary(), target.conf());
    if args.uninstall {
        // In reverse order, so that the runtime never has a configuration without its plugin.
        let files = vec![(conf.clone(), remove(&conf)?), (binary.clone(), remove(&binary)?)];
        return Ok(InstallReport { files, warnings: Vec::new() });
    }
    ensure_dir(&target.cni_bin_dir, "--cni-bin-dir")?;
    ensure_dir(&target.cni_conf_dir, "--cni-conf-dir")?;
    let mut warnings = Vec::new();
    let has_portmap = target.cni_bin_dir.join("portmap").is_file();
    if target.portmap == Portmap::Always && !has_portmap {
        warnings.push(format!(
            "--portmap always, but {} has no portmap: every pod will fail until it is installed",
            target.cni_bin_dir.display()
        ));
    }
    let chain_portmap = target.portmap == Portmap::Always || (target.portmap == Portmap::Auto && has_portmap);
    let installed = install_binary(&binary)?;
    let written = install_conf(&conf, &conflist(args, chain_portmap))?;
    warnings.extend(conflicts(target)?);
    Ok(InstallReport { files: vec![(binary, installed), (conf, written)], warnings })
}

fn validate(args: &InstallArgs) -> Result<()> {
    let target = &args.target;
    ensure!(is_identifier(&target.network_name), "--network-name: {:?} {IDENTIFIER_RULE}", target.network_name);
    ensure!(
        target.conf_name.ends_with(".conflist")
            && !target.conf_name.starts_with('.')
            && !target.conf_name.contains('/'),
        "--conf-name: {:?} is not a file name that ends in .conflist, such as 10-podnet.conflist",
        target.conf_name
    );
    ensure!(args.socket.is_absolute(), "--socket: {} is not an absolute path", args.socket.display());
    // `sun_path` of sockaddr_un holds 108 bytes with the terminating zero (unix(7)).
    ensure!(args.socket.as_os_str().len() < 108, "--socket: {} is longer than 107 bytes", args.socket.display());
    ensure!(args.socket.to_str().is_some(), "--socket: {} is not UTF-8, as JSON needs", args.socket.display());
    Ok(())
}

/// Returns the network configuration.
fn conflist(args: &InstallArgs, chain_portmap: bool) -> Value {
    let mut plugins = vec![json!({
        "type": PLUGIN,
        "socket": args.socket,
        "capabilities": {"ips": true, "mac": true},
    })];
    if chain_portmap {
        plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    }
    // Runtimes with libcni before 1.2 only read `cniVersion`, and go up to 1.0.0; later ones take the highest of all.
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": args.target.network_name,
        "plugins": plugins,
    })
}

fn ensure_dir(dir: &Path, option: &str) -> Result<()> {
    fs::create_dir_all(dir)
        .with_context(|| format!("create folder {}; run as root, or give another one with {option}", dir.display()))
}

fn install_binary(path: &Path) -> Result<Action> {
    let context =
        || format!("install plugin {}; run as root, or give another folder with --cni-bin-dir", path.display());
    if is_same(Path::new(OWN_BINARY), path).with_context(context)? {
        return Ok(Action::Unchanged);
    }
    let own = fs::File::open(OWN_BINARY).with_context(context)?;
    let length = own.metadata().with_context(context)?.len();
    replace(path, own, length, 0o755).with_context(context)?;
    Ok(Action::Written)
}

fn install_conf(path: &Path, conf: &Value) -> Result<Action> {
    let context = || {
        format!(
            "write network configuration {}; run as root, or give another folder with --cni-conf-dir",
            path.display()
        )
    };
    let text = format!("{conf:#}\n");
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(Action::Unchanged);
    }
    replace(path, text.as_bytes(), text.len() as u64, 0o644).with_context(context)?;
    Ok(Action::Written)
}

/// Replaces a file in one step, durably.
///
/// The new file grows in the same folder under a suffix that runtimes ignore. containerd's watcher takes note of the
/// rename of a file that it has seen, but not of a file that comes from elsewhere, nor of a creation.
///
/// No error names the new file: two failures for one reason read the same.
fn replace(path: &Path, mut content: impl Read, length: u64, mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    ensure_room(dir, length)?;
    let create = |path: &Path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = tempfile::Builder::new().prefix(NEW_PREFIX).suffix(NEW_SUFFIX).make_in(dir, create)?;
    io::copy(&mut content, file.as_file_mut())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

/// Makes sure that a file system has room for a file: to fill it up and then give up would take the last room from
/// others.
fn ensure_room(dir: &Path, length: u64) -> io::Result<()> {
    let data = statvfs(dir)?;
    let room = data.blocks_available().saturating_mul(data.fragment_size());
    // Some file systems know no sizes.
    if data.blocks() > 0 && room < length {
        let needed = length.div_ceil(1 << 20);
        return Err(io::Error::new(io::ErrorKind::StorageFull, format!("{needed} MiB are needed, and less is free")));
    }
    Ok(())
}

/// Removes new files of installations that were cut off in the middle. No other may be under way.
fn remove_stale(target: &Target) {
    for dir in [&target.cni_bin_dir, &target.cni_conf_dir] {
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name();
            let is_new = name.to_str().is_some_and(|name| name.starts_with(NEW_PREFIX) && name.ends_with(NEW_SUFFIX));
            if is_new && let Err(error) = fs::remove_file(entry.path()) {
                warn!(%error, file = %entry.path().display(), "a file of an earlier installation stays");
            }
        }
    }
}

/// Whether two files are one, or an executable copy of each other.
fn is_same(own: &Path, other: &Path) -> io::Result<bool> {
    let (own_data, other_data) = match (fs::metadata(own)?, fs::metadata(other)) {
        (own, Ok(other)) => (own, other),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (_, Err(error)) => return Err(error),
    };
    if (own_data.dev(), own_data.ino()) == (other_data.dev(), other_data.ino()) {
        return Ok(true);
    }
    Ok(own_data.len() == other_data.len() && other_data.mode() & 0o777 == 0o755 && fs::read(own)? == fs::read(other)?)
}

/// Names what other configurations of the folder do to ours.
fn conflicts(target: &Target) -> Result<Vec<String>> {
    let ours = OsStr::new(&target.conf_name);
    let mut first = None;
    let mut warnings = Vec::new();
    let entries =
        fs::read_dir(&target.cni_conf_dir).with_context(|| format!("read folder {}", target.cni_conf_dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read folder {}", target.cni_conf_dir.display()))?;
        let name = entry.file_name();
        // What libcni takes for a configuration.
        let is_conf =
            Path::new(&name).extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json");
        if !is_conf || name == ours {
            continue;
        }
        if name.as_os_str() < ours && first.as_ref().is_none_or(|first| name < *first) {
            first = Some(name.clone());
        }
        let conf: Option<Value> = fs::read(entry.path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if conf.is_some_and(|conf| conf["name"] == target.network_name.as_str()) {
            warnings.push(format!(
                "{} describes a network of the same name, {}: remove it, or garbage collection may free its pods",
                entry.path().display(),
                target.network_name
            ));
        }
    }
    warnings.extend(first.map(|first| {
        format!(
            "{} sorts before {} and so is the one that the runtime uses: remove it, or choose an earlier --conf-name",
            target.cni_conf_dir.join(first).display(),
            target.conf_name
        )
    }));
    Ok(warnings)
}

fn remove(path: &Path) -> Result<Action> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Action::Removed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Action::Absent),
        Err(error) => Err(error).with_context(|| format!("remove {}; run as root", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        install: InstallArgs,
    }

    fn args(root: &Path, more: &[&str]) -> InstallArgs {
        let (bin, conf) = (root.join("opt/cni/bin"), root.join("etc/cni/net.d"));
        let mut line = vec!["podnet", "--cni-bin-dir", bin.to_str().unwrap(), "--cni-conf-dir", conf.to_str().unwrap()];
        line.extend(more);
        Cli::try_parse_from(line).unwrap().install
    }

    fn actions(report: &InstallReport) -> Vec<Action> {
        report.files.iter().map(|(_, action)| *action).collect()
    }

    fn plugins(args: &InstallArgs) -> Vec<String> {
        let text = fs::read(args.target.cni_conf_dir.join(&args.target.conf_name)).unwrap();
        let conf: Value = serde_json::from_slice(&text).unwrap();
        conf["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_defaults_are_the_runtimes_folders() {
        let args = Cli::try_parse_from(["podnet"]).unwrap().install;
        assert_eq!(args.target.cni_bin_dir, Path::new("/opt/cni/bin"));
        assert_eq!(args.target.cni_conf_dir, Path::new("/etc/cni/net.d"));
        assert_eq!(
            conflist(&args, false).to_string(),
            r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.0.0","1.1.0"],"name":"podnet","plugins":[{"capabilities":{"ips":true,"mac":true},"socket":"/run/podnet/podnet.sock","type":"podnet"}]}"#
        );
    }

    #[test]
    fn the_template_is_what_the_defaults_install() {
        let args = Cli::try_parse_from(["podnet"]).unwrap().install;
        let template = include_str!("../../deploy/10-podnet.conflist");
        assert_eq!(format!("{:#}\n", conflist(&args, false)), template);
    }

    #[test]
    fn install_twice_and_uninstall_twice() {
        let root = tempfile::tempdir().unwrap();
        let args = args(root.path(), &[]);
        let report = install(&args).unwrap();
        assert_eq!(actions(&report), [Action::Written, Action::Written], "{report}");
        assert_eq!(report.warnings, [""; 0]);
        let binary = fs::metadata(args.target.cni_bin_dir.join("podnet")).unwrap();
        assert_eq!(binary.mode() & 0o777, 0o755);
        assert_eq!(binary.len(), fs::metadata(OWN_BINARY).unwrap().len());
        assert_eq!(fs::metadata(args.target.cni_conf_dir.join("10-podnet.conflist")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(actions(&install(&args).unwrap()), [Action::Unchanged, Action::Unchanged]);
        assert_eq!(fs::read_dir(&args.target.cni_conf_dir).unwrap().count(), 1, "no temporary file is left");
        assert_eq!(fs::read_dir(&args.target.cni_bin_dir).unwrap().count(), 1, "no temporary file is left");
        let uninstall = InstallArgs { uninstall: true, ..args };
        assert_eq!(actions(&install(&uninstall).unwrap()), [Action::Removed, Action::Removed]);
        assert_eq!(actions(&install(&uninstall).unwrap()), [Action::Absent, Action::Absent]);
    }

    #[test]
    fn portmap_is_chained_if_it_is_there() {
        let root = tempfile::tempdir().unwrap();
        let check = |portmap: &str, expected: &[&str]| {
            let args = args(root.path(), &["--portmap", portmap]);
            let report = install(&args).unwrap();
            assert_eq!(plugins(&args), expected, "{portmap}");
            report.warnings
        };
        assert_eq!(check("auto", &["podnet"]), [""; 0]);
        assert!(check("always", &["podnet", "portmap"])[0].contains("portmap"));
        fs::write(root.path().join("opt/cni/bin/portmap"), "").unwrap();
        assert_eq!(check("auto", &["podnet", "portmap"]), [""; 0]);
        assert_eq!(check("never", &["podnet"]), [""; 0]);
    }

    #[test]
    fn another_configuration_that_wins_is_named() {
        let root = tempfile::tempdir().unwrap();
        let args = args(root.path(), &[]);
        fs::create_dir_all(&args.target.cni_conf_dir).unwrap();
        for (name, text) in [
            ("05-b.conf", "{}"),
            ("00-a.conflist.bak", "{}"),
            ("04-a.conflist", "not JSON"),
            ("99-z.conflist", r#"{"name":"podnet"}"#),
        ] {
            fs::write(args.target.cni_conf_dir.join(name), text).unwrap();
        }
        let warnings = install(&args).unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("99-z.conflist"), "{warnings:?}");
        assert!(warnings[1].contains("04-a.conflist sorts before"), "{warnings:?}");
    }

    #[test]
    fn a_file_without_room_is_not_begun() {
        let root = tempfile::tempdir().unwrap();
        let refused = |length| replace(&root.path().join("file"), &b"content"[..], length, 0o644).unwrap_err();
        let error = refused(u64::MAX);
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(error.to_string(), refused(u64::MAX).to_string());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn errors_name_the_folder_and_the_fix() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("opt"), "").unwrap();
        let error = format!("{:#}", install(&args(root.path(), &[])).unwrap_err());
        assert!(error.contains("opt/cni/bin") && error.contains("--cni-bin-dir"), "{error}");
        for wrong in [
            ["--conf-name", "a/b.conflist"],
            ["--conf-name", "podnet.conf"],
            ["--network-name", "a b"],
            ["--socket", "s"],
        ] {
            let error = install(&args(root.path(), &wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong[0]), "{error}");
        }
    }
}
