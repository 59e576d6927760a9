//! Synchronous client of the daemon's API: one HTTP/1.1 request per connection over the unix socket.
//!
//! Used by the CNI plugin, which a runtime execs several times per pod, and by the command line. It starts no thread
//! and no async runtime, and keeps no connection.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use socket2::{Domain, SockAddr, Socket, Type};
use ureq::{
    Agent, Body,
    http::{Request, Response, Uri, header::CONTENT_TYPE},
    unversioned::{
        resolver::{ResolvedSocketAddrs, Resolver},
        transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport},
    },
};

use super::{
    AddRequest, ApiError, Attachment, CheckRequest, DatapathRequest, DeleteRequest, GcReply, GcRequest, LogLevels,
    NodeInfo, Pod, Status, path,
};

/// Longest wait for the daemon to accept a connection; it only waits at all when the socket's backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest duration of a call unless [`Client::with_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer read: the list of pods of a very large node fits a hundred times.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Size of the input and the output buffer: a request or an answer of the CNI plugin fits.
const BUFFER: usize = 8 << 10;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection was made and nothing was sent.
    #[error("podnet daemon is not reachable at {}: {reason}", socket.display())]
    Unreachable {
        /// The daemon's socket.
        socket: PathBuf,
        /// What the connection met, and what to do about it.
        reason: String,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The request was sent, at least in part, and no answer came in time.
    #[error("podnet daemon at {} did not answer within {} s; look at its log", socket.display(), timeout.as_secs())]
    Timeout {
        /// The daemon's socket.
        socket: PathBuf,
        /// The time given.
        timeout: Duration,
    },
    /// The connection broke after it was made.
    #[error("connection to podnet daemon at {}: {error}", socket.display())]
    Io {
        /// The daemon's socket.
        socket: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// What came back is no answer of this API.
    #[error("answer of podnet daemon at {}: {reason}", socket.display())]
    Protocol {
        /// The daemon's socket.
        socket: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A client of the daemon that listens on one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Makes a client; it connects on each call.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf(), timeout: DEFAULT_TIMEOUT }
    }

    /// Sets the longest duration of a call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Attaches a pod.
    pub fn add(&self, request: &AddRequest) -> Result<Attachment, ClientError> {
        self.send("POST", path::ADD, request)
    }

    /// Detaches a pod; one that is not attached is success.
    pub fn delete(&self, request: &DeleteRequest) -> Result<(), ClientError> {
        self.send("POST", path::DELETE, request).map(|Empty {}| ())
    }

    /// Compares an attachment with how it was made.
    pub fn check(&self, request: &CheckRequest) -> Result<(), ClientError> {
        self.send("POST", path::CHECK, request).map(|Empty {}| ())
    }

    /// Releases what a network no longer needs.
    pub fn gc(&self, request: &GcRequest) -> Result<GcReply, ClientError> {
        self.send("POST", path::GC, request)
    }

    /// Returns the state of the node.
    pub fn status(&self) -> Result<Status, ClientError> {
        self.get(path::STATUS)
    }

    /// Returns the attached pods.
    pub fn pods(&self) -> Result<Vec<Pod>, ClientError> {
        self.get(path::PODS)
    }

    /// Returns the cluster's nodes, and how each is reached.
    pub fn nodes(&self) -> Result<Vec<NodeInfo>, ClientError> {
        self.get(path::NODES)
    }

    /// Changes log levels and returns those now in force.
    pub fn set_log(&self, levels: &LogLevels) -> Result<LogLevels, ClientError> {
        self.send("PUT", path::LOG, levels)
    }

    /// Attaches, detaches or reloads the eBPF path.
    pub fn datapath(&self, request: DatapathRequest) -> Result<(), ClientError> {
        self.send("PUT", path::DATAPATH, &request).map(|Empty {}| ())
    }

    /// Returns success when pods can be added, the reason as [`ClientError::Api`] otherwise.
    pub fn readyz(&self) -> Result<(), ClientError> {
        self.exchange("GET", path::READYZ, Vec::new()).map(|_body| ())
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.decode(&self.exchange("GET", path, Vec::new())?)
    }

    fn send<T: DeserializeOwned>(&self, method: &str, path: &str, request: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.protocol(format!("encode request: {error}")))?;
        self.decode(&self.exchange(method, path, body)?)
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| {
            self.protocol(format!("{error}; are the plugin and the daemon of the same version? {}", excerpt(body)))
        })
    }

    /// Sends one request and returns the body of its 2xx answer.
    fn exchange(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        let connector = UnixConnector { socket: self.socket.clone() };
        // No proxy: `HTTP_PROXY` in a runtime's environment is not meant for a unix socket.
        let config = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
            .timeout_global(Some(self.timeout))
            .build();
        let agent = Agent::with_parts(config, connector, NoResolver);
        // The host only fills the `Host` header.
        let request = Request::builder()
            .method(method)
            .uri(format!("http://podnet{path}"))
            .header(CONTENT_TYPE, "application/json");
        let sent = if method == "GET" {
            request.body(()).map(|request| agent.run(request))
        } else {
            request.body(body).map(|request| agent.run(request))
        };
        let response = sent
            .map_err(|error| self.protocol(format!("build request: {error}")))?
            .map_err(|error| self.failed(error))?;
        self.accept(response)
    }

    /// Reads an answer and turns every status that is not 2xx into its error.
    fn accept(&self, mut response: Response<Body>) -> Result<Vec<u8>, ClientError> {
        let status = response.status();
        let body =
            response.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec().map_err(|error| self.failed(error))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(serde_json::from_slice::<ApiError>(&body).map_or_else(
            |_| self.protocol(format!("HTTP status {status} without an error of this API: {}", excerpt(&body))),
            ClientError::Api,
        ))
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason }
    }

    fn failed(&self, error: ureq::Error) -> ClientError {
        let socket = self.socket.clone();
        match error {
            ureq::Error::Timeout(_) => ClientError::Timeout { socket, timeout: self.timeout },
            ureq::Error::Io(error) => ClientError::Io { socket, error },
            ureq::Error::Other(error) => match error.downcast::<NotConnected>() {
                Ok(error) => ClientError::Unreachable { socket, reason: unreachable_reason(&error.0) },
                Err(error) => ClientError::Protocol { socket, reason: error.to_string() },
            },
            error => ClientError::Protocol { socket, reason: error.to_string() },
        }
    }
}

/// The empty object that answers a request without a reply; fields of later versions are ignored.
#[derive(serde::Deserialize)]
struct Empty {}

/// Returns the beginning of a body for an error message.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(200)]);
    format!("the body is {text:?}{}", if body.len() > 200 { "..." } else { "" })
}

/// Says why no connection was made, and what to do about it.
fn unreachable_reason(error: &io::Error) -> String {
    const START: &str = "start the daemon (`systemctl start podnet`, or `podnet daemon` by hand)";
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "the socket does not exist; {START}, or, if it runs, look at its log: it may wait for its pod CIDRs"
        ),
        io::ErrorKind::ConnectionRefused => format!("nothing listens on the socket; {START}"),
        io::ErrorKind::PermissionDenied => "permission denied; the socket is root's, run this as root".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "it accepted no connection within {} s; the daemon hangs or is overloaded, look at its log",
            CONNECT_TIMEOUT.as_secs()
        ),
        _ => format!("{error}; {START}"),
    }
}

/// Marks an error of the connection attempt, before anything was sent.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct NotConnected(io::Error);

/// Connects to a unix socket, whatever the URI says.
#[derive(Debug)]
struct UnixConnector {
    socket: PathBuf,
}

impl UnixConnector {
    fn open(&self) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // The send timeout bounds connect(2) on a full backlog, too (unix_stream_connect in net/unix/af_unix.c).
        socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        socket.connect(&SockAddr::unix(&self.socket)?)?;
        Ok(socket.into())
    }
}

impl Connector for UnixConnector {
    type Out = UnixTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Self::Out>, ureq::Error> {
        let stream = self.open().map_err(|error| ureq::Error::Other(Box::new(NotConnected(error))))?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(UnixTransport { stream, buffers }))
    }
}

/// An HTTP connection over a unix socket.
struct UnixTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl fmt::Debug for UnixTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixTransport").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Returns what is left of a call's time, to bound the next system call.
fn time_left(timeout: NextTimeout) -> Result<Option<Duration>, ureq::Error> {
    // `not_zero` gives a second more to a call whose time is up; a daemon that trickles would have it again and again.
    if timeout.after.is_zero() {
        Err(ureq::Error::Timeout(timeout.reason))
    } else {
        Ok(timeout.not_zero().map(|left| *left))
    }
}

/// Maps the two kinds that an expired socket timeout has to ureq's timeout.
fn timed_out(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(time_left(timeout)?)?;
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output).map_err(|error| timed_out(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(time_left(timeout)?)?;
        let input = self.buffers.input_append_buf();
        let amount = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.map_err(|error| timed_out(error, timeout))?,
            }
        };
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Only asked of a pooled connection, and none is pooled.
        false
    }
}

/// Resolves nothing: the connector knows where to go.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &ureq::config::Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        // ureq takes an empty list for an unknown host.
        addresses.push(([0, 0, 0, 0], 0).into());
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests;
