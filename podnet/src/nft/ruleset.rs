//! The table as commands for nft, in its JSON (libnftables-json(5)). Without effects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Rules, TABLE,
    ranges::{Range, split},
};
use crate::config::Family;

/// Chain that masquerades what leaves the cluster. (nft's own words, such as `masquerade`, cannot be typed as names.)
const OUTSIDE: &str = "outside";

/// A set whose elements follow from the rules.
struct Set {
    name: String,
    family: Family,
    kind: SetKind,
    elements: BTreeSet<Range>,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetKind {
    /// Ranges.
    Ranges,
    /// Single addresses.
    Addresses,
    /// The network addresses of networks with this prefix length.
    Networks(u8),
}

/// Returns the commands that make the whole table, whatever was there.
pub(super) fn whole(rules: &Rules) -> Value {
    let sets = sets(rules);
    let mut commands = frame(rules, &sets);
    commands.extend(sets.iter().filter_map(|set| elements("add", &set.name, &set.elements)));
    commands.push(stamp("add", rules, &sets));
    json!({ "nftables": commands })
}

/// Returns the commands that remove the table, whether or not it is there.
pub(super) fn removal() -> Value {
    json!({ "nftables": [table("add"), table("delete")] })
}

/// Returns the commands that turn one table into another; `None` if that takes more than changing elements.
pub(super) fn changes(old: &Rules, new: &Rules) -> Option<Vec<Value>> {
    let (old_sets, new_sets) = (sets(old), sets(new));
    if frame(old, &old_sets) != frame(new, &new_sets) {
        return None;
    }
    let mut commands = Vec::new();
    for (old, new) in old_sets.iter().zip(&new_sets) {
        // First the deletions: what comes may overlap what goes.
        commands.extend(elements("delete", &new.name, old.elements.difference(&new.elements)));
        commands.extend(elements("add", &new.name, new.elements.difference(&old.elements)));
    }
    if !commands.is_empty() {
        // If the table was not made from `old`, this deletion fails, and with it the transaction.
        commands.push(stamp("delete", old, &old_sets));
        commands.push(stamp("add", new, &new_sets));
    }
    Some(commands)
}

/// Returns the names of the table's chains.
pub(super) fn chains(rules: &Rules) -> BTreeSet<String> {
    ["prerouting", "postrouting", OUTSIDE]
        .map(str::to_owned)
        .into_iter()
        .chain([stamp_name(rules, &sets(rules))])
        .collect()
}

/// Returns how many rules each chain has, and how many elements each set that follows from the rules.
pub(super) fn counts(rules: &Rules) -> BTreeMap<String, usize> {
    let sets = sets(rules);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for command in frame(rules, &sets) {
        if let Some(chain) = command["add"]["rule"]["chain"].as_str() {
            *counts.entry(chain.to_owned()).or_default() += 1;
        }
    }
    counts.extend(sets.into_iter().map(|set| (set.name, set.elements.len())));
    counts
}

/// Returns the commands that make everything but elements and stamp.
fn frame(rules: &Rules, sets: &[Set]) -> Vec<Value> {
    // Adding before deleting makes the deletion succeed whether or not the table exists.
    let mut commands = vec![table("add"), table("delete"), table("add")];
    // Before DNAT (-100), when the destination is still the service address; and before others' masquerading (100).
    commands.push(chain("prerouting", "prerouting", -105));
    commands.push(chain("postrouting", "postrouting", 90));
    // After others' translations of the source (100): the first that translates wins, and theirs are more particular.
    commands.push(chain(OUTSIDE, "postrouting", 110));
    for family in [Family::Ipv4, Family::Ipv6] {
        commands.extend(hairpin(family, &rules.bridge));
    }
    commands.extend(sets.iter().map(|set| {
        let flags: &[&str] = if set.kind == SetKind::Ranges { &["interval"] } else { &[] };
        json!({"add": {"set": {
            "family": "inet", "table": TABLE, "name": set.name, "type": address_type(set.family), "flags": flags
        }}})
    }));
    commands.extend(masqueraded(rules).map(|family| masquerade(family, &rules.bridge, sets)));
    commands
}

fn hairpin(family: Family, bridge: &str) -> [Value; 3] {
    let name = format!("hairpin{}", suffix(family));
    let reference = format!("@{name}");
    let (source, destination) = (field(family, "saddr"), field(family, "daddr"));
    [
        json!({"add": {"set": {
            "family": "inet", "table": TABLE, "name": name, "type": [address_type(family), address_type(family)],
            "flags": ["timeout"], "timeout": 60, "size": 65535
        }}}),
        rule(
            "prerouting",
            &[
                compare("==", &json!({"meta": {"key": "iifname"}}), &json!(bridge)),
                json!({"set": {"op": "update", "elem": {"concat": [source, source]}, "set": reference}}),
            ],
        ),
        rule(
            "postrouting",
            &[
                compare("==", &json!({"meta": {"key": "oifname"}}), &json!(bridge)),
                compare("==", &json!({"concat": [source, destination]}), &json!(reference)),
                json!({"masquerade": null}),
            ],
        ),
    ]
}

/// Returns the rule that masquerades pods' packets to addresses outside of the cluster.
fn masquerade(family: Family, bridge: &str, sets: &[Set]) -> Value {
    // What does not leave the link is not outside.
    let link = match family {
        Family::Ipv4 => json!({"set": [prefix("169.254.0.0", 16), prefix("224.0.0.0", 4), "255.255.255.255"]}),
        Family::Ipv6 => json!({"set": [prefix("fe80::", 10), prefix("ff00::", 8)]}),
    };
    let mut expressions = vec![
        compare("==", &field(family, "saddr"), &json!(format!("@own{}", suffix(family)))),
        compare("!=", &json!({"meta": {"key": "oifname"}}), &json!(bridge)),
        compare("!=", &field(family, "daddr"), &link),
    ];
    for set in sets.iter().filter(|set| set.family == family && !set.name.starts_with("own")) {
        let destination = match set.kind {
            SetKind::Networks(length) => json!({"&": [field(family, "daddr"), mask(family, length)]}),
            SetKind::Ranges | SetKind::Addresses => field(family, "daddr"),
        };
        expressions.push(compare("!=", &destination, &json!(format!("@{}", set.name))));
    }
    // Ports at random: two first packets at the same time rarely choose the same one, and lose none.
    expressions.push(json!({"masquerade": {"flags": "fully-random"}}));
    rule(OUTSIDE, &expressions)
}

/// Returns the sets whose elements follow from the rules: of each family those of its own pods (`own`), of all pods
/// (`pods`, and `podnets` if they are many), and of nodes.
fn sets(rules: &Rules) -> Vec<Set> {
    let mut sets = Vec::new();
    for family in masqueraded(rules) {
        let mut push = |name: &str, kind, elements| {
            sets.push(Set { name: format!("{name}{}", suffix(family)), family, kind, elements });
        };
        let of_family = |network: &&IpNetwork| network.is_ipv6() == (family == Family::Ipv6);
        let own: Vec<IpNetwork> = rules.own.iter().filter(of_family).copied().collect();
        push("own", SetKind::Ranges, split(&own).ranges);
        let pods: Vec<IpNetwork> = rules.pods.iter().filter(of_family).copied().collect();
        let pods = split(&pods);
        push("pods", SetKind::Ranges, pods.ranges);
        if let Some((length, networks)) = pods.sized {
            push(
                "podnets",
                SetKind::Networks(length),
                networks.iter().map(|net| (net.network(), net.network())).collect(),
            );
        }
        let nodes = rules.nodes.iter().filter(|address| address.is_ipv6() == (family == Family::Ipv6));
        push("nodes", SetKind::Addresses, nodes.map(|address| (*address, *address)).collect());
    }
    sets
}

/// Returns the families that are masqueraded, in order.
fn masqueraded(rules: &Rules) -> impl Iterator<Item = Family> {
    [Family::Ipv4, Family::Ipv6].into_iter().filter(|family| rules.masquerade.contains(family))
}

/// Returns the command for elements of a set, if there are any.
fn elements<'a>(command: &str, set: &str, elements: impl IntoIterator<Item = &'a Range>) -> Option<Value> {
    let elements: Vec<Value> = elements.into_iter().map(element).collect();
    let element = || json!({"family": "inet", "table": TABLE, "name": set, "elem": elements});
    (!elements.is_empty()).then(|| json!({command: {"element": element()}}))
}

fn element((first, last): &Range) -> Value {
    if first == last { json!(first) } else { json!({ "range": [first, last] }) }
}

/// Returns the command for the chain without rules whose name says what the table was made from.
fn stamp(command: &str, rules: &Rules, sets: &[Set]) -> Value {
    json!({command: {"chain": {"family": "inet", "table": TABLE, "name": stamp_name(rules, sets)}}})
}

fn stamp_name(rules: &Rules, sets: &[Set]) -> String {
    let mut digest = Sha256::new();
    for command in frame(rules, sets) {
        digest.update(command.to_string());
    }
    for set in sets {
        digest.update(&set.name);
        for address in set.elements.iter().flat_map(|(first, last)| [first, last]) {
            match address {
                IpAddr::V4(v4) => digest.update(v4.octets()),
                IpAddr::V6(v6) => digest.update(v6.octets()),
            }
        }
    }
    let digest: [u8; 32] = digest.finalize().into();
    digest[..8].iter().fold("stamp-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn table(command: &str) -> Value {
    json!({command: {"table": {"family": "inet", "name": TABLE}}})
}

fn chain(name: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": "inet", "table": TABLE, "name": name, "type": "nat", "hook": hook, "prio": priority, "policy": "accept"
    }}})
}

fn rule(chain: &str, expressions: &[Value]) -> Value {
    json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": expressions}}})
}

fn compare(operator: &str, left: &Value, right: &Value) -> Value {
    json!({"match": {"op": operator, "left": left, "right": right}})
}

fn field(family: Family, name: &str) -> Value {
    let protocol = match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    json!({"payload": {"protocol": protocol, "field": name}})
}

fn prefix(address: &str, length: u8) -> Value {
    json!({"prefix": {"addr": address, "len": length}})
}

/// Returns the netmask of a prefix length.
fn mask(family: Family, length: u8) -> Value {
    match family {
        Family::Ipv4 => json!(Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0))),
        Family::Ipv6 => json!(Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0))),
    }
}

const fn address_type(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4_addr",
        Family::Ipv6 => "ipv6_addr",
    }
}

const fn suffix(family: Family) -> char {
    match family {
        Family::Ipv4 => '4',
        Family::Ipv6 => '6',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(masquerade: &[Family]) -> Rules {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let own = networks(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        let others = networks(&["10.244.2.0/24", "10.244.5.0/24", "fd00:10:244:2::/64"]);
        Rules {
            bridge: "v-net-0".into(),
            masquerade: masquerade.to_vec(),
            pods: own.iter().chain(&others).copied().collect(),
            own,
            nodes: ["192.168.1.11", "192.168.1.12", "fd00:192:168:1::11"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
        }
    }

    const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    #[test]
    fn sets_hold_merged_ranges_and_single_addresses() {
        let text = whole(&rules(&BOTH)).to_string();
        assert!(
            text.contains(
                r#""elem":[{"range":["10.244.1.0","10.244.2.255"]},{"range":["10.244.5.0","10.244.5.255"]}]"#
            )
        );
        assert!(text.contains(r#""elem":["192.168.1.11","192.168.1.12"]"#), "{text}");
        let counts = counts(&rules(&BOTH));
        let expected = [
            ("prerouting", 2),
            ("postrouting", 2),
            ("outside", 2),
            ("own4", 1),
            ("pods4", 2),
            ("nodes4", 2),
            ("own6", 1),
            ("pods6", 1),
            ("nodes6", 1),
        ];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)).into());
    }

    #[test]
    fn a_family_that_is_not_masqueraded_has_neither_sets_nor_rules() {
        let text = whole(&rules(&[Family::Ipv6])).to_string();
        assert!(text.contains("@pods6") && !text.contains("pods4") && !text.contains("nodes4"), "{text}");
        assert!(counts(&rules(&[])).keys().eq(["postrouting", "prerouting"]));
    }

    #[test]
    fn an_update_touches_what_differs_alone() {
        let old = rules(&BOTH);
        assert_eq!(changes(&old, &old), Some(vec![]));
        let mut new = old.clone();
        new.nodes.remove(&IpAddr::from([192, 168, 1, 12]));
        new.nodes.insert(IpAddr::from([192, 168, 1, 99]));
        let commands = Value::from(changes(&old, &new).unwrap()).to_string();
        assert!(commands.contains(r#"[{"delete":{"element":{"elem":["192.168.1.12"]"#), "{commands}");
        assert!(commands.contains(r#"{"add":{"element":{"elem":["192.168.1.99"]"#), "{commands}");
        assert!(!commands.contains("192.168.1.11") && !commands.contains("pods"), "{commands}");
        // A pod CIDR inside of a known range changes nothing.
        new = old.clone();
        new.pods.insert("10.244.2.128/25".parse().unwrap());
        assert_eq!(changes(&old, &new), Some(vec![]));
        new.bridge = "other".into();
        assert_eq!(changes(&old, &new), None);
    }

    #[test]
    fn many_scattered_pod_cidrs_are_compared_by_their_size() {
        let mut rules = rules(&BOTH);
        for number in 0..2000_u32 {
            let address = IpAddr::V4((0x0a80_0000 + number * 512).into());
            rules.pods.insert(IpNetwork::new(address, 24).unwrap());
            let address = IpAddr::V6(((0xfd01_u128 << 112) + (u128::from(number) << 65)).into());
            rules.pods.insert(IpNetwork::new(address, 64).unwrap());
        }
        let text = whole(&rules).to_string();
        for (mask, set) in [("255.255.255.0", "podnets4"), ("ffff:ffff:ffff:ffff::", "podnets6")] {
            let expression = format!(r#""{mask}"]}},"op":"!=","right":"@{set}""#);
            assert!(text.contains(&expression), "{expression}");
        }
        let counts = counts(&rules);
        assert_eq!((counts["podnets4"], counts["podnets6"]), (2003, 2002));
        assert_eq!((counts["pods4"], counts["pods6"]), (0, 0));
        let mut new = rules.clone();
        assert!(new.pods.remove(&"10.128.2.0/24".parse().unwrap()));
        let commands = changes(&rules, &new).unwrap();
        assert_eq!(commands[0]["delete"]["element"]["elem"], json!(["10.128.2.0"]));
        assert_eq!(commands.len(), 3, "{commands:?}");
    }

    #[test]
    fn the_stamp_tells_tables_apart() {
        let one = rules(&BOTH);
        let mut others = [one.clone(), one.clone(), one.clone(), rules(&[Family::Ipv4])];
        others[0].nodes.clear();
        others[1].pods.insert("10.244.9.0/24".parse().unwrap());
        others[2].bridge = "other".into();
        assert_eq!(chains(&one), chains(&one.clone()));
        assert!(others.iter().all(|other| chains(other) != chains(&one)));
    }
}
