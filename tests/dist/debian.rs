//! The Debian package, installed by dpkg on a machine of its own.

use crate::{
    artefacts,
    machine::{Machine, output},
};

const SERVICE: &str = "/usr/lib/systemd/system/podnet.service";

/// Installs the package. Its dependency, nftables, is there already: the suites need it.
fn install(machine: &Machine) {
    machine.copy(&artefacts::ending(".deb"), "/tmp/podnet.deb");
    machine.shell("dpkg --install /tmp/podnet.deb 2>&1");
}

#[test]
fn the_package_is_described() {
    let package = artefacts::ending(".deb").to_string_lossy().into_owned();
    let info = artefacts::run("dpkg-deb", &["--info", &package]);
    for line in [" Package: podnet", " Depends: nftables", " Section: net"] {
        assert!(info.contains(line), "{line}: {info}");
    }
    let contents = artefacts::run("dpkg-deb", &["--contents", &package]);
    for (mode, path) in [
        ("-rwxr-xr-x root/root", "./usr/bin/podnet"),
        ("-rw-r--r-- root/root", "./etc/podnet/podnet.toml"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/podnet.service"),
        ("-rw-r--r-- root/root", "./usr/share/bash-completion/completions/podnet"),
    ] {
        assert!(contents.lines().any(|line| line.starts_with(mode) && line.ends_with(path)), "{path}: {contents}");
    }
}

#[test]
fn lintian_finds_nothing() {
    let package = artefacts::ending(".deb").to_string_lossy().into_owned();
    // As root it warns of being root.
    let found = artefacts::run("lintian", &["--allow-root", "--fail-on", "none", "--no-tag-display-limit", &package]);
    // The suite's package is of the profile `release`, which keeps the names of functions; `dist` does not.
    let faults: Vec<&str> = found.lines().filter(|line| !line.contains(" unstripped-binary-or-object ")).collect();
    assert!(faults.iter().all(|line| line.is_empty() || line.starts_with("N: ")), "{found}");
}

#[test]
fn it_is_installed_upgraded_removed_and_purged() {
    let machine = Machine::start();
    install(&machine);
    assert_eq!(machine.shell("/usr/bin/podnet --version"), artefacts::version());
    assert_eq!(machine.shell("dpkg-query --show --showformat='${Status}' podnet"), "install ok installed");
    machine.shell("dpkg --verify podnet");
    // An installation alone changes nothing of a node: it has no pod CIDRs of its own yet.
    assert_eq!(machine.shell("systemctl is-enabled podnet.service || true").trim(), "disabled");
    let complaints = machine.shell(&format!("systemd-analyze verify --man=no {SERVICE} 2>&1"));
    assert_eq!(complaints.trim(), "");
    machine.shell("systemctl enable podnet.service 2>&1");
    let link = machine.shell("readlink -f /etc/systemd/system/multi-user.target.wants/podnet.service");
    assert!(link.trim().ends_with(SERVICE), "{link}");

    // What the administrator changed outlives an upgrade; so does that the service is enabled.
    machine.shell("echo '# changed' >> /etc/podnet/podnet.toml; podnet install >/dev/null; mkdir -p /var/lib/podnet");
    install(&machine);
    machine.shell("grep -q '^# changed' /etc/podnet/podnet.toml; systemctl --quiet is-enabled podnet.service");
    machine.shell("test -x /opt/cni/bin/podnet; test -f /etc/cni/net.d/10-podnet.conflist");

    machine.shell("dpkg --remove podnet 2>&1");
    machine.shell("test -f /etc/podnet/podnet.toml; test -d /var/lib/podnet; ! test -e /usr/bin/podnet");
    machine.shell("! test -e /opt/cni/bin/podnet; ! test -e /etc/cni/net.d/10-podnet.conflist");
    machine.shell("dpkg --purge podnet 2>&1");
    assert_eq!(machine.shell("find /usr /etc /var/lib /opt -name '*podnet*'"), "", "left behind");
}

#[test]
fn a_machine_is_private() {
    let machine = Machine::start();
    machine.shell("touch /etc/podnet-was-here");
    assert!(!std::path::Path::new("/etc/podnet-was-here").exists());
    assert_eq!(output(machine.command("sh").args(["-c", "ip -o link | wc -l"])).as_deref(), Ok("1\n"));
}
