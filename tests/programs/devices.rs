//! Programs on uplinks: attached by TCX and by clsact, replaced in place, with others beside them, and with what an earlier
//! life has left behind.

use std::{fs, os::fd::AsRawFd as _, process::Command};

use aya::programs::{SchedClassifier, TcAttachType};
use podnet::{
    config::UplinkAttach::{self, Auto, Clsact, Tcx},
    datapath::{
        device::{DeviceHook, attached_devices, detach_all_devices, detach_device},
        features::has_tcx,
        loader::Datapath,
        logs::LogLevel,
    },
};
use podnet_common::program_name::{FROM_POD, FROM_UPLINK, TO_UPLINK};

use crate::{
    cluster::{SETTINGS, UPLINK},
    fixture::{Node, ip, ways},
};

const HOOKS: [DeviceHook; 2] = [DeviceHook::FromUplink, DeviceHook::ToUplink];

pub(crate) fn attach(datapath: &mut Datapath, how: UplinkAttach) {
    for hook in HOOKS {
        datapath.attach_device("uplink", UPLINK, hook, how).unwrap_or_else(|error| panic!("{hook:?}: {error:#}"));
    }
}

/// What must be listed while both programs of a load are attached to the uplink.
pub(crate) fn listed(datapath: &Datapath) -> Vec<(u32, DeviceHook, u32)> {
    let id = |name| datapath.program_id(name).unwrap();
    vec![(UPLINK, DeviceHook::FromUplink, id(FROM_UPLINK)), (UPLINK, DeviceHook::ToUplink, id(TO_UPLINK))]
}

/// Numbers of the programs that TCX runs, in order; none where the kernel has no TCX.
pub(crate) fn tcx(interface: &str, hook: TcAttachType) -> Vec<u32> {
    if !has_tcx() {
        return Vec::new();
    }
    SchedClassifier::query_tcx(interface, hook).unwrap().1.iter().map(aya::programs::ProgramInfo::id).collect()
}

/// The filters of clsact as `tc` shows them.
fn filters(interface: &str, hook: &str) -> String {
    let output = Command::new("tc").args(["filter", "show", "dev", interface, hook]).output().expect("run `tc`");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn reload(node: &mut Node) {
    node.datapath = Datapath::load(&node.pins, SETTINGS, LogLevel::Off).unwrap();
}

#[test]
fn what_the_kernel_has_is_used() {
    let mut node = Node::in_cluster();
    attach(&mut node.datapath, Auto);
    assert_eq!(attached_devices(&node.pins).unwrap(), listed(&node.datapath));
    assert_eq!(filters("uplink", "ingress").contains("from_uplink"), !has_tcx());
    if !has_tcx() {
        let refused = node.datapath.attach_device("uplink", UPLINK, DeviceHook::FromUplink, Tcx).unwrap_err();
        assert!(format!("{refused:#}").contains("attach from_uplink to uplink"), "{refused:#}");
    }
}

#[test]
fn programs_are_attached_replaced_and_detached() {
    for how in ways() {
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
