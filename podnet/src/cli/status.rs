//! `podnet status`.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::Result;

use super::{Format, print, print_json};
use crate::api::{KernelStatus, Status, client::Client};

/// Exit code of a daemon that runs but cannot add pods.
const NOT_READY: u8 = 3;

/// Shows the node's state. Exits with 0 if pods can be added, with 3 if the daemon runs but cannot add pods.
pub(super) fn show(client: &Client, format: Format) -> Result<ExitCode> {
    let status = client.status()?;
    match format {
        Format::Json => print_json(&status)?,
        Format::Table => print(&render(&status)?)?,
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) })
}

fn render(status: &Status) -> Result<String> {
    let mut text = String::new();
    let ready = match &status.not_ready_reason {
        None => "ready".to_owned(),
        Some(reason) => format!("NOT READY: {reason}"),
    };
    writeln!(text, "Node      {} ({ready})", status.node)?;
    writeln!(text, "Daemon    podnet {}, process {}, up {}", status.version, status.pid, duration(status.uptime))?;
    let way_out = match status.cluster.pod_route_mtu {
        smaller if (1..status.mtu).contains(&smaller) => format!(" ({smaller} out of the node)"),
        _ => String::new(),
    };
    writeln!(text, "Bridge    {} {} mtu {}{way_out}", status.bridge, status.bridge_mac, status.mtu)?;
    for pool in &status.pools {
        writeln!(text, "Pool      {} gateway {}: {} of {} in use", pool.cidr, pool.gateway, pool.used, pool.capacity)?;
    }
    let reaping = if status.reaping > 0 { format!(", {} veths being removed", status.reaping) } else { String::new() };
    writeln!(text, "Pods      {}{reaping}", status.pods)?;
    let cluster = &status.cluster;
    if let Some(store) = &cluster.store {
        let stale = cluster.stale_seconds.map(|seconds| format!(", STALE for {}", duration(seconds)));
        writeln!(text, "Store     {store}: {} nodes{}", cluster.nodes, stale.unwrap_or_default())?;
        let overlay = cluster.overlay.as_ref().map(|device| format!(", overlay {device}")).unwrap_or_default();
        let uplinks = if cluster.uplinks.is_empty() { "none".into() } else { cluster.uplinks.join(", ") };
        writeln!(text, "Routing   {}; uplinks {uplinks}{overlay}", cluster.mode)?;
    }
    writeln!(text, "Kernel    {}", kernel(status))?;
    let datapath = &status.datapath;
    let state = match (datapath.attached, &datapath.reason) {
        (true, _) => "programs attached".to_owned(),
        (false, Some(reason)) => format!("programs NOT attached: {reason}"),
        (false, None) => "no programs".to_owned(),
    };
    writeln!(text, "Datapath  {}, {state}", datapath.mode)?;
    if let Some(pins) = &datapath.pins {
        writeln!(text, "Maps      {pins}")?;
    }
    writeln!(text, "Repairs   {}", status.repairs)?;
    for warning in &status.warnings {
        writeln!(text, "Warning   {warning}")?;
    }
    let moved: Vec<_> = datapath.counters.iter().filter(|counter| counter.packets > 0).collect();
    if !moved.is_empty() {
        let mut table = super::table(["KIND", "NAME", "PACKETS", "BYTES"]);
        for counter in moved {
            table.add_row([
                counter.kind.clone(),
                counter.name.clone(),
                counter.packets.to_string(),
                counter.bytes.to_string(),
            ]);
        }
        write!(text, "\n{}", table.trim_fmt())?;
    }
    Ok(text)
}

/// Says what the kernel is, and what it lacks.
fn kernel(status: &Status) -> String {
    let KernelStatus { release, lacks, tcx } = &status.kernel;
    let mut lines = vec![release.clone()];
    if !lacks.is_empty() {
        lines.push(format!("lacks what the eBPF path needs: {}", lacks.join(", ")));
    } else if !tcx {
        lines.push("lacks TCX (6.6): programs of uplinks and overlay are attached by clsact".into());
    }
    lines.join("; ")
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(7_260), "2 h 1 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }
}
