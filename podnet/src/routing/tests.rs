//! Routing follows from nodes and ways; the plan leads there, and changes nothing twice.

use proptest::prelude::*;

use super::*;

const UPLINK: u32 = 2;
const SECOND_UPLINK: u32 = 3;
const OVERLAY: u32 = 9;

fn node(number: u8, subnet: u8) -> ClusterNode {
    ClusterNode {
        name: format!("node{number}"),
        addresses: vec![
            format!("192.168.{subnet}.{}", 10 + number).parse().unwrap(),
            format!("fd00:192:168:{subnet}::{}", 10 + number).parse().unwrap(),
        ],
        pod_cidrs: vec![
            format!("10.244.{number}.0/24").parse().unwrap(),
            format!("fd00:10:244:{number}::/64").parse().unwrap(),
        ],
    }
}

/// A node in 192.168.1.0/24, and what its kernel knows.
#[derive(Debug)]
struct World {
    mode: RoutingMode,
    cluster: Cluster,
    ways: HashMap<IpAddr, Option<NextHop>>,
    links: HashMap<u32, (String, u32)>,
    routers: Vec<IpAddr>,
    cluster_cidrs: Vec<IpNetwork>,
    overlay: Option<u32>,
}

impl World {
    fn new(mode: RoutingMode, nodes: Vec<ClusterNode>) -> Self {
        let routers: Vec<IpAddr> = vec!["192.168.1.1".parse().unwrap(), "fd00:192:168:1::1".parse().unwrap()];
        let mut ways = HashMap::new();
        for address in nodes.iter().flat_map(|node| &node.addresses).chain(&routers) {
            let text = address.to_string();
            let on_link = text.starts_with("192.168.1.") || text.starts_with("fd00:192:168:1:");
            let gateway = (!on_link).then(|| routers[usize::from(address.is_ipv6())]);
            ways.insert(*address, Some(NextHop { ifindex: UPLINK, gateway }));
        }
        Self {
            mode,
            cluster: Cluster::new(nodes).unwrap(),
            ways,
            links: [(UPLINK, ("eth0".into(), 1500)), (SECOND_UPLINK, ("eth1".into(), 9000))].into(),
            routers,
            cluster_cidrs: Vec::new(),
            overlay: Some(OVERLAY),
        }
    }

    fn routing(&self) -> Routing {
        Inputs {
            mode: self.mode,
            name: "node1",
            own_cidrs: &self.cluster.node("node1").unwrap().pod_cidrs,
            routers: &self.routers,
            cluster_cidrs: &self.cluster_cidrs,
            vni: 7,
            cluster: Some(&self.cluster),
            ways: &self.ways,
            links: &self.links,
            overlay: self.overlay,
        }
        .routing()
    }
}

fn three(mode: RoutingMode) -> World {
    World::new(mode, vec![node(1, 1), node(2, 1), node(3, 2)])
}

fn cidr(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

#[test]
fn direct_takes_the_kernels_next_hop() {
    let routing = three(RoutingMode::Direct).routing();
    assert_eq!(routing.routes[&cidr("10.244.2.0/24")].gateway.unwrap().to_string(), "192.168.1.12");
    assert_eq!(routing.routes[&cidr("10.244.3.0/24")].gateway.unwrap().to_string(), "192.168.1.1");
    assert_eq!(routing.routes[&cidr("fd00:10:244:3::/64")].gateway.unwrap().to_string(), "fd00:192:168:1::1");
    let entry = routing.nodes[&cidr("10.244.2.0/24")];
    assert_eq!((entry.flags, entry.ifindex, entry.mtu), (Node::DIRECT, UPLINK, 1500));
    assert_eq!(routing.nodes[&cidr("10.244.1.0/24")].flags, Node::LOCAL);
    assert_eq!((routing.overlay_mtu, routing.neighbors.len()), (None, 0));
    assert_eq!(routing.uplinks, [UPLINK].into());
    assert_eq!(routing.node_addresses.len(), 6);
    assert_eq!(routing.problems, Vec::<String>::new());
}

#[test]
fn overlay_carries_both_families_over_one() {
    let routing = three(RoutingMode::Overlay).routing();
    let route = routing.routes[&cidr("fd00:10:244:3::/64")];
    assert_eq!(
        route.to_string(),
        "fd00:10:244:3::/64 encap id 7 dst 192.168.2.13 via fe80::858:aff:fef4:301 dev 9 mtu 1450"
    );
    assert_eq!(route.source.unwrap().to_string(), "fd00:10:244:1::1");
    assert_eq!(routing.neighbors[&"10.244.3.1".parse().unwrap()].to_string(), "0a:58:0a:f4:03:01");
    let entry = routing.nodes[&cidr("10.244.3.0/24")];
    assert_eq!((entry.flags, entry.ifindex, entry.mtu), (Node::OVERLAY, OVERLAY, 1450));
    assert_eq!(entry.address.to_ip().to_string(), "192.168.2.13");
    assert_eq!(
        (Mac(entry.mac).to_string(), Mac(entry.own_mac).to_string()),
        ("0a:58:0a:f4:03:01".into(), "0a:58:0a:f4:01:01".into())
    );
}

#[test]
fn overlay_without_its_device_is_announced_but_not_used() {
    let mut world = three(RoutingMode::Overlay);
    world.overlay = None;
    let routing = world.routing();
    assert!(routing.routes.is_empty());
    assert_eq!((routing.overlay_mtu, routing.overlay_device_mtu), (Some(1450), Some(1450)));
    assert_eq!(routing.nodes[&cidr("10.244.2.0/24")].flags, 0);
}

#[test]
fn overlay_goes_over_ipv6_where_an_end_has_nothing_else() {
    let mut far = node(2, 1);
    far.addresses.remove(0);
    let routing = World::new(RoutingMode::Overlay, vec![node(1, 1), far]).routing();
    let route = routing.routes[&cidr("10.244.2.0/24")];
    assert_eq!(route.tunnel.unwrap().remote.to_string(), "fd00:192:168:1::12");
    assert_eq!(route.mtu, Some(1430));
}

#[test]
fn a_narrow_overlay_carries_no_ipv6_and_says_so() {
    let mut world = three(RoutingMode::Overlay);
    for (mtu, carries) in [(1330, true), (1329, false)] {
        world.links.insert(UPLINK, ("eth0".into(), mtu));
        let routing = world.routing();
        let far = cidr("fd00:10:244:3::/64");
        assert_eq!(routing.routes.contains_key(&far), carries);
        assert_eq!(routing.nodes[&far].flags, if carries { Node::OVERLAY } else { 0 });
        assert_eq!(routing.neighbors.keys().any(IpAddr::is_ipv6), carries);
        assert_eq!(routing.nodes[&cidr("10.244.3.0/24")].flags, Node::OVERLAY);
        assert_eq!(routing.overlay_device_mtu, Some(mtu - 50));
        assert_eq!(routing.problems.len(), if carries { 0 } else { 2 }, "{:?}", routing.problems);
        assert!(
            routing.problems.iter().all(|problem| problem.contains("::/64 of node")
                && problem
                    .ends_with("an overlay MTU of 1280, and there is one of 1279: give the uplinks 1330 or more")),
            "{:?}",
            routing.problems
        );
    }
    // An outer header of IPv6 takes more, and what is direct needs no overlay.
    let mut far = node(2, 1);
    far.addresses.remove(0);
    let mut world = World::new(RoutingMode::Overlay, vec![node(1, 1), far]);
    world.links.insert(UPLINK, ("eth0".into(), 1349));
    assert!(world.routing().problems[0].ends_with("give the uplinks 1350 or more"));
    let mut world = three(RoutingMode::Auto);
    world.links.insert(UPLINK, ("eth0".into(), 1280));
    let routing = world.routing();
    assert_eq!(routing.nodes[&cidr("fd00:10:244:2::/64")].flags, Node::DIRECT);
    assert_eq!(routing.nodes[&cidr("fd00:10:244:3::/64")].flags, 0);
}

#[test]
fn auto_is_direct_on_the_link_and_overlay_elsewhere() {
    let routing = three(RoutingMode::Auto).routing();
    assert_eq!(routing.nodes[&cidr("10.244.2.0/24")].flags, Node::DIRECT);
    assert_eq!(routing.nodes[&cidr("fd00:10:244:3::/64")].flags, Node::OVERLAY);
    // A family in which the node has no address travels through the overlay, though the node is on the link.
    let mut near = node(2, 1);
    near.addresses.remove(1);
    let routing = World::new(RoutingMode::Auto, vec![node(1, 1), near]).routing();
    assert_eq!(routing.nodes[&cidr("10.244.2.0/24")].flags, Node::DIRECT);
    assert_eq!(routing.nodes[&cidr("fd00:10:244:2::/64")].flags, Node::OVERLAY);
}

#[test]
fn router_takes_the_ranges_or_the_nodes() {
    let mut world = three(RoutingMode::Router);
    let routing = world.routing();
    assert!(routing.routes.values().all(|route| world.routers.contains(&route.gateway.unwrap())));
    assert_eq!(routing.routes.len(), 4);
    world.cluster_cidrs = vec![cidr("10.244.0.0/16"), cidr("fd00:10:244::/48")];
    let routing = world.routing();
    assert_eq!(
        routing.routes.keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.244.0.0/16", "fd00:10:244::/48"]
    );
    let shape = routing.shape();
    assert!(shape.others);
    assert_eq!(shape.key(cidr("10.244.1.0/24")), shape.key(cidr("10.244.1.0/24")));
}

#[test]
fn who_cannot_be_reached_is_named_and_known_all_the_same() {
    let mut world = three(RoutingMode::Direct);
    world.ways.insert("192.168.1.12".parse().unwrap(), None);
    world.links.remove(&SECOND_UPLINK);
    world.ways.insert("192.168.2.13".parse().unwrap(), Some(NextHop { ifindex: SECOND_UPLINK, gateway: None }));
    let routing = world.routing();
    assert!(routing.problems[0].contains("node2") && routing.problems[0].contains("no route to 192.168.1.12"));
    assert!(routing.problems[1].contains("node3") && routing.problems[1].contains("is down"), "{:?}", routing.problems);
    assert_eq!(routing.nodes[&cidr("10.244.2.0/24")].flags, 0);
    assert!(!routing.routes.contains_key(&cidr("10.244.3.0/24")));
    let mut lonely = node(2, 1);
    lonely.addresses.remove(1);
    let routing = World::new(RoutingMode::Direct, vec![node(1, 1), lonely]).routing();
    assert!(routing.problems[0].contains("fd00:10:244:2::/64") && routing.problems[0].contains("mode \"overlay\""));
}

#[test]
fn the_usual_prefix_is_the_most_frequent() {
    let mut big = node(3, 1);
    big.pod_cidrs[0] = cidr("10.244.128.0/20");
    let routing = World::new(RoutingMode::Direct, vec![node(1, 1), node(2, 1), big]).routing();
    let shape = routing.shape();
    assert_eq!(shape, Shape { v4: Some(24), v6: Some(64), others: true });
    assert_eq!(shape.mask_v4(), [255, 255, 255, 0]);
    assert_eq!(shape.mask_v6(), [255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(shape.key(cidr("10.244.128.0/20")), NodeKey::Other(NodePrefix { prefix_len: 116, .. })));
    assert!(matches!(shape.key(cidr("10.244.2.0/24")), NodeKey::Usual(_)));
    assert_eq!(Shape::default().mask_v4(), [0; 4]);
}

#[test]
fn mtus_follow_uplinks_and_overlay() {
    assert_eq!(pod_mtus(None, &[], None), (1500, 1500));
    assert_eq!(pod_mtus(None, &[9000, 1500], None), (1500, 1500));
    assert_eq!(pod_mtus(None, &[9000], Some(8950)), (9000, 8950));
    assert_eq!(pod_mtus(Some(1400), &[9000], Some(8950)), (1400, 1400));
    assert_eq!(pod_mtus(Some(1480), &[1500], Some(1450)), (1480, 1450));
}

#[test]
fn a_node_more_or_less_touches_no_other() {
    let few = three(RoutingMode::Auto).routing();
    let more = World::new(RoutingMode::Auto, vec![node(1, 1), node(2, 1), node(3, 2), node(4, 2)]).routing();
    let shape = few.shape();
    let concerns_fourth = |change: &Change| {
        format!("{change:?}").contains("244.4.")
            || format!("{change:?}").contains("244:4:")
            || format!("{change:?}").contains("fef4:401")
            || matches!(
                change,
                Change::PutNode(..) | Change::DeleteNode(_) | Change::PutNodeAddress(..) | Change::DeleteNodeAddress(_)
            )
    };
    let added = plan(&more, &shape, &Actual::of(&few, shape, true));
    // Two routes, two neighbours, two addresses, two map entries.
    assert_eq!(added.len(), 8, "{added:?}");
    assert!(added.iter().all(concerns_fourth), "{added:?}");
    let position = |wanted: fn(&Change) -> bool| added.iter().position(wanted).unwrap();
    assert!(
        position(|change| matches!(change, Change::AddRoute(_)))
            < position(|change| matches!(change, Change::PutNode(..)))
    );
    let removed = plan(&few, &shape, &Actual::of(&more, shape, true));
    assert_eq!(removed.len(), 8, "{removed:?}");
    let position = |wanted: fn(&Change) -> bool| removed.iter().position(wanted).unwrap();
    assert!(
        position(|change| matches!(change, Change::DeleteNode(_)))
            < position(|change| matches!(change, Change::DeleteRoute(_)))
    );
}

#[test]
fn a_route_of_somebody_else_is_left_alone() {
    let routing = three(RoutingMode::Direct).routing();
    let taken = [cidr("10.244.2.0/24")].into();
    let actual = Actual { taken, ..Actual::default() };
    let changes = plan(&routing, &routing.shape(), &actual);
    assert!(changes.contains(&Change::RefuseRoute(cidr("10.244.2.0/24"))));
    assert!(
        !changes
            .iter()
            .any(|change| matches!(change, Change::AddRoute(route) if route.destination == cidr("10.244.2.0/24")))
    );
    assert_eq!(routing.routes[&cidr("10.244.2.0/24")].metric, Some(1 + (10 * 65536 + 244 * 256 + 2) % 1024));
}

impl Actual {
    /// Returns the state that follows from applied routing.
    fn of(routing: &Routing, shape: Shape, maps: bool) -> Self {
        Self {
            routes: routing.routes.iter().map(|(cidr, route)| (*cidr, *route)).collect(),
            taken: BTreeSet::new(),
            neighbors: routing.neighbors.iter().map(|(address, mac)| (*address, *mac)).collect(),
            nodes: maps.then(|| routing.nodes.iter().map(|(cidr, node)| (shape.key(*cidr), *node)).collect()),
            node_addresses: maps.then(|| routing.node_addresses.iter().map(|(ip, id)| (*ip, *id)).collect()),
        }
    }
}

/// Does what a change says to a model of the kernel and the maps.
fn apply(actual: &mut Actual, change: Change) {
    match change {
        Change::DeleteNode(key) => assert!(actual.nodes.as_mut().unwrap().remove(&key).is_some()),
        Change::PutNode(key, node) => drop(actual.nodes.as_mut().unwrap().insert(key, node)),
        Change::PutNeighbor(address, mac) => drop(actual.neighbors.insert(address, mac)),
        Change::DeleteNeighbor(address) => assert!(actual.neighbors.remove(&address).is_some()),
        Change::AddRoute(route) => assert!(actual.routes.insert(route.destination, route).is_none()),
        Change::RefuseRoute(destination) => assert!(actual.taken.contains(&destination)),
        Change::ReplaceRoute(route) => assert!(actual.routes.insert(route.destination, route).is_some()),
        Change::DeleteRoute(destination) => assert!(actual.routes.remove(&destination).is_some()),
        Change::PutNodeAddress(address, id) => drop(actual.node_addresses.as_mut().unwrap().insert(address, id)),
        Change::DeleteNodeAddress(address) => {
            assert!(actual.node_addresses.as_mut().unwrap().remove(&address).is_some());
        }
    }
}

fn any_world() -> impl Strategy<Value = World> {
    let mode =
        prop::sample::select(vec![RoutingMode::Auto, RoutingMode::Direct, RoutingMode::Overlay, RoutingMode::Router]);
    let others = prop::collection::btree_map(2..30u8, 1..3u8, 0..12);
    (mode, others, any::<bool>(), any::<bool>()).prop_map(|(mode, others, has_device, has_range)| {
        let nodes = std::iter::once(node(1, 1)).chain(others.into_iter().map(|(number, subnet)| node(number, subnet)));
        let mut world = World::new(mode, nodes.collect());
        world.overlay = has_device.then_some(OVERLAY);
        if has_range {
            world.cluster_cidrs = vec![cidr("10.244.0.0/16"), cidr("fd00:10:244::/48")];
        }
        world
    })
}

proptest! {
    #[test]
    fn a_plan_leads_from_any_state_to_any_other(before in any_world(), after in any_world()) {
        let (before, after) = (before.routing(), after.routing());
        let mut actual = Actual::of(&before, before.shape(), true);
        let shape = after.shape();
        for change in plan(&after, &shape, &actual.clone()) {
            apply(&mut actual, change);
        }
        prop_assert_eq!(&actual, &Actual::of(&after, shape, true));
        prop_assert_eq!(plan(&after, &shape, &actual), vec![]);
    }

    #[test]
    fn an_update_does_what_a_plan_does(before in any_world(), after in any_world()) {
        let (before, after) = (before.routing(), after.routing());
        let shape = after.shape();
        for has_maps in [true, false] {
            let sorted = |changes: Vec<Change>| changes.iter().map(|change| format!("{change:?}")).collect::<BTreeSet<_>>();
            let kinds = |changes: &[Change]| changes.iter().map(std::mem::discriminant).collect::<Vec<_>>();
            let planned = plan(&after, &shape, &Actual::of(&before, shape, has_maps));
            let updated = update(&before, &after, &shape, &BTreeSet::new(), has_maps);
            prop_assert_eq!(kinds(&planned), kinds(&updated));
            prop_assert_eq!(sorted(planned), sorted(updated));
        }
    }
}
