//! A podnet daemon on a node, and the command line that talks to it.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::Value;

use crate::node::{Node, Service, output, poll, try_output};

/// A daemon that runs on a node. Dropping it stops it.
pub(crate) struct Daemon<'node> {
    node: &'node Node,
    binary: PathBuf,
    socket: PathBuf,
    service: Service<'node>,
}

impl<'node> Daemon<'node> {
    /// Starts a daemon for the pod CIDRs of the reference cluster's first node, and waits until it is ready.
    pub(crate) fn start(node: &'node Node) -> Self {
        let private = node.private();
        let socket = private.join("podnet/podnet.sock");
        let config = node.dir().join("podnet.toml");
        let text = format!(
            "node = \"node1\"\npod-cidrs = [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]\nsocket = \"{}\"\n\
             state-dir = \"{}\"\nbpffs = \"{}\"\n",
            socket.display(),
            private.join("state").display(),
            private.join("bpf").display(),
        );
        std::fs::write(&config, text).expect("write the daemon's configuration");
        let binary = harness::binary();
        let args = ["daemon".as_ref(), "--config".as_ref(), config.as_os_str()];
        let service = node.serve("daemon", &binary, &args);
        let mut daemon = Self { node, binary, socket, service };
        poll("the daemon is ready", Duration::from_secs(30), || {
            daemon.service.assert_alive();
            let text = try_output(&mut daemon.podnet(&["status", "-o", "json"]))?;
            let status: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            if status["ready"] == true { Ok(()) } else { Err(text) }
        });
        daemon
    }

    /// Stops the daemon.
    pub(crate) fn stop(&self) {
        self.service.stop();
    }

    /// Returns a `podnet` command that runs on the node and talks to this daemon.
    pub(crate) fn podnet(&self, args: &[&str]) -> Command {
        let mut command = self.node.command(&self.binary);
        command.args(args).env("PODNET_SOCKET", &self.socket);
        command
    }

    /// Installs the plugin and the network configuration in the node's private `/opt/cni/bin` and `/etc/cni/net.d`.
    pub(crate) fn install(&self) {
        output(self.podnet(&["install", "--socket"]).arg(&self.socket));
    }

    /// Runs a `podnet` command and returns the JSON that it prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = output(&mut self.podnet(args));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("podnet {args:?}: {error}: {text}"))
    }

    /// Returns the packets of a verdict or drop reason.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.json(&["status", "-o", "json"]);
        let counters = status["datapath"]["counters"].as_array().expect("a list of counters");
        counters
            .iter()
            .find(|counter| counter["name"] == name)
            .and_then(|counter| counter["packets"].as_u64())
            .unwrap_or(0)
    }
}
