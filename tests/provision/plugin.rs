//! Two CNI plugins in one node namespace: podnet with its daemon, and the reference.

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use podnet::{api::client::Client, netns::Netns};
use tempfile::TempDir;

/// Folder of the reference plugins in Debian and Ubuntu.
const REFERENCE: &str = "/usr/lib/cni";

fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A named network namespace that goes with its value.
struct Namespace {
    name: String,
    netns: Netns,
}

impl Namespace {
    fn new(prefix: &str) -> Self {
        let name = unique(prefix);
        let netns = Netns::create_named(&name).unwrap_or_else(|error| panic!("{error:#}"));
        Self { name, netns }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete_named(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// A pod's namespace.
pub(crate) struct Pod {
    id: String,
    namespace: Namespace,
}

impl Pod {
    /// Makes a namespace for a pod.
    pub(crate) fn new(id: &str) -> Self {
        Self { id: unique(id), namespace: Namespace::new("podnet-pod") }
    }

    /// Returns the pod's namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.namespace.netns
    }
}

/// A node's namespace and a folder for state.
pub(crate) struct Fixture {
    node: Namespace,
    dir: TempDir,
}

impl Fixture {
    /// Makes a node.
    pub(crate) fn new(name: &str) -> Self {
        let root = nix::unistd::geteuid().is_root();
        assert!(root, "this suite makes network namespaces: run it as root (`cargo xtask test`)");
        let dir = tempfile::Builder::new().prefix("podnet-provision-").tempdir().expect("make a temporary folder");
        let fixture = Self { node: Namespace::new(&format!("podnet-{name}")), dir };
        fixture.run(Command::new("ip").args(["link", "set", "lo", "up"]), "");
        fixture
    }

    /// Returns the plugins `bridge` and `host-local`.
    pub(crate) fn reference(&self) -> Plugin<'_> {
        let program = Path::new(REFERENCE).join("bridge");
        assert!(program.is_file(), "{} is missing: install containernetworking-plugins", program.display());
        let leases = self.dir.path().join("host-local");
        let config = format!(
            r#"{{"cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "reference0", "isGateway": true,
            "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "10.9.0.0/16"}}]]}}}}"#,
            leases.display()
        );
        Plugin { name: "reference", program, config, fixture: self, socket: None }
    }

    /// Starts a daemon on the node.
    pub(crate) fn start_daemon(&self) -> Daemon {
        let dir = self.dir.path();
        let config = dir.join("podnet.toml");
        let mut daemon = Daemon { socket: dir.join("run/podnet.sock"), bpffs: dir.join("bpf"), process: None };
        let text = format!(
            "node = \"node1\"\npod-cidrs = [\"10.244.0.0/16\", \"fd00:10:244::/64\"]\nsocket = \"{}\"\n\
             state-dir = \"{}\"\nbpffs = \"{}\"\n",
            daemon.socket.display(),
            dir.join("state").display(),
            daemon.bpffs.display(),
        );
        std::fs::write(&config, text).expect("write the daemon's configuration");
        let log = std::fs::File::create(dir.join("daemon.log")).expect("create the daemon's log");
        let errors = log.try_clone().expect("duplicate the log file");
        let mut command = Command::new(harness::binary());
        command.arg("daemon").arg("--config").arg(&config).stdin(Stdio::null()).stdout(log).stderr(errors);
        let process = self.node.netns.run(|| Ok(command.spawn()?)).unwrap_or_else(|error| panic!("{error:#}"));
        daemon.process = Some(process);
        let start = Instant::now();
        while !daemon.is_ready() {
            let log = || std::fs::read_to_string(dir.join("daemon.log")).unwrap_or_default();
            let ended = daemon.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            assert!(ended.is_none(), "the daemon ended, {ended:?}: {}", log());
            assert!(start.elapsed() < Duration::from_secs(30), "the daemon is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Returns podnet's plugin.
    pub(crate) fn podnet(&self, daemon: &Daemon) -> Plugin<'_> {
        let socket = daemon.socket.clone();
        let config = format!(
            r#"{{"cniVersion": "1.0.0", "name": "podnet", "type": "podnet", "socket": "{}"}}"#,
            socket.display()
        );
        Plugin { name: "podnet", program: harness::binary(), config, fixture: self, socket: Some(socket) }
    }

    /// Returns the node's namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.node.netns
    }

    /// Runs a command on the node and returns its standard output.
    fn run(&self, command: &mut Command, input: &str) -> String {
        let output = self.node.netns.run(|| Ok(run_here(command, input)));
        output.unwrap_or_else(|error| panic!("{command:?}: {error:#}"))
    }

    /// Returns the names of the node's veths.
    pub(crate) fn veths(&self) -> Vec<String> {
        let text = self.run(Command::new("ip").args(["-o", "link", "show", "type", "veth"]), "");
        text.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.to_owned())).collect()
    }
}

/// Runs a command in the calling thread's namespaces and returns its standard output.
fn run_here(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().unwrap_or_else(|error| panic!("{command:?}: {error:#}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}: {stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// A daemon. Dropping it stops it.
pub(crate) struct Daemon {
    socket: PathBuf,
    bpffs: PathBuf,
    process: Option<Child>,
}

impl Daemon {
    fn is_ready(&self) -> bool {
        self.client().status().is_ok_and(|status| status.ready)
    }

    /// Returns a client of its API.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Returns the folder of the pinned maps.
    pub(crate) fn pins(&self) -> PathBuf {
        podnet::datapath::loader::pin_dir(&self.bpffs)
    }

    /// Returns how many files the daemon has open, and its memory in KiB.
    pub(crate) fn resources(&self) -> (usize, u64) {
        let pid = self.process.as_ref().map_or(0, Child::id);
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        (files, memory.unwrap_or(0))
    }

    /// Returns the CPU time that the daemon has used.
    pub(crate) fn cpu(&self) -> Duration {
        let pid = self.process.as_ref().map_or(0, Child::id);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // utime and stime are fields 14 and 15 (proc(5)); the name before them may hold spaces.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        // Of a hundredth of a second, for user space (`USER_HZ`).
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process
            && let Err(error) = process.kill().and_then(|()| process.wait())
        {
            eprintln!("end the daemon: {error}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.lines().any(|line| line.split(' ').nth(1) == self.bpffs.to_str())
            && let Err(error) = nix::mount::umount(&self.bpffs)
        {
            eprintln!("unmount {}: {error}", self.bpffs.display());
        }
    }
}

/// A plugin and its network configuration.
pub(crate) struct Plugin<'fixture> {
    /// Name in the report.
    pub(crate) name: &'static str,
    program: PathBuf,
    config: String,
    fixture: &'fixture Fixture,
    socket: Option<PathBuf>,
}

impl Plugin<'_> {
    /// Adds a pod and checks that the result has an address.
    pub(crate) fn add(&self, pod: &Pod) {
        self.check_result(&self.fixture.run(&mut self.command("ADD", pod), &self.config));
    }

    /// Deletes a pod.
    pub(crate) fn delete(&self, pod: &Pod) {
        self.fixture.run(&mut self.command("DEL", pod), &self.config);
    }

    /// Adds a pod from a thread that is in the node's namespace, and returns its addresses.
    pub(crate) fn add_here(&self, pod: &Pod) -> Vec<IpAddr> {
        self.check_result(&run_here(&mut self.command("ADD", pod), &self.config))
    }

    /// Deletes a pod from a thread that is in the node's namespace.
    pub(crate) fn delete_here(&self, pod: &Pod) {
        run_here(&mut self.command("DEL", pod), &self.config);
    }

    fn check_result(&self, result: &str) -> Vec<IpAddr> {
        let value: serde_json::Value =
            serde_json::from_str(result).unwrap_or_else(|error| panic!("{} ADD: {error}: {result}", self.name));
        let ips = value["ips"].as_array().map_or(&[][..], Vec::as_slice).iter();
        let texts = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next());
        let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        assert!(!addresses.is_empty(), "{} ADD: {result}", self.name);
        addresses
    }

    fn command(&self, verb: &str, pod: &Pod) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &pod.id)
            .env("CNI_NETNS", pod.namespace.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE);
        command
    }

    /// Checks that no pod, address or veth is left on the node.
    pub(crate) fn assert_nothing_left(&self, fixture: &Fixture) {
        if let Some(socket) = &self.socket {
            let mut command = Command::new(harness::binary());
            let pods = fixture.run(command.args(["pods", "-o", "json"]).env("PODNET_SOCKET", socket), "");
            assert_eq!(pods.trim(), "[]", "podnet still has pods");
        } else {
            let leases = fixture.dir.path().join("host-local/reference");
            let left = std::fs::read_dir(leases).expect("read the leases").filter_map(Result::ok);
            let left: Vec<_> = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).collect();
            assert!(left.is_empty(), "host-local still has leases: {left:?}");
        }
        let start = Instant::now();
        loop {
            let left = fixture.veths();
            if left.is_empty() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "veths are left: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
