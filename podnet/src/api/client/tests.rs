//! Tests of the client against a server of one connection.

use std::{io::BufRead as _, os::unix::net::UnixListener, thread};

use super::*;
use crate::api::ErrorKind;

/// Serves one connection: reads the head and the body, and sends `answer`.
fn serve_once(answer: &'static str) -> (tempfile::TempDir, Client, thread::JoinHandle<String>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podnet.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = io::BufReader::new(&stream);
        let mut seen = String::new();
        while !seen.ends_with("\r\n\r\n") {
            reader.read_line(&mut seen).unwrap();
        }
        let length = seen
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        (&stream).write_all(answer.as_bytes()).unwrap();
        seen + &String::from_utf8(body).unwrap()
    });
    (dir, Client::new(&socket).with_timeout(Duration::from_secs(5)), server)
}

fn delete() -> DeleteRequest {
    DeleteRequest { key: crate::api::AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() } }
}

#[test]
fn a_call_sends_json_and_reads_json() {
    let (_dir, client, server) =
        serve_once("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"new\":1}");
    client.delete(&delete()).unwrap();
    let seen = server.join().unwrap();
    assert!(seen.starts_with("POST /v1/cni/delete HTTP/1.1\r\n"), "{seen}");
    assert!(seen.to_ascii_lowercase().contains("content-type: application/json"), "{seen}");
    assert!(seen.ends_with("{\"container_id\":\"c1\",\"ifname\":\"eth0\"}"), "{seen}");
}

#[test]
fn a_chunked_answer_is_read() {
    let (_dir, client, server) =
        serve_once("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n");
    assert_eq!(client.pods().unwrap(), []);
    assert!(server.join().unwrap().starts_with("GET /v1/pods HTTP/1.1\r\n"));
}

#[test]
fn an_error_answer_is_the_apis() {
    let (_dir, client, _server) = serve_once(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 43\r\n\r\n{\"kind\":\"unavailable\",\"message\":\"starting\"}",
    );
    let error = client.readyz().unwrap_err();
    assert!(matches!(&error, ClientError::Api(api) if api.kind == ErrorKind::Unavailable), "{error:?}");
}

#[test]
fn other_answers_are_protocol_errors() {
    let (_dir, client, _server) = serve_once("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope");
    assert!(matches!(client.status().unwrap_err(), ClientError::Protocol { reason, .. } if reason.contains("404")));
    let (_dir, client, _server) = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope");
    assert!(matches!(client.status().unwrap_err(), ClientError::Protocol { .. }));
    let (_dir, client, _server) = serve_once("garbage\r\n\r\n");
    assert!(matches!(client.status().unwrap_err(), ClientError::Protocol { .. }));
    let (_dir, client, _server) = serve_once("");
    assert!(!matches!(client.status().unwrap_err(), ClientError::Unreachable { .. } | ClientError::Api(_)));
}

#[test]
fn no_socket_and_no_listener_are_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podnet.sock");
    let message = Client::new(&socket).readyz().unwrap_err().to_string();
    assert!(message.contains(&*socket.to_string_lossy()) && message.contains("podnet daemon"), "{message}");
    drop(UnixListener::bind(&socket).unwrap());
    let error = Client::new(&socket).readyz().unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { reason, .. } if reason.contains("nothing listens")));
    let long = Path::new("/").join("x".repeat(200));
    assert!(matches!(Client::new(&long).readyz().unwrap_err(), ClientError::Unreachable { .. }));
}

#[test]
fn a_silent_daemon_is_a_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podnet.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let client = Client::new(&socket).with_timeout(Duration::from_millis(100));
    assert!(matches!(client.readyz().unwrap_err(), ClientError::Timeout { .. }));
}

#[test]
fn a_trickling_daemon_is_a_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podnet.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nx-slow: ").unwrap();
        // Until the client has gone.
        while stream.write_all(b"x").is_ok() {
            thread::park_timeout(Duration::from_millis(20));
        }
    });
    let started = std::time::Instant::now();
    let client = Client::new(&socket).with_timeout(Duration::from_millis(200));
    assert!(matches!(client.readyz().unwrap_err(), ClientError::Timeout { .. }));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn requests_and_answers_larger_than_the_buffers_pass() {
    let pad = "x".repeat(100_000);
    let body = format!("{{\"released\":[],\"pad\":\"{pad}\"}}");
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (_dir, client, server) = serve_once(answer.leak());
    let valid =
        (0..2000).map(|id| crate::api::AttachmentKey { container_id: format!("{id:064}"), ifname: "eth0".into() });
    let request = GcRequest { network: "podnet".into(), valid: valid.collect() };
    assert_eq!(client.gc(&request).unwrap(), GcReply::default());
    assert!(server.join().unwrap().ends_with(&serde_json::to_string(&request).unwrap()));
}
