//! containerd on a node, driven by its own client `ctr`, whose `--cni` calls the plugins of `/etc/cni/net.d` and
//! `/opt/cni/bin` as the CRI plugin does.
//!
//! What `ctr` 1.6.20 does: it calls ADD itself, in its own namespaces, with the ID `NAMESPACE-NAME` and the netns
//! `/proc/PID/ns/net`. With `--detach` it never calls DEL, so pods are started in the foreground here; then it calls
//! DEL after the process has ended, with an empty CNI_NETNS. Debian adds `/usr/lib/cni` to CNI_PATH.

use std::{
    cell::RefCell,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use crate::node::{Node, Service, output, poll, require_command, try_output};

const IMAGE: &str = "podnet.test/busybox:1";
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
    /// Starts containerd and gives it the image of the pods.
    pub(crate) fn start(node: &'node Node) -> Self {
        require_command("containerd", "containerd");
        require_command("ctr", "containerd");
        require_command("runc", "runc");
        let private = node.private();
        let config = node.dir().join("containerd.toml");
        std::fs::write(&config, configuration(&private)).expect("write containerd's configuration");
        let service = node.serve("containerd", Path::new("containerd"), &["--config".as_ref(), config.as_os_str()]);
        let id = node.dir().file_name().expect("the node's folder has a name").to_string_lossy().into_owned();
        let containerd = Self { node, _service: service, pods: RefCell::default(), cgroup: id };
        poll("containerd answers", Duration::from_secs(30), || try_output(containerd.ctr().arg("version")));
        let image = pack_image(node.dir());
        output(containerd.ctr().args(["image", "import"]).arg(image));
        containerd
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
        command.args([IMAGE, name, "sleep", "600"]);
        let mut child = self.node.spawn(command, &format!("ctr-{name}.log"));
        poll(&format!("pod {name} runs"), Duration::from_secs(30), || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("`ctr run` of pod {name} ended, {status}: {}", self.node.log(&format!("ctr-{name}.log")));
            }
            self.try_exec(name, &["true"])
        });
        self.pods.borrow_mut().push((name.to_owned(), child));
    }

    /// Runs a command in a pod and returns its output.
    pub(crate) fn exec(&self, name: &str, command: &[&str]) -> String {
        self.try_exec(name, command).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_exec(&self, name: &str, command: &[&str]) -> Result<String, String> {
        let id = format!("exec-{}", std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos()));
        try_output(self.ctr().args(["task", "exec", "--exec-id", &id, name]).args(command))
    }

    /// Returns the addresses of a pod's `eth0` that are not link-local.
    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        let text = self.exec(name, &["ip", "-o", "address", "show", "dev", "eth0"]);
        let mut addresses = Vec::new();
        for line in text.lines().filter(|line| !line.contains("scope link")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let position = words.iter().position(|word| word.starts_with("inet"));
            let address = position.and_then(|at| words.get(at + 1)).and_then(|cidr| cidr.split('/').next());
            addresses.push(address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned());
        }
        assert!(!addresses.is_empty(), "pod {name} has no address: {text}");
        addresses
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
fn remove_cgroups(name: &str) {
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
fn configuration(private: &Path) -> String {
    let private = private.display();
    format!(
        r#"version = 2
root = "{private}/containerd-root"
state = "{private}/containerd-state"
# The image is imported and `ctr` calls CNI itself. The CRI plugin would look at the machine's devices and firewall.
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{SOCKET}"

# In force only for who enables the CRI plugin: a root without CAP_SYS_RESOURCE may not lower oom_score_adj.
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
"#
    )
}

/// Packs a docker archive: one layer with a static busybox.
fn pack_image(dir: &Path) -> std::path::PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.expect("busybox is missing: install the package busybox-static");
    let script = r#"set -e
mkdir -p root/bin root/www root/tmp
cp "$1" root/bin/busybox
for name in sh sleep true ping ip nc httpd; do ln -s busybox "root/bin/$name"; done
echo podnet > root/www/index.html
tar --directory root --create --file layer.tar .
digest=$(sha256sum layer.tar | cut -d' ' -f1)
architecture=$(dpkg --print-architecture 2>/dev/null || uname -m)
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","600"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$architecture" "$digest" > config.json
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" > manifest.json
tar --create --file image.tar manifest.json config.json layer.tar"#;
    let image = dir.join("image");
    std::fs::create_dir(&image).expect("make the image's folder");
    output(Command::new("sh").current_dir(&image).args(["-c", script, "sh", busybox, IMAGE]));
    image.join("image.tar")
}
