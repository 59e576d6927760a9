//! Echo requests from a network namespace.

use std::{net::IpAddr, time::Duration};

use podnet::{lab::echo::EchoSocket, netns::Netns};

/// How long a reply may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Sends echo requests with payloads of this many bytes; panics if one has no reply with the same content.
pub fn ping(netns: &Netns, destination: IpAddr, count: u16, payload_len: usize) {
    let socket = open(netns, destination);
    for sequence in 0..count {
        let reply = socket.ping(sequence, payload_len, TIMEOUT).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(
            reply.is_some(),
            "no reply from {destination} to echo request {sequence} of {payload_len} bytes from {}",
            netns.path().display()
        );
    }
}

/// Returns whether an address answers an echo request within a time.
pub fn answers(netns: &Netns, destination: IpAddr, timeout: Duration) -> bool {
    open(netns, destination).ping(0, 56, timeout).is_ok_and(|reply| reply.is_some())
}

fn open(netns: &Netns, destination: IpAddr) -> EchoSocket {
    // Tests in one process share its ID, but not their namespaces.
    let identifier = std::process::id() as u16;
    netns.run(|| EchoSocket::open(destination, identifier)).unwrap_or_else(|error| panic!("{error:#}"))
}
