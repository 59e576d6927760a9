//! containerd on a node, driven by its own client `ctr`, whose `--cni` calls the plugins of `/etc/cni/net.d` and
//! `/opt/cni/bin` as the CRI plugin does.
//!
//! What `ctr` 1.6.20 does: it calls ADD itself, in its own namespaces, with the ID `NAMESPACE-NAME` and the netns
//! `/proc/PID/ns/net`. With `--detach` it never calls DEL, so pods are started in the foreground here; then it calls
//! DEL after the process has ended, with an empty CNI_NETNS. Debian adds `/usr/lib/cni` to CNI_PATH.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use crate::{
    Runtime, image,
    node::{Node, Service, output, poll, require_command, try_output},
};

const SOCKET: &str = "/run/containerd/containerd.sock";

/// A containerd that runs on a node.
pub(crate) struct Containerd<'node> {
    node: &'node Node,
    _service: Service<'node>,
    pods: RefCell<Vec<(String, Child)>>,
    /// Parent of the pods' cgroups: the only thing of them that the machine sees.
    cgroup: String,
}

impl<'node> Containerd<'node> {
    /// Starts containerd without its CRI plugin and gives it the image of the pods.
    pub(crate) fn start(node: &'node Node) -> Self {
        Self::start_with(node, "\"io.containerd.grpc.v1.cri\",", "default")
    }

    /// Starts containerd with its CRI plugin and gives it the image of the pods.
    pub(crate) fn start_cri(node: &'node Node) -> Self {
        Self::start_with(node, "", "k8s.io")
    }

    fn start_with(node: &'node Node, disabled: &str, namespace: &str) -> Self {
        require_command("containerd", "containerd");
        require_command("ctr", "containerd");
        require_command("runc", "runc");
        let private = node.private();
        let config = node.dir().join("containerd.toml");
        std::fs::write(&config, configuration(&private, disabled)).expect("write containerd's configuration");
        let service = node.serve("containerd", Path::new("containerd"), &["--config".as_ref(), config.as_os_str()]);
        let id = node.dir().file_name().expect("the node's folder has a name").to_string_lossy().into_owned();
        let containerd = Self { node, _service: service, pods: RefCell::default(), cgroup: id };
        poll("containerd answers", Duration::from_secs(30), || try_output(containerd.ctr().arg("version")));
        let image = image::pack(node.dir());
        output(containerd.ctr().args(["--namespace", namespace, "image", "import"]).arg(image));
        containerd
    }

    /// Returns the parent of the pods' cgroups.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Returns the path by which the machine reaches containerd's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.node.path_from_outside(SOCKET)
    }

    fn ctr(&self) -> Command {
        let mut command = self.node.command("ctr");
        command.args(["--address", SOCKET]);
        command
    }

    /// Starts a pod through CNI and returns when its process runs, which is after ADD.
    pub(crate) fn run(&self, name: &str) {
        let mut command = self.ctr();
        command.args(["run", "--rm", "--cni", "--null-io", "--cgroup", &format!("/{}/{name}", self.cgroup)]);
        command.args([image::NAME, name, "sleep", "600"]);
        let mut child = self.node.spawn(command, &format!("ctr-{name}.log"));
        poll(&format!("pod {name} runs"), Duration::from_secs(30), || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("`ctr run` of pod {name} ended, {status}: {}", self.node.log(&format!("ctr-{name}.log")));
            }
            self.try_exec(name, &["true"])
        });
        self.pods.borrow_mut().push((name.to_owned(), child));
    }

    fn try_exec(&self, name: &str, command: &[&str]) -> Result<String, String> {
        let id = format!("exec-{}", std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()));
        try_output(self.ctr().args(["task", "exec", "--exec-id", &id, name]).args(command))
    }

    /// Kills a pod's process and returns when the runtime has called DEL and removed the pod.
    pub(crate) fn stop(&self, name: &str) {
        output(self.ctr().args(["task", "kill", "--signal", "KILL", name]));
        let mut pods = self.pods.borrow_mut();
        let position = pods.iter().position(|(other, _)| other == name).expect("the pod was started");
        let (_, mut child) = pods.remove(position);
        poll(&format!("pod {name} ends"), Duration::from_secs(30), || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        // `ctr` prints why DEL failed, and ends as the pod's process did in any case.
        let log = self.node.log(&format!("ctr-{name}.log"));
        assert!(!log.contains("cni") && !log.contains("failed"), "`ctr run` of pod {name} complains: {log}");
        let left = output(self.ctr().args(["containers", "list", "--quiet"]));
        assert!(!left.lines().any(|line| line == name), "containerd still lists pod {name}");
    }
}

impl Runtime<&str> for Containerd<'_> {
    fn exec(&self, pod: &&str, command: &[&str]) -> String {
        self.try_exec(pod, command).unwrap_or_else(|error| panic!("{error}"))
    }

    fn addresses(&self, pod: &&str) -> Vec<String> {
        crate::shown_addresses(&self.exec(pod, &["ip", "-o", "address", "show", "dev", "eth0"]))
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let names: Vec<String> = self.pods.borrow().iter().map(|(name, _)| name.clone()).collect();
        for name in names {
            if let Err(error) = try_output(self.ctr().args(["task", "kill", "--signal", "KILL", &name])) {
                eprintln!("{error}");
            }
        }
        for (_, child) in self.pods.get_mut() {
            child.wait().map_or_else(|error| eprintln!("wait for ctr: {error}"), drop);
        }
        remove_cgroups(&self.cgroup);
    }
}

/// Removes the pods' parent cgroup from every hierarchy. runc removes the pods' own, but not the parent.
pub(crate) fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    for folder in hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(name)) {
        if folder.is_dir()
            && let Err(error) = std::fs::remove_dir(&folder)
        {
            eprintln!("remove cgroup {}: {error}", folder.display());
        }
    }
}

/// Returns a configuration whose folders are all private to the node.
fn configuration(private: &Path, disabled: &str) -> String {
    let private = private.display();
    format!(
        r#"version = 2
root = "{private}/containerd-root"
state = "{private}/containerd-state"
disabled_plugins = [
    {disabled} "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
# A root without CAP_SYS_RESOURCE may not lower oom_score_adj.
restrict_oom_score_adj = true
disable_apparmor = true
# Imported; nothing is ever pulled.
sandbox_image = "{image}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#,
        image = image::NAME
    )
}
