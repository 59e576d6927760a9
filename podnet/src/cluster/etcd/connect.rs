//! A connection to one member of etcd: TLS, user, time limits; and its errors in words.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};

use crate::config::etcd::EtcdConfig;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two HTTP/2 pings while a watch is open. etcd refuses more than one in 5 s
/// (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to one member, and authenticates. Files are read each time, so that renewed ones count.
///
/// # Errors
///
/// A file cannot be read, the member does not answer, or it refuses the user.
pub(super) async fn connect(config: &EtcdConfig, endpoint: &str) -> Result<Client> {
    let options = options(config)?;
    within(Client::connect([endpoint], Some(options))).await
}

fn options(config: &EtcdConfig) -> Result<ConnectOptions> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // Without a stream etcd takes pings for an attack.
        .with_keep_alive_while_idle(false)
        // A member that is cut off from the others says so, instead of telling what was.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(ca) = &config.ca {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca", ca)?));
        if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
            tls = tls.identity(Identity::from_pem(read("certificate", certificate)?, read("key", key)?));
        }
        if let Some(name) = &config.server_name {
            tls = tls.domain_name(name);
        }
        options = options.with_tls(tls);
    }
    if let (Some(user), Some(file)) = (&config.user, &config.password_file) {
        let password = String::from_utf8(read("password-file", file)?).context("store.password-file: no UTF-8")?;
        options = options.with_user(user, password.trim_end());
    }
    Ok(options)
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("store.{field}: read {}", path.display()))
}

/// Waits for an answer of etcd, for a bounded time.
///
/// # Errors
///
/// What etcd answered, in words; or that it did not.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| explain(&error)),
        Err(_) => Err(anyhow!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
    }
}

/// Puts an error into words: the library's own text leaves out the causes.
pub(super) fn explain(error: &Error) -> anyhow::Error {
    let (first, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        Error::TransportError(error) => (error.to_string(), std::error::Error::source(error)),
        other => (other.to_string(), None),
    };
    let mut words = vec![first];
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    // Wrappers repeat what they wrap.
    words.retain(|word| !word.is_empty() && word != "transport error");
    words.dedup_by(|later, earlier| earlier.contains(later.as_str()));
    anyhow!(words.join(": "))
}

/// Returns what may help against an error that does not say it itself.
pub(super) fn hint(config: &EtcdConfig, reason: &str) -> &'static str {
    // A server that misses the client's certificate ends the connection when the handshake is over (RFC 8446, 4.4.2.4).
    if config.ca.is_some() && config.certificate.is_none() && reason.contains("connection closed") {
        return " (does etcd want a certificate? see store.certificate and store.key)";
    }
    ""
}
