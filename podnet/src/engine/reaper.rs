//! The reaper deletes veths in groups. Deleting one costs about 30 ms of waiting for kernel grace periods, deleting a
//! hundred in one message hardly more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing::error;

use crate::{
    netlink::{Socket, link},
    plan::REAP_GROUP,
};

/// How long the reaper gathers veths after the first.
const GATHER: Duration = Duration::from_millis(20);

enum Message {
    /// One more veth is in the group.
    Doomed,
    /// Delete what is in the group, whoever put it there.
    Sweep,
    /// Delete what is in the group now, then answer.
    Flush(Sender<()>),
}

/// A handle to the reaper's thread, which ends with it.
pub(super) struct Reaper {
    messages: Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

impl Reaper {
    /// Starts the reaper's thread.
    pub(super) fn start() -> Result<Self> {
        let (messages, inbox) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut netlink = Socket::open()?;
        let counter = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reap(&mut netlink, &inbox, &counter))
            .context("start the reaper's thread")?;
        Ok(Self { messages, waiting })
    }

    /// Says that a veth has been put into [`REAP_GROUP`].
    pub(super) fn doom(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.messages.send(Message::Doomed).is_err() {
            error!("the reaper has ended; veths will be deleted at the next start");
        }
    }

    /// Says that there are veths in [`REAP_GROUP`] that nobody waits for: left by a daemon that was killed before its
    /// reaper came to them, or by a deletion that the kernel refused.
    pub(super) fn sweep(&self) {
        if self.messages.send(Message::Sweep).is_err() {
            error!("the reaper has ended; veths will be deleted at the next start");
        }
    }

    /// Waits until every veth of the group is deleted.
    pub(super) fn flush(&self) {
        let (done, wait) = channel();
        if self.messages.send(Message::Flush(done)).is_err() || wait.recv().is_err() {
            error!("the reaper has ended; veths will be deleted at the next start");
        }
    }

    /// Returns how many veths wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

fn reap(netlink: &mut Socket, inbox: &Receiver<Message>, waiting: &AtomicUsize) {
    while let Ok(first) = inbox.recv() {
        let mut doomed = 0;
        let mut flushes = Vec::new();
        let until = Instant::now() + GATHER;
        let mut message = first;
        loop {
            match message {
                Message::Doomed => doomed += 1,
                Message::Sweep => {}
                Message::Flush(done) => {
                    flushes.push(done);
                    break;
                }
            }
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(next) => message = next,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(error) = netlink.request(link::delete_group(REAP_GROUP)) {
            error!(%error, "delete veths");
        }
        waiting.fetch_sub(doomed, Ordering::Relaxed);
        for done in flushes {
            if done.send(()).is_err() {
                error!("who waited for the reaper has gone");
            }
        }
    }
}
