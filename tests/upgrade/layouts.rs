//! The pins of a node, and their versions.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::TcAttachType};
use harness::{TestNode, command, interfaces};
use podnet_common::{LAYOUT_VERSION, map_name};

/// The folder of a version of the layouts.
pub(crate) fn folder(node: &TestNode, version: u32) -> PathBuf {
    node.node().bpffs().join(format!("v{version}"))
}

/// Gives the pins of a node whose daemon does not run another version: as if another podnet had made them.
pub(crate) fn make_version(node: &TestNode, version: u32) {
    fs::rename(folder(node, LAYOUT_VERSION), folder(node, version)).unwrap();
}

/// Takes that back.
pub(crate) fn restore_version(node: &TestNode, version: u32) {
    fs::rename(folder(node, version), folder(node, LAYOUT_VERSION)).unwrap();
}

/// Returns the folders of all versions.
pub(crate) fn versions(node: &TestNode) -> Vec<String> {
    // Some kernels put files of their own into every bpffs.
    names(&node.node().bpffs()).into_iter().filter(|name| name.starts_with('v')).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a node's packets meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// The kernel's number of each map.
    pub(crate) maps: BTreeMap<&'static str, u32>,
    /// The pinned links.
    pub(crate) links: Vec<String>,
    /// Names of the programs on each side of the uplink, by TCX and by clsact.
    pub(crate) uplink: Vec<Vec<String>>,
}

impl Pinned {
    pub(crate) fn of(node: &TestNode) -> Self {
        let own = folder(node, LAYOUT_VERSION);
        let maps = map_name::ALL.map(|name| (name, MapInfo::from_pin(own.join(name)).unwrap().id())).into();
        let by_tcx = |direction| interfaces::tcx_programs(node.netns(), "eth0", direction);
        let by_clsact = |direction: &str| {
            let shown = command::run(node.netns(), "tc", &["filter", "show", "dev", "eth0", direction]);
            let words: Vec<_> = shown.split_whitespace().map(str::to_owned).collect();
            words.into_iter().filter(|word| word.starts_with("from_uplink") || word.starts_with("to_uplink")).collect()
        };
        let uplink = vec![
            by_tcx(TcAttachType::Ingress),
            by_tcx(TcAttachType::Egress),
            by_clsact("ingress"),
            by_clsact("egress"),
        ];
        Self { maps, links: names(&own.join("links")), uplink }
    }
}

/// Returns the numbers of the programs in the shared blocks of pods' veths.
pub(crate) fn pod_programs(node: &TestNode) -> Vec<String> {
    [0x706e_0001_u32, 0x706e_0002]
        .into_iter()
        .map(|block| {
            let shown = command::run(node.netns(), "tc", &["filter", "show", "block", &block.to_string()]);
            let id = shown.split_whitespace().skip_while(|word| *word != "id").nth(1);
            id.unwrap_or_else(|| panic!("{shown}")).to_owned()
        })
        .collect()
}
