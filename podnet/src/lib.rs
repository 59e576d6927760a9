//! podnet gives every pod on a Linux node a network: a unique address per family and a path to every other pod.
//!
//! One binary plays three roles: the CNI plugin (`cni`), the node daemon (`daemon`, whose `engine` owns everything on
//! the node) and the command line (`cli`). The modules stand in reading order; each uses only what stands below it.

pub mod cli;
pub mod daemon;
pub mod lab;
pub mod cni;
pub mod install;
pub mod service_manager;
pub mod api;
pub mod drops;
pub mod engine;
pub mod logging;
pub mod plan;
mod names;
pub mod routing;
pub mod router_config;
pub mod cluster;
pub mod database;
pub mod ipam;
pub mod datapath;
pub mod nft;
pub mod netlink;
pub mod netns;
pub mod config;
