//! TCP: transfers whose content the receiver checks, and a connection that goes on while things happen around it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use podnet::netns::Netns;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{DEADLINE, pattern::Pattern, wait_for};

/// How often a blocking call looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// Opens a listening socket in a network namespace, on all addresses of both families.
pub fn listen(netns: &Netns, port: u16) -> TcpListener {
    let listener = netns.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        // The namespace may have inherited another congestion control, whose pacing would hide the path's speed.
        socket.set_tcp_congestion(b"cubic")?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(64)?;
        socket.set_read_timeout(Some(TICK))?;
        Ok(TcpListener::from(socket))
    });
    listener.unwrap_or_else(|error| panic!("listen on port {port} in {}: {error:#}", netns.path().display()))
}

/// Connects from a network namespace.
///
/// # Errors
///
/// The connection was refused, reset, or not established in time.
pub fn try_connect(netns: &Netns, target: SocketAddr, timeout: Duration) -> anyhow::Result<TcpStream> {
    netns.run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_congestion(b"cubic")?;
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&target.into(), timeout)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        Ok(socket.into())
    })
}

/// Connects from a network namespace.
pub fn connect(netns: &Netns, target: SocketAddr) -> TcpStream {
    try_connect(netns, target, DEADLINE)
        .unwrap_or_else(|error| panic!("connect from {} to {target}: {error:#}", netns.path().display()))
}

/// Echoes what it receives on every connection, until it is dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    peer: Arc<std::sync::Mutex<Option<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server in a network namespace.
    pub fn start(netns: &Netns, port: u16) -> Self {
        let listener = listen(netns, port);
        let stop = Arc::new(AtomicBool::new(false));
        let peer = Arc::new(std::sync::Mutex::new(None));
        let (stopped, last_peer) = (Arc::clone(&stop), Arc::clone(&peer));
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, address)) = listener.accept() {
                    *last_peer.lock().unwrap() = Some(canonical(address));
                    let stopped = Arc::clone(&stopped);
                    connections.push(std::thread::spawn(move || echo(stream, &stopped)));
                }
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self { stop, peer, thread: Some(thread) }
    }

    /// Returns the address from which the last connection came, as the server saw it.
    pub fn last_peer(&self) -> Option<SocketAddr> {
        *self.peer.lock().unwrap()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the echo server panicked");
    }
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    stream.set_read_timeout(Some(TICK)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 262_144];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // The client sees it, too, and judges it.
            Ok(_) | Err(_) => return,
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Sends so many bytes to a server and checks what it echoes.
pub fn exchange(client: &Netns, target: SocketAddr, bytes: u64) {
    let stream = connect(client, target);
    let mut reader = stream.try_clone().unwrap();
    let pattern = Pattern::new(bytes);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = &stream;
            let mut position = 0;
            while position < bytes {
                let block = pattern.at(position, (bytes - position).min(Pattern::MAX_LEN as u64) as usize);
                writer.write_all(block).unwrap_or_else(|error| panic!("send to {target} at {position}: {error}"));
                position += block.len() as u64;
            }
        });
        let mut buffer = vec![0; 262_144];
        let mut position = 0;
        while position < bytes {
            let length = match reader.read(&mut buffer) {
                Ok(0) => panic!("{target} closed the connection after {position} of {bytes} bytes"),
                Ok(length) => length,
                Err(error) => panic!("receive from {target} after {position} of {bytes} bytes: {error}"),
            };
            pattern.check(position, &buffer[..length]);
            position += length as u64;
        }
    });
}

/// One connection that sends blocks to a server and checks their echo, round after round, until it is finished.
#[derive(Debug)]
pub struct LiveConnection {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl LiveConnection {
    /// Bytes of a round: several GSO packets.
    const BLOCK: usize = 65_000;

    /// Connects, and makes no pause between rounds; returns after the first one.
    pub fn start(client: &Netns, target: SocketAddr) -> Self {
        Self::start_paced(client, target, Duration::ZERO)
    }

    /// Connects, and makes a pause after each round; returns after the first one.
    pub fn start_paced(client: &Netns, target: SocketAddr, pause: Duration) -> Self {
        let mut stream = connect(client, target);
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, done) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let pattern = Pattern::new(1);
            let mut buffer = vec![0; Self::BLOCK];
            while !stopped.load(Ordering::Relaxed) {
                let position = done.load(Ordering::Relaxed) * Self::BLOCK as u64;
                stream.write_all(pattern.at(position, Self::BLOCK)).unwrap();
                stream.read_exact(&mut buffer).unwrap();
                pattern.check(position, &buffer);
                done.fetch_add(1, Ordering::Relaxed);
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
            }
        });
        let connection = Self { stop, rounds, thread };
        connection.wait_for_rounds(1);
        connection
    }

    /// Returns how many rounds were done.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until the connection has done so many rounds more; panics if it broke.
    pub fn wait_for_rounds(&self, more: u64) {
        let goal = self.rounds() + more;
        wait_for(&format!("{more} more rounds of a TCP connection"), || {
            assert!(!self.thread.is_finished(), "the TCP connection broke after {} rounds", self.rounds());
            (self.rounds() >= goal).then_some(())
        });
    }

    /// Ends the connection; panics if it broke before. Returns how many rounds were done.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        self.rounds.load(Ordering::Relaxed)
    }
}
