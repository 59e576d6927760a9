//! Several nodes, in network namespaces: real daemons that follow one file of nodes, a switch, a router, an outside.
//!
//! Run as root: `cargo test -p podnet-tests --test cluster`, after `cargo build -p podnet`.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod paths;
mod pair;
mod network;
mod matrix;
mod service;
mod icmp;
mod spoof;
mod egress;
mod churn;
mod repair;
mod uplink;
mod mtu;
mod store;
mod scale;
