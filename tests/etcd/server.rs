//! Real etcd servers inside a network namespace, their files in memory.

use std::{cell::Cell, path::PathBuf, process::Command, time::Duration};

use etcd_client::{Client, Txn, TxnOp};
use harness::{command, require_root, wait_for};
use podnet::{
    lab::{node::make_netns, process::Process},
    netns::Netns,
};
use tempfile::TempDir;

/// Operations of one transaction (`--max-txn-ops`).
const MAX_TXN_OPS: usize = 128;

/// A cluster of etcd servers, and the network namespace that it is in; both go with this value.
#[derive(Debug)]
pub(crate) struct Etcd {
    netns: Netns,
    /// Name of the network namespace, if it is this value's to delete.
    own_netns: Option<String>,
    members: Vec<Member>,
    folder: TempDir,
    /// What `etcdctl` needs besides the endpoint.
    credentials: Vec<String>,
}

#[derive(Debug)]
struct Member {
    arguments: Vec<String>,
    url: String,
    /// The same from inside of the servers' network namespace.
    local_url: String,
    process: Cell<Option<Process>>,
    folder: PathBuf,
}

/// How the servers are reached.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Number of members.
    pub(crate) members: u16,
    /// Address at which other network namespaces reach them.
    pub(crate) address: Option<String>,
    /// Arguments of each server for TLS: with them the URLs are `https`.
    pub(crate) tls: Vec<String>,
    /// Arguments of `etcdctl` for TLS.
    pub(crate) credentials: Vec<String>,
}

impl Etcd {
    /// Starts one server in a network namespace of its own.
    pub(crate) fn new() -> Self {
        Self::with(Options { members: 1, ..Options::default() })
    }

    /// Starts servers in a network namespace of their own.
    pub(crate) fn with(options: Options) -> Self {
        require_root();
        let name = harness::lab::new_name();
        let netns = make_netns(&name).unwrap();
        Self::start_in(netns, Some(name), options)
    }

    /// Starts servers in a network namespace that somebody else deletes.
    pub(crate) fn inside(netns: &Netns, options: Options) -> Self {
        Self::start_in(Netns::open(netns.path()).unwrap(), None, options)
    }

    fn start_in(netns: Netns, own_netns: Option<String>, options: Options) -> Self {
        // In memory: a flush to disk for each write would be most of the time.
        let folder = tempfile::Builder::new().prefix("podnet-etcd-").tempdir_in("/run").unwrap();
        let scheme = if options.tls.is_empty() { "http" } else { "https" };
        let host = options.address.as_deref().unwrap_or("127.0.0.1");
        let peers: Vec<String> =
            (0..options.members).map(|number| format!("m{number}=http://127.0.0.1:{}", 2480 + number)).collect();
        let members = (0..options.members).map(|number| {
            let (client, peer) = (2379 + number, 2480 + number);
            let member = folder.path().join(format!("m{number}"));
            let listen = if options.address.is_some() { "0.0.0.0" } else { "127.0.0.1" };
            let mut arguments: Vec<String> = vec![
                format!("--name=m{number}"),
                format!("--data-dir={}", member.join("data").display()),
                format!("--listen-client-urls={scheme}://{listen}:{client}"),
                format!("--advertise-client-urls={scheme}://{host}:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", peers.join(",")),
                // Leases and elections shorter than those of a cluster in different buildings.
                "--heartbeat-interval=100".into(),
                "--election-timeout=1000".into(),
                "--log-level=warn".into(),
            ];
            arguments.extend(options.tls.iter().cloned());
            std::fs::create_dir(&member).unwrap();
            let url = format!("{scheme}://{host}:{client}");
            let local_url = format!("{scheme}://127.0.0.1:{client}");
            Member { arguments, url, local_url, process: Cell::new(None), folder: member }
        });
        let members = members.collect();
        let etcd = Self { netns, own_netns, members, folder, credentials: options.credentials };
        for number in 0..etcd.members.len() {
            etcd.start(number);
        }
        etcd.wait_for_leader();
        etcd
    }

    /// Returns the network namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns the URLs of all members.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// Starts a member.
    pub(crate) fn start(&self, number: usize) {
        assert!(
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|folder| folder.join("etcd").exists()),
            "etcd is missing: install the package etcd-server"
        );
        let member = &self.members[number];
        let mut command = Command::new("etcd");
        command.args(&member.arguments);
        let process = Process::spawn(&self.netns, command, &member.folder.join("log")).unwrap();
        member.process.set(Some(process));
    }

    /// Kills a member.
    pub(crate) fn kill(&self, number: usize) {
        if let Some(process) = self.members[number].process.take() {
            process.kill().unwrap();
        }
    }

    /// Removes what a member has stored; it must not run.
    pub(crate) fn wipe(&self, number: usize) {
        std::fs::remove_dir_all(self.members[number].folder.join("data")).unwrap();
    }

    /// Waits until there is a leader that serves.
    pub(crate) fn wait_for_leader(&self) {
        wait_for("etcd to serve", || self.try_ctl(&["get", "--consistency=l", "nothing"]).ok());
    }

    /// Runs `etcdctl` with all endpoints; returns what it printed.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|error| panic!("{error}\n{}", self.log_tail()))
    }

    fn try_ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let urls: Vec<&str> = self.members.iter().map(|member| member.local_url.as_str()).collect();
        let endpoints = format!("--endpoints={}", urls.join(","));
        let mut all = vec!["ETCDCTL_API=3", "etcdctl", "--command-timeout=3s", "--dial-timeout=2s", &endpoints];
        all.extend(self.credentials.iter().map(String::as_str));
        all.extend(arguments);
        command::try_run(&self.netns, "env", &all)
    }

    /// Makes `etcdctl` show these credentials, too.
    pub(crate) fn authenticate(&mut self, arguments: &[&str]) {
        self.credentials.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Returns the keys with a prefix, and their values.
    pub(crate) fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let text = self.ctl(&["get", "--prefix", prefix]);
        let lines: Vec<&str> = text.lines().collect();
        lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
    }

    /// Writes keys, as many in each transaction as etcd allows.
    pub(crate) fn put_at_once(&self, pairs: &[(String, String)]) {
        let url = self.members[0].local_url.as_str();
        let put = async {
            let mut client = Client::connect([url], None).await?;
            for pairs in pairs.chunks(MAX_TXN_OPS) {
                let puts: Vec<TxnOp> =
                    pairs.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None)).collect();
                client.txn(Txn::new().and_then(puts)).await?;
            }
            anyhow::Ok(())
        };
        let run = || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(put);
        self.netns.run(run).unwrap();
    }

    /// Forgets all history up to now.
    pub(crate) fn compact(&self) {
        let text = self.ctl(&["get", "nothing", "--write-out=json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        self.ctl(&["compact", "--physical", &answer["header"]["revision"].to_string()]);
    }

    fn log_tail(&self) -> String {
        let tail = |member: &Member| {
            let log = std::fs::read_to_string(member.folder.join("log")).unwrap_or_default();
            log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        self.members.iter().map(tail).collect::<Vec<_>>().join("\n---\n")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("etcd in {}:\n{}", self.folder.path().display(), self.log_tail());
        }
        for member in &self.members {
            if let Some(process) = member.process.take()
                && let Err(error) = process.kill()
            {
                eprintln!("{error:#}");
            }
        }
        if let Some(name) = &self.own_netns
            && let Err(error) = Netns::delete_named(name)
        {
            eprintln!("{error:#}");
        }
    }
}

/// A network namespace that is connected with that of the servers, as `10.9.0.2` with `10.9.0.1`.
#[derive(Debug)]
pub(crate) struct Far {
    name: String,
    netns: Netns,
}

/// Address of the servers' end.
pub(crate) const NEAR_ADDRESS: &str = "10.9.0.1";

impl Far {
    pub(crate) fn new(etcd: &Etcd) -> Self {
        let name = harness::lab::new_name();
        let netns = make_netns(&name).unwrap();
        command::ip(etcd.netns(), &format!("link add near type veth peer name far netns {name}"));
        command::ip(etcd.netns(), &format!("addr add {NEAR_ADDRESS}/24 dev near"));
        command::ip(etcd.netns(), "link set near up");
        command::ip(&netns, "addr add 10.9.0.2/24 dev far");
        command::ip(&netns, "link set far up");
        Self { name, netns }
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Lets every packet vanish, without a word to either end.
    pub(crate) fn cut(&self) {
        let rules = "add table ip cut; \
            add chain ip cut in { type filter hook input priority 0; policy drop; }; \
            add chain ip cut out { type filter hook output priority 0; policy drop; }";
        command::run(&self.netns, "nft", &[rules]);
    }

    /// Lets packets pass again.
    pub(crate) fn mend(&self) {
        command::run(&self.netns, "nft", &["delete table ip cut"]);
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete_named(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Waits for some time, in which something must not happen.
pub(crate) fn watch_for(time: Duration, mut check: impl FnMut()) {
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        check();
        // Between two looks; not for something to happen.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
