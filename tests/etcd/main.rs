//! The store `etcd` against real etcd servers: many nodes at once, restarts, partitions, lost quorums, TLS and users,
//! nonsense in etcd; and whole daemons that find each other by it.
//!
//! Run as root: `cargo test -p podnet-tests --test etcd`. Everything is in network namespaces of its own.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod server;
mod store;
mod claims;
mod faults;
mod contents;
mod security;
mod daemons;
mod scale;
