//! The eBPF path seen from user space: load and pin, typed maps, drop events, log lines. The only place that uses aya.
//!
//! [`device`] attaches programs to uplinks and to the overlay device. The filters of pods' veths are shared, and attached
//! over netlink with the descriptors that [`loader::Datapath`] hands out.

pub mod loader;
pub mod layouts;
pub mod features;
pub mod device;
pub mod maps;
pub mod events;
pub mod logs;
pub mod object;
