//! Pinned maps: shared by loads, read without the daemon, refused when they are not ours; and the typed access to them.

use aya::maps::{HashMap, MapData};
use podnet::datapath::{
    events::Events,
    loader::{Datapath, ensure_bpffs, is_bpffs, pin_dir},
    logs::LogLevel,
    maps::Maps,
    object,
};
use podnet_common::{
    address::Address,
    endpoint::{Endpoint, EndpointSource},
    map_name,
    node::{Node as Far, NodeAddress, NodePrefix},
    settings::Settings,
    verdict::Verdict,
};

use crate::{
    cluster,
    fixture::{Bpffs, Node, POD_A, POD_B},
    packets::{udp_v4, udp_v6},
};

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn a_second_load_shares_the_maps() {
    let mut node = Node::new();
    node.check(POD_A, &udp_v4(POD_A, POD_B), Verdict::RedirectedToPod);
    node.deliver(POD_B, &udp_v6(POD_A, POD_B));
    let second = Datapath::load(&node.pins, Settings::DEFAULT, LogLevel::Off).unwrap();
    assert_ne!(second.from_pod_id().unwrap(), node.datapath.from_pod_id().unwrap());
    assert_ne!(second.from_pod_id().unwrap(), second.to_pod_id().unwrap());
    assert!(second.from_pod_fd().is_ok() && second.to_pod_fd().is_ok());
    node.datapath = second;
    assert_eq!(node.is_touched(POD_B), (false, true));
    node.check(POD_A, &udp_v4(POD_A, POD_B), Verdict::RedirectedToPod);
    let redirected = node.datapath.maps().counter(Verdict::RedirectedToPod.counter_index()).unwrap();
    assert_eq!(redirected.packets, 2, "counters go on");
}

#[test]
fn maps_are_readable_while_the_daemon_is_down() {
    let node = Node::new();
    let Node { datapath, pins, .. } = &node;
    assert_eq!(datapath.settings(), Settings::DEFAULT);
    let maps = Maps::from_pins(pins).unwrap();
    assert_eq!(maps.pin_dir(), pins);
    assert_eq!(maps.endpoints().unwrap().len(), 4);
    assert_eq!(maps.endpoint(POD_A.v6.into()).unwrap(), Some(POD_A.endpoint()));
    let mut sources = maps.sources().unwrap();
    sources.sort_by_key(|(ifindex, _)| *ifindex);
    assert_eq!(sources, [(POD_A.ifindex, POD_A.source()), (POD_B.ifindex, POD_B.source())]);
    let names: Vec<_> = maps.counters().unwrap().into_iter().map(|counter| counter.name).collect();
    assert_eq!(names.first().map(String::as_str), Some("redirected_to_pod"));
    assert!(names.contains(&"rogue_router".to_owned()));
}

#[test]
fn upsert_preserves_flags_and_writes_only_what_differs() {
    let mut node = Node::new();
    node.deliver(POD_B, &udp_v4(POD_A, POD_B));
    let maps = node.datapath.maps_mut();
    assert!(!maps.upsert_endpoint(POD_B.v4.into(), POD_B.endpoint()).unwrap());
    assert!(!maps.upsert_source(POD_B.ifindex, POD_B.source()).unwrap());
    let moved = Endpoint { ifindex: 99, ..POD_B.endpoint() };
    assert!(maps.upsert_endpoint(POD_B.v4.into(), moved).unwrap());
    let now = maps.endpoint(POD_B.v4.into()).unwrap().unwrap();
    assert_eq!(now, Endpoint { flags: Endpoint::KERNEL_TOUCHED, ..moved });
    assert!(maps.upsert_source(POD_B.ifindex, EndpointSource { v4: [1, 2, 3, 4], ..POD_B.source() }).unwrap());
    let source = maps.source(POD_B.ifindex).unwrap().unwrap();
    assert_eq!((source.v4, source.flags), ([1, 2, 3, 4], EndpointSource::KERNEL_TOUCHED_V4));

    assert!(maps.remove_endpoint(POD_B.v4.into()).unwrap());
    assert!(!maps.remove_endpoint(POD_B.v4.into()).unwrap());
    assert!(maps.remove_source(POD_B.ifindex).unwrap());
    assert!(!maps.remove_source(POD_B.ifindex).unwrap());
    assert_eq!(maps.source(POD_B.ifindex).unwrap(), None);

    node.publish(POD_B);
    node.touch_all();
    assert_eq!((node.is_touched(POD_A), node.is_touched(POD_B)), ((true, true), (true, true)));
}

#[test]
fn nodes_are_written_and_read() {
    let mut node = Node::new();
    let maps = node.datapath.maps_mut();
    let far = Far { id: 7, ifindex: 3, flags: Far::DIRECT, mtu: 1500, ..cluster::unreachable(7) };
    let network = Address::from_v4_octets([10, 244, 7, 0]);
    assert!(maps.upsert_node(network, far).unwrap());
    assert!(!maps.upsert_node(network, far).unwrap());
    assert!(maps.upsert_node(network, Far { mtu: 1400, ..far }).unwrap());
    assert_eq!(maps.node(network).unwrap().unwrap().mtu, 1400);
    assert_eq!(maps.nodes().unwrap(), [(network, Far { mtu: 1400, ..far })]);
    assert!(maps.remove_node(network).unwrap() && !maps.remove_node(network).unwrap());

    let wide = NodePrefix { prefix_len: 96 + 16, address: Address::from_v4_octets([10, 9, 0, 0]) };
    let narrow = NodePrefix { prefix_len: 96 + 24, address: Address::from_v4_octets([10, 9, 8, 0]) };
    assert!(maps.upsert_node_prefix(wide, far).unwrap());
    // A shorter prefix with the same value does not stand for the longer one.
    assert!(!maps.upsert_node_prefix(narrow, far).unwrap());
    assert!(maps.upsert_node_prefix(narrow, Far { mtu: 9, ..far }).unwrap());
    let mut prefixes = maps.node_prefixes().unwrap();
    prefixes.sort_by_key(|(prefix, _)| prefix.prefix_len);
    assert_eq!(prefixes, [(wide, far), (narrow, Far { mtu: 9, ..far })]);
    assert!(maps.remove_node_prefix(narrow).unwrap() && !maps.remove_node_prefix(narrow).unwrap());
    assert_eq!(maps.node_prefixes().unwrap(), [(wide, far)]);

    let address = Address::from_v4_octets([192, 168, 1, 12]);
    assert!(maps.upsert_node_address(address, NodeAddress { id: 7 }).unwrap());
    assert!(!maps.upsert_node_address(address, NodeAddress { id: 7 }).unwrap());
    assert_eq!(maps.node_addresses().unwrap(), [(address, NodeAddress { id: 7 })]);
    assert!(maps.remove_node_address(address).unwrap() && !maps.remove_node_address(address).unwrap());
}

#[test]
fn a_missing_pin_is_named() {
    let bpffs = Bpffs::new();
    let missing = error(Maps::from_pins(&pin_dir(bpffs.path())));
    assert!(missing.contains("/ENDPOINTS") && missing.contains("has the daemon run"), "{missing}");
    let missing = error(Events::from_pins(bpffs.path()));
    assert!(missing.contains("/EVENTS"), "{missing}");
}

#[test]
fn a_map_of_another_layout_is_refused() {
    let bpffs = Bpffs::new();
    let pins = pin_dir(bpffs.path());
    std::fs::create_dir(&pins).unwrap();
    let path = pins.join(map_name::ENDPOINTS);
    let foreign = HashMap::<MapData, u32, u64>::create(8, 0).unwrap();
    foreign.pin(&path).unwrap();
    for refused in [error(Datapath::load(&pins, Settings::DEFAULT, LogLevel::Off)), error(Maps::from_pins(&pins))] {
        let path = path.display().to_string();
        for part in [&path, "keys of 4 bytes", "values of 8 bytes", "keys of 16 bytes", "values of 24 bytes", "remove"]
        {
            assert!(refused.contains(part), "{part:?} is in {refused}");
        }
    }
    std::fs::remove_file(&path).unwrap();
    let foreign = HashMap::<MapData, u32, u64>::create(8, 0).unwrap();
    foreign.pin(pins.join(map_name::EVENTS)).unwrap();
    let refused = error(Datapath::load(&pins, Settings::DEFAULT, LogLevel::Off));
    assert!(refused.contains("EVENTS") && refused.contains("262144 entries"), "{refused}");
}

#[test]
fn pins_need_a_bpffs() {
    let bpffs = Bpffs::new();
    assert!(is_bpffs(bpffs.path()).unwrap());
    assert!(!ensure_bpffs(&bpffs.path().join("v1")).unwrap(), "a folder in a bpffs needs no other mount");
    let plain = tempfile::tempdir().unwrap();
    let refused = error(Datapath::load(plain.path(), Settings::DEFAULT, LogLevel::Off));
    assert!(refused.contains("not in a bpffs") && refused.contains(&plain.path().display().to_string()), "{refused}");
}

#[test]
fn the_object_is_embedded() {
    let hash = object::hash().expect("this suite needs the eBPF object: run `cargo xtask build-ebpf`");
    assert_eq!(hash.len(), 8);
}
