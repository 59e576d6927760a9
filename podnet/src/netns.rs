//! Network namespaces: open, compare, create, remove, and run code in one. The only place that changes namespace.
//!
//! A namespace belongs to a thread, so code runs in another one on a thread of its own that ends with the call, or on a
//! thread that serves nothing else meanwhile and surely returns: none is left in the wrong namespace.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::fstatfs,
};

/// Folder in which `ip netns` and container runtimes keep named namespaces.
pub const NAMED_DIR: &str = "/run/netns";

/// Identity of a namespace while it exists: device and inode of its nsfs file (namespaces(7)). The kernel may give the
/// inode to another namespace once this one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// Device of the nsfs.
    pub device: u64,
    /// Inode in the nsfs.
    pub inode: u64,
}

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens a namespace by the path of its nsfs file, such as `/run/netns/web` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    ///
    /// The path cannot be opened, or is no network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Without blocking: a path may lead to a pipe, where opening would wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .with_context(|| format!("open network namespace {}", path.display()))?;
        let filesystem = fstatfs(&file).with_context(|| format!("examine network namespace {}", path.display()))?;
        ensure!(
            filesystem.filesystem_type() == nix::sys::statfs::NSFS_MAGIC,
            "{} is not a network namespace (it does not lie in nsfs); give a path such as /run/netns/NAME or /proc/PID/ns/net",
            path.display()
        );
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens a namespace by its name under [`NAMED_DIR`].
    pub fn open_named(name: &str) -> Result<Self> {
        Self::open(named_path(name))
    }

    /// Opens the calling thread's own namespace.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Creates a namespace and keeps it alive under a name, as `ip netns add` does. Its loopback interface is down.
    ///
    /// # Errors
    ///
    /// The name is taken, or the process may not create namespaces (it needs `CAP_SYS_ADMIN`).
    pub fn create_named(name: &str) -> Result<Self> {
        std::fs::create_dir_all(NAMED_DIR).with_context(|| format!("create {NAMED_DIR}"))?;
        let path = named_path(name);
        File::create_new(&path).with_context(|| format!("create network namespace {}", path.display()))?;
        let made = run_on_thread(|| {
            #[expect(clippy::disallowed_methods, reason = "this thread is its own, and ends here")]
            unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace")?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("bind the network namespace to {}", path.display()))
        });
        if let Err(error) = made {
            remove_file(&path)?;
            return Err(error);
        }
        Self::open(path)
    }

    /// Removes a name that [`Netns::create_named`] made; the namespace goes with its last user. A name that does not
    /// exist is success.
    pub fn delete_named(name: &str) -> Result<()> {
        let path = named_path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a plain file, left by a creation that failed half-way.
            Ok(()) | Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINVAL) => remove_file(&path),
            Err(error) => bail!("unmount network namespace {}: {error}", path.display()),
        }
    }

    /// Returns the path by which the namespace was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the namespace's identity.
    pub fn id(&self) -> Result<NetnsId> {
        let metadata = self.file.metadata().with_context(|| format!("examine {}", self.path.display()))?;
        Ok(NetnsId { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Runs a closure inside the namespace, on a thread of its own, and returns what it returns. Sockets opened and
    /// processes started by the closure stay in the namespace.
    ///
    /// # Panics
    ///
    /// If the closure panics, with its panic.
    pub fn run<T: Send>(&self, closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        run_on_thread(|| {
            self.enter()?;
            closure()
        })
    }

    /// Runs a closure inside the namespace on the calling thread, and returns to `home`, the namespace that the thread
    /// came from. Saves the two thread switches of [`Netns::run`], for whoever does this a thousand times a minute. The
    /// calling thread must serve nothing else meanwhile, so it is not for asynchronous code.
    ///
    /// Ends the process if the thread cannot return: everything it did from there on would hit the wrong namespace,
    /// and a new start finds its way.
    pub fn visit<T>(&self, home: &Self, closure: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Returns home on drop, so on a panic, too.
        struct Homeward<'a>(&'a Netns);
        impl Drop for Homeward<'_> {
            fn drop(&mut self) {
                if let Err(error) = self.0.enter() {
                    tracing::error!(error = format!("{error:#}"), "a thread is lost in a pod's network namespace");
                    std::process::abort();
                }
            }
        }
        self.enter()?;
        let _homeward = Homeward(home);
        closure()
    }

    /// Moves the calling thread into the namespace.
    #[expect(clippy::disallowed_methods, reason = "called on threads that end with it, or that return from it")]
    fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.path.display()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn named_path(name: &str) -> PathBuf {
    Path::new(NAMED_DIR).join(name)
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn run_on_thread<T: Send>(closure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(closure).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
