//! Programs inside a network namespace, in this process' mount namespace: unlike `ip netns exec`, which mounts a new
//! /sys, they see the bpffs. And sysctls and /proc files of a namespace.

use std::process::Command;

use podnet::netns::Netns;

use crate::Family;

/// Runs a program and returns what it printed; panics if it fails.
pub fn run(netns: &Netns, program: &str, arguments: &[&str]) -> String {
    try_run(netns, program, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a program and returns what it printed.
///
/// # Errors
///
/// What it printed when it failed.
pub fn try_run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = match netns.run(|| Ok(Command::new(program).args(arguments).output())).unwrap() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("{program} is missing: install the package {}", package(program))
        }
        Err(error) => panic!("start {program}: {error}"),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}: {printed}{errors}", arguments.join(" "), output.status))
}

fn package(program: &str) -> &str {
    match program {
        "ip" | "tc" | "bridge" | "ss" => "iproute2",
        "iptables" | "ip6tables" => "iptables",
        "nft" => "nftables",
        other => other,
    }
}

/// Runs `ip` with arguments that are separated by blanks.
pub fn ip(netns: &Netns, arguments: &str) -> String {
    run(netns, "ip", &arguments.split_ascii_whitespace().collect::<Vec<_>>())
}

/// Runs `iptables` or `ip6tables` in a network namespace.
pub fn iptables(netns: &Netns, family: Family, arguments: &str) -> String {
    let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
    // -w: tests of other namespaces share the lock file.
    let arguments: Vec<_> = std::iter::once("-w").chain(arguments.split_ascii_whitespace()).collect();
    run(netns, program, &arguments)
}

/// Reads a file below `/proc` as a network namespace shows it: `net` is replaced by that of the reading thread.
pub fn read_proc(netns: &Netns, path: &str) -> String {
    let path = path.replacen("/proc/net/", "/proc/thread-self/net/", 1);
    netns.run(|| Ok(std::fs::read_to_string(&path)?)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// Sets a sysctl below `net` of a network namespace.
pub fn set_sysctl(netns: &Netns, name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    netns.run(|| Ok(std::fs::write(&path, value)?)).unwrap_or_else(|error| panic!("write {value} to {path}: {error}"));
}

/// Returns the value of a sysctl below `net` of a network namespace; `-` if there is none.
pub fn read_sysctl(netns: &Netns, name: &str) -> String {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let value = netns.run(|| Ok(std::fs::read_to_string(&path).unwrap_or_else(|_| "-".into()))).unwrap();
    value.trim_end().to_owned()
}
