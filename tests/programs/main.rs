//! The eBPF programs one by one under `BPF_PROG_TEST_RUN`: packet in; action, verdict, counters and packet out.
//!
//! Needs root and the built object (`cargo xtask build-ebpf`). Each test has a thread with network and mount namespaces
//! of its own, so tests run in parallel and leave nothing behind.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests panic, and keep the backtrace")]

mod fixture;
mod cluster;
mod packets;
mod forwarding;
mod arp;
mod neighbor;
mod vlan;
mod malformed;
mod flows;
mod remote;
mod uplink;
mod node_flows;
mod errors;
mod events;
mod pins;
mod live;
mod devices;
mod tcx;
mod wire;
mod cost;
