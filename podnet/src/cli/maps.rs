//! `podnet maps dump`: prints the eBPF maps from their pins, whether or not the daemon runs.

use std::{collections::HashMap, net::IpAddr, path::Path};

use anyhow::{Result, bail};
use podnet_common::{
    endpoint::{Endpoint, EndpointSource},
    flow::Flow,
    map_name,
    node::Node,
};
use serde_json::{Map, Value, json};

use super::{Format, print, print_json};
use crate::{
    api::{Mac, client::Client},
    datapath::maps::Maps,
};

/// One printable map: a heading and rows of JSON values in the heading's order.
struct Dump {
    name: &'static str,
    heading: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

/// Maps that have entries; `EVENTS` is a stream.
const DUMPABLE: [&str; 7] = [
    map_name::ENDPOINTS,
    map_name::ENDPOINTS_BY_IFINDEX,
    map_name::NODES,
    map_name::NODES_LPM,
    map_name::NODE_ADDRESSES,
    map_name::KERNEL_FLOWS,
    map_name::COUNTERS,
];

/// Columns of `NODES` and `NODES_LPM`.
const NODE_HEADING: [&str; 9] = ["network", "id", "way", "address", "next_hop", "ifindex", "mtu", "mac", "own_mac"];

/// Prints one map, or all that have entries.
///
/// # Errors
///
/// There is no such map, or it is not pinned in this folder.
pub(super) fn dump(pins: &Path, map: Option<&str>, format: Format, client: &Client) -> Result<()> {
    let names: Vec<&str> = match map {
        None => DUMPABLE.to_vec(),
        Some(wanted) => match DUMPABLE.iter().find(|name| name.eq_ignore_ascii_case(wanted)) {
            Some(name) => vec![name],
            None if wanted.eq_ignore_ascii_case(map_name::EVENTS) => {
                bail!("EVENTS is a ring buffer, which the daemon reads: its log shows each drop")
            }
            None => bail!("there is no map {wanted:?}; the maps are {}", DUMPABLE.join(", ")),
        },
    };
    let maps = Maps::from_pins(pins)?;
    // Names of pods are a courtesy of the daemon; the maps know only addresses and interfaces.
    let pods: HashMap<u32, String> = client
        .pods()
        .map(|pods| pods.into_iter().map(|pod| (pod.host_ifindex, pod.display_name())).collect())
        .unwrap_or_default();
    let dumps = names.into_iter().map(|name| read(&maps, name, &pods)).collect::<Result<Vec<_>>>()?;
    match format {
        Format::Json => print_json(&Value::Object(dumps.iter().map(|dump| (dump.name.into(), dump.json())).collect())),
        Format::Table => {
            let text: Vec<String> = dumps.iter().map(Dump::table).collect();
            print(&text.join("\n\n"))
        }
    }
}

impl Dump {
    fn json(&self) -> Value {
        let entry = |row: &Vec<Value>| {
            let fields = self.heading.iter().zip(row).map(|(key, value)| ((*key).to_owned(), value.clone()));
            Value::Object(fields.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(entry).collect())
    }

    fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_header(self.heading.iter().map(|name| name.replace('_', " ").to_uppercase()));
        for row in &self.rows {
            table.add_row(row.iter().map(|value| match value {
                Value::String(text) => text.clone(),
                Value::Null => "-".to_owned(),
                Value::Array(words) => words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
                other => other.to_string(),
            }));
        }
        format!("{} ({} entries)\n{}", self.name, self.rows.len(), table.trim_fmt())
    }
}

fn read(maps: &Maps, name: &'static str, pods: &HashMap<u32, String>) -> Result<Dump> {
    let pod = |ifindex: u32| pods.get(&ifindex).map_or(Value::Null, |name| json!(name));
    let (heading, mut rows): (&[&str], Vec<Vec<Value>>) = match name {
        map_name::ENDPOINTS => (
            &["address", "ifindex", "mac", "gateway_mac", "mtu", "flags", "pod"],
            maps.endpoints()?
                .into_iter()
                .map(|(address, endpoint)| {
                    let flags = flags(endpoint.flags, &[(Endpoint::KERNEL_TOUCHED, "kernel-touched")]);
                    let (mac, gateway_mac) = (Mac(endpoint.mac), Mac(endpoint.gateway_mac));
                    let (ifindex, mtu) = (json!(endpoint.ifindex), json!(endpoint.mtu));
                    let address = json!(address.to_ip());
                    vec![address, ifindex, json!(mac), json!(gateway_mac), mtu, flags, pod(endpoint.ifindex)]
                })
                .collect(),
        ),
        map_name::ENDPOINTS_BY_IFINDEX => (
            &["ifindex", "ipv4", "ipv6", "mac", "flags", "pod"],
            maps.sources()?
                .into_iter()
                .map(|(ifindex, source)| {
                    let v4 = (source.v4 != [0; 4]).then(|| std::net::Ipv4Addr::from(source.v4));
                    let v6 = (source.v6 != [0; 16]).then(|| std::net::Ipv6Addr::from(source.v6));
                    let flags = flags(
                        source.flags,
                        &[
                            (EndpointSource::KERNEL_TOUCHED_V4, "kernel-touched-v4"),
                            (EndpointSource::KERNEL_TOUCHED_V6, "kernel-touched-v6"),
                        ],
                    );
                    vec![json!(ifindex), json!(v4), json!(v6), json!(Mac(source.mac)), flags, pod(ifindex)]
                })
                .collect(),
        ),
        map_name::NODES => (
            &NODE_HEADING,
            maps.nodes()?.into_iter().map(|(network, node)| node_row(&network.to_ip().to_string(), &node)).collect(),
        ),
        map_name::NODES_LPM => (
            &NODE_HEADING,
            maps.node_prefixes()?.into_iter().map(|(prefix, node)| node_row(&prefix.to_string(), &node)).collect(),
        ),
        map_name::NODE_ADDRESSES => (
            &["address", "id"],
            maps.node_addresses()?
                .into_iter()
                .map(|(address, owner)| vec![json!(address.to_ip()), json!(owner.id)])
                .collect(),
        ),
        map_name::KERNEL_FLOWS => (
            &["protocol", "first", "second", "state", "idle_seconds"],
            maps.flows()?
                .into_iter()
                .map(|(key, flow)| {
                    let end = |address: podnet_common::address::Address, port: [u8; 2]| {
                        json!(std::net::SocketAddr::new(address.to_ip(), u16::from_be_bytes(port)).to_string())
                    };
                    let state = flags(
                        flow.state,
                        &[
                            (Flow::OWNED_BY_EBPF, "ebpf"),
                            (Flow::OWNED_BY_KERNEL, "kernel"),
                            (Flow::SEEN_FROM_FIRST, "seen-from-first"),
                            (Flow::SEEN_FROM_SECOND, "seen-from-second"),
                        ],
                    );
                    let (first, second) = (end(key.first, key.first_port), end(key.second, key.second_port));
                    vec![json!(protocol(key.protocol)), first, second, state, json!(idle_seconds(flow.last_seen))]
                })
                .collect(),
        ),
        _ => (
            &["kind", "name", "packets", "bytes"],
            maps.counters()?
                .into_iter()
                .map(|counter| {
                    vec![json!(counter.kind), json!(counter.name), json!(counter.packets), json!(counter.bytes)]
                })
                .collect(),
        ),
    };
    if name != map_name::COUNTERS {
        // The kernel lists a hash in no order; the same content should print the same.
        rows.sort_by_cached_key(|row| Value::Array(row.clone()).to_string());
    }
    Ok(Dump { name, heading, rows })
}

/// The row of a node in the order of [`NODE_HEADING`]; what its way does not use is absent.
fn node_row(network: &str, node: &Node) -> Vec<Value> {
    let address = |address: podnet_common::address::Address| match address.to_ip() {
        IpAddr::V6(v6) if v6.is_unspecified() => Value::Null,
        address => json!(address),
    };
    let mac = |mac: [u8; 6]| if mac == [0; 6] { Value::Null } else { json!(Mac(mac)) };
    let way = match node.flags {
        flags if flags & Node::LOCAL != 0 => "local",
        flags if flags & Node::OVERLAY != 0 => "overlay",
        flags if flags & Node::DIRECT != 0 => "direct",
        _ => "kernel",
    };
    let ifindex = (node.ifindex != 0).then_some(node.ifindex);
    let (from, to) = (address(node.address), address(node.next_hop));
    vec![
        json!(network),
        json!(node.id),
        json!(way),
        from,
        to,
        json!(ifindex),
        json!(node.mtu),
        mac(node.mac),
        mac(node.own_mac),
    ]
}

fn flags(bits: u32, names: &[(u32, &str)]) -> Value {
    Value::Array(names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| json!(name)).collect())
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => other.to_string(),
    }
}

/// Seconds since a tick of the programs' clock, to about a second.
fn idle_seconds(last_seen: u32) -> Option<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    let now_ns = u128::try_from(now.tv_sec()).ok()? * 1_000_000_000 + u128::try_from(now.tv_nsec()).ok()?;
    let ticks = ((now_ns >> Flow::TICK_SHIFT) as u32).wrapping_sub(last_seen);
    u64::try_from((u128::from(ticks) << Flow::TICK_SHIFT) / 1_000_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_named() {
        assert_eq!(flags(0b101, &[(1, "a"), (2, "b"), (4, "c")]), json!(["a", "c"]));
        assert_eq!(flags(0, &[(1, "a")]), json!([]));
    }

    #[test]
    fn a_node_shows_what_its_way_uses() {
        let none = podnet_common::address::Address { octets: [0; 16] };
        let local = Node {
            id: 1,
            address: none,
            next_hop: none,
            ifindex: 0,
            flags: Node::LOCAL,
            mtu: 1500,
            mac: [0; 6],
            own_mac: [0; 6],
        };
        assert_eq!(
            Value::Array(node_row("10.244.1.0", &local)),
            json!(["10.244.1.0", 1, "local", null, null, null, 1500, null, null])
        );
        let next_hop = std::net::Ipv4Addr::new(192, 168, 1, 12).into();
        let direct = Node { id: 2, next_hop, ifindex: 3, flags: Node::DIRECT, ..local };
        assert_eq!(
            Value::Array(node_row("10.244.2.0", &direct)),
            json!(["10.244.2.0", 2, "direct", null, "192.168.1.12", 3, 1500, null, null])
        );
        for (flags, way) in [(Node::OVERLAY, "overlay"), (0, "kernel")] {
            assert_eq!(node_row("", &Node { flags, ..direct })[2], json!(way));
        }
        assert_eq!(node_row("", &direct).len(), NODE_HEADING.len());
    }

    #[test]
    fn a_flow_that_was_just_seen_is_not_idle() {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let tick = ((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> Flow::TICK_SHIFT) as u32;
        assert!(idle_seconds(tick).unwrap() <= 1);
        assert_eq!(idle_seconds(tick.wrapping_sub(100)).map(|idle| idle / 10), Some(10));
    }
}
