//! Notices that what a path leads to may have changed, whichever way: written in place, replaced by rename, a symbolic
//! link on the way swapped (as a Kubernetes ConfigMap is updated), a folder on the way made, moved or removed.
//!
//! The path is walked as the kernel walks it, and each folder in which a name is looked up is watched for that name.
//! Watches belong to folders, not to their paths: after a change the path must be walked again ([`PathWatch::arm`]).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ffi::OsString,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Component, Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::{Interest, unix::AsyncFd};

/// Symbolic links on one path after which the kernel gives up (`MAXSYMLINKS` in include/linux/namei.h).
const MAX_LINKS: usize = 40;

/// Walks until a walk finds what the one before has watched. More are needed only while the path keeps changing, and
/// then there will be an event.
const MAX_WALKS: usize = 8;

/// What was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Somebody is writing and has not closed the file yet.
    Writing,
    /// The change is complete, as far as can be seen.
    Done,
}

/// The kernel's queue of events, as tokio wants it.
#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A watch on what a path leads to.
#[derive(Debug)]
pub(super) struct PathWatch {
    path: PathBuf,
    queue: AsyncFd<Queue>,
    /// Names that matter in each watched folder.
    names: HashMap<WatchDescriptor, HashSet<OsString>>,
}

impl PathWatch {
    /// Makes a watch that notices nothing yet. Must be called inside an asynchronous runtime.
    ///
    /// # Errors
    ///
    /// The user has no inotify instance left (`fs.inotify.max_user_instances`).
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the descriptor is the queue's own and stays open, and the same, as long as the value.
        let queue = unsafe { AsyncFd::register_with_interest(Queue(inotify), Interest::READABLE) };
        Ok(Self { path: path.to_owned(), queue: queue.map_err(|error| error.into_parts().1)?, names: HashMap::new() })
    }

    /// Watches the folders of the path as they are now. What changes after this call is noticed; so call it before the
    /// file is read.
    pub(super) fn arm(&mut self) {
        let mut watched = Vec::new();
        for _ in 0..MAX_WALKS {
            let lookups = walk(&self.path);
            if lookups == watched {
                return;
            }
            self.watch(&lookups);
            watched = lookups;
        }
    }

    /// Waits for a change. Safe to cancel.
    ///
    /// # Errors
    ///
    /// The kernel's queue cannot be read; the watch is of no use any more.
    pub(super) async fn changed(&mut self) -> io::Result<Change> {
        loop {
            let mut guard = self.queue.readable().await?;
            let read = guard.try_io(|queue| Ok(queue.get_ref().0.read_events()?));
            // Otherwise there was nothing to read: wait again.
            if let Ok(events) = read
                && let Some(change) = judge(&self.names, &events?)
            {
                return Ok(change);
            }
        }
    }

    fn watch(&mut self, lookups: &[(PathBuf, OsString)]) {
        // Not opening or reading: the daemon does that itself.
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut names: HashMap<WatchDescriptor, HashSet<OsString>> = HashMap::new();
        for (folder, name) in lookups {
            // A folder that is watched already keeps its descriptor. One that cannot be watched has just vanished, which
            // the folder above tells, or must not be read, which the reading of the file tells.
            if let Ok(folder) = self.queue.get_ref().0.add_watch(folder, mask) {
                names.entry(folder).or_default().insert(name.clone());
            }
        }
        for folder in self.names.keys().filter(|folder| !names.contains_key(folder)) {
            // An error says that the folder was removed, and its watch with it.
            self.queue.get_ref().0.rm_watch(*folder).ok();
        }
        self.names = names;
    }
}

fn judge(names: &HashMap<WatchDescriptor, HashSet<OsString>>, events: &[InotifyEvent]) -> Option<Change> {
    let matters = |event: &&InotifyEvent| {
        event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
            || names.get(&event.wd).is_some_and(|names| event.name.as_ref().is_none_or(|name| names.contains(name)))
    };
    // The last event says whether the writer is done.
    let last = events.iter().rfind(matters)?;
    Some(if last.mask.contains(AddWatchFlags::IN_MODIFY) { Change::Writing } else { Change::Done })
}

/// Returns each folder in which a name is looked up on the way along an absolute path, and the name; up to the file or
/// to the first name that is missing.
fn walk(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut folder = PathBuf::from("/");
    let mut ahead: VecDeque<OsString> = path.iter().map(Into::into).collect();
    let mut lookups = Vec::new();
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        match Path::new(&name).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::RootDir) => {
                folder = PathBuf::from("/");
                continue;
            }
            // No link is left in `folder`, so its parent is what `..` leads to.
            Some(Component::ParentDir) => {
                folder.pop();
                continue;
            }
            _ => continue,
        }
        let next = folder.join(&name);
        lookups.push((folder.clone(), name));
        if let Ok(target) = next.read_link() {
            links += 1;
            if links > MAX_LINKS {
                break;
            }
            target.iter().rev().for_each(|name| ahead.push_front(name.into()));
        } else if next.is_dir() {
            folder = next;
        } else {
            break;
        }
    }
    lookups
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(path: &Path, root: &Path) -> Vec<String> {
        let lookups = walk(path).into_iter().filter(|(folder, _)| folder.starts_with(root));
        lookups.map(|(folder, name)| folder.join(name).strip_prefix(root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_walk_follows_links_as_the_kernel_does() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("mount/..1")).unwrap();
        std::fs::write(root.join("mount/..1/nodes.json"), "").unwrap();
        symlink("..1", root.join("mount/..data")).unwrap();
        symlink("..data/nodes.json", root.join("mount/nodes.json")).unwrap();
        symlink(root.join("mount"), root.join("absolute")).unwrap();
        symlink("mount/../absolute", root.join("relative")).unwrap();
        let mount = ["mount/nodes.json", "mount/..data", "mount/..1", "mount/..1/nodes.json"];
        assert_eq!(names(&root.join("mount/nodes.json"), &root), [&["mount"][..], &mount].concat());
        assert_eq!(
            names(&root.join("relative/nodes.json"), &root),
            [&["relative", "mount", "absolute", "mount"][..], &mount].concat()
        );
    }

    #[test]
    fn a_walk_ends_where_something_is_missing_or_links_go_in_a_circle() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(names(&root.join("a/b/c"), &root), ["a"]);
        std::fs::write(root.join("a"), "a file").unwrap();
        assert_eq!(names(&root.join("a/b/c"), &root), ["a"]);
        symlink("circle", root.join("circle")).unwrap();
        assert_eq!(names(&root.join("circle"), &root).len(), MAX_LINKS + 1);
    }
}
