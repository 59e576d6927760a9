//! Routing netlink: one synchronous socket that sends batches and checks every answer, and typed messages for the
//! links, addresses, routes, neighbours and traffic-control objects that podnet makes.
//!
//! Message types are rtnetlink's. The transport is a plain socket, not rtnetlink's asynchronous handle, because the
//! kernel handles a request before `send` returns: many requests travel in one system call, and their answers are
//! there at once.

use std::io;

use bytes::BytesMut;
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_ROUTE},
};

pub mod address;
pub mod filter;
pub mod link;
pub mod monitor;
pub mod neighbor;
pub mod route;
pub mod tc;

/// A request that the kernel refused, or that could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {cause}")]
pub struct Error {
    /// What was asked for, with its objects.
    pub operation: String,
    /// The kernel's answer. No `source`, since the message has it already.
    pub cause: io::Error,
}

impl Error {
    fn new(operation: &str, cause: io::Error) -> Self {
        Self { operation: operation.to_owned(), cause }
    }

    /// The object already exists.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::EEXIST)
    }

    /// The object does not exist, or lies on an interface that does not.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.cause.raw_os_error(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }
}

/// What to do with a refusal that says the state is already as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerate {
    /// Every refusal is an error.
    Nothing,
    /// "Already exists" is success.
    Exists,
    /// "Does not exist" is success.
    NotFound,
    /// "There is no such queueing discipline" is success, which some kernels call an invalid argument.
    NoQdisc,
    /// "There is no such address family here" is success.
    NoFamily,
}

/// A request to change something.
#[derive(Debug)]
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    tolerate: Tolerate,
    operation: String,
}

impl Request {
    /// Makes a request. `flags` are `NLM_F_CREATE` and friends; `operation` names it in errors.
    pub fn new(operation: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { message, flags, tolerate: Tolerate::Nothing, operation: operation.into() }
    }

    /// Makes a refusal that says the state is already as asked count as success.
    #[must_use]
    pub fn tolerate(mut self, tolerate: Tolerate) -> Self {
        self.tolerate = tolerate;
        self
    }
}

/// A routing netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    datagram: BytesMut,
}

/// Largest datagram that the kernel sends: a part of a dump (`NLMSG_GOODSIZE` is far below; netlink(7) advises 32 KiB).
const DATAGRAM_LEN: usize = 64 << 10;

/// Most requests in one system call: their answers must fit into the receive buffer.
const BATCH_LEN: usize = 256;

/// How often a list is asked for that changes meanwhile.
const DUMP_ATTEMPTS: usize = 32;

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = RawSocket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Answers to a batch are all queued before the first is read.
            socket.set_rx_buf_sz(1 << 20)?;
            // An answer need not repeat the request (netlink(7), NETLINK_CAP_ACK).
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        open()
            .map(|socket| Self { raw: socket, sequence: 0, datagram: BytesMut::new() })
            .map_err(|source| Error::new("open a routing netlink socket", source))
    }

    /// Returns the socket's number, which notifications of what it changed carry (`nlmsg_pid` of netlink(7)).
    pub fn port(&self) -> Result<u32, Error> {
        let mut address = SocketAddr::new(0, 0);
        self.raw.get_address(&mut address).map_err(|source| Error::new("ask for a netlink socket's number", source))?;
        Ok(address.port_number())
    }

    /// Sends one request and waits for its answer.
    pub fn request(&mut self, request: Request) -> Result<(), Error> {
        self.batch(vec![request])
    }

    /// Sends requests in one system call. The kernel handles all of them, in order, even after one that it refuses.
    ///
    /// # Errors
    ///
    /// The first refusal that its request does not tolerate.
    pub fn batch(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        self.send_batch(requests)?.into_iter().next().map_or(Ok(()), |(_, refusal)| Err(refusal))
    }

    /// Sends requests in one system call; returns the refusals that their requests do not tolerate, in order.
    fn send_batch(&mut self, requests: Vec<Request>) -> Result<Vec<(usize, Error)>, Error> {
        let Some(first_operation) = requests.first().map(|request| request.operation.clone()) else {
            return Ok(Vec::new());
        };
        let first_sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::with_capacity(requests.len() * 256);
        let mut expected = Vec::with_capacity(requests.len());
        for Request { message, flags, tolerate, operation } in requests {
            self.append(&mut buffer, message, NLM_F_REQUEST | NLM_F_ACK | flags);
            expected.push((operation, tolerate));
        }
        self.raw.send(&buffer, 0).map_err(|source| Error::new(&first_operation, source))?;

        let mut answered = 0;
        let mut refusals = Vec::new();
        while answered < expected.len() {
            let answers = self.receive().map_err(|source| Error::new(&expected[answered].0, source))?;
            for answer in answers {
                let position = answer.header.sequence_number.wrapping_sub(first_sequence) as usize;
                let (Some((operation, tolerate)), NetlinkPayload::Error(error)) =
                    (expected.get(position), answer.payload)
                else {
                    continue;
                };
                answered += 1;
                if error.code.is_none() {
                    continue;
                }
                let refusal = Error::new(operation, error.to_io());
                let tolerated = match tolerate {
                    Tolerate::Nothing => false,
                    Tolerate::Exists => refusal.is_exists(),
                    Tolerate::NotFound => refusal.is_not_found(),
                    Tolerate::NoQdisc => refusal.is_not_found() || refusal.cause.raw_os_error() == Some(libc::EINVAL),
                    Tolerate::NoFamily => refusal.cause.raw_os_error() == Some(libc::EAFNOSUPPORT),
                };
                if !tolerated {
                    refusals.push((position, refusal));
                }
            }
        }
        Ok(refusals)
    }

    /// Asks for one object; `None` if it does not exist.
    pub fn get(&mut self, operation: &str, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, Error> {
        let mut buffer = Vec::new();
        self.append(&mut buffer, message, NLM_F_REQUEST);
        self.raw.send(&buffer, 0).map_err(|source| Error::new(operation, source))?;
        loop {
            for answer in self.receive().map_err(|source| Error::new(operation, source))? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) => {
                        let refusal = Error::new(operation, error.to_io());
                        return if refusal.is_not_found() { Ok(None) } else { Err(refusal) };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for one object by each message, many in one system call; `None` for one that the kernel refuses to show.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn get_each(
        &mut self,
        operation: &str,
        messages: impl IntoIterator<Item = RouteNetlinkMessage>,
    ) -> Result<Vec<Option<RouteNetlinkMessage>>, Error> {
        let mut found = Vec::new();
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first_sequence = self.sequence.wrapping_add(1);
            let mut buffer = Vec::new();
            let mut asked = 0;
            for message in messages.by_ref().take(BATCH_LEN) {
                self.append(&mut buffer, message, NLM_F_REQUEST);
                asked += 1;
            }
            self.raw.send(&buffer, 0).map_err(|source| Error::new(operation, source))?;
            let start = found.len();
            found.resize_with(start + asked, || None);
            let mut answered = 0;
            while answered < asked {
                for answer in self.receive().map_err(|source| Error::new(operation, source))? {
                    let position = answer.header.sequence_number.wrapping_sub(first_sequence) as usize;
                    if position >= asked {
                        continue;
                    }
                    match answer.payload {
                        NetlinkPayload::InnerMessage(message) => found[start + position] = Some(message),
                        NetlinkPayload::Error(_) => {}
                        _ => continue,
                    }
                    answered += 1;
                }
            }
        }
        Ok(found)
    }

    /// Sends any number of requests, a few hundred at a time; see [`Socket::batch`]. Goes on after refusals.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked. Refusals are returned, each with the position of its request.
    pub fn batch_each(&mut self, requests: Vec<Request>) -> Result<Vec<(usize, Error)>, Error> {
        let mut refusals = Vec::new();
        let mut position = 0;
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let chunk: Vec<Request> = requests.by_ref().take(BATCH_LEN).collect();
            let count = chunk.len();
            refusals.extend(self.send_batch(chunk)?.into_iter().map(|(offset, error)| (position + offset, error)));
            position += count;
        }
        Ok(refusals)
    }

    /// Asks for every object of a kind. A list that changed while the kernel put it together may lack objects that were
    /// there all the time (`NLM_F_DUMP_INTR`), so it is asked for again.
    ///
    /// # Errors
    ///
    /// The kernel refuses, or the list changes all the time.
    pub fn dump(&mut self, operation: &str, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.try_dump(operation, message.clone())? {
                return Ok(objects);
            }
        }
        Err(Error::new(operation, io::Error::new(io::ErrorKind::Interrupted, "the list changes all the time")))
    }

    /// Asks for every object of a kind; `None` if they changed meanwhile.
    fn try_dump(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let mut buffer = Vec::new();
        self.append(&mut buffer, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.raw.send(&buffer, 0).map_err(|source| Error::new(operation, source))?;
        let mut objects = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in self.receive().map_err(|source| Error::new(operation, source))? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => objects.push(message),
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(objects)),
                    NetlinkPayload::Error(error) => return Err(Error::new(operation, error.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = buffer.len();
        // Messages of a batch start on a multiple of four (NLMSG_ALIGNTO).
        buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }

    /// Receives one datagram: one or more messages.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.datagram.clear();
        self.datagram.reserve(DATAGRAM_LEN);
        self.raw.recv(&mut self.datagram, 0)?;
        let mut messages = Vec::new();
        let mut rest: &[u8] = &self.datagram;
        while rest.len() >= 16 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            messages.push(message);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(messages)
    }
}
