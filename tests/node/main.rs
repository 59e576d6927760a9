//! One node, in network namespaces: the real daemon, the real CNI plugin, real traffic.
//!
//! Run as root: `cargo test -p podnet-tests --test node`, after `cargo build -p podnet`.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod connectivity;
mod path_switch;
mod service;
mod outside;
mod spoof;
mod cleanup;
mod scale;
mod crash;
mod repair;
mod heal;
mod iperf;
mod logs;
mod database;
mod reboot;
mod surroundings;
