//! What the plan of a lab says.

use super::*;

fn options(name: &str) -> Options {
    Options { name: name.into(), ..Options::reference().unwrap() }
}

fn addresses(lab: &Lab, node: usize) -> Vec<String> {
    lab.nodes[node].addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn the_plan_is_the_reference_topology() {
    let lab = Lab::plan(&options("a")).unwrap();
    assert_eq!(lab.nodes.len(), 3);
    assert_eq!(addresses(&lab, 0), ["192.168.1.11", "fd00:192:168:1::11"]);
    assert_eq!(addresses(&lab, 2), ["192.168.1.13", "fd00:192:168:1::13"]);
    let cidrs: Vec<_> = lab.nodes[2].pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.244.3.0/24", "fd00:10:244:3::/64"]);
    assert_eq!(lab.nodes[1].socket(), Path::new("/run/podnet/lab/a/node2/podnet.sock"));
    assert_eq!(lab.find("pod4").unwrap().netns, "a-pod4");
    assert_eq!(lab.find("pod4").unwrap().node.unwrap().name, "node2");
    assert_eq!(lab.find("router").unwrap().netns, "a-router");
    assert!(lab.find("web").unwrap_err().to_string().contains("it has: node1, node2, node3, pod1, pod2"));
}

#[test]
fn one_node_needs_no_network() {
    let lab = Lab::plan(&Options { nodes: 1, ..options("a") }).unwrap();
    assert_eq!(lab.netns_names().collect::<Vec<_>>(), ["a-node1", "a-pod1", "a-pod2", "a-pod3"]);
    let config = lab.nodes[0].config();
    assert_eq!((config.store, config.cluster_cidrs.len()), (None, 0));
}

#[test]
fn nodes_share_one_file_and_differ_as_asked() {
    let mut options = options("a");
    options.mode = RoutingMode::Router;
    options.kernel_nodes = vec!["node2".into()];
    options.second_subnet = Some(vec!["node3".into()]);
    let lab = Lab::plan(&options).unwrap();
    let config = |node: usize| lab.nodes[node].config();
    let path = PathBuf::from("/run/podnet/lab/a/nodes.json");
    assert!((0..3).all(|node| config(node).store == Some(StoreConfig::Static { path: path.clone() })));
    assert_eq!(
        [0, 1, 2].map(|node| config(node).datapath),
        [DatapathMode::Ebpf, DatapathMode::Kernel, DatapathMode::Ebpf]
    );
    assert_eq!(addresses(&lab, 2), ["192.168.2.13", "fd00:192:168:2::13"]);
    let routers: Vec<_> = config(2).routers.iter().map(ToString::to_string).collect();
    assert_eq!(routers, ["192.168.2.1", "fd00:192:168:2::1"]);
    let ranges: Vec<_> = config(0).cluster_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.244.0.0/16", "fd00:10:244::/48"]);
    assert!(lab.network.unwrap().router_knows_pods);
}

#[test]
fn the_last_node_of_an_auto_lab_is_across_the_router() {
    let auto = Options { mode: RoutingMode::Auto, ..options("a") };
    let lab = Lab::plan(&auto).unwrap();
    assert_eq!(addresses(&lab, 1)[0], "192.168.1.12");
    assert_eq!(addresses(&lab, 2)[0], "192.168.2.13");
    assert!(!lab.network.unwrap().router_knows_pods);
    let together = Lab::plan(&Options { second_subnet: Some(Vec::new()), ..auto }).unwrap();
    assert_eq!(addresses(&together, 2)[0], "192.168.1.13");
}

#[test]
fn the_configuration_file_is_what_the_daemon_reads() {
    let mut options = options("a");
    options.families = Families::V4;
    options.datapath = DatapathMode::Kernel;
    for nodes in [1, 2] {
        options.nodes = nodes;
        let node = Lab::plan(&options).unwrap().nodes.remove(0);
        assert_eq!(Config::parse(&node.config_text().unwrap()).unwrap(), node.config());
        assert_eq!(node.pod_cidrs.len(), 1);
    }
}

#[test]
fn unusable_options_are_refused_before_anything_is_made() {
    for name in ["", "-a", "A", "a/b", "..", &"a".repeat(33)] {
        assert!(Lab::plan(&options(name)).is_err(), "{name:?}");
    }
    let one = || Options { nodes: 1, ..options("a") };
    let cidrs = vec!["10.0.0.0/31".parse().unwrap()];
    for (options, expected) in [
        (Options { pod_cidrs: cidrs.clone(), ..one() }, "prefix length"),
        (Options { pod_cidrs: cidrs, ..options("a") }, "only a lab of one node"),
        (Options { nodes: 0, ..options("a") }, "not in 1..=100"),
        (Options { mode: RoutingMode::Router, ..one() }, "neither router"),
        (Options { second_subnet: Some(vec!["node1".into()]), ..one() }, "neither router"),
        (Options { kernel_nodes: vec!["node4".into()], ..options("a") }, "the nodes are node1 to node3"),
        (Options { uplink_mtu: 1279, ..options("a") }, "1280..=65535"),
    ] {
        let error = format!("{:#}", Lab::plan(&options).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_state_survives_a_round_trip() {
    let mut lab = Lab::plan(&options("a")).unwrap();
    lab.nodes[0].daemon = Some(Process { pid: 4, start_time: 2 });
    lab.nodes[0].pods[0].addresses = vec!["10.244.1.2/24".parse().unwrap()];
    let text = serde_json::to_string(&lab).unwrap();
    assert_eq!(serde_json::from_str::<Lab>(&text).unwrap(), lab);
}
