//! The harness itself, between two plain network namespaces: a test that relies on it must fail when it should.
//!
//! ```text
//!   netns A: eth0 10.9.0.1, fd09::1  <-- veth -->  netns B: eth0 10.9.0.2, fd09::2
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use podnet::api::Mac;

use crate::{
    DEADLINE, Family, QUIET, command,
    frames::FrameSocket,
    icmp, interfaces,
    packets::{self, Arp, BROADCAST, Ethernet},
    pod::OwnedNetns,
    require_root, tcp, udp,
};

const MAC_A: Mac = Mac([0x0a, 0x58, 10, 9, 0, 1]);

struct Pair {
    a: OwnedNetns,
    b: OwnedNetns,
}

impl Pair {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        require_root();
        let prefix = format!("pt-{}-self{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (a, b) = (OwnedNetns::new(format!("{prefix}-a")), OwnedNetns::new(format!("{prefix}-b")));
        let peer = format!("/run/netns/{prefix}-b");
        let mac = MAC_A.to_string();
        let link = ["link", "add", "eth0", "address", &mac, "type", "veth", "peer", "name", "eth0", "netns", &peer];
        command::run(&a.netns, "ip", &link);
        for (netns, host) in [(&a.netns, 1), (&b.netns, 2)] {
            command::run(netns, "ip", &["link", "set", "eth0", "up"]);
            command::run(netns, "ip", &["addr", "add", &format!("10.9.0.{host}/24"), "dev", "eth0"]);
            command::run(netns, "ip", &["addr", "add", &format!("fd09::{host}/64"), "dev", "eth0", "nodad"]);
        }
        Self { a, b }
    }

    fn b_address(family: Family, port: u16) -> SocketAddr {
        let address: IpAddr = if family == Family::V4 { "10.9.0.2" } else { "fd09::2" }.parse().unwrap();
        SocketAddr::new(address, port)
    }
}

#[test]
fn traffic_of_each_kind_arrives() {
    let pair = Pair::new();
    let (a, b) = (&pair.a.netns, &pair.b.netns);
    let _tcp = tcp::EchoServer::start(b, 80);
    for family in Family::ALL {
        let target = Pair::b_address(family, 80);
        tcp::exchange(a, target, 3_000_000);
        let _udp = udp::EchoServer::start(b, target);
        udp::exchange(a, target, 10);
        udp::exchange(a, target, 8000);
        let socket = udp::connect(a, target);
        udp::set_dont_fragment(&socket);
        let error = socket.send(&[0; 1600]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        icmp::ping(a, target.ip(), 3, 4000);
        let flood = udp::Flood::start(a, target);
        flood.wait_for_answers(100);
        assert_eq!(flood.finish().lost(), 0);
    }
    assert_eq!(interfaces::checksum_errors(b), []);
    assert!(interfaces::statistics(b)["eth0"].rx_packets > 100);
}

#[test]
fn loss_and_breaks_are_noticed() {
    let pair = Pair::new();
    let (a, b) = (&pair.a.netns, &pair.b.netns);
    let _tcp = tcp::EchoServer::start(b, 80);
    let target = Pair::b_address(Family::V4, 80);
    let _udp = udp::EchoServer::start(b, target);
    let flood = udp::Flood::start(a, target);
    let connection = tcp::LiveConnection::start(a, target);
    connection.wait_for_rounds(2);
    command::iptables(b, Family::V4, "-I INPUT -p udp -m statistic --mode nth --every 10 --packet 0 -j DROP");
    command::iptables(b, Family::V4, "-I INPUT -p tcp -j REJECT --reject-with tcp-reset");
    flood.wait_for_answers(20);
    assert!(flood.finish().lost() > 0);
    assert!(catch_unwind(AssertUnwindSafe(|| connection.wait_for_rounds(1_000_000))).is_err());
    assert!(!icmp::answers(a, "10.9.0.77".parse().unwrap(), QUIET));
}

#[test]
fn frames_are_injected_and_captured() {
    let pair = Pair::new();
    let (sender, receiver) = (FrameSocket::open(&pair.a.netns, "eth0"), FrameSocket::open(&pair.b.netns, "eth0"));
    let claim = Arp { operation: 2, sender: (MAC_A, [10, 9, 0, 9].into()), target: (BROADCAST, [10, 9, 0, 2].into()) };
    let frame = packets::arp(Ethernet { source: MAC_A, destination: BROADCAST }, claim);
    sender.send(&frame);
    assert!(receiver.find(DEADLINE, |seen| (seen == frame).then_some(())).is_some());
    assert!(receiver.find(Duration::from_millis(50), |seen| (seen == frame).then_some(())).is_none());

    let server = tcp::EchoServer::start(&pair.b.netns, 80);
    receiver.drain(|_| {});
    tcp::exchange(&pair.a.netns, Pair::b_address(Family::V6, 80), 2_000_000);
    assert_eq!(server.last_peer().unwrap().ip(), "fd09::1".parse::<IpAddr>().unwrap());
    let mut longest = 0;
    receiver.drain(|seen| longest = longest.max(seen.len()));
    assert!(longest > 10_000, "GSO packets are captured whole; the longest had {longest} bytes");
}
