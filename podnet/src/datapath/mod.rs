//! The eBPF path seen from user space: load and pin, typed maps, drop events, log lines. The only place that uses aya.
//!
//! Nothing here attaches a program to an interface; that is done over netlink with the descriptors that
//! [`loader::Datapath`] hands out.

pub mod loader;
pub mod maps;
pub mod events;
pub mod logs;
pub mod object;
