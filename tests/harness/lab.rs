//! A lab for one test: made under a name of its own, removed when the value is dropped, also by a panic. Of one node
//! here; of several in [`crate::cluster`].

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use podnet::{
    api::DatapathMode,
    lab::{Lab, Options, topology::LABS_DIR},
    netns::{NAMED_DIR, Netns},
};

use crate::{binary, node::TestNode, require_root};

/// Prefix of the names of test labs; the process ID follows.
const PREFIX: &str = "pt-";

/// A lab that goes with the last clone of this value.
#[derive(Clone, Debug)]
pub(crate) struct SharedLab(Arc<OwnedLab>);

#[derive(Debug)]
struct OwnedLab(Mutex<Lab>);

impl SharedLab {
    /// Makes a lab without pods.
    pub(crate) fn new(change: impl FnOnce(&mut Options)) -> Self {
        require_root();
        remove_leftovers();
        let mut options = Options {
            name: new_name(),
            pods: 0,
            // The loader tells of each function that it links.
            log: "debug,aya_obj=info".into(),
            binary: binary(),
            ..Options::reference().unwrap()
        };
        change(&mut options);
        let lab = Lab::up(&options).unwrap_or_else(|error| panic!("make a lab: {error:#}"));
        Self(Arc::new(OwnedLab(Mutex::new(lab))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Lab> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OwnedLab {
    fn drop(&mut self) {
        let lab = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if std::thread::panicking() {
            for node in &lab.nodes {
                eprintln!("log of {}:\n{}", node.netns, node.log_tail(60));
            }
        }
        match Lab::down(&lab.name) {
            Err(error) if std::thread::panicking() => eprintln!("remove the lab: {error:#}"),
            result => drop(result.unwrap_or_else(|error| panic!("remove the lab: {error:#}"))),
        }
    }
}

/// Returns a name for a lab that no other test has.
pub fn new_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A lab of one node: used as that node.
#[derive(Debug)]
pub struct TestLab {
    node: TestNode,
}

impl std::ops::Deref for TestLab {
    type Target = TestNode;

    fn deref(&self) -> &TestNode {
        &self.node
    }
}

impl TestLab {
    /// Makes the reference lab with the eBPF path and without pods.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Makes the reference lab with this path and without pods.
    pub fn with_datapath(datapath: DatapathMode) -> Self {
        Self::with(|options| options.datapath = datapath)
    }

    /// Makes a lab with other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let lab = SharedLab::new(|options| {
            options.nodes = 1;
            change(options);
        });
        Self { node: TestNode::new(&lab, 0) }
    }
}

impl Default for TestLab {
    fn default() -> Self {
        Self::new()
    }
}

/// Removes what test processes left that were killed: `Drop` did not run there.
fn remove_leftovers() {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_left(name)).collect()
    };
    for name in names(LABS_DIR) {
        Lab::down(&name).unwrap_or_else(|error| panic!("remove what an earlier test left: {error:#}"));
    }
    for name in names(NAMED_DIR) {
        Netns::delete_named(&name).unwrap();
    }
}

/// Returns whether a name is that of a test process which does not exist any more.
fn is_left(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_test_processes_are_left_over() {
        assert!(!is_left(&format!("pt-{}-0", std::process::id())));
        assert!(is_left("pt-4194305-0-node1"));
        assert!(!is_left("podnet-lab-node1") && !is_left("pt-x-0"));
    }
}
