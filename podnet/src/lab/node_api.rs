//! What the lab asks of a node's daemon: readiness, status, pods, and to change the eBPF path.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::api::{DatapathRequest, Pod, Status, path};

/// How long the daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns `None` once pods can be added; what is missing until then.
#[must_use]
pub fn not_ready_reason(socket: &Path) -> Option<String> {
    match request(socket, "GET", path::READYZ, "") {
        Ok((200, _)) => None,
        Ok((code, body)) => Some(format!("the daemon answers {code}: {body}")),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Returns the daemon's status.
pub fn status(socket: &Path) -> Result<Status> {
    get(socket, path::STATUS)
}

/// Returns the pods that the daemon has.
pub fn pods(socket: &Path) -> Result<Vec<Pod>> {
    get(socket, path::PODS)
}

/// Attaches, detaches or reloads the eBPF programs.
pub fn set_datapath(socket: &Path, change: DatapathRequest) -> Result<()> {
    let body = serde_json::to_string(&change).context("encode the request")?;
    match request(socket, "PUT", path::DATAPATH, &body)? {
        (200..=299, _) => Ok(()),
        (code, answer) => bail!("PUT {} {body}: {code}: {answer}", path::DATAPATH),
    }
}

fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    match request(socket, "GET", path, "")? {
        (200, body) => serde_json::from_str(&body).with_context(|| format!("GET {path}: unexpected answer {body}")),
        (code, body) => bail!("GET {path}: {code}: {body}"),
    }
}

/// Sends one HTTP/1.0 request, so that the answer comes unchunked and ends with the connection.
fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let exchange = || -> Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: podnet\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(|| format!("ask the daemon at {}", socket.display()))?;
    parse(&answer).with_context(|| format!("the daemon at {} answered {answer:?}", socket.display()))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_code_and_body() {
        assert_eq!(parse("HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\nstarting"), Some((503, "starting".into())));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn an_absent_daemon_is_a_reason_not_to_be_ready() {
        assert!(not_ready_reason(Path::new("/nonexistent/podnet.sock")).unwrap().contains("/nonexistent/podnet.sock"));
    }
}
