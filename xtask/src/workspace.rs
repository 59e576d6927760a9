//! Where things lie in the workspace, and the cargo that runs this program.

use std::path::{Path, PathBuf};

use crate::process::Cmd;

/// Returns the folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns cargo's target folder.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Returns where the finished eBPF object lies; the build of `podnet` and the tests read it there.
pub(crate) fn ebpf_object() -> PathBuf {
    target().join("bpf/podnet-ebpf.o")
}

/// Returns a command that runs, in the workspace's folder, the cargo that runs this program.
pub(crate) fn cargo() -> Cmd {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Cmd::new(cargo).shown_as("cargo").dir(root())
}

/// Returns a path as seen from the workspace's folder, where commands run.
pub(crate) fn relative(path: &Path) -> &Path {
    path.strip_prefix(root()).unwrap_or(path)
}
