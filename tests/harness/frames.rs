//! Raw Ethernet frames on an interface of a network namespace: sent as they are, and captured until a deadline.

use std::{
    io::{ErrorKind, Read as _},
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use podnet::netns::Netns;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// A packet socket on one interface; it sees what is received there and what is sent.
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
}

impl FrameSocket {
    /// Opens a packet socket on an interface of a network namespace.
    pub fn open(netns: &Netns, ifname: &str) -> Self {
        let open = || {
            // A packet socket's protocol is in network byte order (packet(7)).
            let protocol = (libc::ETH_P_ALL as u16).to_be();
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            socket.bind(&link_layer_address(protocol, if_nametoindex(ifname)?))?;
            // A burst of jumbo packets must not push out the frame that a test waits for.
            socket.set_recv_buffer_size(8 << 20)?;
            Ok(socket)
        };
        let socket = netns.run(open);
        Self {
            socket: socket
                .unwrap_or_else(|error| panic!("packet socket on {ifname} in {}: {error}", netns.path().display())),
        }
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        let sent =
            self.socket.send(frame).unwrap_or_else(|error| panic!("send a frame of {} bytes: {error}", frame.len()));
        assert_eq!(sent, frame.len());
    }

    /// Returns the first frame for which the closure returns something, or `None` after the deadline.
    pub fn find<T>(&self, deadline: Duration, mut examine: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let start = Instant::now();
        // BIG TCP packets are longer than 64 KiB.
        let mut buffer = vec![0; 1 << 20];
        while let Some(left) = deadline.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            match (&self.socket).read(&mut buffer) {
                Ok(length) => {
                    if let Some(found) = examine(&buffer[..length]) {
                        return Some(found);
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("capture frames: {error}"),
            }
        }
        None
    }

    /// Examines the frames that were captured so far.
    pub fn drain(&self, mut examine: impl FnMut(&[u8])) {
        let mut buffer = vec![0; 1 << 20];
        self.socket.set_nonblocking(true).unwrap();
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => examine(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("capture frames: {error}"),
            }
        }
        self.socket.set_nonblocking(false).unwrap();
    }
}

/// Returns the address of all frames of an interface (`sockaddr_ll` of packet(7)).
fn link_layer_address(protocol: u16, ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the kernel's socket address types, plain data for which all zeros are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = ifindex.cast_signed();
    // SAFETY: the storage holds a `sockaddr_ll` of this length and family.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
