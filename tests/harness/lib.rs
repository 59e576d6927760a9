//! What podnet's privileged tests share: a lab that cleans up after itself, pods added through the real CNI plugin,
//! traffic whose content is checked, forged frames, and counters before and after.
//!
//! Tests panic rather than return `Result`, so that a failure shows where it came from; so does the harness.
//! Everything waits by asking again until a deadline; nothing sleeps.
#![expect(clippy::unwrap_used, clippy::missing_panics_doc, clippy::must_use_candidate, reason = "test code panics")]

use std::{path::PathBuf, time::Duration};

pub mod lab;
pub mod cluster;
pub mod node;
pub mod pod;
pub mod tcp;
pub mod herd;
pub mod iperf;
pub mod udp;
pub mod peer;
pub mod traffic;
pub mod icmp;
pub mod probe;
pub mod pattern;
pub mod random;
pub mod frames;
pub mod packets;
pub mod counters;
pub mod maps;
pub mod crowd;
pub mod interfaces;
pub mod command;
#[cfg(test)]
mod selftest;

pub use cluster::TestCluster;
pub use lab::TestLab;
pub use node::TestNode;
pub use pod::{Family, TestPod};

/// How long anything that should happen may take.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How long to watch for something that must not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// Panics unless the process is root's: the suites make network namespaces.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "this suite makes network namespaces: run it as root (sudo)");
}

/// Returns the `podnet` binary under test: `PODNET_BIN`, or the one beside this test.
pub fn binary() -> PathBuf {
    let binary = std::env::var_os("PODNET_BIN").map_or_else(
        // target/PROFILE/deps/TEST
        || std::env::current_exe().unwrap().parent().unwrap().with_file_name("podnet"),
        PathBuf::from,
    );
    assert!(binary.is_file(), "{} is missing: build it with `cargo build -p podnet`", binary.display());
    binary
}

/// Asks until the answer is `Some`; panics after [`DEADLINE`], saying what did not happen.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    match podnet::lab::poll::until(DEADLINE, || Ok(ask())) {
        Ok(Some(answer)) => answer,
        other => panic!("waited {} s in vain: {what} ({:?})", DEADLINE.as_secs(), other.err()),
    }
}
