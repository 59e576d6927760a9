//! podman on a node, with its CNI backend.
//!
//! What podman 4.3.1 does: it makes the namespace `/run/netns/netns-UUID`, calls ADD with the container's ID and name and,
//! for published ports, `portMappings`; `podman restart` is DEL and ADD with the same ID; each `podman stop` and `rm`
//! calls DEL once.

use std::{path::PathBuf, process::Command};

use crate::{
    Runtime,
    containerd::remove_cgroups,
    image,
    node::{Node, output, require_command},
};

/// A podman whose folders are all private to a node.
pub(crate) struct Podman<'node> {
    node: &'node Node,
    config: PathBuf,
    /// Parent of the containers' cgroups: the only thing of them that the machine sees.
    cgroup: String,
}

impl<'node> Podman<'node> {
    /// Configures podman and gives it the image of the pods.
    pub(crate) fn new(node: &'node Node) -> Self {
        require_command("podman", "podman");
        require_command("runc", "runc");
        let config = node.dir().join("containers.conf");
        let text = "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/opt/cni/bin\"]\n\
                    [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"none\"\n\
                    [containers]\nlog_driver = \"k8s-file\"\n";
        std::fs::write(&config, text).expect("write podman's configuration");
        let cgroup = node.dir().file_name().expect("the node's folder has a name").to_string_lossy().into_owned();
        let podman = Self { node, config, cgroup };
        output(podman.command().args(["load", "--quiet", "--input"]).arg(image::pack(node.dir())));
        podman
    }

    fn command(&self) -> Command {
        let mut command = self.node.command("podman");
        let private = self.node.private();
        command.env("CONTAINERS_CONF", &self.config).env("TMPDIR", &private);
        command.arg("--root").arg(private.join("podman-root")).arg("--runroot").arg(private.join("podman-runroot"));
        command.arg("--tmpdir").arg(private.join("podman-tmp")).args(["--storage-driver", "vfs"]);
        command.args(["--network-config-dir", "/etc/cni/net.d"]);
        command
    }

    /// Runs a container that serves a page, on podnet's network; its port 8080 is published at the host port.
    pub(crate) fn run(&self, name: &str, host_port: Option<u16>) {
        let mut command = self.command();
        command.args(["run", "--detach", "--pull", "never", "--network", "podnet", "--name", name]);
        command.arg(format!("--cgroup-parent=/{}", self.cgroup)).args(["--cgroups", "no-conmon"]);
        if let Some(port) = host_port {
            command.args(["--publish", &format!("{port}:8080")]);
        }
        command.args([image::NAME, "httpd", "-f", "-p", "8080", "-h", "/www"]);
        output(&mut command);
    }

    /// Restarts a container.
    pub(crate) fn restart(&self, name: &str) {
        output(self.command().args(["restart", "--time", "0", name]));
    }

    /// Stops and removes a container.
    pub(crate) fn remove(&self, name: &str) {
        output(self.command().args(["rm", "--force", "--time", "0", name]));
    }
}

impl Runtime<&str> for Podman<'_> {
    fn exec(&self, pod: &&str, command: &[&str]) -> String {
        output(self.command().args(["exec", pod]).args(command))
    }

    fn addresses(&self, pod: &&str) -> Vec<String> {
        crate::shown_addresses(&self.exec(pod, &["ip", "-o", "address", "show", "dev", "eth0"]))
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        if let Err(error) = crate::node::try_output(self.command().args(["rm", "--all", "--force", "--time", "0"])) {
            eprintln!("{error}");
        }
        remove_cgroups(&self.cgroup);
    }
}
