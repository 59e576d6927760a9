//! What the daemon tells systemd (`Type=notify`, sd_notify(3)): that it serves, what it waits for, and that it lives.
//! Without systemd every function does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::{task::JoinHandle, time::Interval};
use tracing::debug;

use crate::engine::{Command, Handle};

/// Tells that the daemon serves.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Tells what the daemon waits for, and that it is up all the same. The unit comes before the container runtimes: what
/// the daemon waits for may itself run below one of them, such as an API server in a static pod. The runtimes give this
/// node no pods meanwhile: they miss the network configuration, or STATUS says that podnet is not available.
pub fn waiting(reason: &str) {
    // A line of its own ends a message.
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("waiting: {}", reason.replace('\n', " ")))]);
}

/// Tells that the daemon is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// How long a start may take once the wait is over: as long as the unit's `TimeoutStartSec` gives a start without one.
const START: Duration = Duration::from_secs(120);

/// The watchdog of a daemon that waits, and so has no engine yet: systemd's begins with [`waiting`].
#[derive(Debug, Default)]
pub struct WaitingWatchdog(Option<JoinHandle<()>>);

impl WaitingWatchdog {
    /// Tells from now on that the daemon lives; once is enough.
    pub fn start(&mut self) {
        self.0.get_or_insert_with(|| tokio::spawn(tell_alive(None)));
    }

    /// Notes that the wait is over: a start that hangs must be noticed.
    pub fn limit(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
            self.0 = Some(tokio::spawn(tell_alive(Some(START))));
        }
    }
}

impl Drop for WaitingWatchdog {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

async fn tell_alive(limit: Option<Duration>) {
    let Some(mut interval) = watchdog_interval() else { return };
    let start = tokio::time::Instant::now();
    while limit.is_none_or(|limit| start.elapsed() < limit) {
        interval.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Returns how often the unit wants a sign of life, if it wants any: half of its limit, as sd_watchdog_enabled(3)
/// recommends.
fn watchdog_interval() -> Option<Interval> {
    sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 2))
}

/// Tells that the daemon lives, as often as the unit's `WatchdogSec` asks for, while the engine answers. Ends at once
/// if the unit asks for nothing.
pub async fn watchdog(engine: Handle) {
    let Some(mut interval) = watchdog_interval() else { return };
    loop {
        interval.tick().await;
        if engine.ask(Command::Status).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // The service manager notices what it misses, and says so better.
        debug!(%error, "tell the service manager");
    }
}
