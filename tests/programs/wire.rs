//! Two nodes on a wire: what really arrives, and the overlay, whose tunnel key `BPF_PROG_TEST_RUN` cannot have.
//!
//! ```text
//!   pod A's namespace     node1's namespace                      the peers' namespace: node2, node3, their pods C, D
//!   eth12  -------------  pod12 (bridge)   uplink  ------------  wire
//!                         podnet-vxlan .............. VXLAN .... vx
//! ```
//!
//! The peers have the kernel path only. Node1 forwards nothing unless a test says so: what arrives came by eBPF.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType, tc::SchedClassifierLinkId};
use harness::udp::receive;
use podnet::{
    config::UplinkAttach,
    datapath::{device::DeviceHook, loader::Datapath, logs::LogLevel},
    netns::Netns,
};
use podnet_common::{
    node::{Node as Far, NodeAddress},
    program_name::{FROM_POD, TO_POD},
    verdict::{
        Counter,
        DropReason::{self, Malformed, SpoofedNode, UnknownNode},
        Verdict::{
            self, DeliveredByKernel, PassedKernelFlow, PassedTooBig, PassedTtlExpired, RedirectedToNode,
            RedirectedToOverlay, RedirectedToPod, SentByKernel,
        },
    },
};

use crate::{
    cluster::{
        BRIDGE, NODE2, NODE3, NODE3_MAC, OVERLAY, PEER_MAC, POD_C, POD_D, SETTINGS, UPLINK, direct, network, overlay,
        pod_of, unreachable,
    },
    fixture::{Expected, GATEWAY_MAC, Node, POD_A, POD_B, Pod, hex, ip, mac, new_namespaces, ways},
    live,
    packets::{ARP, IPV4, IPV6, UDP, VLAN, arp, ethernet, ipv4, ipv6, udp, with_checksum, with_ttl},
};

/// An address on the wire that is no node's.
const STRANGER: [u8; 4] = [192, 168, 2, 99];
const PATIENCE: Duration = Duration::from_secs(5);

struct Wire {
    node: Node,
    a: Netns,
    peers: Netns,
    attached: Vec<(SchedClassifier, SchedClassifierLinkId)>,
}

impl Wire {
    /// Builds the topology; `how` the programs of uplink and overlay device are attached.
    fn new(how: UplinkAttach) -> Self {
        let node = Node::in_cluster();
        let peers = std::thread::spawn(|| {
            new_namespaces(nix::sched::CloneFlags::CLONE_NEWNET);
            Netns::current().unwrap()
        })
        .join()
        .unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&peers));
        ip(&format!("link set wire netns /proc/{}/fd/{fd}", std::process::id()));
        let a = live::pod_namespace(POD_A);
        a.run(|| {
            ip("link set eth12 mtu 1450");
            Ok(())
        })
        .unwrap();
        ip("link set lo up");
        ip("link set uplink up");
        ip("addr add 192.168.1.11/16 dev uplink");
        ip("addr add fd00:1::11/64 dev uplink nodad");
        ip(&format!(
            "link add name podnet-vxlan index {OVERLAY} address {} mtu 1450 type vxlan external dstport 4789",
            mac(GATEWAY_MAC)
        ));
        ip("link set podnet-vxlan up");
        peers
            .run(|| {
                peer_side();
                Ok(())
            })
            .unwrap();
        let mut wire = Self { node, a, peers, attached: Vec::new() };
        wire.publish();
        attach_devices(&mut wire.node.datapath, how);
        wire
    }

    /// The ways to the peers with their real MTUs.
    fn publish(&mut self) {
        let maps = self.node.datapath.maps_mut();
        for v6 in [false, true] {
            maps.upsert_node(network(2, v6), Far { mtu: 1500, ..direct(v6) }).unwrap();
            maps.upsert_node(network(3, v6), Far { mtu: 1450, ..overlay() }).unwrap();
        }
    }

    /// Attaches the programs of pod A.
    fn attach_pod(&mut self) {
        self.attached.push(live::attach(&self.node, FROM_POD, POD_A, TcAttachType::Ingress, 1));
        self.attached.push(live::attach(&self.node, TO_POD, POD_A, TcAttachType::Egress, 1));
    }

    /// Gives node1, the calling thread's namespace, its kernel path.
    fn forward_by_kernel() {
        ip(&format!("link add name v-net-0 index {BRIDGE} address {} type bridge", mac(GATEWAY_MAC)));
        ip("link set v-net-0 up");
        ip("link set pod12 master v-net-0");
        for (address, route) in [
            ("10.244.1.1/24", "10.244.2.0/24 via 192.168.1.12"),
            ("fd00:10:244:1::1/64 nodad", "fd00:10:244:2::/64 via fd00:1::12"),
        ] {
            ip(&format!("addr add {address} dev v-net-0"));
            ip(&format!("route add {route}"));
        }
        for route in [
            "10.244.3.0/24 encap ip id 1 dst 192.168.2.13 via 10.244.3.1",
            "fd00:10:244:3::/64 encap ip id 1 dst 192.168.2.13 via fd00:10:244:3::1",
        ] {
            ip(&format!("route add {route} dev podnet-vxlan onlink"));
        }
        for gateway in ["10.244.3.1", "fd00:10:244:3::1"] {
            ip(&format!("neigh add {gateway} lladdr {} dev podnet-vxlan nud permanent", mac(NODE3_MAC)));
        }
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/{key}"), "1").unwrap();
        }
    }

    fn counter(&self, expected: impl Into<Expected>) -> Counter {
        let index = match expected.into() {
            Expected::Verdict(verdict) => verdict.counter_index(),
            Expected::Drop(reason) => reason.counter_index(),
        };
        self.node.datapath.maps().counter(index).unwrap()
    }

    fn packets(&self, verdict: Verdict) -> u64 {
        self.counter(verdict).packets
    }

    /// Sends an inner frame through the overlay from an address of the wire, and waits for the one counter that moves.
    #[track_caller]
    fn check_overlay(&self, outer: IpAddr, vni: u32, inner: &[u8], expected: impl Into<Expected>) {
        let expected = expected.into();
        let before = self.node.datapath.maps().counters().unwrap();
        let wanted = self.counter(expected).packets + 1;
        self.send_overlay(outer, vni, inner);
        let deadline = Instant::now() + PATIENCE;
        while self.counter(expected).packets < wanted {
            let counters = self.node.datapath.maps().counters().unwrap();
            assert!(Instant::now() < deadline, "{expected:?}; {counters:?}\ninner {}", hex(inner));
            std::thread::yield_now();
        }
        let after = self.node.datapath.maps().counters().unwrap();
        let moved: Vec<_> =
            after.iter().zip(&before).filter(|(now, then)| now != then).map(|(now, _)| now.name.clone()).collect();
        assert_eq!(moved.len(), 1, "{expected:?} alone: {moved:?}\ninner {}", hex(inner));
    }

    /// As [`Wire::check_overlay`] for a frame that is no business of the program: what follows it is counted, and it is
    /// not.
    #[track_caller]
    fn check_overlay_ignores(&self, outer: IpAddr, inner: &[u8]) {
        let before = self.node.datapath.maps().counters().unwrap();
        self.send_overlay(outer, 1, inner);
        let stranger: IpAddr = STRANGER.into();
        let unknown = self.counter(UnknownNode).packets;
        self.send_overlay(stranger, 1, inner);
        let deadline = Instant::now() + PATIENCE;
        while self.counter(UnknownNode).packets == unknown {
            assert!(Instant::now() < deadline, "the marker arrives; inner {}", hex(inner));
            std::thread::yield_now();
        }
        let after = self.node.datapath.maps().counters().unwrap();
        let moved: Vec<_> =
            after.iter().zip(&before).filter(|(now, then)| now != then).map(|(now, _)| now.name.clone()).collect();
        assert_eq!(moved, ["unknown_node"], "inner {}", hex(inner));
    }

    fn send_overlay(&self, outer: IpAddr, vni: u32, inner: &[u8]) {
        let to: SocketAddr = if outer.is_ipv4() { "192.168.1.11:4789" } else { "[fd00:1::11]:4789" }.parse().unwrap();
        // RFC 7348, section 5: flags (the identifier is valid), identifier.
        let datagram = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), inner].concat();
        self.peers
            .run(|| {
                let socket = UdpSocket::bind((outer, 0))?;
                assert_eq!(socket.send_to(&datagram, to)?, datagram.len());
                Ok(())
            })
            .unwrap();
    }

    /// Sends a datagram each way between pod A and a pod of a peer.
    #[track_caller]
    fn datagrams(&self, a: IpAddr, far: IpAddr) {
        let server = self.peers.run(|| Ok(UdpSocket::bind((far, 53))?)).unwrap();
        let client = self.a.run(|| Ok(UdpSocket::bind((a, 4444))?)).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut buffer = [0; 2000];
        for len in [1, 512, 1400] {
            client.send_to(&vec![7; len], (far, 53)).unwrap();
            assert_eq!(receive(&server, &mut buffer).expect("the request arrives"), (len, (a, 4444).into()));
            server.send_to(&vec![8; len], (a, 4444)).unwrap();
            assert_eq!(receive(&client, &mut buffer).expect("the reply arrives"), (len, (far, 53).into()));
        }
    }

    /// Sends bytes each way over a connection of pod A to a pod of a peer: GSO packets, ACKs, FINs.
    #[track_caller]
    fn connection(&self, a: IpAddr, far: IpAddr) {
        const LEN: usize = 2_000_000;
        let listener = self.peers.run(|| Ok(TcpListener::bind((far, 80))?)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = vec![0; LEN];
            stream.read_exact(&mut received).expect("all bytes arrive at the server");
            stream.write_all(&received).unwrap();
            from.ip()
        });
        let bytes: Vec<u8> = (0..LEN).map(|i| (i % 251) as u8).collect();
        let mut stream =
            self.a.run(|| Ok(TcpStream::connect_timeout(&(far, 80).into(), PATIENCE)?)).expect("the connection opens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut echoed = vec![0; LEN];
        stream.read_exact(&mut echoed).expect("all bytes come back");
        assert!(echoed == bytes, "the bytes are what they were");
        assert_eq!(server.join().unwrap(), a, "the server sees the pod's own address");
    }
}

fn attach_devices(datapath: &mut Datapath, how: UplinkAttach) {
    for (name, index, hook) in [
        ("uplink", UPLINK, DeviceHook::FromUplink),
        ("uplink", UPLINK, DeviceHook::ToUplink),
        ("podnet-vxlan", OVERLAY, DeviceHook::FromOverlay),
        ("podnet-vxlan", OVERLAY, DeviceHook::ToOverlay),
    ] {
        datapath.attach_device(name, index, hook, how).unwrap_or_else(|error| panic!("{hook:?}: {error:#}"));
    }
}

/// What the peers' namespace has: both nodes' addresses, their pods on the loopback interface, and the kernel path back.
fn peer_side() {
    for key in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{key}/rp_filter"), "0").unwrap();
    }
    ip("link set lo up");
    ip(&format!("link set wire address {} up", mac(PEER_MAC)));
    for address in
        ["192.168.1.12/16", "192.168.2.13/16", "192.168.2.99/16", "fd00:1::12/64 nodad", "fd00:1::13/64 nodad"]
    {
        ip(&format!("addr add {address} dev wire"));
    }
    for pod in [POD_C, POD_D] {
        ip(&format!("addr add {}/32 dev lo", pod.v4));
        ip(&format!("addr add {}/128 dev lo nodad", pod.v6));
    }
    ip(&format!("link add name vx address {} mtu 1450 type vxlan external dstport 4789", mac(NODE3_MAC)));
    ip("link set vx up");
    ip("route add 10.244.1.0/24 via 192.168.1.11");
    ip("route add fd00:10:244:1::/64 via fd00:1::11");
    // Node3 answers through the overlay.
    for (pod, cidr, gateway) in [
        (IpAddr::V4(POD_D.v4), "10.244.1.0/24", "10.244.1.1"),
        // The kernel takes no other gateway on a link than a link-local one if it has a route to it by another link.
        (POD_D.v6.into(), "fd00:10:244:1::/64", "fe80::1"),
    ] {
        let family = if pod.is_ipv4() { "-4" } else { "-6" };
        ip(&format!("{family} rule add from {pod} table 3"));
        ip(&format!(
            "{family} route add {cidr} encap ip id 1 src 192.168.2.13 dst 192.168.1.11 via {gateway} dev vx onlink table 3"
        ));
        ip(&format!("neigh add {gateway} lladdr {} dev vx nud permanent", mac(GATEWAY_MAC)));
    }
}

fn pairs() -> [(IpAddr, IpAddr, Verdict); 4] {
    [
        (POD_A.v4.into(), POD_C.v4.into(), RedirectedToNode),
        (POD_A.v6.into(), POD_C.v6.into(), RedirectedToNode),
        (POD_A.v4.into(), POD_D.v4.into(), RedirectedToOverlay),
        (POD_A.v6.into(), POD_D.v6.into(), RedirectedToOverlay),
    ]
}

#[test]
fn pods_of_two_nodes_talk_by_ebpf_alone() {
    for how in ways() {
        let mut wire = Wire::new(how);
        wire.attach_pod();
        for (a, far, verdict) in pairs() {
            let (sent, received) = (wire.packets(verdict), wire.packets(RedirectedToPod));
            wire.datagrams(a, far);
            assert_eq!(wire.packets(verdict), sent + 3, "{a} to {far}");
            assert_eq!(wire.packets(RedirectedToPod), received + 3, "{far} to {a}");
        }
        // After all that is counted: a closed connection sends a little more.
        for (a, far, _) in pairs() {
            wire.connection(a, far);
        }
        for passed in [PassedTooBig, PassedTtlExpired, PassedKernelFlow, DeliveredByKernel, SentByKernel] {
            assert_eq!(wire.packets(passed), 0, "{passed:?}");
        }
        for reason in DropReason::ALL {
            assert_eq!(wire.counter(*reason).packets, 0, "{reason:?}");
        }
    }
}

#[test]
fn what_the_kernel_sends_is_remembered_and_comes_back_to_ebpf() {
    let mut wire = Wire::new(UplinkAttach::Auto);
    Wire::forward_by_kernel();
    // Without `from_pod` everything goes the kernel's way, through the bridge.
    for (a, far, _) in pairs() {
        let sent = wire.packets(SentByKernel);
        wire.datagrams(a, far);
        assert_eq!(wire.packets(SentByKernel), sent + 3, "{a} to {far}");
        wire.connection(a, far);
    }
    assert_eq!(wire.packets(RedirectedToPod), 0, "replies go back the way of the requests");
    assert_eq!(wire.node.is_touched(POD_A), (true, true));
    assert!(wire.packets(PassedKernelFlow) >= 12);

    // Flows that are as they were sent come over to eBPF after their first packets.
    wire.attach_pod();
    let flows: Vec<_> = wire.node.datapath.maps().flows().unwrap().into_iter().map(|(key, _)| key).collect();
    for key in flows {
        wire.node.datapath.maps_mut().remove_flow(&key).unwrap();
    }
    for (a, far, verdict) in pairs() {
        let redirected = wire.packets(verdict);
        wire.datagrams(a, far);
        assert_eq!(wire.packets(verdict), redirected + 2, "{a} to {far}: all but the first");
        let kernel = wire.packets(SentByKernel);
        wire.connection(a, far);
        assert_eq!(wire.packets(SentByKernel), kernel, "{a} to {far}: a SYN claims at once");
    }
}

#[test]
fn programs_are_replaced_under_traffic() {
    for how in ways() {
        let mut wire = Wire::new(how);
        wire.attach_pod();
        let stop = AtomicBool::new(false);
        let replaced = std::thread::scope(|scope| {
            let mut pairs = Vec::new();
            for (port, (a, far, _)) in (4001..).zip(self::pairs()) {
                let server = wire.peers.run(|| Ok(UdpSocket::bind((far, 53))?)).unwrap();
                let client = wire.a.run(|| Ok(UdpSocket::bind((a, port))?)).unwrap();
                for socket in [&server, &client] {
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                }
                let stop = &stop;
                pairs.push(scope.spawn(move || {
                    let mut buffer = [0; 8];
                    let mut rounds = 0u64;
                    let deadline = Instant::now() + 4 * PATIENCE;
                    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                        client.send_to(&rounds.to_ne_bytes(), (far, 53)).unwrap();
                        let (_, from) = receive(&server, &mut buffer).expect("no request is lost");
                        server.send_to(&buffer, from).unwrap();
                        receive(&client, &mut buffer).expect("no reply is lost");
                        assert_eq!(u64::from_ne_bytes(buffer), rounds);
                        rounds += 1;
                    }
                    rounds
                }));
            }
            for _ in 0..5 {
                wire.node.datapath = Datapath::load(&wire.node.pins, SETTINGS, LogLevel::Off).unwrap();
                attach_devices(&mut wire.node.datapath, how);
            }
            stop.store(true, Ordering::Relaxed);
            pairs.into_iter().map(|pair| pair.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(replaced.iter().all(|rounds| *rounds > 10), "{replaced:?} rounds beside the replacements");
    }
}

#[test]
fn a_router_of_the_kernel_answers_what_ebpf_passes() {
    let mut wire = Wire::new(UplinkAttach::Auto);
    Wire::forward_by_kernel();
    wire.attach_pod();
    // The way to node2 is narrower than pod A believes.
    ip("route change 10.244.2.0/24 via 192.168.1.12 mtu 1400");
    wire.node.datapath.maps_mut().upsert_node(network(2, false), Far { mtu: 1400, ..direct(false) }).unwrap();
    wire.connection(POD_A.v4.into(), POD_C.v4.into());
    assert!(wire.packets(PassedTooBig) > 0, "the kernel told the pod");
    assert!(wire.packets(RedirectedToNode) > 10, "and the pod's smaller packets go by eBPF");
    // A datagram that may be fragmented is.
    let server = wire.peers.run(|| Ok(UdpSocket::bind((IpAddr::from(POD_C.v4), 53))?)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let expired = wire.packets(PassedTtlExpired);
    wire.a
        .run(|| {
            let socket = UdpSocket::bind((IpAddr::from(POD_A.v4), 4444))?;
            socket.connect((IpAddr::from(POD_C.v4), 53))?;
            socket.set_ttl(1)?;
            socket.send(b"last")?;
            Ok(())
        })
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while wire.packets(PassedTtlExpired) == expired {
        assert!(Instant::now() < deadline, "a packet whose TTL ends here is passed");
        std::thread::yield_now();
    }
}

#[test]
fn the_overlay_believes_nodes_about_their_own_pods_only() {
    let mut wire = Wire::new(UplinkAttach::Auto);
    let (node2, node3): (IpAddr, IpAddr) = (NODE2.into(), NODE3.into());
    let (node2_v6, stranger): (IpAddr, IpAddr) = ("fd00:1::12".parse().unwrap(), STRANGER.into());
    let stranger_v6: IpAddr = "fd00:1::13".parse().unwrap();
    let frame = |kind: u16, payload: &[u8]| {
        let frame = ethernet(GATEWAY_MAC, NODE3_MAC, kind, payload);
        if kind == IPV4 && frame.len() >= 34 { with_checksum(&frame) } else { frame }
    };
    let inner = |family: u16, from: Pod, to: Pod| match family {
        IPV4 => frame(IPV4, &ipv4(from.v4, to.v4, UDP, &udp(1, 2))),
        _ => frame(IPV6, &ipv6(from.v6, to.v6, UDP, &udp(1, 2))),
    };
    let (v4, v6) = (|from, to| inner(IPV4, from, to), |from, to| inner(IPV6, from, to));
    let gateway = pod_of(1, 1);

    for family in [IPV4, IPV6] {
        let inner = |from, to| inner(family, from, to);
        wire.check_overlay(node3, 1, &inner(POD_D, POD_A), RedirectedToPod);
        wire.check_overlay(node2, 1, &inner(POD_C, POD_A), RedirectedToPod);
        // A node's address of the other family is its own, too.
        wire.check_overlay(node2_v6, 1, &inner(POD_C, POD_A), RedirectedToPod);
        // Judged whatever the destination; and passed if it is right.
        wire.check_overlay_ignores(node3, &inner(POD_D, gateway));
        for to in [POD_A, gateway] {
            wire.check_overlay(node3, 1, &inner(POD_C, to), SpoofedNode);
            wire.check_overlay(node2, 1, &inner(POD_D, to), SpoofedNode);
            wire.check_overlay(node2_v6, 1, &inner(POD_D, to), SpoofedNode);
            wire.check_overlay(node3, 1, &inner(POD_B, to), SpoofedNode);
            wire.check_overlay(node3, 1, &inner(gateway, to), SpoofedNode);
            wire.check_overlay(node3, 1, &inner(pod_of(9, 9), to), SpoofedNode);
            wire.check_overlay(stranger, 1, &inner(POD_D, to), UnknownNode);
            wire.check_overlay(stranger_v6, 1, &inner(POD_D, to), UnknownNode);
            wire.check_overlay(stranger, 1, &inner(POD_B, to), UnknownNode);
            wire.check_overlay(node3, 2, &inner(POD_D, to), UnknownNode);
            wire.check_overlay(node2_v6, 0, &inner(POD_C, to), UnknownNode);
        }
        wire.check_overlay(node3, 1, &with_ttl(&inner(POD_D, POD_A), 1), PassedTtlExpired);
    }
    let mut events = wire.node.events();
    let event = std::iter::from_fn(|| events.next_event()).last().unwrap();
    assert_eq!((event.hook_name(), event.reason_name(), event.ifindex), ("from_overlay", "unknown_node", OVERLAY));
    assert_eq!(hex(&event.data), hex(&v6(POD_C, gateway)));

    // A node's own addresses are its own, and the kernel's to deliver.
    let from_node = |from| frame(IPV4, &ipv4(from, POD_A.v4, UDP, &udp(1, 2)));
    wire.check_overlay_ignores(node3, &from_node(NODE3));
    wire.check_overlay(node2, 1, &from_node(NODE3), SpoofedNode);
    wire.check_overlay(node3, 1, &from_node([192, 168, 1, 11].into()), SpoofedNode);
    wire.check_overlay(node3, 1, &from_node([8, 8, 8, 8].into()), SpoofedNode);

    // What is not forwarded IP.
    let link_local = frame(IPV6, &ipv6("fe80::1".parse().unwrap(), POD_A.v6, UDP, &udp(1, 2)));
    wire.check_overlay_ignores(node3, &link_local);
    wire.check_overlay_ignores(node3, &frame(ARP, &arp(1, NODE3_MAC, POD_D.v4, POD_A.v4)));
    for from in [POD_D.v4.to_ipv6_mapped(), NODE3.to_ipv6_mapped(), Ipv6Addr::UNSPECIFIED] {
        wire.check_overlay(node3, 1, &frame(IPV6, &ipv6(from, POD_A.v6, UDP, &udp(1, 2))), SpoofedNode);
    }
    wire.check_overlay_ignores(node3, &frame(IPV6, &ipv6(POD_D.v6, POD_A.v4.to_ipv6_mapped(), UDP, &udp(1, 2))));
    wire.check_overlay_ignores(node3, &ethernet(PEER_MAC, NODE3_MAC, IPV4, &v4(POD_D, POD_A)[14..]));
    let tagged = [&[0, 0, 8, 0][..], &v4(POD_B, POD_A)[14..]].concat();
    wire.check_overlay(node3, 1, &frame(VLAN, &tagged), Malformed);
    // (The kernel itself drops what has no whole IP header.)
    for (packet, headers) in [(v4(POD_D, POD_A), 34), (v6(POD_D, POD_A), 54)] {
        for len in headers..packet.len() {
            wire.check_overlay(node3, 1, &packet[..len], Malformed);
        }
    }

    // Not even this node itself sends from its own pods by the overlay.
    let own = Far { address: stranger.into(), flags: Far::LOCAL, ..unreachable(1) };
    wire.node.datapath.maps_mut().upsert_node_address(stranger.into(), NodeAddress { id: 1 }).unwrap();
    wire.check_overlay(stranger, 1, &v4(POD_B, POD_A), SpoofedNode);
    wire.node.datapath.maps_mut().upsert_node(network(1, false), own).unwrap();
    wire.check_overlay(stranger, 1, &v4(POD_B, POD_A), SpoofedNode);
}
