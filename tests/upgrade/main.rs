//! Another podnet takes a node over while its pods talk: programs, links and maps change hands, and no packet is lost.
//!
//! Run as root: `cargo test -p podnet-tests --test upgrade`, after `cargo build -p podnet`. The folder of the pins says
//! which version of the layouts a node has; so a node of another version is made by renaming it.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod traffic;
mod layouts;
mod takeover;
