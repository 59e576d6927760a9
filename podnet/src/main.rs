//! The `podnet` binary: CNI plugin if `CNI_COMMAND` is set, command line (and daemon) otherwise.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a runtime execs the plugin several times per pod, so nothing is set up before this.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return podnet::cni::run();
    }
    ExitCode::SUCCESS
}
