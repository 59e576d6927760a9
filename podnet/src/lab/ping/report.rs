//! The matrix for people: pairs of the same nodes in one line, or each in its own; failures always in their own.

use std::collections::BTreeMap;

use super::{Kind, Row};

/// What the rows of one line have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    kind: Kind,
    source_node: &'a str,
    destination_node: Option<&'a str>,
    path: &'a str,
}

/// Draws one line for all pairs that lie alike: of the same kind, between the same nodes, by the same path.
#[must_use]
pub fn summary(rows: &[Row]) -> String {
    let mut groups: BTreeMap<Key<'_>, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let key = Key {
            kind: row.kind,
            source_node: &row.source_node,
            destination_node: row.destination_node.as_deref(),
            path: &row.path,
        };
        groups.entry(key).or_default().push(row);
    }
    let mut table = table(&["FROM", "TO", "PAIRS", "FAMILY"]);
    for (key, rows) in groups {
        let from = match key.kind {
            Kind::NodeToPod => key.source_node.to_owned(),
            Kind::PodToPod | Kind::PodToOutside => format!("pods of {}", key.source_node),
        };
        let to = key.destination_node.map_or_else(|| "outside".into(), |node| format!("pods of {node}"));
        let has = |v6: bool| rows.iter().any(|row| row.address.is_ipv6() == v6);
        let family = match (has(false), has(true)) {
            (true, true) => "v4, v6",
            (true, false) => "v4",
            (false, _) => "v6",
        };
        let cells = [from, to, rows.len().to_string(), family.into()];
        table.add_row(cells.into_iter().chain(measured(&rows)));
    }
    table.trim_fmt()
}

/// Draws one line for each pair and family.
#[must_use]
pub fn details(rows: &[Row]) -> String {
    let mut table = table(&["FROM", "TO", "ADDRESS"]);
    for row in rows {
        let cells = [row.source.clone(), row.destination.clone(), row.address.to_string()];
        table.add_row(cells.into_iter().chain(measured(&[row])));
    }
    table.trim_fmt()
}

/// Describes each pair that lost packets in a line, with the reason if there is one; empty if there are none.
#[must_use]
pub fn failures(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let error = row.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        format!(
            "FAILED {} -> {} {}: {} of {} replies, path {}{error}\n",
            row.source,
            row.destination,
            row.address,
            row.replies_us.len(),
            row.sent,
            row.path
        )
    };
    rows.iter().filter(|row| !row.complete()).map(line).collect()
}

fn table(first: &[&str]) -> comfy_table::Table {
    let measured = ["LOSS", "RTT MIN/AVG/MAX", "PATH", "TO POD", "TO NODE", "TO OVERLAY", "BY KERNEL"];
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(first.iter().chain(&measured));
    table
}

/// Returns the cells that say what was measured.
fn measured(rows: &[&Row]) -> [String; 7] {
    let sent: usize = rows.iter().map(|row| usize::from(row.sent)).sum();
    let lost: usize = rows.iter().map(|row| row.lost()).sum();
    let replies = || rows.iter().flat_map(|row| row.replies_us.iter().copied());
    let rtt = match (replies().min(), replies().max(), replies().count() as u64) {
        (Some(min), Some(max), count) => format!("{min}/{}/{max} us", replies().sum::<u64>() / count),
        _ => "-".into(),
    };
    let counts = || rows.iter().flat_map(|row| row.counts.iter());
    [
        // A single lost packet must not be rounded away.
        format!("{} %", (lost * 100).div_ceil(sent.max(1))),
        rtt,
        rows.first().map_or("-", |row| row.path.as_str()).into(),
        counts().map(|counts| counts.redirected_to_pod).sum::<u64>().to_string(),
        counts().map(|counts| counts.redirected_to_node).sum::<u64>().to_string(),
        counts().map(|counts| counts.redirected_to_overlay).sum::<u64>().to_string(),
        counts().map(|counts| counts.delivered_by_kernel + counts.sent_by_kernel).sum::<u64>().to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::ping::path::NodeCounts;

    fn row(destination: &str, address: &str, replies: usize) -> Row {
        Row {
            kind: Kind::PodToPod,
            source: "pod1".into(),
            source_node: "node1".into(),
            destination: destination.into(),
            destination_node: Some("node2".into()),
            address: address.parse().unwrap(),
            sent: 4,
            replies_us: vec![30; replies],
            counts: vec![NodeCounts { redirected_to_pod: 4, redirected_to_node: 4, ..NodeCounts::default() }],
            path: "ebpf direct".into(),
            error: None,
        }
    }

    #[test]
    fn pairs_of_the_same_nodes_share_a_line() {
        let rows = [row("pod4", "10.244.2.2", 4), row("pod5", "10.244.2.3", 4), row("pod4", "fd00::2", 4)];
        let text = summary(&rows);
        let words: Vec<_> = text.lines().nth(1).unwrap().split_ascii_whitespace().collect();
        let expected = "pods of node1 pods of node2 3 v4, v6 0 % 30/30/30 us ebpf direct 12 12 0 0";
        assert_eq!(words.join(" "), expected);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert_eq!(details(&rows).lines().count(), 4);
        assert_eq!(failures(&rows), "");
    }

    #[test]
    fn another_path_is_another_line() {
        let other = Row { path: "kernel".into(), ..row("pod5", "10.244.2.3", 4) };
        assert_eq!(summary(&[row("pod4", "10.244.2.2", 4), other]).lines().count(), 3);
    }

    #[test]
    fn loss_is_shown() {
        let dead = Row { error: Some("no route".into()), ..row("pod5", "10.244.2.3", 0) };
        let rows = [row("pod4", "10.244.2.2", 4), row("pod6", "10.244.2.4", 3), dead];
        assert!(summary(&rows).contains("42 %"), "{}", summary(&rows));
        let text = failures(&rows);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("FAILED pod1 -> pod6 10.244.2.4: 3 of 4 replies"), "{text}");
        assert!(text.contains("0 of 4 replies, path ebpf direct: no route"), "{text}");
    }
}
