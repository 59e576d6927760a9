//! `podnet daemon --install`: keeps plugin and network configuration in place while the daemon serves. They stay when
//! it ends, since pods may come and go before the next one serves: deletions are queued meanwhile, additions refused.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tracing::{error, info, warn};

use super::{Action, InstallArgs, Target, install};

/// What became of the installation, for `podnet status`.
#[derive(Clone, Debug, Default)]
pub struct Installation {
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Installation {
    /// Returns what is wrong with it, in plain words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes new warnings. Returns those that are not known yet.
    fn replace(&self, new: Vec<String>) -> Vec<String> {
        let mut known = self.lock();
        let unknown = new.iter().filter(|warning| !known.contains(warning)).cloned().collect();
        *known = new;
        unknown
    }
}

/// Installs, and again whenever something of it is missing or was changed by somebody. Never ends.
pub async fn keep(args: InstallArgs, interval: Duration, installation: Installation) {
    let mut keeper = Keeper { args, installation, seen: None };
    loop {
        // Copying the binary takes long enough to be nobody else's wait.
        let pass = tokio::task::spawn_blocking(move || {
            keeper.pass();
            keeper
        });
        match pass.await {
            Ok(back) => keeper = back,
            Err(error) => return error!(%error, "the plugin is not kept installed any more"),
        }
        tokio::time::sleep(interval).await;
    }
}

/// Installs when there is a reason to.
#[derive(Debug)]
struct Keeper {
    args: InstallArgs,
    installation: Installation,
    /// Files and folders before the last installation that was without an error.
    seen: Option<[Option<Stamp>; 4]>,
}

impl Keeper {
    fn pass(&mut self) {
        let before = stamps(&self.args.target);
        if self.seen.as_ref() == Some(&before) {
            return;
        }
        match install(&self.args) {
            Ok(report) => {
                self.seen = Some(before);
                for (file, _) in report.files.iter().filter(|(_, action)| *action == Action::Written) {
                    info!(file = %file.display(), "installed");
                }
                for warning in self.installation.replace(report.warnings) {
                    warn!(warning, "the runtime may not call podnet");
                }
            }
            Err(error) => {
                self.seen = None;
                for error in self.installation.replace(vec![format!("install: {error:#}")]) {
                    error!(error, "the runtime cannot call podnet; trying again at each resync");
                }
            }
        }
    }
}

/// By what a change of a file or a folder's list is seen: device, inode, length, time of the last change (s, ns).
type Stamp = (u64, u64, u64, i64, i64);

/// Stamps of the files, and of their folders: there another configuration or the `portmap` plugin may appear.
fn stamps(target: &Target) -> [Option<Stamp>; 4] {
    let stamp = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.len(), data.ctime(), data.ctime_nsec()))
    };
    [&target.cni_bin_dir, &target.cni_conf_dir, &target.binary(), &target.conf()].map(|path| stamp(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Portmap;

    fn keeper(root: &Path) -> Keeper {
        let target = Target {
            cni_bin_dir: root.join("bin"),
            cni_conf_dir: root.join("net.d"),
            network_name: "podnet".into(),
            portmap: Portmap::Auto,
            conf_name: "10-podnet.conflist".into(),
        };
        let args = InstallArgs { target, socket: "/run/podnet/podnet.sock".into(), uninstall: false };
        Keeper { args, installation: Installation::default(), seen: None }
    }

    #[test]
    fn what_is_removed_or_changed_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let mut keeper = keeper(root.path());
        let (binary, conf) = (keeper.args.target.binary(), keeper.args.target.conf());
        keeper.pass();
        let text = fs::read_to_string(&conf).unwrap();
        assert!(binary.is_file() && text.contains("/run/podnet/podnet.sock"), "{text}");
        fs::remove_file(&conf).unwrap();
        keeper.pass();
        assert_eq!(fs::read_to_string(&conf).unwrap(), text);
        fs::write(&conf, "{}").unwrap();
        fs::remove_file(&binary).unwrap();
        keeper.pass();
        assert!(binary.is_file());
        assert_eq!(fs::read_to_string(&conf).unwrap(), text);
        fs::write(root.path().join("bin/portmap"), "").unwrap();
        keeper.pass();
        assert!(fs::read_to_string(&conf).unwrap().contains("portmap"), "it was installed later");
        assert_eq!(keeper.installation.warnings(), [""; 0]);
    }

    #[test]
    fn an_unusable_folder_is_told_and_tried_again() {
        let root = tempfile::tempdir().unwrap();
        let mut keeper = keeper(root.path());
        fs::write(root.path().join("net.d"), "a file").unwrap();
        keeper.pass();
        let warnings = keeper.installation.warnings();
        assert!(matches!(&warnings[..], [one] if one.contains("--cni-conf-dir")), "{warnings:?}");
        assert!(!keeper.args.target.binary().exists(), "nothing is installed by halves");
        fs::remove_file(root.path().join("net.d")).unwrap();
        keeper.pass();
        assert_eq!(keeper.installation.warnings(), [""; 0]);
        assert!(keeper.args.target.conf().is_file());
    }

    #[test]
    fn a_warning_is_new_once() {
        let installation = Installation::default();
        assert_eq!(installation.replace(vec!["a".into()]), ["a"]);
        assert_eq!(installation.replace(vec!["a".into(), "b".into()]), ["b"]);
        assert_eq!(installation.replace(Vec::new()), [""; 0]);
        assert_eq!(installation.replace(vec!["a".into()]), ["a"]);
    }
}
