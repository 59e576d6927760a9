//! The lab's own network: what the other tests of this suite stand on.
//!
//! ```text
//!   node1 .11, node2 .12 --- subnet1 --- router --- subnet2 --- node3 .13
//!                                          |
//!                                       outside
//! ```

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use harness::{Family, TestCluster, binary, icmp, interfaces, lab::new_name, require_root, udp, wait_for};
use podnet::{
    config::RoutingMode,
    lab::{
        Lab, Options,
        topology::{LABS_DIR, lab_dir},
    },
    netns::NAMED_DIR,
};

fn destinations(cluster: &TestCluster, family: Family) -> Vec<String> {
    let routes = interfaces::routes(cluster.router(), family);
    routes.iter().filter_map(|route| route["dst"].as_str().map(str::to_owned)).collect()
}

#[test]
fn nodes_reach_each_other_and_the_outside() {
    let cluster = TestCluster::new(RoutingMode::Auto);
    for family in Family::ALL {
        for node in cluster.nodes() {
            for other in cluster.nodes() {
                icmp::ping(node.netns(), other.address(family), 3, 56);
            }
            icmp::ping(node.netns(), cluster.outside_address(family), 3, 1400);
            icmp::ping(cluster.outside(), node.address(family), 3, 56);
        }
        let towards =
            |node: usize| interfaces::route_to(cluster.nodes()[0].netns(), cluster.nodes()[node].address(family));
        assert!(towards(1)["gateway"].is_null(), "node2 is on-link: {}", towards(1));
        assert!(towards(2)["gateway"].is_string(), "node3 is across the router: {}", towards(2));
        // Nothing but its own subnets: an answer to a pod's own address gets lost here.
        assert_eq!(destinations(&cluster, family).iter().filter(|dst| dst.contains("244")).count(), 0);
    }
}

#[test]
fn the_network_keeps_its_mtu() {
    let cluster = TestCluster::with(|options| {
        options.nodes = 2;
        options.uplink_mtu = 1400;
        options.second_subnet = Some(vec!["node2".into()]);
    });
    for family in Family::ALL {
        let target = std::net::SocketAddr::new(cluster.nodes()[1].address(family), 9);
        let socket = udp::connect(cluster.nodes()[0].netns(), target);
        udp::set_dont_fragment(&socket);
        let headers = if family == Family::V4 { 28 } else { 48 };
        socket.send(&vec![0; 1400 - headers]).unwrap();
        let error = udp::connect(cluster.nodes()[0].netns(), target);
        udp::set_dont_fragment(&error);
        assert_eq!(error.send(&vec![0; 1401 - headers]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        icmp::ping(cluster.nodes()[0].netns(), target.ip(), 1, 4000);
    }
}

#[test]
fn the_router_follows_the_file_of_nodes() {
    let cluster = TestCluster::new(RoutingMode::Router);
    let via = |family: Family, destination: &str| {
        let routes = interfaces::routes(cluster.router(), family);
        let route = routes.iter().find(|route| route["dst"] == destination).cloned();
        route.unwrap_or_else(|| panic!("the router has no route to {destination}: {routes:?}"))["gateway"].clone()
    };
    assert_eq!(via(Family::V4, "10.244.3.0/24"), "192.168.1.13");
    assert_eq!(via(Family::V6, "fd00:10:244:3::/64"), "fd00:192:168:1::13");
    cluster.readdress(2, 77);
    assert_eq!(via(Family::V4, "10.244.3.0/24"), "192.168.1.77");
    assert_eq!(via(Family::V6, "fd00:10:244:3::/64"), "fd00:192:168:1::77");
    assert_eq!(via(Family::V4, "10.244.1.0/24"), "192.168.1.11");
    for family in Family::ALL {
        let node = &cluster.nodes()[2];
        icmp::ping(node.netns(), cluster.outside_address(family), 3, 56);
        icmp::ping(cluster.nodes()[0].netns(), node.address(family), 3, 56);
    }
    assert!(!icmp::answers(cluster.router(), "192.168.1.13".parse().unwrap(), harness::QUIET));
}

#[test]
fn the_file_of_nodes_names_the_lab() {
    let cluster = TestCluster::new(RoutingMode::Direct);
    let nodes = cluster.nodes_file().read().unwrap();
    assert_eq!(nodes.len(), 3);
    for (node, entry) in cluster.nodes().iter().zip(&nodes) {
        assert_eq!(entry.name, node.name());
        assert_eq!(entry.pod_cidrs, node.node().pod_cidrs);
        assert!(Family::ALL.iter().all(|family| entry.addresses.contains(&node.address(*family))));
    }
}

/// Returns what there is on the machine under a lab's name.
fn traces(name: &str) -> Vec<String> {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    };
    let mut traces: Vec<_> =
        [LABS_DIR, NAMED_DIR].iter().flat_map(|dir| names(dir)).filter(|one| one.starts_with(name)).collect();
    let dir = format!("{}/", lab_dir(name).display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    traces.extend(mounts.lines().filter(|line| line.contains(&dir)).map(str::to_owned));
    let command_line =
        |pid: String| Some(String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?).into_owned());
    traces.extend(names("/proc").into_iter().filter_map(command_line).filter(|line| line.contains(&dir)));
    traces
}

#[test]
fn a_lab_that_cannot_be_made_leaves_nothing() {
    require_root();
    let name = new_name();
    let options = Options { name: name.clone(), binary: "/bin/false".into(), ..Options::reference().unwrap() };
    let error = format!("{:#}", Lab::up(&options).unwrap_err());
    assert!(error.contains("the daemon of node"), "{error}");
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn down_leaves_nothing_of_a_lab_whose_making_was_killed() {
    require_root();
    for milliseconds in [5, 20, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400] {
        let name = new_name();
        let mut up = Command::new(binary())
            .args(["lab", "up", "--mode", "router", "--name", &name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the lab's folder", || lab_dir(&name).exists().then_some(()));
        // Not a wait for something: the moment is what is tried.
        std::thread::sleep(Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        Lab::down(&name).unwrap_or_else(|error| panic!("after {milliseconds} ms: {error:#}"));
        assert_eq!(traces(&name), Vec::<String>::new(), "after {milliseconds} ms");
        assert!(!Path::new(NAMED_DIR).join(format!("{name}-router")).exists());
    }
}
