//! Programs on uplinks by TCX: links that outlive their loads, interfaces and indices. Kernels before 6.6 have none.

use std::fs;

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::PinnedLink,
    tc::{SchedClassifierLinkId, TcAttachOptions},
};
use podnet::{
    config::UplinkAttach::{Auto, Clsact, Tcx},
    datapath::{
        device::{DeviceHook, attached_devices, detach_all_devices, detach_device},
        loader::Datapath,
        logs::LogLevel,
    },
};
use podnet_common::program_name::{FROM_POD, FROM_UPLINK};

use crate::{
    cluster::{SETTINGS, UPLINK},
    devices::{attach, listed, reload, tcx},
    fixture::{Node, ip},
};

/// Another project's program on the uplink by TCX, at the end that `order` says.
fn foreign_tcx(node: &Node, order: LinkOrder) -> (SchedClassifier, SchedClassifierLinkId, u32) {
    let info = node.datapath.program(FROM_POD).unwrap().info().unwrap();
    let id = info.id();
    let mut program = SchedClassifier::from_program_info(info, "foreign".into()).unwrap();
    let link = program.attach_with_options("uplink", TcAttachType::Ingress, TcAttachOptions::TcxOrder(order)).unwrap();
    (program, link, id)
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
