//! The store `kubernetes` against a fake API server that answers as a real one does, over real HTTP and TLS; daemons of a
//! cluster that follow it; and the manifests of `deploy/kubernetes`. Everything runs inside of network namespaces that
//! the tests make.
#![expect(clippy::unwrap_used, reason = "test code panics")]

mod access;
mod api;
mod condition;
mod contained;
mod daemon;
mod faults;
mod follower;
mod manifests;
mod objects;
mod scale;
mod state;
mod store;
mod tls;
