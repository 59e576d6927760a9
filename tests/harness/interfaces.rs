//! What a network namespace knows of its interfaces: statistics, links, addresses, neighbours, protocol errors.

use std::{collections::BTreeMap, net::IpAddr};

use aya::programs::{SchedClassifier, TcAttachType};
use podnet::{netlink::route::PODNET_PROTOCOL, netns::Netns};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    command::{read_proc, run},
    wait_for,
};

/// Statistics of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

impl std::ops::Sub for Statistics {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { rx_packets: self.rx_packets - earlier.rx_packets, tx_packets: self.tx_packets - earlier.tx_packets }
    }
}

/// Returns the statistics of all interfaces.
pub fn statistics(netns: &Netns) -> BTreeMap<String, Statistics> {
    parse_dev(&read_proc(netns, "/proc/net/dev"))
}

fn parse_dev(text: &str) -> BTreeMap<String, Statistics> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
        // Eight columns of receiving, then eight of sending; packets are the second of each.
        Some((name.trim().to_owned(), Statistics { rx_packets: *numbers.get(1)?, tx_packets: *numbers.get(9)? }))
    };
    text.lines().filter_map(line).collect()
}

/// Returns every counter of checksum errors that is not zero.
pub fn checksum_errors(netns: &Netns) -> Vec<(String, u64)> {
    let v4 = parse_snmp(&read_proc(netns, "/proc/net/snmp"));
    let v6 = parse_snmp6(&read_proc(netns, "/proc/net/snmp6"));
    v4.into_iter().chain(v6).filter(|(name, count)| name.contains("Csum") && *count > 0).collect()
}

/// Pairs of lines: `Tcp: name name`, `Tcp: number number`.
fn parse_snmp(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<_> = text.lines().collect();
    let pair = |pair: &[&str]| -> Vec<(String, u64)> {
        let names = pair[0].split_ascii_whitespace();
        let numbers = pair[1].split_ascii_whitespace();
        let protocol = pair[0].split(':').next().unwrap_or_default();
        // TcpMaxConn is -1: no counter.
        names
            .zip(numbers)
            .filter_map(|(name, number)| Some((format!("{protocol}{name}"), number.parse().ok()?)))
            .collect()
    };
    lines.chunks_exact(2).flat_map(pair).collect()
}

fn parse_snmp6(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// A link, as `ip -j link` shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct Link {
    /// Index of the interface.
    pub ifindex: u32,
    /// Name of the interface.
    pub ifname: String,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Returns all links.
pub fn links(netns: &Netns) -> Vec<Link> {
    ip(netns, &["link", "show"])
}

/// A neighbour, as `ip -j neighbour` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Neighbor {
    /// Address of the neighbour.
    pub dst: IpAddr,
    /// Its MAC, if it is known.
    #[serde(default)]
    pub lladdr: Option<String>,
}

/// Returns the neighbours whose MAC is known, sorted.
pub fn neighbors(netns: &Netns) -> Vec<(IpAddr, String)> {
    let all: Vec<Neighbor> = ip(netns, &["neighbour", "show"]);
    let mut known: Vec<_> = all.into_iter().filter_map(|neighbor| Some((neighbor.dst, neighbor.lladdr?))).collect();
    known.sort();
    known
}

/// Waits until the kernel's link watch has seen that every interface that is up has a carrier. Before that an interface
/// drops what it should send, and the link watch waits while somebody removes a namespace, for one.
pub fn wait_for_carriers(netns: &Netns) {
    wait_for("interfaces to have a carrier", || {
        let links: Vec<serde_json::Value> = ip(netns, &["link", "show", "up"]);
        links.iter().all(|link| link["operstate"] != "DOWN" && link["operstate"] != "LOWERLAYERDOWN").then_some(())
    });
}

/// Returns the routes of a family as `ip -j` shows them.
pub fn routes(netns: &Netns, family: crate::Family) -> Vec<serde_json::Value> {
    let option = if family == crate::Family::V4 { "-4" } else { "-6" };
    ip(netns, &[option, "route", "show"])
}

/// Returns the destinations of podnet's own routes. Not of `ip -j`, whose answer for a route that encapsulates has two
/// fields `dst`.
pub fn own_destinations(netns: &Netns, family: crate::Family) -> Vec<String> {
    let option = if family == crate::Family::V4 { "-4" } else { "-6" };
    let text = run(netns, "ip", &[option, "route", "show", "proto", &PODNET_PROTOCOL.to_string()]);
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Returns the names of the programs that TCX has on one side of an interface.
pub fn tcx_programs(netns: &Netns, device: &str, side: TcAttachType) -> Vec<String> {
    let query = || Ok(SchedClassifier::query_tcx(device, side)?.1);
    let programs = netns.run(query).unwrap_or_else(|error| panic!("list the programs of {device}: {error:#}"));
    programs.iter().map(|program| program.name_as_str().unwrap().to_owned()).collect()
}

/// Returns the route of the main table to exactly a destination, as `ip` shows it; see [`own_destinations`].
pub fn route_of(netns: &Netns, family: crate::Family, destination: &str) -> Option<String> {
    let option = if family == crate::Family::V4 { "-4" } else { "-6" };
    let text = run(netns, "ip", &[option, "route", "show"]);
    // A route of another kind begins with that.
    text.lines().find(|line| line.split_whitespace().next() == Some(destination)).map(|line| line.trim_end().to_owned())
}

/// Returns the route to an address, as `ip -j route get` shows it.
pub fn route_to(netns: &Netns, address: IpAddr) -> serde_json::Value {
    let mut routes: Vec<serde_json::Value> = ip(netns, &["route", "get", &address.to_string()]);
    assert_eq!(routes.len(), 1, "{routes:?}");
    routes.remove(0)
}

fn ip<T: DeserializeOwned>(netns: &Netns, arguments: &[&str]) -> Vec<T> {
    let arguments: Vec<_> = std::iter::once("-j").chain(arguments.iter().copied()).collect();
    let text = run(netns, "ip", &arguments);
    // An empty list is printed as nothing by some versions.
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).unwrap_or_else(|error| panic!("ip {arguments:?}: {error}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_column() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n  eth0: 10 2 0 0 0 0 0 0 30 4 0 0 0 0 0 0\n";
        assert_eq!(parse_dev(text)["eth0"], Statistics { rx_packets: 2, tx_packets: 4 });
    }

    #[test]
    fn protocol_counters_are_read_by_name() {
        let all = parse_snmp("Tcp: RtoMin MaxConn InCsumErrors\nTcp: 200 -1 3\n");
        assert!(all.contains(&("TcpInCsumErrors".into(), 3)), "{all:?}");
        assert_eq!(parse_snmp6("Udp6InCsumErrors   7\n"), [("Udp6InCsumErrors".into(), 7)]);
    }
}
