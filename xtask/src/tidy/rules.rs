//! The rules.

use super::{Violation, code};

/// Longest file, in lines, tests included.
const MAX_LINES: usize = 600;

/// A crate or function that only some files of the daemon may name.
struct Confined {
    /// Identifiers; one that ends with `*` stands for all that begin so.
    words: &'static [&'static str],
    /// Files, or folders if they end with `/`, that may name them.
    homes: &'static [&'static str],
    fix: &'static str,
}

/// Where the confinement holds: tests may name anything.
const DAEMON: &str = "podnet/src/";

const CONFINED: &[Confined] = &[
    Confined {
        words: &["aya", "aya_log", "aya_obj"],
        homes: &["podnet/src/datapath/"],
        fix: "programs and maps are reached through podnet/src/datapath",
    },
    Confined {
        words: &["rtnetlink", "netlink_packet_*", "netlink_sys", "netlink_proto"],
        homes: &["podnet/src/netlink/", "podnet/src/lab/"],
        fix: "links, addresses and routes are reached through podnet/src/netlink",
    },
    Confined {
        words: &["setns", "unshare"],
        homes: &["podnet/src/netns.rs"],
        fix: "a namespace belongs to a thread: use Netns::run of podnet/src/netns.rs",
    },
    Confined {
        words: &["nftables"],
        homes: &["podnet/src/nft.rs", "podnet/src/nft/"],
        fix: "firewall rules are made by podnet/src/nft.rs",
    },
    Confined {
        words: &["rusqlite"],
        homes: &["podnet/src/database.rs", "podnet/src/database/"],
        fix: "records are kept by podnet/src/database.rs",
    },
    Confined {
        words: &["etcd_client"],
        homes: &["podnet/src/cluster/etcd/"],
        fix: "etcd is one store of several: use podnet/src/cluster",
    },
];

/// Files without effects, and what they must therefore not name.
const PURE: &[&str] = &[
    "podnet/src/ipam.rs",
    "podnet/src/plan.rs",
    "podnet/src/routing.rs",
    "podnet/src/ipam/",
    "podnet/src/plan/",
    "podnet/src/routing/",
    "podnet/src/cluster/etcd/keys.rs",
    "podnet/src/cluster/etcd/mirror.rs",
    "podnet/src/cluster/etcd/claim.rs",
    "podnet/src/cluster/etcd/registration.rs",
    "podnet/src/cluster/etcd/snapshot.rs",
];

const EFFECTS: &[&str] = &[
    "fs",
    "File",
    "Command",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "SystemTime",
    "Instant",
    "tokio",
    "nix",
    "libc",
    "rusqlite",
    "rtnetlink",
    "netlink_*",
    "aya",
    "ureq",
];

/// Attribute of a test that is not run. Unfinished code is clippy's to find: the workspace denies its macros.
const SKIPPED: &str = "ignore";

/// Folders that exist on the machine of one person only.
const MACHINE_FOLDERS: &[&str] = &["work", "home"];

/// Returns what is wrong with a file.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |line: usize, rule: String, fix: &'static str| {
        violations.push(Violation { path: path.to_owned(), line, rule, fix });
    };
    for (number, line) in text.lines().enumerate() {
        if let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| names_folder(line, folder)) {
            report(number + 1, format!("a path under /{folder} exists on one machine only"), "make it relative");
        }
    }
    if std::path::Path::new(path).extension().is_none_or(|extension| extension != "rs") {
        return violations;
    }

    let length = text.lines().count();
    if length > MAX_LINES {
        report(length, format!("the file has {length} lines, more than {MAX_LINES}"), "split it by its nouns");
    }
    if !text.lines().find(|line| !line.starts_with("#!")).is_some_and(|line| line.starts_with("//!")) {
        report(1, "the file does not begin with `//!`".into(), "say what it is, who calls it, what it must not do");
    }
    for (number, line) in code::lines(text).iter().enumerate() {
        for confined in CONFINED.iter().filter(|confined| path.starts_with(DAEMON) && !is_in(path, confined.homes)) {
            if let Some(word) = confined.words.iter().find(|word| names(line, word)) {
                let homes = confined.homes.join(", ");
                report(number + 1, format!("`{word}` is named outside of {homes}"), confined.fix);
            }
        }
        if is_in(path, PURE)
            && let Some(word) = EFFECTS.iter().find(|word| names(line, word))
        {
            let fix = "this file computes; its caller does the effects and passes plain values";
            report(number + 1, format!("`{word}` is named in a file without effects"), fix);
        }
        if line.trim_start().starts_with("#[") && names(line, SKIPPED) {
            let fix = "a test that is not run proves nothing: mend or remove it";
            report(number + 1, format!("the attribute `{SKIPPED}` must not appear"), fix);
        }
    }
    violations
}

fn is_in(path: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| if home.ends_with('/') { path.starts_with(home) } else { path == *home })
}

/// Returns whether code names an identifier. A field or method of that name, or a module of podnet itself, does not
/// count.
fn names(line: &str, wanted: &str) -> bool {
    code::has_word(line, |word, rest| {
        let before = &line[..line.len() - rest.len() - word.len()];
        let matches = match wanted.strip_suffix('*') {
            Some(prefix) => word.starts_with(prefix),
            None => word == wanted,
        };
        matches && !["crate::", "super::", "self::", "."].iter().any(|owner| before.ends_with(owner))
    })
}

/// Returns whether text holds an absolute path whose first folder is the given one.
fn names_folder(line: &str, folder: &str) -> bool {
    let path = format!("/{folder}/");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_broken(path: &str, code: &str) -> Vec<String> {
        check(path, &format!("//! Doc.\n{code}\n")).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn refused(path: &str, code: &str, expected: &str) {
        let broken = rules_broken(path, code);
        assert!(broken.iter().any(|one| one.contains(expected)), "{path}: {code}: {broken:?}");
    }

    #[track_caller]
    fn allowed(path: &str, code: &str) {
        assert_eq!(rules_broken(path, code), Vec::<String>::new(), "{path}: {code}");
    }

    #[test]
    fn libraries_stay_in_their_homes() {
        refused("podnet/src/daemon.rs", "use aya::Ebpf;", "podnet/src/daemon.rs:2: `aya` is named outside of");
        refused("podnet/src/daemon.rs", "use {\n aya::Ebpf,\n};", "daemon.rs:3: `aya`");
        allowed("podnet/src/datapath/maps.rs", "use aya::Ebpf;");
        allowed("podnet/src/daemon.rs", "// aya is used elsewhere\nlet x = \"aya\";");
        allowed("tests/programs/main.rs", "use aya::Ebpf;");
        refused("podnet/src/engine/mod.rs", "use netlink_packet_route::link::LinkMessage;", "netlink_packet_*");
        allowed("podnet/src/netlink/link.rs", "use rtnetlink::Handle;");
        allowed("podnet/src/lab/mod.rs", "use rtnetlink::Handle;");
        refused("podnet/src/lab/mod.rs", "nix::sched::setns(fd, flags)", "`setns`");
        refused("podnet/src/lab/mod.rs", "use nix::sched::{unshare};", "`unshare`");
        allowed("podnet/src/netns.rs", "setns(fd, flags)");
        refused("podnet/src/engine/mod.rs", "use nftables::schema;", "podnet/src/nft.rs");
        refused("podnet/src/engine/mod.rs", "use rusqlite::Connection;", "podnet/src/database.rs");
        refused("podnet/src/daemon.rs", "use etcd_client::Client;", "podnet/src/cluster/etcd/");
    }

    #[test]
    fn files_without_effects_name_none() {
        refused("podnet/src/ipam.rs", "use std::fs;", "`fs` is named in a file without effects");
        refused("podnet/src/plan.rs", "use std::{net::UdpSocket, fmt};", "`UdpSocket`");
        refused("podnet/src/plan.rs", "std::process::Command::new(x)", "`Command`");
        allowed("podnet/src/ipam.rs", "use std::net::IpAddr;");
        allowed("podnet/src/plan.rs", "let x = change.fs;");
        allowed("podnet/src/daemon.rs", "use std::fs;");
    }

    #[test]
    fn tests_that_are_not_run_are_refused() {
        for attribute in [SKIPPED.to_owned(), format!("{SKIPPED} = \"slow\"")] {
            refused("a.rs", &format!("#[{attribute}]\nfn x() {{}}"), "the attribute");
        }
        allowed("a.rs", &format!("let x = [{SKIPPED}];"));
    }

    #[test]
    fn files_are_described_and_short() {
        assert_eq!(check("a.rs", "#![no_std]\n//! Doc.\n"), []);
        assert!(check("a.rs", "fn main() {}\n")[0].to_string().contains("does not begin with `//!`"));
        assert!(check("a.rs", "").iter().any(|one| one.rule.contains("does not begin")));
        let long = format!("//! Doc.\n{}", "fn x() {}\n".repeat(MAX_LINES));
        assert!(check("a.rs", &long)[0].rule.contains("601 lines"));
        assert_eq!(check("a.txt", &"x\n".repeat(MAX_LINES + 1)), []);
    }

    #[test]
    fn paths_of_one_machine_are_refused() {
        for folder in MACHINE_FOLDERS {
            refused("README.md", &format!("see /{folder}/me/x"), "exists on one machine only");
            refused("a.rs", &format!("let x = \"/{folder}/me\";"), "exists on one machine only");
            allowed("README.md", &format!("see https://example.org/{folder}/x"));
        }
    }
}
