//! A node for tests: mount, network, PID, IPC and UTS namespaces of its own, in which `/run`, `/etc`, `/opt` and `/var` are
//! private. Nothing of it shows on the machine, and killing its first process ends all that runs in it.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Mounts the private folders and then only keeps the namespaces alive. `/etc`, `/opt` and `/var` are overlays: what is
/// installed there stays in the tmpfs, and what the machine has there can still be read.
const FIRST_PROCESS: &str = "set -e
mount -t tmpfs tmpfs \"$1\"
for dir in etc opt var; do
    mkdir -p \"$1/$dir/upper\" \"$1/$dir/work\"
    mount -t overlay overlay -o \"lowerdir=/$dir,upperdir=$1/$dir/upper,workdir=$1/$dir/work\" \"/$dir\"
done
mount -t tmpfs tmpfs /run
mkdir -p /etc/cni/net.d /opt/cni/bin
rm -f /etc/cni/net.d/*
ip link set lo up
echo ready
exec sleep infinity";

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    first: Child,
    dir: TempDir,
}

impl Node {
    /// Starts a node.
    pub(crate) fn start() -> Self {
        require_root();
        for (command, package) in [
            ("unshare", "util-linux"),
            ("nsenter", "util-linux"),
            ("setpriv", "util-linux"),
            ("ip", "iproute2"),
            ("tar", "tar"),
        ] {
            require_command(command, package);
        }
        let dir = tempfile::Builder::new().prefix("podnet-node-").tempdir().expect("make a temporary folder");
        let private = dir.path().join("private");
        std::fs::create_dir(&private).expect("make the folder of the private tmpfs");
        // The signal comes when the thread that started the node ends: a test that dies takes its node along.
        let mut first = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--net", "--pid", "--ipc", "--uts"])
            .args(["--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", FIRST_PROCESS, "sh"])
            .arg(&private)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the node's first process");
        let mut line = String::new();
        let output = first.stdout.take().expect("the output is a pipe");
        BufReader::new(output).read_line(&mut line).expect("read from the node's first process");
        assert_eq!(line, "ready\n", "the node's first process ended early; its errors are above");
        Self { first, dir }
    }

    /// Returns the node's folder, which the machine sees too: for configuration files and logs.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the node's private tmpfs, which only commands on the node see.
    pub(crate) fn private(&self) -> PathBuf {
        self.dir.path().join("private")
    }

    /// Returns a command that runs on the node.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let namespaces = format!("/proc/{}/ns", self.first.id());
        for (option, file) in
            [("mount", "mnt"), ("net", "net"), ("pid", "pid_for_children"), ("ipc", "ipc"), ("uts", "uts")]
        {
            command.arg(format!("--{option}={namespaces}/{file}"));
        }
        command.arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs a shell script on the node and returns its output.
    pub(crate) fn shell(&self, script: &str) -> String {
        let mut command = self.command("sh");
        command.args(["-ec", script]);
        output(&mut command)
    }

    /// Returns the path by which the machine reaches a file of the node.
    pub(crate) fn path_from_outside(&self, path: &str) -> PathBuf {
        // The node's first process is the only child of `unshare`.
        let unshare = self.first.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let children = children.expect("read the children of the node's process");
        let first = children.split_whitespace().next().expect("the node's first process runs");
        PathBuf::from(format!("/proc/{first}/root{path}"))
    }

    /// Makes a host on a network of its own with the node, which has 192.168.1.11 and fd00:192:168:1::11 there.
    pub(crate) fn add_outside(&self) {
        self.shell(
            "ip netns add outside
            ip link add up0 type veth peer name eth0 netns outside
            ip address add 192.168.1.11/24 dev up0
            ip address add fd00:192:168:1::11/64 dev up0 nodad
            ip link set up0 up
            ip -n outside link set lo up
            ip -n outside address add 192.168.1.100/24 dev eth0
            ip -n outside address add fd00:192:168:1::100/64 dev eth0 nodad
            ip -n outside link set eth0 up",
        );
    }

    /// Installs plugins of the reference in the node's private `/opt/cni/bin`.
    pub(crate) fn install_reference(&self, plugins: &[&str]) {
        for plugin in plugins {
            let file = Path::new("/usr/lib/cni").join(plugin);
            assert!(file.is_file(), "{} is missing: install containernetworking-plugins", file.display());
            self.shell(&format!("cp {} /opt/cni/bin/", file.display()));
        }
    }

    /// Starts a command that goes on; its output goes to a log in the node's folder.
    pub(crate) fn spawn(&self, mut command: Command, log: &str) -> Child {
        let log = std::fs::File::create(self.dir().join(log)).expect("create a log file");
        let errors = log.try_clone().expect("duplicate the log file");
        command.stdout(log).stderr(errors).spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
    }

    /// Starts a program that serves until it is stopped; its output goes to `NAME.log`.
    pub(crate) fn serve(&self, name: &str, program: &Path, args: &[&std::ffi::OsStr]) -> Service<'_> {
        let mut command = self.command("sh");
        command.args(["-c", "echo $$ > \"/run/$0.pid\"; exec \"$@\"", name]).arg(program).args(args);
        Service { node: self, name: name.to_owned(), process: self.spawn(command, &format!("{name}.log")) }
    }

    /// Returns the text of a log.
    pub(crate) fn log(&self, log: &str) -> String {
        std::fs::read_to_string(self.dir().join(log)).unwrap_or_else(|error| format!("{log}: {error}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // `unshare --kill-child` passes the end on to the node's first process, and the kernel to all others.
        for result in [self.first.kill(), self.first.wait().map(drop)] {
            if let Err(error) = result {
                eprintln!("end the node: {error}");
            }
        }
        if std::thread::panicking() {
            for log in ["daemon.log", "containerd.log"].into_iter().filter(|log| self.dir().join(log).is_file()) {
                eprintln!("--- {log}\n{}", self.log(log));
            }
        }
    }
}

/// A program that serves on a node. Dropping it stops it.
pub(crate) struct Service<'node> {
    node: &'node Node,
    name: String,
    /// The `nsenter` that waits for the program.
    process: Child,
}

impl Service<'_> {
    /// Ends the program and waits until it has.
    pub(crate) fn stop(&self) {
        let script = format!(
            "kill \"$(cat /run/{0}.pid)\"; while kill -0 \"$(cat /run/{0}.pid)\" 2>/dev/null; do sleep 0.05; done",
            self.name
        );
        output(self.node.command("sh").args(["-c", &script]));
    }

    /// Panics if the program has ended.
    pub(crate) fn assert_alive(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait() {
            panic!("{} ended, {status}: {}", self.name, self.node.log(&format!("{}.log", self.name)));
        }
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        // It may have ended before; the process ID belongs to the node's own PID namespace.
        let script = format!("kill \"$(cat /run/{}.pid)\" 2>/dev/null || true", self.name);
        if let Err(error) = try_output(self.node.command("sh").args(["-c", &script])) {
            eprintln!("{error}");
        }
        if let Err(error) = self.process.wait() {
            eprintln!("wait for {}: {error}", self.name);
        }
    }
}

/// Fails unless the test runs as root.
pub(crate) fn require_root() {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "this suite makes namespaces and starts containers: run it as root (`cargo xtask test`)");
}

/// Fails unless a command exists.
pub(crate) fn require_command(name: &str, package: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(name).is_file());
    assert!(found, "the command {name} is missing: install the package {package} (`cargo xtask setup --tests`)");
}

/// Runs a command to its end and returns its standard output.
pub(crate) fn output(command: &mut Command) -> String {
    let result = try_output(command);
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command to its end and returns its standard output, or what went wrong.
pub(crate) fn try_output(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(stdout.into_owned()) } else { Err(format!("{command:?}: {status}\n{stdout}{stderr}")) }
}

/// Repeats an attempt until it succeeds, and panics with its last error when that takes too long.
pub(crate) fn poll<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < limit, "{what}: not within {limit:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
