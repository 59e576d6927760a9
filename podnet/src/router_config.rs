//! The table of pod CIDRs for a router between the nodes, in the words of several routers. Pure.
//!
//! A router needs it in the modes `router` and `direct`. In `overlay` and `auto` it sees packets between nodes only.

use std::{fmt::Write as _, net::IpAddr};

use clap::ValueEnum;
use ipnetwork::IpNetwork;

use crate::{cluster::Cluster, config::RoutingMode};

/// Protocol number of the routes in `ip route`'s table, by which they are told from others (rtnetlink(7)).
pub const ROUTE_PROTOCOL: u8 = 112;

/// Whose words the table is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Commands of iproute2 for a shell on a Linux router
    Iproute2,
    /// Static routes for FRR's configuration
    Frr,
    /// Static protocols for the configuration of BIRD 2
    Bird,
}

/// A pod CIDR and the node to which its packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'a> {
    node: &'a str,
    cidr: IpNetwork,
    via: IpAddr,
}

/// Returns the table as text that ends with a line break. Pod CIDRs of nodes without an address of the same family are
/// left out, and a comment says so.
#[must_use]
pub fn render(cluster: &Cluster, mode: RoutingMode, format: Format) -> String {
    // FRR reads lines that begin with `!` as comments, in files as well as when they are typed in.
    let comment = if format == Format::Frr { '!' } else { '#' };
    let mut text = format!("{comment} podnet: pod CIDRs of {} nodes, mode {mode}\n", cluster.nodes().len());
    if matches!(mode, RoutingMode::Overlay | RoutingMode::Auto) {
        line(
            &mut text,
            format_args!("{comment} In this mode a router needs no pod CIDRs: it sees packets between nodes only."),
        );
        return text;
    }
    let mut entries = Vec::new();
    for node in cluster.nodes() {
        for cidr in &node.pod_cidrs {
            match node.address(cidr.is_ipv6()) {
                Some(via) => entries.push(Entry { node: &node.name, cidr: *cidr, via }),
                None => line(
                    &mut text,
                    format_args!(
                        "{comment} left out: {cidr} of {}, which has no address of this family",
                        shown(&node.name)
                    ),
                ),
            }
        }
    }
    match format {
        Format::Iproute2 => iproute2(&mut text, &entries),
        Format::Frr => frr(&mut text, &entries),
        Format::Bird => bird(&mut text, &entries),
    }
    text
}

fn iproute2(text: &mut String, entries: &[Entry<'_>]) {
    line(
        text,
        format_args!(
            "# Routes of nodes that are gone: ip route show proto {ROUTE_PROTOCOL}, ip -6 route show proto {ROUTE_PROTOCOL}"
        ),
    );
    for Entry { cidr, via, .. } in entries {
        let ip = if cidr.is_ipv4() { "ip" } else { "ip -6" };
        line(text, format_args!("{ip} route replace {cidr} via {via} proto {ROUTE_PROTOCOL}"));
    }
}

fn frr(text: &mut String, entries: &[Entry<'_>]) {
    for Entry { cidr, via, .. } in entries {
        let ip = if cidr.is_ipv4() { "ip" } else { "ipv6" };
        line(text, format_args!("{ip} route {cidr} {via}"));
    }
}

fn bird(text: &mut String, entries: &[Entry<'_>]) {
    for (family, number) in [("ipv4", 4), ("ipv6", 6)] {
        line(text, format_args!("protocol static podnet{number} {{"));
        line(text, format_args!("    {family};"));
        for Entry { node, cidr, via } in entries.iter().filter(|entry| entry.cidr.is_ipv4() == (number == 4)) {
            line(text, format_args!("    route {cidr} via {via}; # {}", shown(node)));
        }
        line(text, format_args!("}}"));
    }
}

/// A name is the only free text here, and must not end the comment that it stands in.
fn shown(name: &str) -> impl std::fmt::Display {
    name.escape_debug()
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    writeln!(text, "{arguments}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::node;

    fn cluster() -> Cluster {
        Cluster::new(vec![
            node("node1", &["192.168.1.11", "fd00:192:168:1::11"], &["10.244.1.0/24", "fd00:10:244:1::/64"]),
            node("node2", &["192.168.1.12"], &["10.244.2.0/24", "fd00:10:244:2::/64"]),
        ])
        .unwrap()
    }

    #[track_caller]
    fn check(mode: RoutingMode, format: Format, expected: &[&str]) {
        let text = render(&cluster(), mode, format);
        assert!(text.ends_with('\n'));
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn iproute2_gets_commands() {
        check(
            RoutingMode::Router,
            Format::Iproute2,
            &[
                "# podnet: pod CIDRs of 2 nodes, mode router",
                "# left out: fd00:10:244:2::/64 of node2, which has no address of this family",
                "# Routes of nodes that are gone: ip route show proto 112, ip -6 route show proto 112",
                "ip route replace 10.244.1.0/24 via 192.168.1.11 proto 112",
                "ip -6 route replace fd00:10:244:1::/64 via fd00:192:168:1::11 proto 112",
                "ip route replace 10.244.2.0/24 via 192.168.1.12 proto 112",
            ],
        );
    }

    #[test]
    fn frr_gets_static_routes() {
        check(
            RoutingMode::Direct,
            Format::Frr,
            &[
                "! podnet: pod CIDRs of 2 nodes, mode direct",
                "! left out: fd00:10:244:2::/64 of node2, which has no address of this family",
                "ip route 10.244.1.0/24 192.168.1.11",
                "ipv6 route fd00:10:244:1::/64 fd00:192:168:1::11",
                "ip route 10.244.2.0/24 192.168.1.12",
            ],
        );
    }

    #[test]
    fn bird_gets_a_protocol_for_each_family() {
        check(
            RoutingMode::Router,
            Format::Bird,
            &[
                "# podnet: pod CIDRs of 2 nodes, mode router",
                "# left out: fd00:10:244:2::/64 of node2, which has no address of this family",
                "protocol static podnet4 {",
                "    ipv4;",
                "    route 10.244.1.0/24 via 192.168.1.11; # node1",
                "    route 10.244.2.0/24 via 192.168.1.12; # node2",
                "}",
                "protocol static podnet6 {",
                "    ipv6;",
                "    route fd00:10:244:1::/64 via fd00:192:168:1::11; # node1",
                "}",
            ],
        );
    }

    #[test]
    fn a_name_stays_inside_of_its_comment() {
        let evil = "node1\nip route flush all";
        for (addresses, format) in [(["192.168.1.11"], Format::Bird), (["fd00::11"], Format::Iproute2)] {
            let cluster = Cluster::new(vec![node(evil, &addresses, &["10.244.1.0/24"])]).unwrap();
            let text = render(&cluster, RoutingMode::Router, format);
            assert!(text.contains("node1\\nip route flush all") && !text.contains("\nip route flush"), "{text}");
        }
    }

    #[test]
    fn modes_that_hide_pods_need_no_table() {
        for mode in [RoutingMode::Overlay, RoutingMode::Auto] {
            for format in [Format::Iproute2, Format::Frr, Format::Bird] {
                let text = render(&cluster(), mode, format);
                assert!(text.contains("needs no pod CIDRs") && !text.contains("10.244"), "{text}");
            }
        }
    }
}
