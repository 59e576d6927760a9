//! The `podnet` binary: CNI plugin if `CNI_COMMAND` is set, command line (and daemon) otherwise.

fn main() -> std::process::ExitCode {
    if std::env::var_os("CNI_COMMAND").is_some() { podnet::cni::run() } else { podnet::cli::run() }
}
