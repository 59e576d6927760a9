//! A daemon without a network: it serves the API over a unix socket, answers as told, and remembers what it was asked.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use podnet::api::{ApiError, Attachment, ErrorKind};
use serde_json::{Value, json};

/// What the daemon does with a request.
pub(crate) enum Answer {
    /// 200 with this body.
    Ok(Value),
    /// An error of the API.
    Error(ErrorKind, &'static str),
    /// These bytes instead of an HTTP answer; none closes the connection at once.
    Raw(&'static str),
    /// No answer until the client gives up.
    Silence,
}

/// Decides on a request: path and body.
pub(crate) type Handler = dyn Fn(&str, &Value) -> Answer + Send + Sync;

/// A running daemon; it stops listening when dropped.
pub(crate) struct FakeDaemon {
    socket: PathBuf,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl FakeDaemon {
    /// Starts a daemon that answers by `handler`.
    pub(crate) fn start(socket: &Path, handler: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(socket).expect("bind the fake daemon's socket");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log, stopping) = (Arc::clone(&seen), Arc::clone(&stop));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let (stream, handler, log) = (stream.expect("accept"), Arc::clone(&handler), Arc::clone(&log));
                thread::spawn(move || serve(&stream, &*handler, &log));
            }
        });
        Self { socket: socket.to_owned(), seen, stop, accepting: Some(accepting) }
    }

    /// Starts a daemon that answers every request well.
    pub(crate) fn healthy(socket: &Path) -> Self {
        Self::start(socket, well)
    }

    /// Starts a daemon that answers every request with an error.
    pub(crate) fn failing(socket: &Path, kind: ErrorKind) -> Self {
        Self::start(socket, move |_, _| Answer::Error(kind, "the fake daemon says no"))
    }

    /// Returns what the daemon was asked: path and body.
    pub(crate) fn seen(&self) -> Vec<(String, Value)> {
        self.seen.lock().expect("log").clone()
    }

    /// Returns the paths that the daemon was asked.
    pub(crate) fn seen_paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|(path, _)| path).collect()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(UnixStream::connect(&self.socket));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the accepting thread");
        }
        std::fs::remove_file(&self.socket).expect("remove the fake daemon's socket");
    }
}

/// Answers as a daemon in good health.
pub(crate) fn well(path: &str, body: &Value) -> Answer {
    Answer::Ok(match path {
        "/v1/cni/add" => serde_json::to_value(attachment(body)).expect("attachment"),
        "/v1/cni/gc" => json!({"released": []}),
        _ => json!({}),
    })
}

/// Makes the attachment that the daemon reports for a request.
fn attachment(request: &Value) -> Attachment {
    serde_json::from_value(json!({
        "container_id": request["container_id"],
        "ifname": request["ifname"],
        "netns": request["netns"],
        "host_ifname": "pn0123456789a",
        "host_mac": "0a:58:00:00:00:01",
        "mac": request["mac"].as_str().unwrap_or("0a:58:0a:f4:01:02"),
        "mtu": 1450,
        "addresses": ["10.244.1.2/24", "fd00:10:244:1::2/64"],
        "gateways": ["10.244.1.1", "fd00:10:244:1::1"],
        "bridge": "v-net-0",
        "bridge_mac": "0a:58:0a:f4:01:01",
    }))
    .expect("attachment")
}

fn serve(stream: &UnixStream, handler: &Handler, log: &Mutex<Vec<(String, Value)>>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("read the request's body");
    let path = head.split_whitespace().nth(1).expect("path").to_owned();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON body") };
    log.lock().expect("log").push((path.clone(), body.clone()));
    let answer = match handler(&path, &body) {
        Answer::Ok(value) => http("200 OK", &value),
        Answer::Error(kind, message) => {
            http("500 Error", &serde_json::to_value(ApiError::new(kind, message)).expect("error"))
        }
        Answer::Raw(bytes) => bytes.to_owned(),
        Answer::Silence => {
            // Until the client closes its end.
            reader.read_to_end(&mut Vec::new()).expect("wait for the client");
            return;
        }
    };
    // A client that has gone away is the test's business, not the daemon's.
    if (&*stream).write_all(answer.as_bytes()).is_ok() {
        stream.shutdown(Shutdown::Write).unwrap_or_default();
    }
}

fn http(status: &str, body: &Value) -> String {
    let body = body.to_string();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
