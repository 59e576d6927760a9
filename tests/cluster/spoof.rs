//! Packets that claim to come from pods, and do not: forged VXLAN packets and forged packets on the network between the
//! nodes. They never reach a pod, and are counted; what nodes really send goes on.
//!
//! ```text
//!   outside host, node2, switch --(forged)--> node1 --X--> pod
//! ```

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use harness::{
    Family, TestCluster, TestNode, TestPod, command,
    frames::FrameSocket,
    packets::{self, Ethernet},
    tcp, udp, wait_for,
};
use podnet::{api::Mac, config::RoutingMode, netns::Netns};
use podnet_common::verdict::DropReason;

use crate::paths::Paths;

const PORT: u16 = 8080;
const VXLAN_PORT: u16 = 4789;

/// The bridge, whose MAC the overlay device has, too.
const BRIDGE: &str = "v-net-0";

/// Network identifier of the overlay.
const VNI: u32 = 1;

/// Forged packets of each kind.
const COUNT: u64 = 10;

/// How long a packet may still be on its way into the pod when all are counted as dropped.
const QUIET: Duration = Duration::from_millis(20);

/// Source port of forged packets.
const FORGED_PORT: u16 = 4000;

/// A pod on the first node that somebody forges packets for, one on the second that talks to it.
struct Victim {
    cluster: TestCluster,
    pods: Vec<TestPod>,
}

impl Victim {
    fn new(mode: RoutingMode) -> Self {
        let cluster = Paths::Ebpf.cluster(mode);
        let pods = cluster.add_pods(1).into_iter().flatten().collect();
        Self { cluster, pods }
    }

    fn node(&self) -> &TestNode {
        &self.cluster.nodes()[0]
    }

    fn pod(&self) -> &TestPod {
        &self.pods[0]
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.node().counters().dropped(reason)
    }

    /// Listens in the pod while packets are forged. All of them must be dropped for this reason, and no others.
    fn assert_dropped(&self, what: &str, family: Family, reason: DropReason, forge: impl Fn(&[u8])) {
        let listener = udp::bind(self.pod().netns(), self.pod().socket_address(family, PORT));
        let before = self.node().counters();
        for _ in 0..COUNT {
            forge(b"forged");
        }
        wait_for(&format!("{what}, {family:?}: {COUNT} drops for {reason:?}"), || {
            (self.node().counters().since(&before).dropped(reason) >= COUNT).then_some(())
        });
        assert!(!udp::receives(&listener, b"forged", QUIET), "{what}, {family:?}: a forged packet reached the pod");
        let moved = self.node().counters().since(&before);
        assert_eq!((moved.dropped(reason), moved.all_dropped()), (COUNT, COUNT), "{what}, {family:?}: {moved:?}");
    }

    /// Listens in the pod while packets are sent that are as they should be.
    fn assert_delivered(&self, what: &str, family: Family, send: impl Fn(&[u8])) {
        let listener = udp::bind(self.pod().netns(), self.pod().socket_address(family, PORT));
        send(b"honest");
        assert!(udp::receives(&listener, b"honest", harness::DEADLINE), "{what}, {family:?}: it did not arrive");
    }

    /// Checks that pods of other nodes reach the pod as before.
    fn check_honest(&self) {
        for family in Family::ALL {
            let _udp = udp::EchoServer::start(self.pod().netns(), self.pod().socket_address(family, PORT));
            let _tcp = tcp::EchoServer::start(self.pod().netns(), PORT + 1);
            for other in &self.pods[1..] {
                udp::exchange(other.netns(), self.pod().socket_address(family, PORT), 1000);
                tcp::exchange(other.netns(), self.pod().socket_address(family, PORT + 1), 200_000);
            }
        }
    }

    /// Returns an inner frame as the second node would send it to the pod, from this source.
    fn inner(&self, source: IpAddr, payload: &[u8]) -> Vec<u8> {
        let ethernet =
            Ethernet { source: mac_of(&self.cluster.nodes()[1], BRIDGE), destination: mac_of(self.node(), BRIDGE) };
        let target = (self.pod().address(Family::of(source)), PORT);
        packets::udp(ethernet, (source, FORGED_PORT), target, payload)
    }
}

/// Returns the MAC of a node's interface.
fn mac_of(node: &TestNode, ifname: &str) -> Mac {
    let links = command::run(node.netns(), "ip", &["-j", "link", "show", ifname]);
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    links[0]["address"].as_str().unwrap().parse().unwrap()
}

/// Wraps a frame up (RFC 7348, section 5).
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(frame);
    packet
}

/// Opens a socket that sends to a node's overlay from an address.
fn tunnel(netns: &Netns, source: IpAddr, node: &TestNode) -> UdpSocket {
    let socket = udp::bind(netns, SocketAddr::new(source, 0));
    socket.connect(SocketAddr::new(node.address(Family::of(source)), VXLAN_PORT)).unwrap();
    socket
}

#[test]
fn forged_packets_in_the_overlay_are_dropped() {
    let victim = Victim::new(RoutingMode::Overlay);
    let nodes = victim.cluster.nodes();
    // A second address of the second node's host, which the cluster does not know.
    let stranger: IpAddr = "192.168.1.222".parse().unwrap();
    command::ip(nodes[1].netns(), &format!("address add {stranger}/24 dev eth0"));
    let outside = victim.cluster.outside_address(Family::V4);
    let by_v4 = tunnel(nodes[1].netns(), nodes[1].address(Family::V4), &nodes[0]);
    let by_v6 = tunnel(nodes[1].netns(), nodes[1].address(Family::V6), &nodes[0]);
    for family in Family::ALL {
        let sources = [0, 1, 2].map(|node: usize| victim.pods[node].address(family));
        let send = |socket: &UdpSocket, vni: u32, source: IpAddr, payload: &[u8]| {
            socket.send(&vxlan(vni, &victim.inner(source, payload))).unwrap();
        };
        for (from, netns, address) in
            [("outside", victim.cluster.outside(), outside), ("stranger", nodes[1].netns(), stranger)]
        {
            let socket = tunnel(netns, address, &nodes[0]);
            for source in sources.into_iter().chain([nodes[1].address(family), victim.cluster.outside_address(family)])
            {
                let what = format!("{from} as {source}");
                victim.assert_dropped(&what, family, DropReason::UnknownNode, |payload| {
                    send(&socket, VNI, source, payload);
                });
            }
        }
        for (what, source) in [
            ("another node's pod", sources[2]),
            ("the pod's own node's pod", sources[0]),
            ("another node", nodes[2].address(family)),
            ("the pod's own node", nodes[0].address(family)),
            ("the outside", victim.cluster.outside_address(family)),
        ] {
            for socket in [&by_v4, &by_v6] {
                victim.assert_dropped(what, family, DropReason::SpoofedNode, |payload| {
                    send(socket, VNI, source, payload);
                });
            }
        }
        for vni in [0, VNI + 1, 0x00ff_ffff] {
            victim.assert_dropped("another network", family, DropReason::UnknownNode, |payload| {
                send(&by_v4, vni, sources[1], payload);
            });
        }
        // The very same packets, by the rules.
        victim.assert_delivered("IPv4", family, |payload| send(&by_v4, VNI, sources[1], payload));
        victim.assert_delivered("IPv6", family, |payload| send(&by_v6, VNI, sources[1], payload));
        victim.assert_delivered("the node", family, |payload| send(&by_v4, VNI, nodes[1].address(family), payload));
    }
    victim.check_honest();
}

/// Forges packets of pods on the network between the nodes.
fn forge_on_the_network(mode: RoutingMode) {
    let victim = Victim::new(mode);
    let (node, pod) = (victim.node(), victim.pod());
    let switch = FrameSocket::open(victim.cluster.switch(), node.name());
    for family in Family::ALL {
        let ethernet = Ethernet { source: Mac([2, 0, 0, 0, 0, 9]), destination: mac_of(node, "eth0") };
        let frame = |source: IpAddr, payload: &[u8]| {
            packets::udp(ethernet, (source, FORGED_PORT), (pod.address(family), PORT), payload)
        };
        let unused = node.node().pod_cidrs.iter().find(|cidr| Family::of(cidr.ip()) == family).unwrap();
        let unused = unused.iter().nth(200).unwrap();
        for (what, source) in
            [("the pod itself", pod.address(family)), ("no pod of the node", unused), ("gateway", node.gateway(family))]
        {
            victim.assert_dropped(what, family, DropReason::SpoofedNode, |payload| {
                switch.send(&frame(source, payload));
            });
        }
        if mode == RoutingMode::Direct {
            victim.assert_delivered("another node's pod", family, |payload| {
                switch.send(&frame(victim.pods[1].address(family), payload));
            });
        }
    }
    victim.check_honest();
    assert_eq!(victim.dropped(DropReason::UnknownNode), 0);
}

#[test]
fn a_pods_own_address_does_not_come_from_the_network_in_direct_mode() {
    forge_on_the_network(RoutingMode::Direct);
}

#[test]
fn a_pods_own_address_does_not_come_from_the_network_in_overlay_mode() {
    forge_on_the_network(RoutingMode::Overlay);
}
