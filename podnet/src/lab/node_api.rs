//! What the lab asks of a node's daemon: readiness, status, pods, and to change the eBPF path.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::api::{DatapathRequest, Pod, Status, client::Client};

/// Returns `None` once pods can be added; what is missing until then.
#[must_use]
pub fn not_ready_reason(socket: &Path) -> Option<String> {
    Client::new(socket).readyz().err().map(|error| error.to_string())
}

/// Returns the daemon's status.
pub fn status(socket: &Path) -> Result<Status> {
    Ok(Client::new(socket).status()?)
}

/// Returns the pods that the daemon has.
pub fn pods(socket: &Path) -> Result<Vec<Pod>> {
    Ok(Client::new(socket).pods()?)
}

/// How long a change of the programs may take: on a starved machine the kernel's grace periods take their time.
const DATAPATH_TIMEOUT: Duration = Duration::from_secs(300);

/// Attaches, detaches or reloads the eBPF programs.
pub fn set_datapath(socket: &Path, change: DatapathRequest) -> Result<()> {
    Ok(Client::new(socket).with_timeout(DATAPATH_TIMEOUT).datapath(change)?)
}
