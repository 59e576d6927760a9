//! The engine owns everything on the node: bridge, veths, addresses, maps, programs, the database. One thread makes
//! every change, one after the other, so nothing of it needs a lock; the kernel serialises the same work under its
//! own lock anyway.
//!
//! It is synchronous: netlink answers at once, and the maps and the database are memory. What takes long (deleting
//! veths) is the reaper's.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tracing::{error, info, warn};

use crate::{
    api::{
        AddRequest, ApiError, Attachment, AttachmentKey, CheckRequest, DatapathMode, DatapathRequest, DeleteRequest,
        ErrorKind, GcReply, GcRequest, KernelStatus, Mac, NodeInfo, Pod, Status,
    },
    cluster::{Cluster, Update},
    config::{self, Config},
    database::{Database, PodRecord},
    datapath::{
        features,
        layouts::Layout,
        loader::Datapath,
        logs::{LogLevel, Logs},
    },
    ipam::Pool,
    names,
    netlink::{Socket, monitor::News},
    netns::Netns,
    nft, routing,
};

mod adoption;
mod attachment;
mod check;
mod cluster;
mod mtu;
mod nodes;
mod observe;
mod overlay;
mod pod_repair;
mod pod_side;
mod programs;
mod reaper;
mod reconcile;
mod removal;
mod status;
mod upgrade;
pub mod sysctl;
mod writing;

pub use removal::remove_everything;

use cluster::Following;

/// The answer to a command.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// What the engine can be asked for.
#[derive(Debug)]
pub enum Command {
    /// Attach a pod.
    Add(Box<AddRequest>, Reply<Attachment>),
    /// Detach a pod.
    Delete(DeleteRequest, Reply<()>),
    /// Compare a pod with what was made.
    Check(CheckRequest, Reply<()>),
    /// Release the attachments that the runtime does not know.
    Gc(GcRequest, Reply<GcReply>),
    /// Describe the node.
    Status(Reply<Status>),
    /// List the pods.
    Pods(Reply<Vec<Pod>>),
    /// List the cluster's nodes.
    Nodes(Reply<Vec<NodeInfo>>),
    /// The store has news.
    Cluster(Update),
    /// Change the level of the programs' logs.
    SetEbpfLog(LogLevel, Reply<()>),
    /// Change the eBPF path while traffic flows.
    Datapath(DatapathRequest, Reply<()>),
    /// The kernel lost something, or the ways to other nodes may have changed; compare soon.
    News(News),
    /// Do the deletions that were queued on disk.
    DrainDeletions(Reply<()>),
    /// End, leaving everything in place.
    Stop(Reply<()>),
}

/// A handle by which the API reaches the engine.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: Sender<Command>,
    netlink_port: u32,
}

impl Handle {
    /// Asks the engine for something and waits for its answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || ApiError::new(ErrorKind::Unavailable, "the podnet daemon is shutting down; try again");
        self.commands.send(command(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Returns the number of the socket by which the engine changes the kernel (`nlmsg_pid` of its notifications).
    #[must_use]
    pub fn netlink_port(&self) -> u32 {
        self.netlink_port
    }

    /// Tells the engine something that it does not answer. Returns whether the engine still runs.
    #[must_use]
    pub fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }
}

/// Why the node is compared with what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why<'a> {
    /// Something was asked for, or is new in the cluster: what is made is no repair.
    Change(&'a str),
    /// Something was lost, or may have been: what is made is a repair.
    Loss(&'a str),
}

impl<'a> Why<'a> {
    /// The daemon starts.
    const START: Self = Self::Change("start");

    const fn is_repair(self) -> bool {
        matches!(self, Self::Loss(_))
    }

    const fn text(self) -> &'a str {
        match self {
            Self::Change(text) | Self::Loss(text) => text,
        }
    }
}

/// How long the engine waits after a loss before it compares, so that a burst of losses costs one comparison.
const LOSS_DELAY: Duration = Duration::from_millis(200);

/// At most one part in so many of the time is spent on comparing for no other reason than that time has passed; but
/// [`RESYNC_PATIENCE`] is enough in any case.
const RESYNC_SHARE: u32 = 100;

/// The longest time between two comparisons, unless the configuration says more.
const RESYNC_PATIENCE: Duration = Duration::from_secs(30);

/// Least time between two comparisons that ways to other nodes cause.
const MOVE_SPACING: Duration = Duration::from_millis(100);

/// The engine's state. `pods` and `pools` mirror the database.
struct Engine {
    config: Config,
    database: Database,
    netlink: Socket,
    /// The node's own network namespace.
    home: Netns,
    bridge_mac: Mac,
    bridge_ifindex: u32,
    /// MTU of pods in bytes.
    mtu: u32,
    /// MTU of pods' default routes in bytes: smaller where the overlay carries what leaves the node.
    route_mtu: u32,
    /// Whether they were derived from uplinks.
    mtu_is_derived: bool,
    /// What is known of the cluster.
    following: Following,
    /// The nftables rules in force.
    nft_rules: nft::Rules,
    pods: BTreeMap<AttachmentKey, PodRecord>,
    pools: Vec<Pool>,
    /// The loaded eBPF path; `None` in kernel mode, or if it could not be loaded.
    datapath: Option<Datapath>,
    /// Whether the programs should be in their blocks.
    programs_wanted: bool,
    /// Where readers of the programs' logs go.
    logs: UnboundedSender<Logs>,
    /// What the kernel can do.
    kernel: KernelStatus,
    /// Whether podnet's nftables table could be made.
    nft_usable: bool,
    /// Pins of other versions of the layouts, to be removed when nothing uses them any more.
    other_layouts: Vec<Layout>,
    /// Why there is no eBPF path although the configuration asks for one.
    datapath_failure: Option<String>,
    ebpf_log: LogLevel,
    reaper: reaper::Reaper,
    warnings: Vec<String>,
    /// Why the database could not be written the last time.
    write_failure: Option<String>,
    /// The last pod whose own side was looked at; `None`: the first one's turn comes.
    mended: Option<AttachmentKey>,
    repairs: u64,
    started: Instant,
}

/// What the engine starts with, besides the configuration.
#[derive(Debug)]
pub struct Start {
    /// Level of the programs' logs.
    pub ebpf_log: LogLevel,
    /// Where readers of the programs' logs go, one with each load.
    pub logs: UnboundedSender<Logs>,
    /// Names the store; `None`: there is none.
    pub store: Option<String>,
    /// The store's first news.
    pub first: Option<Update>,
    /// The last snapshot of an earlier life.
    pub earlier: Option<Cluster>,
}

/// Starts the engine: recovers the node's state, then serves commands on a thread of its own.
///
/// # Errors
///
/// The database cannot be used, or the node cannot be brought into its desired state.
pub fn start(config: Config, start: Start) -> Result<(Handle, std::thread::JoinHandle<()>)> {
    let (commands, inbox) = channel();
    let mut engine = Engine::recover(config, start)?;
    let netlink_port = engine.netlink.port()?;
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || engine.serve(&inbox))
        .context("start the engine's thread")?;
    Ok((Handle { commands, netlink_port }, thread))
}

impl Engine {
    /// Opens everything and brings the node into its desired state: ordinary start and crash recovery alike.
    fn recover(mut config: Config, start: Start) -> Result<Self> {
        let database = Database::open(&config.state_dir)?;
        let earlier = start.earlier;
        let is_news = matches!(&start.first, Some(Update::Snapshot(first)) if earlier.as_ref() != Some(first));
        let following = Following::new(start.store, start.first, earlier);
        let given = own_pod_cidrs(&config, following.cluster.as_ref(), following.failure())?;
        config.pod_cidrs = if config.pod_cidrs.is_empty() { held_pod_cidrs(&database, given)? } else { given };
        let home = Netns::current()?;
        let netlink = Socket::open()?;
        let gateways: Vec<IpAddr> = config.pod_cidrs.iter().map(|cidr| Config::gateway(*cidr)).collect();
        let bridge_mac = names::mac_for(&gateways);
        let pools = config.pod_cidrs.iter().map(|cidr| Pool::new(*cidr)).collect();
        let (mtu, route_mtu) = routing::pod_mtus(config.mtu, &[], None);
        let mut engine = Self {
            database,
            netlink,
            home,
            bridge_mac,
            bridge_ifindex: 0,
            mtu,
            route_mtu,
            mtu_is_derived: false,
            following,
            nft_rules: nft::Rules::default(),
            pods: BTreeMap::new(),
            pools,
            datapath: None,
            programs_wanted: config.datapath == DatapathMode::Ebpf,
            logs: start.logs,
            kernel: features::kernel(),
            nft_usable: true,
            other_layouts: Vec::new(),
            datapath_failure: None,
            ebpf_log: start.ebpf_log,
            reaper: reaper::Reaper::start()?,
            warnings: Vec::new(),
            write_failure: None,
            mended: None,
            repairs: 0,
            started: Instant::now(),
            config,
        };
        engine.meet_other_layouts()?;
        engine.prepare_node()?;
        engine.forget_earlier_boot();
        // The programs' constants follow from the bridge and the cluster.
        engine.ensure_bridge()?;
        engine.adopt_pods()?;
        engine.load_pods()?;
        engine.derive_routing()?;
        engine.adopt_mtus();
        engine.load_datapath();
        engine.reconcile(Why::START)?;
        // Pods that run are served, whatever room there is on the disk.
        let written = engine.remember_gateways();
        engine.note_write(written);
        if is_news && let Err(error) = engine.remember_cluster() {
            warn!(error = format!("{error:#}"), "the nodes are not remembered for the next start");
        }
        info!(
            node = engine.config.node,
            bridge = engine.config.bridge,
            datapath = %engine.config.datapath,
            mode = %engine.config.mode,
            nodes = engine.following.cluster.as_ref().map_or(0, |cluster| cluster.nodes().len()),
            pods = engine.pods.len(),
            milliseconds = engine.started.elapsed().as_millis(),
            "node is ready"
        );
        Ok(engine)
    }

    /// Counts and logs what was mended, if it was a repair.
    fn count_repair(&mut self, why: Why<'_>, what: &str) {
        if why.is_repair() {
            info!(change = what, reason = why.text(), "repaired");
            self.repairs += 1;
        }
    }

    fn serve(&mut self, inbox: &Receiver<Command>) {
        let interval = Duration::from_secs(self.config.resync_seconds);
        let mut resync_at = Instant::now() + interval;
        let mut news = News::default();
        let mut compared = Instant::now();
        loop {
            // A node that is always busy is compared, too.
            if Instant::now() >= resync_at {
                let begun = processor_time();
                let resync = Why::Loss("resync");
                let moved = news.moved.as_deref().map(Why::Change);
                let why = news.lost.as_deref().map(Why::Loss).or(moved).unwrap_or(resync);
                // What moves loses routes as well; to follow is no repair.
                if let Err(error) = self.reconcile_parts(why, moved.unwrap_or(why)) {
                    error!(error = format!("{error:#}"), "reconciliation");
                }
                self.mend_pod_sides(resync);
                self.drain_deletions();
                self.retry_writing();
                news = News::default();
                compared = Instant::now();
                // A node of very many pods or routes is compared less often.
                let spent = processor_time().saturating_sub(begun);
                resync_at = compared + interval.max(RESYNC_PATIENCE.min(spent * RESYNC_SHARE));
            }
            match inbox.recv_timeout(resync_at.saturating_duration_since(Instant::now())) {
                Ok(Command::Stop(reply)) => {
                    answer(reply, Ok(()));
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(Command::News(more)) => {
                    // The monitor gathered the news of a moment already, and a way that moved cannot wait for more; but a
                    // routing daemon that is at work must not keep this thread from all else.
                    let soon = if more.moved.is_some() { compared + MOVE_SPACING } else { Instant::now() + LOSS_DELAY };
                    resync_at = resync_at.min(soon);
                    news = news.or(more);
                }
                Ok(command) => self.execute(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        // Veths that are already detached need not wait for the next start.
        self.reaper.flush();
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Add(request, reply) => {
                let outcome = self.add(&request);
                let attached = outcome.is_ok();
                answer(reply, outcome);
                if attached {
                    self.log_attached(&request.key);
                }
            }
            Command::Delete(request, reply) => answer(reply, self.delete(&request.key)),
            Command::Check(request, reply) => answer(reply, self.check(&request)),
            Command::Gc(request, reply) => answer(reply, self.gc(&request)),
            Command::Status(reply) => {
                self.retry_writing();
                answer(reply, Ok(self.status()));
            }
            Command::Pods(reply) => answer(reply, Ok(self.list_pods())),
            Command::SetEbpfLog(level, reply) => answer(reply, self.set_ebpf_log(level)),
            Command::Datapath(request, reply) => answer(reply, self.change_datapath(request)),
            Command::DrainDeletions(reply) => {
                self.drain_deletions();
                answer(reply, Ok(()));
            }
            Command::Nodes(reply) => answer(reply, Ok(self.list_nodes())),
            Command::Cluster(update) => self.follow(update),
            Command::Stop(reply) => answer(reply, Ok(())),
            Command::News(_) => {}
        }
    }

    /// Takes the pods out of the database. What there is of pods without a record, whose ADD was never answered,
    /// reconciliation removes.
    fn load_pods(&mut self) -> Result<()> {
        self.pods = self.database.pods()?;
        for record in self.pods.values() {
            for address in &record.addresses {
                let leased = self.pools.iter_mut().any(|pool| pool.lease(*address).is_ok());
                if !leased {
                    warn!(%address, container = record.key.container_id, "pod has an address outside the node's pod CIDRs");
                }
            }
        }
        for pool in &mut self.pools {
            if let Some(last) = self.database.setting(&names::cursor_setting(pool.cidr()))? {
                pool.resume_after(last.parse().with_context(|| format!("database holds {last:?} as an address"))?);
            }
        }
        Ok(())
    }
}

/// Returns the node's pod CIDRs: the configuration's, or those that the store gives it.
///
/// # Errors
///
/// Neither knows any, or they contradict each other.
pub fn own_pod_cidrs(config: &Config, cluster: Option<&Cluster>, failure: Option<&str>) -> Result<Vec<IpNetwork>> {
    let own = cluster.and_then(|cluster| cluster.node(&config.node));
    let stored = own.map(|node| node.pod_cidrs.clone());
    match (config.pod_cidrs.is_empty(), stored) {
        (true, Some(stored)) if !stored.is_empty() => Ok(stored),
        (true, _) => match failure {
            Some(failure) => bail!(
                "the configuration has no pod-cidrs, and the store, which should know those of node {}, failed: {failure}",
                config.node
            ),
            None => bail!(
                "the store has no pod CIDRs for node {}, and the configuration has no pod-cidrs; add one of them",
                config.node
            ),
        },
        (false, Some(stored)) => {
            let same = |a: &[IpNetwork], b: &[IpNetwork]| a.len() == b.len() && a.iter().all(|cidr| b.contains(cidr));
            ensure!(
                same(&stored, &config.pod_cidrs),
                "pod-cidrs: the configuration gives {} {}, the store {}; make them equal, or leave pod-cidrs out",
                config.node,
                config::show(&config.pod_cidrs),
                config::show(&stored),
            );
            Ok(config.pod_cidrs.clone())
        }
        (false, None) => Ok(config.pod_cidrs.clone()),
    }
}

/// Returns the pod CIDRs to run with of those that the store gives: those of the last run while pods have addresses of
/// them, since with their gateways the pods would lose all connections.
fn held_pod_cidrs(database: &Database, given: Vec<IpNetwork>) -> Result<Vec<IpNetwork>> {
    let in_use = database.addresses_in_use()?;
    let is_in = |cidrs: &[IpNetwork], address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(*address));
    if in_use.iter().all(|address| is_in(&given, address)) {
        return Ok(given);
    }
    let last: Vec<IpNetwork> = reconcile::earlier_gateways(database)?
        .into_iter()
        .filter_map(|gateway| IpNetwork::new(gateway.network(), gateway.prefix()).ok())
        .collect();
    if !in_use.iter().any(|address| is_in(&last, address)) {
        return Ok(given);
    }
    warn!(
        store = config::show(&given),
        running = config::show(&last),
        "the store gives the node other pod CIDRs than its pods have; it goes on with those, and adds no pods"
    );
    Ok(last)
}

/// Returns the processor time that the calling thread has had: what its work costs others, however busy the node is.
fn processor_time() -> Duration {
    // The clock of the calling thread is always there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn answer<T>(reply: Reply<T>, result: Result<T, ApiError>) {
    // Who asked may have gone away; what was done stays done.
    drop(reply.send(result));
}
