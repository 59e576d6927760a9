//! Packets that routers answer with an ICMP error, and the answer as a program sees it: from the error queue of its socket
//! (`IP_RECVERR` of ip(7)), as traceroute and tracepath do.

use std::{
    io::{IoSliceMut, Write as _},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::{Duration, Instant},
};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt},
};
use podnet::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Family, udp};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where no probe goes further: a loop.
const MAX_HOPS: u32 = 10;

/// Destination port of traceroute's first datagram, at which nobody listens.
const PORT: u16 = 33_434;

/// UDP and ICMP headers.
const HEADER_LEN: usize = 8;

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A UDP datagram.
    Udp,
    /// An ICMP or ICMPv6 echo request.
    Echo,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Udp, Self::Echo];
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The TTL or hop limit ended.
    TimeExceeded,
    /// The packet is larger than this many bytes.
    TooBig(u32),
    /// The destination has it, and nobody listens there.
    PortUnreachable,
    /// The destination echoes.
    Reply,
}

/// An answer, and who gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who answered.
    pub from: IpAddr,
    /// What.
    pub answer: Answer,
}

/// A socket whose packets are not to be fragmented, whatever is known of the path.
#[derive(Debug)]
pub struct Probe {
    socket: Socket,
    destination: IpAddr,
    kind: Kind,
}

impl Probe {
    /// Opens a socket in a network namespace.
    pub fn open(netns: &Netns, destination: IpAddr, kind: Kind) -> Self {
        let family = Family::of(destination);
        let open = || -> anyhow::Result<Socket> {
            let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
            let socket = match (kind, family) {
                (Kind::Udp, _) => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
                (Kind::Echo, Family::V4) => Socket::new(domain, Type::RAW, Some(Protocol::ICMPV4)),
                (Kind::Echo, Family::V6) => Socket::new(domain, Type::RAW, Some(Protocol::ICMPV6)),
            }?;
            match family {
                Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
                Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
            }
            udp::set_mtu_discovery(&socket, family, libc::IP_PMTUDISC_PROBE);
            let port = if kind == Kind::Udp { PORT } else { 0 };
            socket.connect(&SocketAddr::new(destination, port).into())?;
            Ok(socket)
        };
        let socket = netns.run(open).unwrap_or_else(|error| panic!("open a socket to {destination}: {error:#}"));
        Self { socket, destination, kind }
    }

    /// Sends a small packet with this TTL or hop limit; returns the answer, or `None` if none came in time.
    pub fn limited(&self, limit: u32) -> Option<Report> {
        match self.destination {
            IpAddr::V4(_) => self.socket.set_ttl_v4(limit),
            IpAddr::V6(_) => self.socket.set_unicast_hops_v6(limit),
        }
        .unwrap();
        self.ask(&self.packet(32))
    }

    /// Sends an IP packet of so many bytes; returns the answer, or `None` if none came in time.
    pub fn sized(&self, length: usize) -> Option<Report> {
        let header = if self.destination.is_ipv4() { 20 } else { 40 };
        self.ask(&self.packet(length - header - HEADER_LEN))
    }

    fn packet(&self, payload: usize) -> Vec<u8> {
        let payload = vec![0x5a; payload];
        let echo = IcmpEchoHeader { id: 0x706e, seq: 1 };
        let mut packet = Vec::new();
        match (self.kind, self.destination) {
            (Kind::Udp, _) => {}
            (Kind::Echo, IpAddr::V4(_)) => {
                Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload).write(&mut packet).unwrap();
            }
            // The kernel computes the checksum (RFC 3542, section 3.1).
            (Kind::Echo, IpAddr::V6(_)) => {
                Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).write(&mut packet).unwrap();
            }
        }
        packet.write_all(&payload).unwrap();
        packet
    }

    fn ask(&self, packet: &[u8]) -> Option<Report> {
        self.socket
            .send(packet)
            .unwrap_or_else(|error| panic!("send {} bytes to {}: {error}", packet.len(), self.destination));
        let start = Instant::now();
        while let Some(left) = DEADLINE.checked_sub(start.elapsed()) {
            // An error is always reported, asked for or not.
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            if let Some(report) = self.error().or_else(|| self.reply()) {
                return Some(report);
            }
        }
        None
    }

    /// Takes the next error from the queue.
    fn error(&self) -> Option<Report> {
        let mut buffer = [0; 2048];
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut iov, Some(&mut control), flags) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return None,
            Err(error) => panic!("read the error queue: {error}"),
        };
        message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) => {
                let from = IpAddr::from(offender.sin_addr.s_addr.to_ne_bytes());
                let answer = match (error.ee_type, error.ee_code) {
                    (11, 0) => Answer::TimeExceeded,
                    (3, 4) => Answer::TooBig(error.ee_info),
                    (3, 3) => Answer::PortUnreachable,
                    other => panic!("{from} answered ICMP {other:?}"),
                };
                Some(Report { from, answer })
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(offender)) => {
                let from = IpAddr::from(offender.sin6_addr.s6_addr);
                let answer = match (error.ee_type, error.ee_code) {
                    (3, 0) => Answer::TimeExceeded,
                    (2, 0) => Answer::TooBig(error.ee_info),
                    (1, 4) => Answer::PortUnreachable,
                    other => panic!("{from} answered ICMPv6 {other:?}"),
                };
                Some(Report { from, answer })
            }
            _ => None,
        })
    }

    /// Takes the next packet, if it is an echo reply.
    fn reply(&self) -> Option<Report> {
        if self.kind == Kind::Udp {
            return None;
        }
        let mut buffer = [0; 2048];
        let length = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
        // Raw IPv4 sockets receive the IP header as well (raw(7)).
        let is_reply = match self.destination {
            IpAddr::V4(_) => buffer[..length].get(usize::from(buffer[0] & 0x0f) * 4) == Some(&0),
            IpAddr::V6(_) => buffer[..length].first() == Some(&129),
        };
        is_reply.then_some(Report { from: self.destination, answer: Answer::Reply })
    }
}

/// Returns who answers on the way to a destination, the destination last: what traceroute prints. Panics if somebody does
/// not answer.
pub fn trace(netns: &Netns, destination: IpAddr, kind: Kind) -> Vec<IpAddr> {
    let probe = Probe::open(netns, destination, kind);
    let mut hops = Vec::new();
    for limit in 1..=MAX_HOPS {
        let Some(Report { from, answer }) = probe.limited(limit) else {
            panic!("{kind:?} to {destination}: nobody answers at hop {limit}, after {hops:?}");
        };
        hops.push(from);
        match answer {
            Answer::TimeExceeded => {}
            Answer::PortUnreachable | Answer::Reply => return hops,
            Answer::TooBig(_) => panic!("{from} finds a small packet to {destination} too big"),
        }
    }
    panic!("{kind:?} to {destination}: a loop: {hops:?}");
}
