//! The programs on real interfaces: what `BPF_PROG_TEST_RUN` cannot show.
//!
//! ```text
//!   pod A's namespace          node's namespace            pod B's namespace
//!   eth12  ------------------  pod12   pod13  ------------------  eth13
//!                      from_pod, twice   to_pod, twice
//! ```
//!
//! Each program is attached twice, with two priorities: a packet that the first one passes must reach the second.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact},
};
use nix::{
    sched::CloneFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use podnet::netns::Netns;
use podnet_common::{
    program_name::{FROM_POD, TO_POD},
    verdict::{Counter, DropReason, Verdict},
};

use crate::{
    fixture::{Expected, GATEWAY_MAC, Node, POD_A, POD_B, Pod, hex, ip, mac, new_namespaces},
    packets::{ICMPV6, IPV4, IPV6, UDP, VLAN, ethernet, frame, ipv4, ipv6, neighbor, udp, udp_v4, udp_v6},
};

/// Keeps the filters attached.
struct Attached {
    _programs: Vec<(SchedClassifier, SchedClassifierLinkId)>,
}

struct Live {
    node: Node,
    a: Netns,
    b: Netns,
    _attached: Attached,
}

impl Live {
    fn new() -> Self {
        let node = Node::new();
        let (a, b) = (pod_namespace(POD_A), pod_namespace(POD_B));
        let programs = [
            attach(&node, FROM_POD, POD_A, TcAttachType::Ingress, 1),
            attach(&node, FROM_POD, POD_A, TcAttachType::Ingress, 2),
            attach(&node, TO_POD, POD_B, TcAttachType::Egress, 1),
            attach(&node, TO_POD, POD_B, TcAttachType::Egress, 2),
        ];
        Self { node, a, b, _attached: Attached { _programs: programs.into() } }
    }

    fn counter(&self, expected: Expected) -> Counter {
        let index = match expected {
            Expected::Verdict(verdict) => verdict.counter_index(),
            Expected::Drop(reason) => reason.counter_index(),
        };
        self.node.datapath.maps().counter(index).unwrap()
    }

    /// Sends a frame out of pod A, and waits until `from_pod` has decided: twice if it passes the packet on.
    #[track_caller]
    fn check(&self, packet: &[u8], expected: impl Into<Expected>) {
        let expected = expected.into();
        let runs = match expected {
            Expected::Drop(_) | Expected::Verdict(Verdict::RedirectedToPod) => 1,
            Expected::Verdict(_) => 2,
        };
        let before = self.counter(expected).packets;
        self.a.run(|| send_frame("eth12", packet)).unwrap();
        // Transmission over a veth ends in the receiver's softirq, on the sender's own CPU, before `send` returns or
        // shortly after; the deadline is for a machine that is busy.
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        while self.counter(expected).packets < before + runs {
            assert!(
                std::time::Instant::now() < deadline,
                "{expected:?} counts {} of {runs} runs; all: {:?}\npacket {}",
                self.counter(expected).packets - before,
                self.node.datapath.maps().counters().unwrap(),
                hex(packet)
            );
            std::thread::yield_now();
        }
        if runs == 1 {
            // The second filter had nothing to see. (Verdicts of packets that are passed may have been counted for
            // the pod's own multicast reports, too.)
            assert_eq!(self.counter(expected).packets, before + 1, "{expected:?}\npacket {}", hex(packet));
        }
    }
}

#[test]
fn a_redirected_packet_reaches_the_pod_and_others_go_on_to_the_next_filter() {
    let live = Live::new();
    for (from, to) in [(IpAddr::V4(POD_A.v4), IpAddr::V4(POD_B.v4)), (POD_A.v6.into(), POD_B.v6.into())] {
        let receiver = live.b.run(|| Ok(UdpSocket::bind(SocketAddr::new(to, 5353))?)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let sender = live.a.run(|| Ok(UdpSocket::bind(SocketAddr::new(from, 4444))?)).unwrap();
        sender.send_to(b"hello", (to, 5353)).unwrap();
        let mut buffer = [0; 16];
        let (len, peer) = harness::udp::receive(&receiver, &mut buffer).expect("the datagram arrives in pod B");
        assert_eq!((&buffer[..len], peer), (&b"hello"[..], SocketAddr::new(from, 4444)));
    }
    assert_eq!(live.counter(Verdict::RedirectedToPod.into()).packets, 2);
    assert_eq!(live.counter(Verdict::DeliveredByKernel.into()).packets, 0, "a redirect skips `to_pod`");

    live.check(&frame(POD_A, IPV4, &ipv4(POD_A.v4, [8, 8, 8, 8].into(), UDP, &udp(1, 2))), Verdict::PassedNotPod);
    live.check(&frame(POD_A, 0x88cc, &[0; 46]), Verdict::PassedNotForwarded);
    live.check(&frame(POD_A, IPV4, &ipv4(POD_B.v4, POD_B.v4, UDP, &udp(1, 2))), DropReason::SpoofedAddress);
    // What the kernel path delivers passes both filters of the other hook, and is not dropped.
    send_frame("pod13", &ethernet(POD_B.mac, GATEWAY_MAC, IPV4, &ipv4([8, 8, 8, 8].into(), POD_B.v4, UDP, &udp(1, 2))))
        .unwrap();
    assert_eq!(live.counter(Verdict::DeliveredByKernel.into()).packets, 2);
}

#[test]
fn every_short_ip_packet_is_malformed() {
    let live = Live::new();
    for packet in [udp_v4(POD_A, POD_B), udp_v6(POD_A, POD_B)] {
        for len in 14..packet.len() {
            live.check(&packet[..len], DropReason::Malformed);
        }
        live.check(&packet, Verdict::RedirectedToPod);
    }
}

#[test]
fn tags_that_the_kernel_takes_out_hide_nothing() {
    let live = Live::new();
    let (a, b) = (POD_A, POD_B);
    let tag = |payload: &[u8], ethertype: u16, vlan: u16| {
        [&vlan.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat()
    };
    for vlan in [0, 5] {
        for outer in [VLAN, 0x88a8] {
            let check = |ethertype, payload: &[u8], expected: Expected| {
                let once = tag(payload, ethertype, vlan);
                live.check(&frame(a, outer, &once), expected);
                live.check(&frame(a, outer, &tag(&once, VLAN, 0)), expected);
                live.check(&frame(a, outer, &tag(&tag(&once, VLAN, 0), VLAN, 0)), expected);
            };
            check(IPV4, &ipv4(a.v4, b.v4, UDP, &udp(1, 2)), Verdict::PassedUnsupported.into());
            check(IPV6, &ipv6(a.v6, b.v6, UDP, &udp(1, 2)), Verdict::PassedUnsupported.into());
            check(IPV4, &ipv4(b.v4, b.v4, UDP, &udp(1, 2)), DropReason::SpoofedAddress.into());
            check(IPV6, &ipv6(b.v6, b.v6, UDP, &udp(1, 2)), DropReason::SpoofedAddress.into());
            let advertisement = neighbor(136, b.v6, &[]);
            check(IPV6, &ipv6(a.v6, b.v6, ICMPV6, &advertisement), DropReason::SpoofedNeighbor.into());
        }
    }
}

/// Makes a namespace with the pod's end of the veth in it, up and configured, and as quiet as can be.
pub(crate) fn pod_namespace(pod: Pod) -> Netns {
    let netns = std::thread::spawn(|| {
        new_namespaces(CloneFlags::CLONE_NEWNET);
        Netns::current().unwrap()
    })
    .join()
    .unwrap();
    let fd = std::os::fd::AsFd::as_fd(&netns).as_raw_fd();
    let index = pod.ifindex;
    // Nothing but the test's own packets: no solicitations, no reports.
    std::fs::write(format!("/proc/sys/net/ipv6/conf/pod{index}/disable_ipv6"), "1").unwrap();
    ip(&format!("link set eth{index} netns /proc/{}/fd/{fd}", std::process::id()));
    ip(&format!("link set pod{index} up"));
    netns
        .run(|| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/eth{index}/addr_gen_mode"), "1")?;
            std::fs::write(format!("/proc/sys/net/ipv6/conf/eth{index}/accept_dad"), "0")?;
            std::fs::write(format!("/proc/sys/net/ipv6/conf/eth{index}/router_solicitations"), "0")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0")?;
            ip(&format!("link set eth{index} address {} up", mac(pod.mac)));
            ip(&format!("addr add {}/32 dev eth{index}", pod.v4));
            ip(&format!("addr add {}/128 dev eth{index} nodad", pod.v6));
            for (gateway, route) in [("169.254.1.1", "default"), ("fe80::1", "default")] {
                ip(&format!("neigh add {gateway} lladdr {} dev eth{index} nud permanent", mac(GATEWAY_MAC)));
                ip(&format!("route add {route} via {gateway} dev eth{index} onlink"));
            }
            Ok(())
        })
        .unwrap();
    netns
}

pub(crate) fn attach(
    node: &Node,
    program: &str,
    pod: Pod,
    hook: TcAttachType,
    priority: u16,
) -> (SchedClassifier, SchedClassifierLinkId) {
    let interface = format!("pod{}", pod.ifindex);
    // It exists already when the second program comes.
    drop(qdisc_add_clsact(&interface));
    let info = node.datapath.program(program).unwrap().info().unwrap();
    let name = Cow::Owned(program.to_owned());
    let mut program = SchedClassifier::from_program_info(info, name).unwrap();
    let options = NlOptions { priority, handle: TcHandle::new(0, 1), classid: None };
    let link = program.attach_with_options(&interface, hook, TcAttachOptions::Netlink(options)).unwrap();
    (program, link)
}

/// Sends a frame as it is out of an interface of the calling thread's namespace.
pub(crate) fn send_frame(interface: &str, packet: &[u8]) -> anyhow::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zero is a valid address: the fields are integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = nix::net::if_::if_nametoindex(interface)? as i32;
    // SAFETY: the buffer and the address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    anyhow::ensure!(sent == packet.len() as isize, "send a frame: {}", std::io::Error::last_os_error());
    Ok(())
}
