//! The daemon: puts engine, API, monitor and readers together, and ends them in order.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{error, info, warn};

use crate::{
    api::server::{self, Health},
    cluster::{self, AnyStore, Cluster, Store, Update, last_known},
    config::{Config, DEFAULT_CONFIG},
    database::Database,
    drops,
    engine::{self, Command, sysctl},
    install::{
        self, InstallArgs,
        keep::{self, Installation},
    },
    logging::Logging,
    netlink::monitor::{self, News},
    plan::{REAP_GROUP, is_veth_name},
    service_manager::{self, WaitingWatchdog},
};

/// Arguments of `podnet daemon`.
#[derive(Clone, Debug, clap::Args)]
pub struct DaemonArgs {
    /// Configuration file.
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    pub config: PathBuf,
    /// Name of the node, instead of the configuration's.
    #[arg(long, env = "PODNET_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Remove everything that podnet made on this node, and end.
    #[arg(long)]
    pub cleanup: bool,
    /// Install the CNI plugin and its network configuration as soon as the node serves, and keep them installed.
    #[arg(long, conflicts_with = "cleanup")]
    pub install: bool,
    /// What `--install` installs where.
    #[command(flatten)]
    pub target: install::Target,
    /// Where the kernel's settings can be written, for a container whose own `/proc/sys` is read-only: the node's
    /// `/proc/sys/net` mounted at DIR/net.
    #[arg(long, default_value = sysctl::DEFAULT_ROOT, env = "PODNET_PROC_SYS", value_name = "DIR")]
    pub proc_sys: PathBuf,
}

/// Runs the daemon until SIGTERM or SIGINT. Pods and their traffic stay as they are when it ends.
///
/// # Errors
///
/// The configuration is unusable, another daemon runs, or the node cannot be brought into its desired state.
pub fn run(args: DaemonArgs) -> Result<()> {
    let config = Config::load(&args.config)?.named(args.node.clone())?;
    let logging = Logging::start(&config.log)?;
    sysctl::use_root(&args.proc_sys).context("--proc-sys")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One is enough for an API that passes everything on, and hands nothing from thread to thread.
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    let result = runtime.block_on(serve(config, logging, args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Removes everything that podnet made on the node. The daemon must not run.
pub fn cleanup(args: &DaemonArgs) -> Result<()> {
    let config = Config::load(&args.config)?.named(args.node.clone())?;
    Logging::start(&config.log)?;
    server::ensure_not_served(&config.socket)?;
    // A daemon that was started with another socket.
    Database::ensure_unused(&config.state_dir)?;
    let left = cluster::leave(&config).context("leave the cluster");
    engine::remove_everything(&config).and(left)
}

async fn serve(config: Config, logging: Logging, args: DaemonArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    // Before anything is touched: a second daemon must not work on the first one's node.
    server::ensure_not_served(&config.socket)?;
    info!(version = env!("CARGO_PKG_VERSION"), node = config.node, "starting");

    let (log_readers, mut logs) = tokio::sync::mpsc::unbounded_channel();
    let health = Health::default();
    if let Some(address) = config.http {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("http: bind {address}"))?;
        tokio::spawn(server::serve_tcp(listener, server::health_router(health.clone())));
    }
    let mut waiting_watchdog = WaitingWatchdog::default();
    let Known { store, first, earlier } = tokio::select! {
        known = Known::gather(&config, &health, &mut waiting_watchdog) => known?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let name = store.as_ref().map(Store::describe);
    let start = engine::Start { ebpf_log: logging.ebpf(), logs: log_readers, store: name, first, earlier };
    let (engine, engine_thread) = engine::start(config.clone(), start)?;
    if !args.install {
        health.serve(engine.clone());
    }
    tokio::spawn(async move {
        // Each load of the programs brings a reader of its own; that of replaced programs ends with them.
        let current = Arc::new(AtomicUsize::new(0));
        while let Some(reader) = logs.recv().await {
            let number = current.fetch_add(1, Ordering::Relaxed) + 1;
            let current = Arc::clone(&current);
            let thread = std::thread::Builder::new().name("ebpf-logs".into());
            if let Err(error) = thread.spawn(move || drops::forward_logs(reader, number, &current)) {
                error!(%error, "the programs' log lines cannot be read");
            }
        }
    });
    tokio::spawn(report_drops(config.clone(), engine.clone()));
    let watcher = engine.clone();
    let local_links = [config.bridge.clone(), config.overlay.device.clone()];
    let own = monitor::Own {
        group: REAP_GROUP,
        port: engine.netlink_port(),
        is_local_link: Box::new(move |name| is_veth_name(name) || local_links.iter().any(|local| local == name)),
    };
    monitor::watch(own, move |news| watcher.tell(Command::News(news)))?;
    // What happened before the watch began was not seen.
    let start = News { lost: Some("the start".into()), moved: None };
    if !engine.tell(Command::News(start)) {
        warn!("the engine has ended");
    }

    let installation = Installation::default();
    let context =
        server::Context { engine: engine.clone(), health: health.clone(), logging, installation: installation.clone() };
    let listener = server::bind(&config.socket)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let api = tokio::spawn(server::serve_unix(listener, server::router(context), async move {
        // Both a message and a dropped sender mean "stop".
        drop(stopped.await);
    }));
    info!(socket = %config.socket.display(), "serving");
    // Not before the socket is bound: a plugin queues a deletion only while nobody answers there.
    engine.ask(Command::DrainDeletions).await?;
    service_manager::ready();
    tokio::spawn(service_manager::watchdog(engine.clone()));
    drop(waiting_watchdog);
    let (callable, is_callable) = oneshot::channel::<()>();
    if args.install {
        let args = InstallArgs { target: args.target, socket: config.socket.clone(), uninstall: false };
        tokio::spawn(keep::keep(args, Duration::from_secs(config.resync_seconds), installation.clone()));
        let engine = engine.clone();
        tokio::spawn(async move {
            installation.until_callable(|reason| health.wait_for(reason)).await;
            health.serve(engine);
            drop(callable);
        });
    } else {
        drop(callable);
    }
    if let Some(store) = store {
        tokio::spawn(follow_store(store, engine.clone(), is_callable));
    }

    let mut engine_end = tokio::task::spawn_blocking(move || engine_thread.join());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // Whoever started the daemon starts it again; to go on without an engine helps nobody.
        _ = &mut engine_end => anyhow::bail!("the engine's thread panicked"),
    }
    info!("shutting down; pods and their traffic stay");
    service_manager::stopping();
    drop(stop);
    if tokio::time::timeout(server::DRAIN, api).await.is_err() {
        warn!("requests were still under way after {} s", server::DRAIN.as_secs());
    }
    engine.ask(Command::Stop).await?;
    engine_end.await.context("wait for the engine")?.map_err(|_| anyhow::anyhow!("the engine's thread panicked"))?;
    match std::fs::remove_file(&config.socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", config.socket.display()))
        }
        _ => Ok(()),
    }
}

/// How long the start waits for the store; after that the last known nodes are in force until it answers.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the cluster at start.
struct Known {
    store: Option<AnyStore>,
    first: Option<Update>,
    earlier: Option<Cluster>,
}

impl Known {
    /// Opens the store and hears it for the first time. Where somebody else gives the node its pod CIDRs, this takes
    /// until they are known; meanwhile `health` says what is missing.
    ///
    /// # Errors
    ///
    /// The configuration makes no sense.
    async fn gather(config: &Config, health: &Health, watchdog: &mut WaitingWatchdog) -> Result<Self> {
        let earlier = last_known::load(&config.state_dir).unwrap_or_else(|error| {
            warn!(error = format!("{error:#}"), "the last known nodes are lost");
            None
        });
        let Some(mut store) = cluster::open(config).context("open the store")? else {
            return Ok(Self { store: None, first: None, earlier });
        };
        let mut first = tokio::time::timeout(STORE_PATIENCE, store.next())
            .await
            .unwrap_or_else(|_| Update::Failed(format!("it did not answer within {} s", STORE_PATIENCE.as_secs())));
        while store.allots_pod_cidrs() {
            let known = match &first {
                Update::Snapshot(cluster) => engine::own_pod_cidrs(config, Some(cluster), None),
                Update::Failed(reason) | Update::Disowned(reason) => {
                    engine::own_pod_cidrs(config, earlier.as_ref(), Some(reason))
                }
            };
            let Err(missing) = known else { break };
            warn!(store = store.describe(), reason = format!("{missing:#}"), "waiting for the node's pod CIDRs");
            service_manager::waiting(&format!("{missing:#}"));
            watchdog.start();
            health.wait_for(format!("{missing:#}"));
            first = store.next().await;
        }
        watchdog.limit();
        Ok(Self { store: Some(store), first: Some(first), earlier })
    }
}

/// Passes the store's news on to the engine, until that ends. The store hears that the node can be given pods when the
/// runtime can call the plugin: `is_callable` ends, whichever way.
async fn follow_store(mut store: AnyStore, engine: engine::Handle, mut is_callable: oneshot::Receiver<()>) {
    let mut announced = false;
    loop {
        tokio::select! {
            _ = &mut is_callable, if !announced => {
                announced = true;
                store.announce_ready();
            }
            news = store.next() => {
                if !engine.tell(Command::Cluster(news)) {
                    return;
                }
            }
        }
    }
}

/// Logs each drop that the programs report, with the pod's name.
async fn report_drops(config: Config, engine: engine::Handle) {
    if let Err(error) = drops::report(&config.bpffs, engine).await {
        error!(error = format!("{error:#}"), "drops are counted, but not reported any more");
    }
}
