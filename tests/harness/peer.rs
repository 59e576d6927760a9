//! A UDP server that answers with the address it was asked from: whoever translates addresses on the way is found out.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use podnet::netns::Netns;

use crate::udp;

/// How often a server looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// Answers each datagram with its source address as text, from the address that was asked; until it is dropped.
#[derive(Debug)]
pub struct PeerServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeerServer {
    /// Starts a server on one address of a network namespace.
    pub fn start(netns: &Netns, address: SocketAddr) -> Self {
        let socket = udp::bind(netns, address);
        socket.set_read_timeout(Some(TICK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&socket, &stopped));
        Self { stop, thread: Some(thread) }
    }
}

fn serve(socket: &UdpSocket, stopped: &AtomicBool) {
    let mut buffer = [0; 16];
    while !stopped.load(Ordering::Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            // The client misses the answer and judges it.
            drop(socket.send_to(peer.to_string().as_bytes(), peer));
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the peer server panicked");
    }
}

/// Asks a server so many times, one after the other, on one socket; returns the address that it saw.
///
/// # Errors
///
/// A question had no answer, or the answers differ.
pub fn ask(client: &Netns, target: SocketAddr, count: usize) -> Result<SocketAddr, String> {
    let socket = udp::connect(client, target);
    let mut seen = None;
    for number in 0..count {
        socket.send(b"who am I?").map_err(|error| format!("send question {number} to {target}: {error}"))?;
        let mut buffer = [0; 128];
        let (length, _) =
            udp::receive(&socket, &mut buffer).map_err(|error| format!("answer {number} of {target}: {error}"))?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let peer: SocketAddr = answer.parse().map_err(|_| format!("answer {number} of {target}: {answer:?}"))?;
        if *seen.get_or_insert(peer) != peer {
            return Err(format!("{target} saw {seen:?}, then {peer}"));
        }
    }
    seen.ok_or_else(|| "nothing was asked".into())
}

/// Asks a server once; returns the address that it saw, or `None` if there is no answer within a time.
pub fn ask_within(client: &Netns, target: SocketAddr, timeout: Duration) -> Option<SocketAddr> {
    let socket = udp::connect(client, target);
    socket.set_read_timeout(Some(timeout)).unwrap();
    // No route, or an ICMP error: no answer either.
    socket.send(b"who am I?").ok()?;
    let mut buffer = [0; 128];
    let (length, _) = udp::receive(&socket, &mut buffer).ok()?;
    String::from_utf8_lossy(&buffer[..length]).parse().ok()
}
