//! Many TCP connections that stay open, each of which is asked in turn.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use podnet::netns::Netns;

use crate::{tcp, wait_for};

/// How long a question or an answer may be under way: many retransmissions.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both ends of a connection.
#[derive(Debug)]
struct Pair {
    target: SocketAddr,
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn open(client: &Netns, target: SocketAddr, listener: &TcpListener) -> Self {
        let client = tcp::connect(client, target);
        let server = wait_for(&format!("a connection to {target} to be accepted"), || listener.accept().ok()).0;
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { target, client, server }
    }

    /// Sends a number there and back.
    fn ask(&mut self, number: u64) -> std::io::Result<bool> {
        let mut question = [0; 8];
        self.client.write_all(&number.to_be_bytes())?;
        self.server.read_exact(&mut question)?;
        self.server.write_all(&question)?;
        let mut answer = [0; 8];
        self.client.read_exact(&mut answer)?;
        Ok(answer == number.to_be_bytes())
    }
}

/// Open connections, on each of which a question and its answer go round and round.
#[derive(Debug)]
pub struct Herd {
    count: usize,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Herd {
    /// Opens so many connections from a client to each target, whose packets reach the listener beside it, and begins to
    /// ask.
    pub fn start(client: &Netns, targets: &[(SocketAddr, &TcpListener)], each: usize) -> Self {
        let mut pairs: Vec<Pair> = targets
            .iter()
            .flat_map(|(target, listener)| (0..each).map(move |_| Pair::open(client, *target, listener)))
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, done, count) = (Arc::clone(&stop), Arc::clone(&rounds), pairs.len());
        let thread = std::thread::spawn(move || {
            let mut broken = Vec::new();
            while !stopped.load(Ordering::Relaxed) && broken.is_empty() {
                let round = done.load(Ordering::Relaxed);
                for pair in &mut pairs {
                    match pair.ask(round) {
                        Ok(true) => {}
                        outcome => broken.push(format!("connection to {}, round {round}: {outcome:?}", pair.target)),
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            broken
        });
        let herd = Self { count, stop, rounds, thread };
        herd.wait_for_rounds(1);
        herd
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Waits until every connection was asked so many times more.
    pub fn wait_for_rounds(&self, more: u64) {
        let goal = self.rounds.load(Ordering::Relaxed) + more;
        wait_for(&format!("{more} more rounds of {} connections", self.count), || {
            (self.rounds.load(Ordering::Relaxed) >= goal || self.thread.is_finished()).then_some(())
        });
    }

    /// Ends it; panics if a connection broke. Returns how many rounds were done.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let broken = self.thread.join().unwrap();
        assert!(
            broken.is_empty(),
            "{} of {} connections broke: {:#?}",
            broken.len(),
            self.count,
            &broken[..broken.len().min(5)]
        );
        self.rounds.load(Ordering::Relaxed)
    }
}
