//! A pod that lies about who it is: stopped at its own veth, counted by reason, and reported with its name.
//!
//! ```text
//!   attacker: forged frames --> host veth: from_pod drops --x    victim, other, v-net-0
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use harness::{
    Family, QUIET, TestLab, TestPod,
    frames::FrameSocket,
    interfaces,
    packets::{self, Arp, BROADCAST, Ethernet},
    tcp,
};
use podnet::api::Mac;
use podnet_common::{endpoint::link_local_address, verdict::DropReason};

/// A locally administered MAC that nobody has.
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0, 0x99]);

struct Scene {
    lab: TestLab,
    attacker: TestPod,
    victim: TestPod,
    other: TestPod,
}

impl Scene {
    fn new() -> Self {
        let lab = TestLab::new();
        let [attacker, victim, other] = ["attacker", "victim", "other"].map(|name| lab.add_pod(name));
        Self { lab, attacker, victim, other }
    }

    fn gateway_mac(&self) -> Mac {
        self.lab.status().bridge_mac
    }

    /// Frames of the attacker go where its kernel would send them: to the gateway.
    fn to_gateway(&self, source: Mac) -> Ethernet {
        Ethernet { source, destination: self.gateway_mac() }
    }

    /// Returns the attacker's UDP datagram to the victim with this source.
    fn datagram(&self, source_mac: Mac, source: IpAddr) -> Vec<u8> {
        let victim = self.victim.address(Family::of(source));
        packets::udp(self.to_gateway(source_mac), (source, 5353), (victim, 5353), b"forged")
    }

    /// Sends forged frames and asserts that nothing but counters and the log notices them.
    fn assert_stopped(&self, reason: DropReason, forged: &[Vec<u8>]) {
        let watched = [(self.victim.netns(), "eth0"), (self.other.netns(), "eth0"), (self.lab.netns(), "v-net-0")];
        let sockets = watched.map(|(netns, ifname)| FrameSocket::open(netns, ifname));
        let before = self.lab.counters();

        let sender = FrameSocket::open(self.attacker.netns(), "eth0");
        for frame in forged {
            sender.send(frame);
        }

        harness::wait_for(&format!("{} dropped for {}", forged.len(), reason.as_str()), || {
            (self.lab.counters().since(&before).dropped(reason) >= forged.len() as u64).then_some(())
        });
        for (socket, (netns, ifname)) in sockets.iter().zip(watched) {
            // Addresses may be rewritten on the way: what follows the Ethernet header tells a forged frame.
            let arrived =
                socket.find(QUIET, |frame| forged.iter().position(|forged| frame.get(14..) == forged.get(14..)));
            assert_eq!(
                arrived,
                None,
                "{}: a forged frame arrived at {ifname} of {}",
                reason.as_str(),
                netns.path().display()
            );
        }
        let moved = self.lab.counters().since(&before);
        assert_eq!(moved.dropped(reason), moved.all_dropped(), "dropped for another reason: {moved:?}");
        for (netns, _) in watched {
            let believed = interfaces::neighbors(netns).into_iter().filter(|(address, mac)| self.is_lie(*address, mac));
            assert_eq!(believed.collect::<Vec<_>>(), [], "{}: {} believes it", reason.as_str(), netns.path().display());
        }
        self.lab.wait_for_log(&[reason.as_str(), self.attacker.name()]);
        self.assert_honest_traffic_passes();
    }

    /// Returns whether a neighbour's entry is what a forged frame claims.
    fn is_lie(&self, address: IpAddr, mac: &str) -> bool {
        let own = [
            self.attacker.address(Family::V4),
            self.attacker.address(Family::V6),
            Ipv6Addr::from(link_local_address(self.attacker.mac().0)).into(),
        ];
        let is = |other: Mac| mac == other.to_string();
        is(NOBODY) || (is(self.attacker.mac()) != own.contains(&address))
    }

    fn assert_honest_traffic_passes(&self) {
        let _server = tcp::EchoServer::start(self.victim.netns(), 8080);
        for family in Family::ALL {
            tcp::exchange(self.attacker.netns(), self.victim.socket_address(family, 8080), 10_000);
        }
    }

    fn v4(pod: &TestPod) -> Ipv4Addr {
        match pod.address(Family::V4) {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address} is not IPv4"),
        }
    }

    fn v6(pod: &TestPod) -> Ipv6Addr {
        match pod.address(Family::V6) {
            IpAddr::V6(address) => address,
            IpAddr::V4(address) => panic!("{address} is not IPv6"),
        }
    }
}

#[test]
fn the_address_of_another_pod_is_stopped() {
    let scene = Scene::new();
    let sources = [
        scene.other.address(Family::V4),
        scene.other.address(Family::V6),
        scene.attacker.gateway(Family::V4),
        scene.attacker.gateway(Family::V6),
        "192.0.2.7".parse().unwrap(),
        "2001:db8::7".parse().unwrap(),
        Ipv6Addr::from(link_local_address(scene.other.mac().0)).into(),
    ];
    let forged: Vec<_> = sources.iter().map(|source| scene.datagram(scene.attacker.mac(), *source)).collect();
    scene.assert_stopped(DropReason::SpoofedAddress, &forged);
}

#[test]
fn the_mac_of_another_is_stopped() {
    let scene = Scene::new();
    let macs = [scene.other.mac(), scene.gateway_mac(), NOBODY];
    let forged: Vec<_> = macs
        .iter()
        .flat_map(|mac| Family::ALL.map(|family| scene.datagram(*mac, scene.attacker.address(family))))
        .collect();
    scene.assert_stopped(DropReason::SpoofedMac, &forged);
}

#[test]
fn arp_for_the_gateway_or_another_pod_is_stopped() {
    let scene = Scene::new();
    let attacker = scene.attacker.mac();
    let gateway = "10.244.1.1".parse().unwrap();
    let victim = (scene.victim.mac(), Scene::v4(&scene.victim));
    let own = Scene::v4(&scene.attacker);
    // Request and reply alike fill the tables of those who hear them (RFC 826).
    let senders = [(attacker, gateway), (attacker, Scene::v4(&scene.other)), (NOBODY, own), (attacker, victim.1)];
    let forged: Vec<_> = senders
        .iter()
        .flat_map(|sender| {
            [1, 2].map(|operation| {
                let ethernet = Ethernet { source: attacker, destination: BROADCAST };
                packets::arp(ethernet, Arp { operation, sender: *sender, target: victim })
            })
        })
        .collect();
    scene.assert_stopped(DropReason::SpoofedArp, &forged);
}

#[test]
fn neighbor_advertisements_for_the_gateway_or_another_pod_are_stopped() {
    let scene = Scene::new();
    let mac = scene.attacker.mac();
    let own = Scene::v6(&scene.attacker);
    let link_local = Ipv6Addr::from(link_local_address(mac.0));
    let forged = [
        packets::neighbor_advertisement(mac, own, "fd00:10:244:1::1".parse().unwrap(), mac),
        packets::neighbor_advertisement(mac, own, Scene::v6(&scene.victim), mac),
        packets::neighbor_advertisement(mac, link_local, Scene::v6(&scene.other), mac),
        packets::neighbor_advertisement(mac, link_local, link_local_address(scene.other.mac().0).into(), mac),
        // The own address, at somebody else's MAC.
        packets::neighbor_advertisement(mac, own, own, NOBODY),
    ];
    scene.assert_stopped(DropReason::SpoofedNeighbor, &forged);
}

#[test]
fn router_advertisements_are_stopped() {
    let scene = Scene::new();
    let mac = scene.attacker.mac();
    let routes = || interfaces::routes(scene.victim.netns(), Family::V6);
    let before = routes();
    let forged = [packets::router_advertisement(mac, link_local_address(mac.0).into())];
    scene.assert_stopped(DropReason::RogueRouter, &forged);
    assert_eq!(routes(), before);
}
