//! Reports what the programs drop and log, as lines of the daemon's log.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

use crate::{
    datapath::{
        events::{DropEvent, Events},
        loader::pin_dir,
        logs::Logs,
    },
    engine::{Command, Handle},
};

/// How long to wait for the ring buffer to be pinned, and between two looks.
const PIN_POLL: Duration = Duration::from_secs(2);

/// How often the thread of a load looks whether there is a newer one.
const LOG_POLL_MS: u16 = 500;

/// How old the list of pods may be when a drop is given a name.
const NAMES_AGE: Duration = Duration::from_secs(1);

/// Logs each drop that the programs report, with the pod's name, for ever.
///
/// # Errors
///
/// The ring buffer cannot be read.
pub async fn report(bpffs: &Path, engine: Handle) -> Result<()> {
    let pins = pin_dir(bpffs);
    let events = loop {
        if pins.join(podnet_common::map_name::EVENTS).exists() {
            break Events::from_pins(&pins)?;
        }
        tokio::time::sleep(PIN_POLL).await;
    };
    // SAFETY: the descriptor is the ring buffer's own and stays open, and the same, as long as the value.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    let mut events = events.context("watch the ring buffer EVENTS")?;
    let mut names = Names { engine, by_ifindex: HashMap::new(), read: None };
    loop {
        let mut ready = events.readable_mut().await.context("watch the ring buffer EVENTS")?;
        while let Some(event) = ready.get_inner_mut().next_event() {
            let pod = names.get(event.ifindex).await;
            log(&event, &pod);
        }
        ready.clear_ready();
    }
}

/// Forwards the log lines of one load of the programs to the daemon's log, until `current` is no longer `number`: the
/// number of this load. On a thread of its own, because a busy node logs faster than lines can be written.
pub fn forward_logs(mut logs: Logs, number: usize, current: &AtomicUsize) {
    while current.load(Ordering::Relaxed) == number {
        let mut watched = [PollFd::new(logs.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(LOG_POLL_MS)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => logs.forward(),
            Err(error) => return warn!(%error, "the programs' log lines cannot be read"),
        }
    }
}

fn log(event: &DropEvent, pod: &str) {
    let packet = event.summary();
    let text = |value: Option<std::net::IpAddr>| value.map_or_else(|| "-".to_owned(), |address| address.to_string());
    warn!(
        reason = event.reason_name(),
        hook = event.hook_name(),
        pod,
        ifindex = event.ifindex,
        source = text(packet.source),
        destination = text(packet.destination),
        source_mac = packet.source_mac.map(|mac| mac.to_string()),
        protocol = packet.protocol,
        bytes = event.packet_len,
        lost = event.lost,
        "dropped"
    );
}

/// Names of pods by the index of their host-side veth, at most [`NAMES_AGE`] old.
struct Names {
    engine: Handle,
    by_ifindex: HashMap<u32, String>,
    read: Option<Instant>,
}

impl Names {
    async fn get(&mut self, ifindex: u32) -> String {
        if self.read.is_none_or(|read| read.elapsed() > NAMES_AGE) {
            if let Ok(pods) = self.engine.ask(Command::Pods).await {
                self.by_ifindex = pods.into_iter().map(|pod| (pod.host_ifindex, pod.display_name())).collect();
            }
            self.read = Some(Instant::now());
        }
        self.by_ifindex.get(&ifindex).cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}
