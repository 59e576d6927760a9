//! The CNI plugin: the real binary with the environment and standard input of a runtime, against a fake daemon.
//!
//! One module per concern: `results` of each version, `errors` and their codes, `deletions` while the daemon is away,
//! and the other `verbs`.

#![expect(clippy::expect_used, reason = "a test panics where it cannot go on")]

mod deletions;
mod errors;
mod fake_daemon;
mod plugin;
mod results;
mod verbs;
