//! Ten thousand pods a minute come and go, namespaces included, beside pods that talk: no error, no leak, no loss.
//!
//! ```text
//!   8 runtimes: new namespace, ADD, ..., DEL, namespace gone -->  daemon
//!   a <--- UDP numbered, both ways, both families; one TCP connection per family ---> b
//! ```

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use harness::{tcp, udp};
use nix::sys::{resource::UsageWho, time::TimeValLike as _};
use podnet::datapath::maps::Maps;

use crate::{
    percentile,
    plugin::{Daemon, Fixture, Plugin, Pod},
    timed,
};

/// Pods a minute that must be reached.
const RATE: u32 = 10_000;
/// Runtimes that call the plugin at once.
const RUNTIMES: usize = 8;
/// Pods that each runtime has at a time.
const ALIVE: usize = 8;
/// Pause of the UDP senders after each datagram.
const PAUSE: Duration = Duration::from_millis(2);
const PORT: u16 = 8080;

/// What the runtimes did.
#[derive(Default)]
struct Load {
    add: Vec<Duration>,
    delete: Vec<Duration>,
    namespace: Vec<Duration>,
}

impl Load {
    fn extend(&mut self, other: Self) {
        self.add.extend(other.add);
        self.delete.extend(other.delete);
        self.namespace.extend(other.namespace);
    }
}

/// For how long: `PODNET_LOAD_SECONDS`.
fn duration() -> Duration {
    let seconds = std::env::var("PODNET_LOAD_SECONDS").ok();
    let seconds = seconds.map_or(30, |text| text.parse().expect("PODNET_LOAD_SECONDS is a number of seconds"));
    Duration::from_secs(seconds)
}

/// Adds and deletes pods until the time is over: as fast as it goes, or, with a rate, no faster than that.
fn work(plugin: &Plugin<'_>, number: usize, until: Instant, pace: &Pace) -> Load {
    let mut load = Load::default();
    let mut alive = VecDeque::new();
    let remove = |load: &mut Load, pod: Pod| {
        load.delete.push(timed(|| plugin.delete_here(&pod)));
        let start = Instant::now();
        drop(pod);
        *load.namespace.last_mut().expect("a pod was made before") += start.elapsed();
    };
    while Instant::now() < until {
        pace.wait();
        let start = Instant::now();
        let pod = Pod::new(&format!("load{number}"));
        load.namespace.push(start.elapsed());
        load.add.push(timed(|| drop(plugin.add_here(&pod))));
        alive.push_back(pod);
        if alive.len() > ALIVE {
            let oldest = alive.pop_front().expect("there is one");
            remove(&mut load, oldest);
        }
    }
    for pod in alive {
        remove(&mut load, pod);
    }
    load
}

/// Spreads the pods evenly over the time, somewhat faster than they must come: `PODNET_LOAD_RATE` pods a minute, 0 for as
/// fast as it goes.
struct Pace {
    start: Instant,
    /// What must be reached, if somebody asked for it: a machine that is busy with other things is no fault.
    least: u32,
    gap: Duration,
    next: AtomicU64,
}

impl Pace {
    fn new() -> Self {
        let asked = std::env::var("PODNET_LOAD_RATE").ok();
        let asked: Option<u32> = asked.map(|text| text.parse().expect("PODNET_LOAD_RATE is pods a minute"));
        let rate = asked.unwrap_or(RATE);
        let gap = Duration::from_secs(60).checked_div(rate + rate / 20).unwrap_or_default();
        Self { start: Instant::now(), least: asked.unwrap_or(0), gap, next: AtomicU64::new(0) }
    }

    fn wait(&self) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let due = self.gap * u32::try_from(number).unwrap_or(u32::MAX);
        std::thread::sleep(due.saturating_sub(self.start.elapsed()));
    }
}

/// A pod that stays, and talks.
struct Talker {
    pod: Pod,
    addresses: Vec<IpAddr>,
}

impl Talker {
    fn new(fixture: &Fixture, plugin: &Plugin<'_>, name: &str) -> Self {
        let pod = Pod::new(name);
        let addresses = fixture.netns().run(|| Ok(plugin.add_here(&pod))).expect("enter the node");
        Self { pod, addresses }
    }

    fn targets(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().map(|address| SocketAddr::new(*address, PORT))
    }
}

/// Traffic between two pods, by both families.
struct Traffic {
    _servers: Vec<udp::EchoServer>,
    _server: tcp::EchoServer,
    floods: Vec<udp::Flood>,
    connections: Vec<tcp::LiveConnection>,
}

impl Traffic {
    fn start(a: &Talker, b: &Talker) -> Self {
        let pairs = [(a, b), (b, a)];
        let servers = pairs
            .iter()
            .flat_map(|(_, to)| to.targets().map(|target| udp::EchoServer::start(to.pod.netns(), target)))
            .collect();
        let server = tcp::EchoServer::start(b.pod.netns(), PORT);
        let flood = |(from, to): &(&Talker, &Talker)| -> Vec<udp::Flood> {
            to.targets().map(|target| udp::Flood::start_paced(from.pod.netns(), target, PAUSE)).collect()
        };
        let floods = pairs.iter().flat_map(flood).collect();
        let connections = b
            .targets()
            .map(|target| tcp::LiveConnection::start_paced(a.pod.netns(), target, Duration::from_millis(5)))
            .collect();
        Self { _servers: servers, _server: server, floods, connections }
    }

    fn finish(self) {
        let mut sent = 0;
        for flood in self.floods {
            let tally = flood.finish();
            assert_eq!(tally.lost(), 0, "datagrams between pods that stayed were lost: {tally:?}");
            sent += tally.sent;
        }
        let rounds: u64 = self.connections.into_iter().map(tcp::LiveConnection::finish).sum();
        println!("beside it      {sent} numbered datagrams and {rounds} rounds of TCP, none lost");
    }
}

/// Returns the CPU time that this process, or its children that have ended, used.
fn cpu(who: UsageWho) -> Duration {
    let usage = nix::sys::resource::getrusage(who).expect("read the use of the CPU");
    let time = |value: nix::sys::time::TimeVal| Duration::from_micros(value.num_microseconds().unsigned_abs());
    time(usage.user_time()) + time(usage.system_time())
}

fn assert_no_leak(fixture: &Fixture, daemon: &Daemon, pods: usize) {
    let client = daemon.client();
    let start = Instant::now();
    while fixture.veths().len() != pods {
        assert!(start.elapsed() < Duration::from_secs(20), "{} veths for {pods} pods", fixture.veths().len());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = client.status().expect("the daemon answers");
    assert_eq!((status.pods, status.reaping, status.repairs), (pods, 0, 0), "{status:?}");
    assert!(status.pools.iter().all(|pool| pool.used == pods as u64), "{:?}", status.pools);
    let maps = Maps::from_pins(&daemon.pins()).expect("the maps are pinned");
    assert_eq!(maps.endpoints().expect("read ENDPOINTS").len(), 2 * pods);
    assert_eq!(maps.sources().expect("read ENDPOINTS_BY_IFINDEX").len(), pods);
}

#[test]
fn ten_thousand_pods_a_minute_come_and_go_beside_traffic() {
    let fixture = Fixture::new("load");
    let daemon = fixture.start_daemon();
    let plugin = fixture.podnet(&daemon);
    let (a, b) = (Talker::new(&fixture, &plugin, "a"), Talker::new(&fixture, &plugin, "b"));
    let traffic = Traffic::start(&a, &b);
    let before = daemon.resources();
    let cpu_before = (daemon.cpu(), cpu(UsageWho::RUSAGE_SELF), cpu(UsageWho::RUSAGE_CHILDREN));

    let start = Instant::now();
    let until = start + duration();
    let pace = Pace::new();
    let mut load = Load::default();
    std::thread::scope(|scope| {
        let runtimes: Vec<_> = (0..RUNTIMES)
            .map(|number| {
                let (fixture, plugin, pace) = (&fixture, &plugin, &pace);
                scope.spawn(move || fixture.netns().run(|| Ok(work(plugin, number, until, pace))))
            })
            .collect();
        for runtime in runtimes {
            load.extend(runtime.join().expect("every call succeeds").expect("enter the node"));
        }
    });
    let elapsed = start.elapsed();
    let pods = load.add.len();
    assert_eq!(load.delete.len(), pods);
    let count = f64::from(u32::try_from(pods).expect("fewer pods than 2^32"));
    let rate = count * 60.0 / elapsed.as_secs_f64();
    println!("load           {pods} pods added and removed in {:.1} s: {rate:.0} pods/min", elapsed.as_secs_f64());
    for (verb, times) in [("ADD", &mut load.add), ("DEL", &mut load.delete), ("netns", &mut load.namespace)] {
        println!(
            "load           {verb:<6} p50 {:>7.2} ms  p99 {:>7.2} ms",
            percentile(times, 50),
            percentile(times, 99)
        );
    }
    let per_pod = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() * 1e3 / count;
    println!(
        "load           CPU per pod: daemon {:.2} ms, plugin {:.2} ms, generator with traffic {:.2} ms",
        per_pod(daemon.cpu(), cpu_before.0),
        per_pod(cpu(UsageWho::RUSAGE_CHILDREN), cpu_before.2),
        per_pod(cpu(UsageWho::RUSAGE_SELF), cpu_before.1),
    );
    traffic.finish();
    assert_no_leak(&fixture, &daemon, 2);
    let after = daemon.resources();
    println!("daemon         files {} -> {}, memory {} -> {} KiB", before.0, after.0, before.1, after.1);
    assert!(after.0 <= before.0 + 8, "open files of the daemon: {before:?} -> {after:?}");
    assert!(after.1 < before.1 + 32 * 1024, "memory of the daemon: {before:?} -> {after:?}");
    plugin.delete(&a.pod);
    plugin.delete(&b.pod);
    plugin.assert_nothing_left(&fixture);
    assert!(rate >= f64::from(pace.least), "only {rate:.0} pods/min, {} must be reached", pace.least);
}
