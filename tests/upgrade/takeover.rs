//! A daemon starts where another one ended, with the same layouts of maps or with others.

use std::fs;

use harness::{Family, TestNode, icmp, tcp};
use podnet::{
    api::DatapathRequest,
    config::{RoutingMode, UplinkAttach},
};
use podnet_common::{LAYOUT_VERSION, map_name};

use crate::{
    layouts::{Pinned, folder, make_version, pod_programs, restore_version, versions},
    traffic::Site,
};

const EARLIER: u32 = LAYOUT_VERSION - 1;
const LATER: u32 = LAYOUT_VERSION + 1;

fn own_version() -> Vec<String> {
    vec![format!("v{LAYOUT_VERSION}")]
}

/// Upgrades each node: `between` happens while no daemon runs; `check` gets what was pinned before.
fn upgrade(site: &Site, what: &str, between: impl Fn(&TestNode), check: impl Fn(&TestNode, &Pinned)) {
    let before: Vec<_> = site.nodes().iter().map(|node| (Pinned::of(node), pod_programs(node))).collect();
    site.under_traffic(what, || {
        for node in site.nodes() {
            node.stop_daemon();
            between(node);
            node.start_daemon();
        }
    });
    for (node, (pinned, programs)) in site.nodes().iter().zip(&before) {
        assert_eq!(versions(node), own_version(), "{what}: {}", node.name());
        let now = Pinned::of(node);
        assert_eq!((&now.links, &now.uplink), (&pinned.links, &pinned.uplink), "{what}: {}", node.name());
        let replaced = pod_programs(node);
        assert!(replaced.iter().zip(programs).all(|(now, then)| now != then), "{what}: {replaced:?}");
        check(node, pinned);
        assert_eq!(node.status().warnings, Vec::<String>::new());
    }
    site.check_ebpf_path();
    for pod in &site.pods {
        pod.check().unwrap();
    }
}

fn same(node: &TestNode, before: &Pinned, name: &str) -> bool {
    Pinned::of(node).maps[name] == before.maps[name]
}

fn upgrades(mode: RoutingMode, attach: UplinkAttach) {
    let site = Site::new(mode, attach);
    upgrade(&site, "the same layouts", |_| (), |node, before| assert_eq!(Pinned::of(node).maps, before.maps));
    let unchanged = map_name::UNCHANGED_SINCE.map(|(name, since)| (name, since <= EARLIER));
    assert!(unchanged.contains(&(map_name::KERNEL_FLOWS, true)) && unchanged.contains(&(map_name::ENDPOINTS, false)));
    upgrade(
        &site,
        "earlier layouts",
        |node| make_version(node, EARLIER),
        |node, before| {
            for (name, unchanged) in unchanged {
                assert_eq!(same(node, before, name), unchanged, "{name}");
            }
        },
    );
    // As if every layout had changed: who owns which flow is not known any more.
    upgrade(
        &site,
        "earlier layouts, nothing of them known",
        |node| {
            make_version(node, EARLIER);
            for name in map_name::ALL {
                fs::remove_file(folder(node, EARLIER).join(name)).unwrap();
            }
        },
        |node, before| assert!(map_name::ALL.iter().all(|name| !same(node, before, name))),
    );
}

#[test]
fn upgrades_by_tcx_in_direct_mode() {
    upgrades(RoutingMode::Direct, UplinkAttach::Tcx);
}

#[test]
fn upgrades_by_clsact_in_direct_mode() {
    upgrades(RoutingMode::Direct, UplinkAttach::Clsact);
}

#[test]
fn upgrades_in_the_overlay() {
    upgrades(RoutingMode::Overlay, UplinkAttach::Auto);
}

#[test]
fn an_upgrade_that_was_cut_short_is_finished() {
    let site = Site::new(RoutingMode::Direct, UplinkAttach::Tcx);
    let cut_short = |node: &TestNode| {
        make_version(node, EARLIER);
        let (earlier, own) = (folder(node, EARLIER), folder(node, LAYOUT_VERSION));
        fs::create_dir_all(own.join("links")).unwrap();
        fs::hard_link(earlier.join(map_name::KERNEL_FLOWS), own.join(map_name::KERNEL_FLOWS)).unwrap();
        let link = fs::read_dir(earlier.join("links")).unwrap().next().unwrap().unwrap();
        fs::rename(link.path(), own.join("links").join(link.file_name())).unwrap();
    };
    upgrade(&site, "an upgrade cut short", cut_short, |node, before| {
        assert!(same(node, before, map_name::KERNEL_FLOWS));
    });
    // Killed while it starts, once and again, and then left alone.
    upgrade(
        &site,
        "an upgrade killed",
        |node| {
            make_version(node, EARLIER);
            for milliseconds in [30, 60, 90, 120, 150, 200, 300] {
                let daemon = node.node().spawn_daemon(&harness::binary()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(milliseconds));
                daemon.kill().unwrap();
            }
        },
        |_, _| (),
    );
}

#[test]
fn a_later_version_is_not_replaced_while_its_programs_work() {
    let site = Site::new(RoutingMode::Direct, UplinkAttach::Auto);
    let node = &site.nodes()[0];
    let (before, programs) = (Pinned::of(node), pod_programs(node));
    node.stop_daemon();
    make_version(node, LATER);
    let refused = format!("{:#}", node.try_start_daemon().unwrap_err());
    let pins = folder(node, LATER).display().to_string();
    for part in ["a newer podnet", &format!("version {LATER}"), &pins, "Nothing was changed", "podnet datapath detach"]
    {
        assert!(refused.contains(part), "{part:?} is in {refused}");
    }
    // Nothing was touched, and pods go on.
    assert_eq!(versions(node), [format!("v{LATER}")]);
    assert_eq!(pod_programs(node), programs);
    let (client, server) = (&site.pods[0], &site.pods[2]);
    icmp::ping(client.netns(), server.address(Family::V4), 3, 56);
    icmp::ping(client.netns(), site.pods[1].address(Family::V6), 3, 56);

    restore_version(node, LATER);
    node.start_daemon();
    assert_eq!(Pinned::of(node), before);
    // The way back that the message names.
    node.set_datapath(DatapathRequest::Detach);
    node.stop_daemon();
    make_version(node, LATER);
    node.start_daemon();
    assert_eq!(versions(node), own_version());
    site.check_ebpf_path();
    let listener = tcp::EchoServer::start(server.netns(), 9090);
    tcp::exchange(client.netns(), server.socket_address(Family::V4, 9090), 1_000_000);
    drop(listener);
}

#[test]
fn pins_that_somebody_removed_are_made_anew() {
    let site = Site::new(RoutingMode::Direct, UplinkAttach::Auto);
    let remove = |node: &TestNode| {
        for name in map_name::ALL {
            fs::remove_file(folder(node, LAYOUT_VERSION).join(name)).unwrap();
        }
    };
    upgrade(&site, "no pins", remove, |node, before| {
        assert!(map_name::ALL.iter().all(|name| !same(node, before, name)));
    });
}
