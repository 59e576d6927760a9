//! What the daemon tells systemd (`Type=notify`, sd_notify(3)): that it serves, what it waits for, and that it lives.
//! Without systemd every function does nothing.

use sd_notify::NotifyState;
use tracing::debug;

use crate::engine::{Command, Handle};

/// Tells that the daemon serves.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Tells what the daemon waits for.
pub fn waiting(reason: &str) {
    // A line of its own ends a message.
    notify(&[NotifyState::Status(&format!("waiting: {}", reason.replace('\n', " ")))]);
}

/// Tells that the daemon is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells that the daemon lives, as often as the unit's `WatchdogSec` asks for, while the engine answers. Ends at once
/// if the unit asks for nothing.
pub async fn watchdog(engine: Handle) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // Half of the limit, as sd_watchdog_enabled(3) recommends.
    let mut interval = tokio::time::interval(limit / 2);
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
