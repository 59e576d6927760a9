//! What the build and the test suites need from the distribution, and why: the one list of it.

use std::path::Path;

use crate::process::find_command;

/// How the presence of a package is seen, whichever way it was installed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Provides {
    /// A command in `PATH` or in a folder of system commands.
    Command(&'static str),
    /// A file.
    File(&'static str),
}

impl Provides {
    fn is_present(self) -> bool {
        match self {
            Self::Command(name) => find_command(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// A package, how its presence is seen, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// Name in Debian and Ubuntu.
    pub(crate) name: &'static str,
    /// How its presence is seen.
    pub(crate) provides: Provides,
    /// What it is for.
    pub(crate) reason: &'static str,
}

/// Packages that every build needs, besides the eBPF toolchain (`toolchain` and `linker` choose those).
pub(crate) const BUILD: &[Package] = &[
    Package { name: "gcc", provides: Provides::Command("cc"), reason: "links Rust programs; compiles SQLite" },
    Package { name: "libc6-dev", provides: Provides::File("/usr/include/stdio.h"), reason: "headers for SQLite" },
    Package {
        name: "protobuf-compiler",
        provides: Provides::Command("protoc"),
        reason: "compiles etcd's protocol, which etcd-client brings as .proto files",
    },
];

/// Packages that `dist` takes parts from.
pub(crate) const DIST: &[Package] = &[
    Package { name: "nftables", provides: Provides::Command("nft"), reason: "the image's `nft`, for masquerading" },
    Package {
        name: "ca-certificates",
        provides: Provides::File("/etc/ssl/certs/ca-certificates.crt"),
        reason: "the image's certificate authorities",
    },
];

/// Packages that the privileged test suites and the lab need.
pub(crate) const TESTS: &[Package] = &[
    Package {
        name: "iproute2",
        provides: Provides::Command("ip"),
        reason: "tests compare podnet's links, addresses and routes with what `ip -j` and `tc` show",
    },
    Package {
        name: "iputils-ping",
        provides: Provides::Command("ping"),
        reason: "reachability, MTU and loss between pods",
    },
    Package {
        name: "iperf3",
        provides: Provides::Command("iperf3"),
        reason: "TCP and UDP streams that must survive faults",
    },
    Package {
        name: "iptables",
        provides: Provides::Command("iptables"),
        reason: "DNAT as kube-proxy does it: replies must come back translated",
    },
    Package { name: "nftables", provides: Provides::Command("nft"), reason: "podnet's own table on the kernel path" },
    Package { name: "conntrack", provides: Provides::Command("conntrack"), reason: "which flows the kernel path saw" },
    Package { name: "tcpdump", provides: Provides::Command("tcpdump"), reason: "what arrives on a pod's interface" },
    Package { name: "ethtool", provides: Provides::Command("ethtool"), reason: "offloads of veths" },
    Package {
        name: "bpftool",
        provides: Provides::Command("bpftool"),
        reason: "a second opinion on maps and programs",
    },
    Package { name: "procps", provides: Provides::Command("sysctl"), reason: "sysctls inside network namespaces" },
    Package {
        name: "util-linux",
        provides: Provides::Command("nsenter"),
        reason: "runs commands in the namespaces of a node or a pod",
    },
    Package {
        name: "etcd-server",
        provides: Provides::Command("etcd"),
        reason: "suite `etcd`: real servers, which are killed, cut off and emptied",
    },
    Package {
        name: "etcd-client",
        provides: Provides::Command("etcdctl"),
        reason: "suite `etcd`: what the servers hold, seen and changed beside podnet",
    },
    Package {
        name: "openssl",
        provides: Provides::Command("openssl"),
        reason: "suite `etcd`: certificates of servers and clients",
    },
    Package {
        name: "strace",
        provides: Provides::Command("strace"),
        reason: "lets system calls of the daemon fail as on a kernel that lacks or forbids them",
    },
    Package {
        name: "containerd",
        provides: Provides::Command("containerd"),
        reason: "suite `runtimes`: a real runtime that calls the installed plugin",
    },
    Package {
        name: "podman",
        provides: Provides::Command("podman"),
        reason: "suite `runtimes`: another runtime, with its CNI backend; suite `dist`: loads and runs the image",
    },
    Package { name: "runc", provides: Provides::Command("runc"), reason: "suite `runtimes`: starts containerd's pods" },
    Package {
        name: "containernetworking-plugins",
        provides: Provides::File("/usr/lib/cni/bridge"),
        reason: "suites `runtimes` and `provision`: the reference plugins bridge and host-local to compare with",
    },
    Package {
        name: "busybox-static",
        provides: Provides::Command("busybox"),
        reason: "suite `runtimes`: the image of the test pods",
    },
    Package {
        name: "lintian",
        provides: Provides::Command("lintian"),
        reason: "suite `dist`: what Debian says of the package",
    },
    Package {
        name: "systemd",
        provides: Provides::Command("systemd-analyze"),
        reason: "suite `dist`: `systemd-analyze verify` reads the unit; no systemd is started",
    },
];

/// Packages that `vm-test` needs.
pub(crate) const VM: &[Package] = &[
    Package {
        name: "qemu-system-x86",
        provides: Provides::Command("qemu-system-x86_64"),
        reason: "the machine that another kernel boots in",
    },
    Package {
        name: "busybox-static",
        provides: Provides::Command("busybox"),
        reason: "the shell and the commands of that machine",
    },
    Package { name: "nftables", provides: Provides::Command("nft"), reason: "podnet's own table on the kernel path" },
    Package {
        name: "iproute2",
        provides: Provides::Command("ip"),
        reason: "the program tests make interfaces with it",
    },
];

/// Returns the packages of a list that are absent.
pub(crate) fn missing(packages: &[Package]) -> Vec<Package> {
    packages.iter().filter(|package| !package.provides.is_present()).copied().collect()
}
