//! containerd and podman on a machine, with podnet's image.

use std::process::Command;

use crate::{
    artefacts,
    machine::{Machine, output, poll},
};

const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where the machine has the image's archive.
pub(crate) const ARCHIVE: &str = "/tmp/image.tar";

/// Returns the image's name.
pub(crate) fn image() -> String {
    format!("podnet.test/podnet:{}", artefacts::version().trim().trim_start_matches("podnet "))
}

/// A containerd that has podnet's image.
pub(crate) struct Containerd<'machine> {
    machine: &'machine Machine,
}

impl<'machine> Containerd<'machine> {
    /// Starts containerd on a machine, and imports the image.
    pub(crate) fn start(machine: &'machine Machine) -> Self {
        // The CRI plugin would look at the machine's devices and firewall.
        let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \
                      \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
                      \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
                      [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n";
        machine.shell_with_input("cat > /run/containerd.toml", config.as_bytes());
        machine.serve("containerd", "containerd", &["--config", "/run/containerd.toml"]);
        let containerd = Self { machine };
        poll("containerd answers", || output(containerd.ctr().arg("version")));
        machine.copy(&artefacts::ending("-oci.tar"), ARCHIVE);
        let imported = containerd.run(&["images", "import", "--digests", ARCHIVE]);
        assert!(imported.contains(&image()), "{imported}");
        containerd
    }

    fn ctr(&self) -> Command {
        let mut command = self.machine.command("ctr");
        command.args(["--address", SOCKET]);
        command
    }

    /// Runs `ctr` and returns what it prints.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        self.try_run(args).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `ctr` and returns what it prints, or what went wrong.
    pub(crate) fn try_run(&self, args: &[&str]) -> Result<String, String> {
        output(self.ctr().args(args))
    }

    /// Starts a container that goes on; its output goes to `NAME.log`. For `ctr`, arguments replace the entry point.
    pub(crate) fn serve(&self, name: &str, options: &[String], args: &[&str]) {
        let mut all: Vec<String> = ["--address", SOCKET, "run", "--rm"].map(String::from).to_vec();
        all.extend(["--cgroup".into(), format!("/{}/{name}", self.machine.id())]);
        all.extend(options.iter().cloned());
        all.extend([image(), name.to_owned()]);
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.machine.serve(name, "ctr", &all.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Runs a program of the image to its end, without a network.
    pub(crate) fn once(&self, name: &str, args: &[&str]) -> String {
        let (cgroup, image) = (format!("/{}/{name}", self.machine.id()), image());
        self.run(&[&["run", "--rm", "--read-only", "--cgroup", &cgroup, &image, name], args].concat())
    }

    /// Runs a program of the image inside of a container that runs.
    pub(crate) fn exec(&self, name: &str, args: &[&str]) -> Result<String, String> {
        let id = format!("exec-{}", std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()));
        self.try_run(&[&["task", "exec", "--exec-id", &id, name], args].concat())
    }

    /// Stops a container, as a kubelet does, and returns when it is gone.
    pub(crate) fn stop(&self, name: &str) {
        self.run(&["task", "kill", "--signal", "SIGTERM", name]);
        poll(&format!("container {name} ends"), || {
            let left = self.run(&["containers", "list", "--quiet"]);
            if left.lines().any(|line| line == name) { Err(left) } else { Ok(()) }
        });
    }
}
