//! Programs on uplinks: attached by TCX and by clsact, replaced in place, with others beside them, and with what an earlier
//! life has left behind.

use std::{fs, os::fd::AsRawFd as _, process::Command};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::PinnedLink,
    tc::{SchedClassifierLinkId, TcAttachOptions},
};
use podnet::{
    config::UplinkAttach::{self, Auto, Clsact, Tcx},
    datapath::{
        device::{DeviceHook, attached_devices, detach_all_devices, detach_device},
        loader::Datapath,
        logs::LogLevel,
    },
};
use podnet_common::program_name::{FROM_POD, FROM_UPLINK, TO_UPLINK};

use crate::{
    cluster::{SETTINGS, UPLINK},
    fixture::{Node, ip},
};

const HOOKS: [DeviceHook; 2] = [DeviceHook::FromUplink, DeviceHook::ToUplink];

fn attach(datapath: &mut Datapath, how: UplinkAttach) {
    for hook in HOOKS {
        datapath.attach_device("uplink", UPLINK, hook, how).unwrap_or_else(|error| panic!("{hook:?}: {error:#}"));
    }
}

/// What must be listed while both programs of a load are attached to the uplink.
fn listed(datapath: &Datapath) -> Vec<(u32, DeviceHook, u32)> {
    let id = |name| datapath.program_id(name).unwrap();
    vec![(UPLINK, DeviceHook::FromUplink, id(FROM_UPLINK)), (UPLINK, DeviceHook::ToUplink, id(TO_UPLINK))]
}

/// Numbers of the programs that TCX runs, in order.
fn tcx(interface: &str, hook: TcAttachType) -> Vec<u32> {
    SchedClassifier::query_tcx(interface, hook).unwrap().1.iter().map(aya::programs::ProgramInfo::id).collect()
}

/// The filters of clsact as `tc` shows them.
fn filters(interface: &str, hook: &str) -> String {
    let output = Command::new("tc").args(["filter", "show", "dev", interface, hook]).output().expect("run `tc`");
    String::from_utf8(output.stdout).unwrap()
}

fn reload(node: &mut Node) {
    node.datapath = Datapath::load(&node.pins, SETTINGS, LogLevel::Off).unwrap();
}

/// Another project's program on the uplink by TCX, at the end that `order` says.
fn foreign_tcx(node: &Node, order: LinkOrder) -> (SchedClassifier, SchedClassifierLinkId, u32) {
    let info = node.datapath.program(FROM_POD).unwrap().info().unwrap();
    let id = info.id();
    let mut program = SchedClassifier::from_program_info(info, "foreign".into()).unwrap();
    let link = program.attach_with_options("uplink", TcAttachType::Ingress, TcAttachOptions::TcxOrder(order)).unwrap();
    (program, link, id)
}

#[test]
fn programs_are_attached_replaced_and_detached() {
    for how in [Auto, Tcx, Clsact] {
        let mut node = Node::in_cluster();
        assert_eq!(attached_devices(&node.pins).unwrap(), []);
        attach(&mut node.datapath, how);
        assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath), "{how:?}");
        // Attaching again changes nothing.
        attach(&mut node.datapath, how);
        assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath), "{how:?}");
        let before = listed(&node.datapath);
        reload(&mut node);
        assert_eq!(attached_devices(&node.pins).unwrap(), before, "{how:?}: they outlive the load");
        attach(&mut node.datapath, how);
        assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath), "{how:?}");
        if how == Clsact {
            for (direction, name) in [("ingress", "from_uplink"), ("egress", "to_uplink")] {
                let filters = filters("uplink", direction);
                assert!(filters.contains(name) && filters.matches("handle").count() == 1, "{filters}");
            }
            assert_eq!(tcx("uplink", TcAttachType::Ingress), [0_u32; 0]);
        } else {
            assert_eq!(tcx("uplink", TcAttachType::Ingress), [node.datapath.program_id(FROM_UPLINK).unwrap()]);
            assert_eq!(tcx("uplink", TcAttachType::Egress), [node.datapath.program_id(TO_UPLINK).unwrap()]);
        }

        detach_device(&node.pins, UPLINK, DeviceHook::ToUplink).unwrap();
        detach_device(&node.pins, UPLINK, DeviceHook::ToUplink).unwrap();
        assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath)[..1], "{how:?}");
        detach_all_devices(&node.pins).unwrap();
        detach_all_devices(&node.pins).unwrap();
        assert_eq!(attached_devices(&node.pins).unwrap(), []);
        assert_eq!(tcx("uplink", TcAttachType::Ingress), [0_u32; 0]);
        assert!(!filters("uplink", "ingress").contains("from_uplink"));
        assert!(!node.pins.join("links").exists());
    }
}

#[test]
fn a_replaced_program_keeps_its_link() {
    let mut node = Node::in_cluster();
    attach(&mut node.datapath, Tcx);
    let pin = node.pins.join(format!("links/from_uplink-{UPLINK}"));
    let id = || aya::programs::links::FdLink::from(PinnedLink::from_pin(&pin).unwrap()).info().unwrap().id();
    let before = id();
    reload(&mut node);
    attach(&mut node.datapath, Tcx);
    assert_eq!(id(), before, "replaced in place");
    // And nothing is left attached by whoever loads and ends.
    drop(Datapath::load(&node.pins, SETTINGS, LogLevel::Off).unwrap());
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath));
}

#[test]
fn the_way_of_attaching_can_change() {
    let mut node = Node::in_cluster();
    for how in [Tcx, Clsact, Auto, Clsact, Tcx] {
        attach(&mut node.datapath, how);
        assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath), "{how:?}: once each");
    }
}

#[test]
fn programs_of_others_stay_and_podnets_come_first() {
    let mut node = Node::in_cluster();
    let (mut program, link, foreign) = foreign_tcx(&node, LinkOrder::last());
    attach(&mut node.datapath, Tcx);
    let own = node.datapath.program_id(FROM_UPLINK).unwrap();
    assert_eq!(tcx("uplink", TcAttachType::Ingress), [own, foreign]);
    reload(&mut node);
    attach(&mut node.datapath, Tcx);
    let own = node.datapath.program_id(FROM_UPLINK).unwrap();
    assert_eq!(tcx("uplink", TcAttachType::Ingress), [own, foreign]);
    detach_all_devices(&node.pins).unwrap();
    assert_eq!(tcx("uplink", TcAttachType::Ingress), [foreign]);
    program.detach(link).unwrap();
}

#[test]
fn filters_of_others_stay() {
    let mut node = Node::in_cluster();
    ip("link set uplink up");
    // At podnet's own priority, with another handle, and at another priority.
    let tc = |arguments: &str| {
        let output = Command::new("tc").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let pinned = node.pins.join("foreign");
    let program = node.datapath.program_fd(FROM_POD).unwrap().as_raw_fd();
    pin_program(program, &pinned);
    tc("qdisc add dev uplink clsact");
    for (priority, handle) in [(1, 1), (1, 2), (9, 1)] {
        tc(&format!(
            "filter add dev uplink ingress prio {priority} handle {handle} bpf direct-action object-pinned {}",
            pinned.display()
        ));
    }
    attach(&mut node.datapath, Clsact);
    attach(&mut node.datapath, Clsact);
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath));
    assert_eq!(filters("uplink", "ingress").matches("handle").count(), 4);
    detach_all_devices(&node.pins).unwrap();
    assert_eq!(attached_devices(&node.pins).unwrap(), []);
    assert_eq!(filters("uplink", "ingress").matches("handle").count(), 3);
}

#[test]
fn links_of_interfaces_that_are_gone_are_replaced() {
    let mut node = Node::in_cluster();
    attach(&mut node.datapath, Tcx);
    ip("link del uplink");
    assert_eq!(attached_devices(&node.pins).unwrap(), []);
    assert_eq!(fs::read_dir(node.pins.join("links")).unwrap().count(), 2, "the pins are there");
    let error = node.datapath.attach_device("uplink", UPLINK, DeviceHook::FromUplink, Tcx).unwrap_err();
    assert!(format!("{error:#}").contains("attach from_uplink to uplink"), "{error:#}");
    ip(&format!("link add name uplink index {UPLINK} type veth peer name wire"));
    assert_eq!(attached_devices(&node.pins).unwrap(), [], "the links are those of the first uplink");
    attach(&mut node.datapath, Tcx);
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath));
    // Gone for good: what is left is removed.
    ip("link del uplink");
    detach_device(&node.pins, UPLINK, DeviceHook::FromUplink).unwrap();
    detach_all_devices(&node.pins).unwrap();
    assert!(!node.pins.join("links").exists());
}

#[test]
fn a_link_to_another_interface_is_not_taken_for_this_ones() {
    let mut node = Node::in_cluster();
    ip("link add name second index 40 type veth peer name wire2");
    attach(&mut node.datapath, Tcx);
    // As if the pins came from a namespace where the uplink had the other index.
    let links = node.pins.join("links");
    fs::rename(links.join(format!("from_uplink-{UPLINK}")), links.join("from_uplink-40")).unwrap();
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath)[1..]);
    node.datapath.attach_device("second", 40, DeviceHook::FromUplink, Tcx).unwrap();
    let own = node.datapath.program_id(FROM_UPLINK).unwrap();
    assert_eq!(tcx("second", TcAttachType::Ingress), [own]);
    assert_eq!(tcx("uplink", TcAttachType::Ingress), [0_u32; 0], "the stray link is gone");
}

#[test]
fn the_index_must_be_the_interfaces() {
    let mut node = Node::in_cluster();
    let error = node.datapath.attach_device("uplink", UPLINK + 1, DeviceHook::FromUplink, Auto).unwrap_err();
    assert!(format!("{error:#}").contains("its index is 30 by now, not 31"), "{error:#}");
    // A file that podnet did not make is no pin of podnet's.
    let links = node.pins.join("links");
    fs::create_dir_all(&links).unwrap();
    pin_program(node.datapath.program_fd(FROM_POD).unwrap().as_raw_fd(), &links.join("another"));
    attach(&mut node.datapath, Auto);
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath));
    // One with the name of a pin that is no link is replaced.
    pin_program(node.datapath.program_fd(FROM_POD).unwrap().as_raw_fd(), &links.join("from_overlay-30"));
    node.datapath.attach_device("uplink", UPLINK, DeviceHook::FromOverlay, Auto).unwrap();
    assert_eq!(attached_devices(&node.pins).unwrap().len(), 3);
    detach_all_devices(&node.pins).unwrap();
    assert!(links.join("another").exists(), "what is not podnet's stays");
}

/// Pins a program by its descriptor (bpf(2), `BPF_OBJ_PIN`).
fn pin_program(program: i32, path: &std::path::Path) {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let attributes = Attributes { path: path.as_ptr() as u64, fd: program as u32, flags: 0 };
    // SAFETY: the attributes and the path outlive the call, and have the lengths given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 6, &raw const attributes, size_of::<Attributes>()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
