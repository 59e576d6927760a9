//! What `cargo xtask dist` makes: the package installed by dpkg, the image run by containerd and podman, and a node
//! whose daemon is a container with the least capabilities.

#![forbid(unsafe_code)]

mod artefacts;
mod containers;
mod debian;
mod image;
mod machine;
mod service;
