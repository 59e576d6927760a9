//! The plan leads to what is desired, changes nothing twice, and removes orphans.

use proptest::prelude::*;

use super::*;

const BRIDGE_MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 1]);
const BRIDGE: u32 = 2;

fn pod(number: u8) -> PodSpec {
    PodSpec {
        key: AttachmentKey { container_id: format!("c{number}"), ifname: "eth0".into() },
        host_ifname: format!("pn{number:011x}"),
        host_ifindex: 100 + u32::from(number),
        mac: Mac([0x0a, 0x58, 10, 244, 1, number]),
        addresses: vec![
            format!("10.244.1.{number}").parse().unwrap(),
            format!("fd00:10:244:1::{number:x}").parse().unwrap(),
        ],
        mtu: 1500,
    }
}

fn desired(numbers: &[u8]) -> Desired {
    Desired {
        bridge: BridgeSpec {
            name: "v-net-0".into(),
            mac: BRIDGE_MAC,
            mtu: 1500,
            addresses: vec!["10.244.1.1/24".parse().unwrap(), "fd00:10:244:1::1/64".parse().unwrap()],
            stale_addresses: vec!["10.244.9.1/24".parse().unwrap()],
        },
        pods: numbers.iter().map(|number| pod(*number)).collect(),
        settings: Vec::new(),
        programs: Some(Programs { from_pod: 7, to_pod: 8 }),
        devices: Some(BTreeSet::new()),
    }
}

fn bare_veth(pod: &PodSpec) -> Link {
    Link { ifindex: pod.host_ifindex, name: pod.host_ifname.clone(), kind: "veth".into(), mtu: 1500, ..Link::default() }
}

fn empty() -> Actual {
    Actual { endpoints: Some(HashMap::new()), sources: Some(HashMap::new()), ..Actual::default() }
}

fn link(links: &mut [Link], ifindex: u32) -> &mut Link {
    links.iter_mut().find(|link| link.ifindex == ifindex).unwrap()
}

/// Applies a plan to the model of the node, as the engine does to the node.
fn apply(actual: &mut Actual, desired: &Desired, changes: &[Change]) {
    let endpoints = actual.endpoints.as_mut().unwrap();
    let sources = actual.sources.as_mut().unwrap();
    for change in changes.iter().cloned() {
        match change {
            Change::SetSetting(name, value) => drop(actual.settings.insert(name, value.to_owned())),
            Change::CreateBridge => actual.links.push(Link {
                ifindex: BRIDGE,
                name: desired.bridge.name.clone(),
                mac: Some(BRIDGE_MAC),
                mtu: 1500,
                up: true,
                kind: "bridge".into(),
                ..Link::default()
            }),
            Change::SetBridge => {
                let link = link(&mut actual.links, BRIDGE);
                (link.mac, link.mtu, link.up) = (Some(BRIDGE_MAC), 1500, true);
            }
            Change::AddBridgeAddress(address) => actual.bridge_addresses.push(address),
            Change::DeleteBridgeAddress(address) => actual.bridge_addresses.retain(|have| *have != address),
            Change::DeleteEndpoint(address) => assert!(endpoints.remove(&address).is_some()),
            Change::DeleteSource(ifindex) => assert!(sources.remove(&ifindex).is_some()),
            Change::AddPort(ifindex) => link(&mut actual.links, ifindex).master = Some(BRIDGE),
            Change::SetPort(ifindex) => link(&mut actual.links, ifindex).port = Some(PortSettings::POD),
            Change::Rename(ifindex, name) => {
                let link = link(&mut actual.links, ifindex);
                (link.name, link.up) = (name, true);
            }
            Change::BringUp(ifindex) => link(&mut actual.links, ifindex).up = true,
            Change::Attach(ifindex) => assert!(actual.attached.insert(ifindex)),
            Change::ReplacePrograms => {
                (actual.from_pod, actual.to_pod) = (Some(7), Some(8));
                actual.devices.extend(desired.devices.iter().flatten());
            }
            Change::DetachDevice(ifindex, hook) => {
                let before = actual.devices.len();
                actual.devices.retain(|device| (device.ifindex, device.hook) != (ifindex, hook));
                assert!(actual.devices.len() < before);
            }
            Change::SetMtu(ifindex, mtu) => link(&mut actual.links, ifindex).mtu = mtu,
            Change::RemovePrograms => (actual.from_pod, actual.to_pod) = (None, None),
            Change::PutSource(ifindex, source) => drop(sources.insert(ifindex, source)),
            Change::PutEndpoint(address, endpoint) => {
                assert!(actual.attached.contains(&endpoint.ifindex), "published before it was attached");
                assert!(sources.contains_key(&endpoint.ifindex), "published before it was guarded");
                endpoints.insert(address, endpoint);
            }
            Change::AddNeighbor(address, mac) => {
                actual.neighbors.retain(|(have, _)| *have != address);
                actual.neighbors.push((address, mac));
            }
            Change::DeleteNeighbor(address) => actual.neighbors.retain(|(have, _)| *have != address),
            Change::AddFdb(port, mac) => drop(actual.fdb.insert((port, mac))),
            Change::ReapVeth(ifindex) => actual.links.retain(|link| link.ifindex != ifindex),
            Change::PodLost(_) => {}
            Change::InstallNft => actual.nft = true,
        }
    }
}

#[test]
fn programs_of_devices_come_and_go() {
    let device = |ifindex, program| DeviceProgram { ifindex, hook: DeviceHook::FromUplink, program };
    let desired = Desired { devices: Some([device(5, 20)].into()), ..desired(&[2]) };
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    apply(&mut actual, &desired, &changes);
    assert_eq!(plan(&desired, &actual), []);
    actual.devices = [device(6, 20)].into();
    let changes = plan(&desired, &actual);
    assert_eq!(changes, [Change::ReplacePrograms, Change::DetachDevice(6, DeviceHook::FromUplink)]);
    // Before anything is known of the cluster, they stay.
    assert_eq!(plan(&Desired { devices: None, ..desired }, &actual), []);
}

#[test]
fn a_new_node_gets_everything_in_order() {
    let desired = desired(&[2, 3]);
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    assert_eq!(changes[0], Change::CreateBridge);
    apply(&mut actual, &desired, &changes);
    assert_eq!(plan(&desired, &actual), []);
    assert_eq!(actual.endpoints.unwrap().len(), 4);
}

#[test]
fn flags_that_the_programs_set_are_no_difference() {
    let desired = desired(&[2]);
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    apply(&mut actual, &desired, &changes);
    actual.endpoints.as_mut().unwrap().values_mut().for_each(|endpoint| endpoint.flags = Endpoint::KERNEL_TOUCHED);
    actual.sources.as_mut().unwrap().values_mut().for_each(|source| source.flags = EndpointSource::KERNEL_TOUCHED_V6);
    assert_eq!(plan(&desired, &actual), []);
}

#[test]
fn a_pod_whose_veth_was_replaced_leaves_the_maps() {
    let desired = desired(&[2]);
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    apply(&mut actual, &desired, &changes);
    actual.links.iter_mut().find(|link| link.kind == "veth").unwrap().ifindex = 999;
    let changes = plan(&desired, &actual);
    assert!(changes.contains(&Change::PodLost(desired.pods[0].key.clone())));
    assert!(changes.contains(&Change::ReapVeth(999)));
    assert!(changes.contains(&Change::DeleteSource(102)));
    assert_eq!(changes.iter().filter(|change| matches!(change, Change::DeleteEndpoint(_))).count(), 2);
    assert!(!changes.iter().any(|change| matches!(change, Change::PutEndpoint(..))));
}

#[test]
fn a_renamed_veth_gets_its_name_back_and_a_foreign_one_of_its_index_is_left_alone() {
    let desired = desired(&[2]);
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    apply(&mut actual, &desired, &changes);
    let veth = link(&mut actual.links, 102);
    (veth.name, veth.mac) = ("renamed0".into(), Some(BRIDGE_MAC));
    assert_eq!(plan(&desired, &actual), [Change::Rename(102, "pn00000000002".into())]);
    link(&mut actual.links, 102).mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    let changes = plan(&desired, &actual);
    assert!(changes.contains(&Change::PodLost(desired.pods[0].key.clone())), "{changes:?}");
    assert!(!changes.iter().any(|change| matches!(change, Change::Rename(..) | Change::ReapVeth(_))), "{changes:?}");
}

#[test]
fn programs_follow_the_mode() {
    let mut desired = desired(&[2]);
    let mut actual = Actual { links: desired.pods.iter().map(bare_veth).collect(), ..empty() };
    let changes = plan(&desired, &actual);
    apply(&mut actual, &desired, &changes);
    actual.to_pod = None;
    assert_eq!(plan(&desired, &actual), [Change::ReplacePrograms]);
    desired.programs = None;
    assert_eq!(plan(&desired, &actual), [Change::RemovePrograms]);
}

#[test]
fn other_peoples_links_are_left_alone() {
    let desired = desired(&[]);
    let foreign =
        |name: &str, kind: &str| Link { ifindex: 50, name: name.into(), kind: kind.into(), ..Link::default() };
    for link in [
        foreign("pn0000000000z", "veth"),
        foreign("pn123", "veth"),
        foreign("pn0123456789a", "bridge"),
        foreign("eth0", ""),
        Link { group: REAP_GROUP, ..foreign("pn0123456789a", "veth") },
    ] {
        let actual = Actual { links: vec![link.clone()], ..empty() };
        assert!(!plan(&desired, &actual).contains(&Change::ReapVeth(50)), "{}", link.name);
    }
    let actual = Actual { links: vec![foreign("pn0123456789a", "veth")], ..empty() };
    assert!(plan(&desired, &actual).contains(&Change::ReapVeth(50)));
}

proptest! {
    /// From whatever mixture of right, wrong and missing things: one plan leads to what is desired, and the next is
    /// empty.
    #[test]
    fn one_plan_is_enough(
        wanted in prop::collection::btree_set(2u8..30, 0..8),
        present in prop::collection::btree_set(2u8..30, 0..8),
        done in prop::collection::vec(any::<bool>(), 64),
    ) {
        let wanted: Vec<u8> = wanted.into_iter().collect();
        let goal = desired(&wanted);
        let mut actual = empty();
        actual.links = present.iter().map(|number| bare_veth(&pod(*number))).collect();
        let earlier = desired(&present.iter().copied().collect::<Vec<_>>());
        // An earlier life of the daemon applied some of its plan.
        let changes = plan(&earlier, &actual);
        let partly: Vec<Change> = changes
            .into_iter()
            .zip(done.into_iter().cycle())
            .filter(|(change, done)| *done && !matches!(change, Change::PutEndpoint(..)))
            .map(|(change, _)| change)
            .collect();
        let bridge_exists = partly.contains(&Change::CreateBridge);
        let partly: Vec<_> = partly
            .into_iter()
            .filter(|change| bridge_exists || !matches!(change, Change::AddPort(_) | Change::AddBridgeAddress(_)))
            .collect();
        apply(&mut actual, &earlier, &partly);
        let changes = plan(&goal, &actual);
        apply(&mut actual, &goal, &changes);
        let lost = goal.pods.iter().filter(|pod| !present.contains(&((pod.host_ifindex - 100) as u8))).count();
        let rest = plan(&goal, &actual);
        prop_assert_eq!(rest.len(), lost, "{:?}", rest);
        prop_assert!(rest.iter().all(|change| matches!(change, Change::PodLost(_))));
        let alive: HashSet<u8> = wanted.iter().copied().filter(|number| present.contains(number)).collect();
        prop_assert_eq!(actual.endpoints.unwrap().len(), alive.len() * 2);
        prop_assert_eq!(actual.sources.unwrap().len(), alive.len());
        prop_assert_eq!(actual.links.iter().filter(|link| link.kind == "veth").count(), alive.len());
        prop_assert_eq!(actual.neighbors.len(), alive.len() * 2);
    }
}

#[test]
fn settings_that_somebody_changed_are_set_again() {
    let forwarding = "ipv4/ip_forward".to_owned();
    let desired = Desired { settings: vec![(forwarding.clone(), "1")], ..desired(&[]) };
    let mut actual = empty();
    let is_set = |change: &Change| matches!(change, Change::SetSetting(..));
    // A kernel without the setting is left alone.
    assert!(!plan(&desired, &actual).iter().any(is_set));
    actual.settings.insert(forwarding.clone(), "0".into());
    assert_eq!(plan(&desired, &actual)[0], Change::SetSetting(forwarding.clone(), "1"));
    actual.settings.insert(forwarding, "1".into());
    assert!(!plan(&desired, &actual).iter().any(is_set));
}
