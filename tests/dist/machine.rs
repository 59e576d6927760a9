//! A machine for tests: mount, network, PID, IPC and UTS namespaces of its own, whose root is an overlay of the real
//! machine's. Packages can be installed and runtimes started there; nothing of it shows outside, except cgroups, which
//! it removes, and killing its first process ends all that runs in it.

#![expect(clippy::expect_used, reason = "a test that cannot go on panics: the backtrace names the place")]

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Makes the root and then only keeps the namespaces alive. What runtimes mount over must not be an overlay itself.
const FIRST_PROCESS: &str = r#"set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
for dir in tmp run var/lib/containerd var/lib/containers; do mkdir -p "$dir"; mount -t tmpfs tmpfs "$dir"; done
# As systemd does: what is mounted below /run later reaches containers that have a part of it.
mount --make-shared run
rm -rf etc/cni opt/cni etc/podnet var/lib/podnet
mkdir -p run/netns
pivot_root . mnt
umount -l /mnt
ip link set lo up
echo ready
exec sleep infinity"#;

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    first: Child,
    dir: TempDir,
    services: std::cell::RefCell<Vec<Child>>,
}

impl Machine {
    /// Starts a machine.
    pub(crate) fn start() -> Self {
        harness::require_root();
        let dir = tempfile::Builder::new().prefix("podnet-machine-").tempdir().expect("make a temporary folder");
        let private = dir.path().join("private");
        std::fs::create_dir(&private).expect("make the folder of the private tmpfs");
        // The signal comes when the thread that started the machine ends: a test that dies takes its machine along.
        let mut first = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--net", "--pid", "--ipc", "--uts"])
            .args(["--fork", "--kill-child", "--propagation", "private", "sh", "-c", FIRST_PROCESS, "sh"])
            .arg(&private)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the machine's first process");
        let mut line = String::new();
        BufReader::new(first.stdout.take().expect("the output is a pipe"))
            .read_line(&mut line)
            .expect("read from the machine's first process");
        assert_eq!(line, "ready\n", "the machine's first process ended early; its errors are above");
        Self { first, dir, services: std::cell::RefCell::default() }
    }

    /// Returns a name that no other machine has.
    pub(crate) fn id(&self) -> String {
        self.dir.path().file_name().expect("the folder has a name").to_string_lossy().into_owned()
    }

    /// Returns the path by which this test reaches a file of the machine.
    pub(crate) fn path(&self, path: &str) -> std::path::PathBuf {
        format!("/proc/{}/root{path}", self.first.id()).into()
    }

    /// Returns a command that runs on the machine.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
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

    /// Runs a shell script on the machine and returns its output.
    pub(crate) fn shell(&self, script: &str) -> String {
        self.try_shell(script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a shell script on the machine and returns its output, or what went wrong.
    pub(crate) fn try_shell(&self, script: &str) -> Result<String, String> {
        output(self.command("sh").args(["-ec", script]))
    }

    /// Runs a shell script with an input and returns its output.
    pub(crate) fn shell_with_input(&self, script: &str, input: &[u8]) -> String {
        let mut command = self.command("sh");
        command.args(["-ec", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start a shell");
        child.stdin.take().expect("the input is a pipe").write_all(input).expect("write the input");
        let output = child.wait_with_output().expect("wait for the shell");
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{said}{errors}", output.status);
        said.into_owned()
    }

    /// Gives the machine a copy of a file; it may not see the original, since it has a `/tmp` of its own.
    pub(crate) fn copy(&self, from: &Path, to: &str) {
        let content = std::fs::read(from).unwrap_or_else(|error| panic!("read {}: {error}", from.display()));
        self.shell_with_input(&format!("cat > {to}"), &content);
    }

    /// Starts a program that goes on until the machine ends; its output goes to a log.
    pub(crate) fn serve(&self, name: &str, program: &str, args: &[&str]) {
        let log = std::fs::File::create(self.dir.path().join(format!("{name}.log"))).expect("create a log file");
        let errors = log.try_clone().expect("duplicate the log file");
        let child = self.command(program).args(args).stdout(log).stderr(errors).spawn();
        self.services.borrow_mut().push(child.unwrap_or_else(|error| panic!("start {program}: {error}")));
    }

    /// Returns the text of a log.
    pub(crate) fn log(&self, name: &str) -> String {
        let path = self.dir.path().join(format!("{name}.log"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in std::fs::read_dir(self.dir.path()).into_iter().flatten().filter_map(Result::ok) {
                if log.path().extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(log.path()).unwrap_or_default();
                    eprintln!("--- {}\n{text}", log.path().display());
                }
            }
        }
        // `unshare --kill-child` passes the end on to the machine's first process, and the kernel to all others.
        let mut children = self.services.take();
        for result in [self.first.kill(), self.first.wait().map(drop)]
            .into_iter()
            .chain(children.iter_mut().map(|child| child.wait().map(drop)))
        {
            if let Err(error) = result {
                eprintln!("end the machine: {error}");
            }
        }
        remove_cgroups(&self.id());
    }
}

/// Removes the cgroups that containers of a machine were in, from every hierarchy.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    for parent in hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(name)) {
        let children =
            std::fs::read_dir(&parent).into_iter().flatten().filter_map(Result::ok).map(|child| child.path());
        for folder in children.filter(|child| child.is_dir()).chain([parent.clone()]).filter(|folder| folder.is_dir()) {
            // A process that was killed takes a moment to leave.
            let start = Instant::now();
            while let Err(error) = std::fs::remove_dir(&folder) {
                if start.elapsed() > Duration::from_secs(5) {
                    eprintln!("remove cgroup {}: {error}", folder.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Runs a command to its end and returns its standard output, or what went wrong.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(stdout.into_owned())
    } else {
        Err(format!("{command:?}: {}\n{stdout}{stderr}", output.status))
    }
}

/// Repeats an attempt until it succeeds, and panics with its last error when that takes too long.
pub(crate) fn poll<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{what}: not in time: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
