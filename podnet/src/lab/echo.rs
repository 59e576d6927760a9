//! ICMP and ICMPv6 echo over raw sockets: `ping` without the program.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, recv, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const HEADER_LEN: usize = 8;

/// A raw socket connected to one address, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct EchoSocket {
    socket: OwnedFd,
    destination: IpAddr,
    identifier: u16,
}

impl EchoSocket {
    /// Opens a socket in the calling thread's network namespace. The identifier tells concurrent ones apart.
    pub fn open(destination: IpAddr, identifier: u16) -> Result<Self> {
        let (family, protocol) = match destination {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            match SocketAddr::new(destination, 0) {
                SocketAddr::V4(address) => connect(socket.as_raw_fd(), &SockaddrIn::from(address))?,
                SocketAddr::V6(address) => connect(socket.as_raw_fd(), &SockaddrIn6::from(address))?,
            }
            Ok(socket)
        };
        let socket = open().with_context(|| format!("open a raw socket to {destination}"))?;
        Ok(Self { socket, destination, identifier })
    }

    /// Sends one echo request with a payload of this many bytes and waits for its reply; returns the round-trip time,
    /// or `None` if no reply with the same content came in time.
    ///
    /// # Errors
    ///
    /// The kernel refuses the request, for example as too big (`EMSGSIZE`) or without a route (`ENETUNREACH`).
    pub fn ping(&self, sequence: u16, payload_len: usize, timeout: Duration) -> Result<Option<Duration>> {
        let request = self.request(sequence, payload_len);
        let start = Instant::now();
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())
            .with_context(|| format!("send an echo request to {}", self.destination))?;
        let mut buffer = vec![0; 65_536];
        loop {
            let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| left.as_micros() > 0) else {
                return Ok(None);
            };
            setsockopt(&self.socket, ReceiveTimeout, &TimeVal::new(left.as_secs() as i64, left.subsec_micros().into()))
                .context("set the receive timeout")?;
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if self.is_reply(&buffer[..length], &request) => return Ok(Some(start.elapsed())),
                // Errors of earlier packets (unreachable) arrive here, too: only the deadline decides.
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::EHOSTUNREACH | Errno::ECONNREFUSED) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("receive an echo reply of {}", self.destination));
                }
            }
        }
    }

    fn request(&self, sequence: u16, payload_len: usize) -> Vec<u8> {
        let kind = if self.destination.is_ipv4() { ECHO_REQUEST_V4 } else { ECHO_REQUEST_V6 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.identifier.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend((0..payload_len).map(|position| position as u8 ^ sequence as u8));
        if self.destination.is_ipv4() {
            // The kernel does it for ICMPv6 (RFC 3542, section 3.1), not for ICMP.
            let checksum = checksum(&packet);
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    fn is_reply(&self, packet: &[u8], request: &[u8]) -> bool {
        let (reply, kind) = match self.destination {
            // Raw IPv4 sockets receive the IP header as well (raw(7)).
            IpAddr::V4(_) => {
                let header_len = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
                (packet.get(header_len..).unwrap_or_default(), ECHO_REPLY_V4)
            }
            IpAddr::V6(_) => (packet, ECHO_REPLY_V6),
        };
        reply.len() >= HEADER_LEN && reply[0] == kind && reply[1] == 0 && reply[4..] == request[4..]
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }
}
