//! `podnet daemon --install`: keeps plugin and network configuration in place while the daemon serves. They stay when
//! it ends, since pods may come and go before the next one serves: deletions are queued meanwhile, additions refused.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{Action, InstallArgs, Target, install, remove_stale};

/// What became of the installation, for `podnet status`.
#[derive(Clone, Debug, Default)]
pub struct Installation {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    warnings: Vec<String>,
    /// Whether the runtime can call podnet: all is installed, or was there before, if only from another version.
    is_callable: bool,
}

impl Installation {
    /// Returns what is wrong with it, in plain words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.state.borrow().warnings.clone()
    }

    /// Waits until the runtime can call podnet; tells meanwhile what hinders that.
    pub async fn until_callable(&self, tell: impl Fn(String)) {
        let mut news = self.state.subscribe();
        loop {
            {
                let state = news.borrow_and_update();
                if state.is_callable {
                    return;
                }
                let reason = state.warnings.first().map_or("the CNI plugin is not installed yet", String::as_str);
                tell(reason.to_owned());
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes new warnings. Returns those that are not known yet.
    fn replace(&self, new: Vec<String>, is_callable: bool) -> Vec<String> {
        let mut unknown = Vec::new();
        self.state.send_modify(|state| {
            unknown.extend(new.iter().filter(|warning| !state.warnings.contains(warning)).cloned());
            *state = State { warnings: new, is_callable };
        });
        unknown
    }
}

/// The longest time between two attempts while none succeeds, unless passes are further apart.
const PATIENCE: Duration = Duration::from_secs(300);

/// Installs, and again whenever something of it is missing or was changed by somebody. Never ends.
pub async fn keep(args: InstallArgs, interval: Duration, installation: Installation) {
    let mut keeper = Keeper::new(args, installation, interval);
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
    /// Time between two passes.
    interval: Duration,
    is_first: bool,
    /// Files and folders before the last installation that was without an error.
    seen: Option<Stamps>,
    failure: Option<Failure>,
}

/// An attempt that failed.
#[derive(Debug)]
struct Failure {
    /// Files and folders after it: a change of them is a reason not to wait.
    after: Stamps,
    next: Instant,
    delay: Duration,
}

impl Keeper {
    fn new(args: InstallArgs, installation: Installation, interval: Duration) -> Self {
        Self { args, installation, interval, is_first: true, seen: None, failure: None }
    }

    fn pass(&mut self) {
        if std::mem::take(&mut self.is_first) {
            remove_stale(&self.args.target);
        }
        let before = stamps(&self.args.target);
        if self.seen.as_ref() == Some(&before) {
            return;
        }
        if self.failure.as_ref().is_some_and(|failure| failure.after == before && Instant::now() < failure.next) {
            return;
        }
        match install(&self.args) {
            Ok(report) => {
                self.seen = Some(before);
                self.failure = None;
                for (file, _) in report.files.iter().filter(|(_, action)| *action == Action::Written) {
                    info!(file = %file.display(), "installed");
                }
                for warning in self.installation.replace(report.warnings, true) {
                    warn!(warning, "the runtime may not call podnet");
                }
            }
            Err(error) => {
                self.seen = None;
                let target = &self.args.target;
                let delay = self.failure.take().map_or(self.interval, |failure| failure.delay * 2);
                let delay = delay.min(PATIENCE.max(self.interval));
                self.failure = Some(Failure { after: stamps(target), next: Instant::now() + delay, delay });
                // What an earlier daemon installed serves on: a node must not lose its network over a full disk.
                let is_callable = target.binary().is_file() && target.conf().is_file();
                for error in self.installation.replace(vec![format!("install: {error:#}")], is_callable) {
                    error!(error, is_callable, "plugin or network configuration cannot be installed; trying again");
                }
            }
        }
    }
}

/// By what a change of a file or a folder's list is seen: device, inode, length, time of the last change (s, ns).
type Stamp = (u64, u64, u64, i64, i64);

type Stamps = [Option<Stamp>; 4];

/// Stamps of the files, and of their folders: there another configuration or the `portmap` plugin may appear.
fn stamps(target: &Target) -> Stamps {
    let stamp = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.len(), data.ctime(), data.ctime_nsec()))
    };
    [&target.cni_bin_dir, &target.cni_conf_dir, &target.binary(), &target.conf()].map(|path| stamp(path))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

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
        Keeper::new(args, Installation::default(), Duration::from_secs(5))
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
    fn an_attempt_that_failed_is_repeated_ever_later_or_after_a_change() {
        let root = tempfile::tempdir().unwrap();
        let mut keeper = keeper(root.path());
        fs::write(root.path().join("net.d"), "a file").unwrap();
        let mut delays = Vec::new();
        for _ in 0..8 {
            keeper.pass();
            let failure = keeper.failure.as_mut().unwrap();
            delays.push(failure.delay.as_secs());
            failure.next = Instant::now();
        }
        assert_eq!(delays, [5, 10, 20, 40, 80, 160, 300, 300]);
        let later = Instant::now() + PATIENCE;
        keeper.failure.as_mut().unwrap().next = later;
        keeper.pass();
        assert_eq!(keeper.failure.as_ref().unwrap().next, later, "it is not time yet");
        fs::write(root.path().join("bin/portmap"), "").unwrap();
        keeper.pass();
        assert_ne!(keeper.failure.as_ref().unwrap().next, later, "something changed");
    }

    #[test]
    fn what_was_cut_off_is_removed_at_first() {
        let root = tempfile::tempdir().unwrap();
        let mut keeper = keeper(root.path());
        for dir in ["bin", "net.d"] {
            fs::create_dir(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join(".podnet-a1b2c3.tmp"), "half").unwrap();
        }
        fs::write(root.path().join("bin/.other.tmp"), "").unwrap();
        keeper.pass();
        assert_eq!(fs::read_dir(root.path().join("bin")).unwrap().count(), 2, "the plugin, and what is not ours");
        assert_eq!(fs::read_dir(root.path().join("net.d")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn the_runtime_can_call_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let mut keeper = keeper(root.path());
        let told = std::cell::RefCell::new(Vec::new());
        let installation = keeper.installation.clone();
        let mut wait = std::pin::pin!(installation.until_callable(|reason| told.borrow_mut().push(reason)));
        fs::write(root.path().join("net.d"), "a file").unwrap();
        assert!(wait.as_mut().now_or_never().is_none());
        keeper.pass();
        assert!(wait.as_mut().now_or_never().is_none());
        let reasons = told.borrow().clone();
        assert!(matches!(&reasons[..], [_, failure] if failure.contains("--cni-conf-dir")), "{reasons:?}");
        fs::remove_file(root.path().join("net.d")).unwrap();
        keeper.pass();
        assert!(wait.as_mut().now_or_never().is_some());
        // The next attempt fails, but what is installed can be called.
        keeper.args.socket = "relative".into();
        keeper.seen = None;
        keeper.pass();
        assert_eq!(keeper.installation.warnings().len(), 1);
        keeper.installation.until_callable(|_| ()).await;
    }

    #[test]
    fn a_warning_is_new_once() {
        let installation = Installation::default();
        assert_eq!(installation.replace(vec!["a".into()], true), ["a"]);
        assert_eq!(installation.replace(vec!["a".into(), "b".into()], true), ["b"]);
        assert_eq!(installation.replace(Vec::new(), true), [""; 0]);
        assert_eq!(installation.replace(vec!["a".into()], true), ["a"]);
    }
}
