//! UDP: requests and responses with content check, and a flood that counts what is lost.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use podnet::netns::Netns;

use crate::{DEADLINE, Family, pattern::Pattern, wait_for};

/// How often a blocking call looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// How long a response may take.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(20);

/// Opens a socket in a network namespace.
pub fn bind(netns: &Netns, address: SocketAddr) -> UdpSocket {
    let socket = netns.run(|| Ok(UdpSocket::bind(address)?));
    socket.unwrap_or_else(|error| panic!("bind {address} in {}: {error:#}", netns.path().display()))
}

/// Opens a socket in a network namespace, connected to a target.
pub fn connect(netns: &Netns, target: SocketAddr) -> UdpSocket {
    let socket = bind(netns, SocketAddr::new(unspecified(target.ip()), 0));
    socket.connect(target).unwrap_or_else(|error| panic!("connect a UDP socket to {target}: {error}"));
    socket.set_read_timeout(Some(RESPONSE_DEADLINE)).unwrap();
    socket
}

/// Sets "don't fragment" on a socket: the kernel refuses a datagram that is longer than the path's MTU.
pub fn set_dont_fragment(socket: &UdpSocket) {
    set_mtu_discovery(socket, Family::of(socket.local_addr().unwrap().ip()), libc::IP_PMTUDISC_DO);
}

/// Sets what a socket does about the path's MTU: one of `IP_PMTUDISC_*` (ip(7)), whose numbers are those of IPv6, too.
pub(crate) fn set_mtu_discovery(socket: &impl AsRawFd, family: Family, value: libc::c_int) {
    let (level, option) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    assert_eq!(result, 0, "set path MTU discovery: {}", std::io::Error::last_os_error());
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Answers each datagram with its own content, until it is dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server on one address of a network namespace. Bound to one, it answers from that one.
    pub fn start(netns: &Netns, address: SocketAddr) -> Self {
        let socket = bind(netns, address);
        socket.set_read_timeout(Some(TICK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    // The client misses the answer and judges it.
                    drop(socket.send_to(&buffer[..length], peer));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the echo server panicked");
    }
}

/// Receives a datagram. What stops and continues the process, such as a cgroup that is frozen, ends a wait with a time
/// limit (signal(7)), and is no answer.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Sends one datagram of this size to a server and checks its answer.
pub fn exchange(client: &Netns, target: SocketAddr, length: usize) {
    exchange_on(&connect(client, target), length);
}

/// Sends one datagram of this size on a connected socket and checks its answer.
pub fn exchange_on(socket: &UdpSocket, length: usize) {
    let target = socket.peer_addr().unwrap();
    let pattern = Pattern::new(length as u64);
    socket.send(pattern.at(0, length)).unwrap_or_else(|error| panic!("send {length} bytes to {target}: {error}"));
    let mut buffer = vec![0; 65_536];
    match receive(socket, &mut buffer) {
        Ok((received, _)) => {
            assert_eq!(received, length, "length of the answer of {target}");
            pattern.check(0, &buffer[..received]);
        }
        Err(error) => panic!("no answer of {target} to a datagram of {length} bytes: {error}"),
    }
}

/// Requests to an echo server one after the other, a few under way at a time.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Tally>,
}

/// What became of a flood's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered.
    pub answered: u64,
}

impl Tally {
    /// Returns how many requests had no answer.
    pub fn lost(self) -> u64 {
        self.sent - self.answered
    }
}

impl Flood {
    /// How many requests are under way at a time: far less than a socket's buffer holds, so that a loss is the path's.
    const WINDOW: u64 = 16;

    /// Starts a flood without pause; returns after the first answers.
    pub fn start(client: &Netns, target: SocketAddr) -> Self {
        Self::start_paced(client, target, Duration::ZERO)
    }

    /// Starts a flood with a pause after each request; returns after the first answers.
    pub fn start_paced(client: &Netns, target: SocketAddr, pause: Duration) -> Self {
        let socket = connect(client, target);
        socket.set_read_timeout(Some(TICK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = std::thread::spawn(move || flood(&socket, pause, &stopped, &count));
        let flood = Self { stop, answered, thread };
        flood.wait_for_answers(10);
        flood
    }

    /// Waits until so many more requests were answered.
    pub fn wait_for_answers(&self, more: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        wait_for(&format!("{more} more answers to a UDP flood"), || {
            assert!(!self.thread.is_finished(), "the UDP flood broke off");
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Ends the flood, and waits for the answers under way.
    pub fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(tally) => tally,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn flood(socket: &UdpSocket, pause: Duration, stop: &AtomicBool, count: &AtomicU64) -> Tally {
    let mut tally = Tally { sent: 0, answered: 0 };
    // Requests given up on: they are no longer under way.
    let mut abandoned = 0;
    let mut last_answer = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        let ending = stop.load(Ordering::Relaxed);
        let under_way = tally.sent - tally.answered - abandoned;
        if ending && (under_way == 0 || last_answer.elapsed() > RESPONSE_DEADLINE) {
            return tally;
        }
        if !ending && under_way < Flood::WINDOW {
            match socket.send(&tally.sent.to_be_bytes()) {
                Ok(_) => tally.sent += 1,
                // An ICMP error for an earlier request (unreachable) shows here: that one counts as lost.
                Err(error) => assert!(is_icmp_error(&error), "UDP flood: {error}"),
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            continue;
        }
        match receive(socket, &mut buffer) {
            Ok(_) => {
                tally.answered += 1;
                count.fetch_add(1, Ordering::Relaxed);
                last_answer = Instant::now();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if last_answer.elapsed() > RESPONSE_DEADLINE {
                    abandoned += under_way;
                    last_answer = Instant::now();
                }
                assert!(abandoned < 1000, "UDP flood: {abandoned} requests without answer");
            }
            Err(error) => assert!(is_icmp_error(&error), "UDP flood: {error}"),
        }
    }
}

fn is_icmp_error(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

/// Waits for a datagram with exactly this content; `false` after the deadline.
pub fn receives(socket: &UdpSocket, content: &[u8], deadline: Duration) -> bool {
    let start = Instant::now();
    let mut buffer = vec![0; 65_536];
    while let Some(left) = deadline.min(DEADLINE).checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).unwrap();
        if matches!(socket.recv(&mut buffer), Ok(length) if &buffer[..length] == content) {
            return true;
        }
    }
    false
}
