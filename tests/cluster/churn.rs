//! Nodes come, go and move, and the others' pods notice nothing.
//!
//! ```text
//!   pod1 (node1) <===== connections and echoes, all the while =====> pod2 (node2)
//!   node3: removed, added, re-addressed, again and again
//! ```

use std::net::SocketAddr;

use harness::{
    Family, TestCluster, TestNode, TestPod, interfaces, maps,
    peer::{self, PeerServer},
    traffic::Steady,
    wait_for,
};
use podnet::{api::DatapathMode, config::RoutingMode, lab::Families};
use podnet_common::address::Address;

const PORT: u16 = 8080;

/// How often the third node goes, comes and moves.
const ROUNDS: u8 = 3;

macro_rules! churn {
    ($($name:ident: $mode:ident, $datapath:ident;)*) => {
        $(#[test] fn $name() { churn(RoutingMode::$mode, DatapathMode::$datapath); })*
    };
}

churn! {
    direct_by_ebpf: Direct, Ebpf;
    direct_by_the_kernel: Direct, Kernel;
    overlay_by_ebpf: Overlay, Ebpf;
    overlay_by_the_kernel: Overlay, Kernel;
    auto_by_ebpf: Auto, Ebpf;
    auto_by_the_kernel: Auto, Kernel;
}

/// Says what a node still knows of the third node's pods and addresses.
fn traces(cluster: &TestCluster, node: &TestNode, datapath: DatapathMode) -> Vec<String> {
    let gone = &cluster.nodes()[2];
    let cidrs = &gone.node().pod_cidrs;
    let mut traces = Vec::new();
    for family in Family::ALL {
        let routes = interfaces::own_destinations(node.netns(), family);
        let stale = cidrs.iter().map(ToString::to_string).filter(|cidr| routes.contains(cidr));
        traces.extend(stale.map(|cidr| format!("route to {cidr}")));
        if datapath == DatapathMode::Ebpf {
            let address = gone.address(family);
            let known = maps::node_addresses(node.node()).get(&Address::from(address), 0).is_ok();
            traces.extend(known.then(|| format!("NODE_ADDRESSES has {address}")));
        }
    }
    if datapath == DatapathMode::Ebpf {
        let known = cidrs.iter().filter(|cidr| maps::node_of(node.node(), **cidr).is_some());
        traces.extend(known.map(|cidr| format!("NODES has {cidr}")));
    }
    let neighbors = interfaces::neighbors(node.netns());
    let stale = neighbors.iter().filter(|(address, _)| cidrs.iter().any(|cidr| cidr.contains(*address)));
    traces.extend(stale.map(|(address, mac)| format!("neighbour {address} {mac}")));
    traces
}

/// Waits until a pod is reached from pods of the other nodes, and reaches them.
fn wait_until_reached(pod: &TestPod, others: &[&TestPod]) {
    for family in Family::ALL {
        for (client, server) in others.iter().flat_map(|other| [(pod, *other), (*other, pod)]) {
            let target = SocketAddr::new(server.address(family), PORT);
            let sources = client.address(family);
            wait_for(&format!("{} to reach {} at {target}", client.name(), server.name()), || {
                peer::ask_within(client.netns(), target, harness::QUIET).filter(|seen| seen.ip() == sources)
            });
        }
    }
}

fn churn(mode: RoutingMode, datapath: DatapathMode) {
    let cluster = TestCluster::with(|options| {
        options.mode = mode;
        options.datapath = datapath;
        options.families = Families::Dual;
    });
    cluster.wait_for_routes();
    let pods: Vec<TestPod> = cluster.add_pods(1).into_iter().flatten().collect();
    let [one, two, three] = &pods[..] else { panic!("a pod on each of three nodes") };
    let _servers: Vec<_> = pods
        .iter()
        .flat_map(|pod| Family::ALL.map(|family| PeerServer::start(pod.netns(), pod.socket_address(family, PORT))))
        .collect();
    wait_until_reached(three, &[one, two]);
    let traffic = Steady::start(&[(one, two), (two, one)]);
    let stay = &cluster.nodes()[..2];
    for round in 0..ROUNDS {
        let gone = cluster.nodes_file().remove("node3").unwrap();
        for node in stay {
            wait_for(&format!("{} to forget node3", node.name()), || {
                traces(&cluster, node, datapath).is_empty().then_some(())
            });
            assert_eq!(node.cluster().len(), 2);
        }
        traffic.wait_for_progress();

        cluster.nodes_file().add(gone).unwrap();
        cluster.wait_for_routes();
        wait_until_reached(three, &[one, two]);

        cluster.readdress(2, 70 + round);
        wait_until_reached(three, &[one, two]);
        traffic.wait_for_progress();
    }
    let echoes = traffic.finish_without_loss();
    println!("{mode}, {datapath}: {echoes} echoes, none lost");
    for node in stay {
        assert_eq!(node.status().repairs, 0, "{}: no change of the cluster is a repair", node.name());
        assert_eq!(node.status().warnings, Vec::<String>::new(), "{}", node.name());
    }
}
