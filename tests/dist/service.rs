//! What systemd relies on: the unit's notifications. The test stands in for systemd; none is started.

use std::{os::unix::net::UnixDatagram, time::Duration};

use crate::machine::{Machine, poll};

const CONFIG: &str = "node = \"node1\"\npod-cidrs = [\"10.244.1.0/24\"]\nbpffs = \"/sys/fs/bpf/podnet\"\n";

/// Returns the next message that has a line.
fn wait_for(socket: &UnixDatagram, line: &str) -> String {
    let mut buffer = [0; 1024];
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no message with {line}: {error}"));
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.lines().any(|one| one == line) {
            return message;
        }
    }
}

#[test]
fn a_daemon_that_waits_for_its_pod_cidrs_is_up_and_lives() {
    let machine = Machine::start();
    machine.copy(&harness::binary(), "/usr/bin/podnet");
    machine.shell("chmod 755 /usr/bin/podnet; mkdir -p /etc/podnet");
    // Nobody listens there.
    let config = "node = \"node1\"\ncluster-cidrs = [\"10.244.0.0/16\"]\nbpffs = \"/sys/fs/bpf/podnet\"\n\
                  [store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:9\"]\n\
                  node-addresses = [\"192.0.2.1\"]\n";
    machine.shell_with_input("cat > /etc/podnet/podnet.toml", config.as_bytes());
    let socket = UnixDatagram::bind(machine.path("/run/notify")).expect("bind the socket of the service manager");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("limit the wait");
    let script =
        "export NOTIFY_SOCKET=/run/notify WATCHDOG_USEC=500000; unset WATCHDOG_PID; exec podnet daemon --install";
    machine.serve("daemon", "sh", &["-c", script]);

    let message = wait_for(&socket, "READY=1");
    assert!(message.lines().any(|line| line.starts_with("STATUS=waiting: ")), "{message}");
    for _ in 0..3 {
        wait_for(&socket, "WATCHDOG=1");
    }
    machine.shell("! test -e /etc/cni/net.d/10-podnet.conflist");
}

#[test]
fn systemd_is_told_that_the_daemon_serves_lives_and_ends() {
    let machine = Machine::start();
    machine.copy(&harness::binary(), "/usr/bin/podnet");
    machine.shell("chmod 755 /usr/bin/podnet; mkdir -p /etc/podnet");
    machine.shell_with_input("cat > /etc/podnet/podnet.toml", CONFIG.as_bytes());
    let socket = UnixDatagram::bind(machine.path("/run/notify")).expect("bind the socket of the service manager");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("limit the wait");
    let script = "echo $$ > /run/daemon.pid; export NOTIFY_SOCKET=/run/notify WATCHDOG_USEC=500000; unset WATCHDOG_PID; \
                  exec podnet daemon --install";
    machine.serve("daemon", "sh", &["-c", script]);

    wait_for(&socket, "READY=1");
    machine.shell("podnet status");
    for _ in 0..3 {
        wait_for(&socket, "WATCHDOG=1");
    }
    poll("the plugin is installed", || machine.try_shell("test -f /etc/cni/net.d/10-podnet.conflist"));
    machine.shell("kill $(cat /run/daemon.pid)");
    wait_for(&socket, "STOPPING=1");
    machine.shell("test -f /etc/cni/net.d/10-podnet.conflist");
}
