//! Clients of the API server, and what their errors mean.

use std::{error::Error, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use axum::http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Timing;
use crate::config::kubernetes::KubernetesConfig;

/// Longest time for a connection, with TLS.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes a client. Nothing is sent yet. Certificates and keys of a kubeconfig are read now; a token, and the certificate
/// authority of a service account, are read again while the client is in use.
///
/// # Errors
///
/// Files or environment lack something.
pub(super) async fn connect(config: &KubernetesConfig, timing: Timing) -> Result<Client> {
    let mut settings = match &config.kubeconfig {
        Some(path) => {
            let operation = || format!("kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).map_err(|error| anyhow!(chain(&error))).with_context(operation)?;
            let options = KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
            let settings = kube::Config::from_custom_kubeconfig(file, &options).await;
            settings.map_err(|error| anyhow!(chain(&error))).with_context(operation)?
        }
        // The service's address in the environment does not matter then.
        None if config.api_server.is_some() => kube::Config::incluster_dns().context("service account of the pod")?,
        None => kube::Config::incluster_env()
            .context("service account of the pod (outside of a pod, give the store a `kubeconfig`)")?,
    };
    if let Some(url) = config.api_server()? {
        settings.cluster_url = url;
    }
    settings.connect_timeout = Some(CONNECT);
    // A server that vanishes without a word is noticed by its silence.
    settings.read_timeout = Some(timing.silence);
    settings.reset_reader_on_write = true;
    // Retries are this module's business: a hidden one would keep a failure back.
    settings.default_retry = false;
    settings.headers.push((USER_AGENT, HeaderValue::from_static(concat!("podnet/", env!("CARGO_PKG_VERSION")))));
    Client::try_from(settings).map_err(|error| anyhow!("make a client of the API server: {}", chain(&error)))
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The server's HTTP status; `None`: it did not answer, or what it said makes no sense.
    pub(super) code: Option<u16>,
    /// Whether the server could not be asked at all.
    pub(super) is_away: bool,
    /// For people.
    pub(super) reason: String,
    /// How long the server asks to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    /// Makes a refusal without an answer of the server.
    pub(super) fn without_answer(reason: String) -> Self {
        Self { code: None, is_away: false, reason, retry_after: None }
    }

    /// Explains an error of a request that needs a verb on a resource, as RBAC names them.
    pub(super) fn new(error: &kube::Error, verb: &str, resource: &str) -> Self {
        let kube::Error::Api(status) = error else {
            let reason = format!("{verb} {resource}: {}", chain(error));
            return Self { is_away: true, ..Self::without_answer(reason) };
        };
        Self::of_status(status, verb, resource)
    }

    /// Explains a status that the server sent.
    pub(super) fn of_status(status: &kube::core::Status, verb: &str, resource: &str) -> Self {
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        let reason = match status.code {
            401 => format!(
                "{verb} {resource}: the API server does not accept podnet's credentials ({message}); check the token of the service account, or the user of the kubeconfig"
            ),
            403 => format!(
                "podnet lacks a permission: give its ClusterRole the verb \"{verb}\" on the resource \"{resource}\" ({message})"
            ),
            code => format!("{verb} {resource}: the API server answered {code}: {message}"),
        };
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let retry_after = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds.min(60))));
        Self { code: Some(status.code), is_away: false, reason, retry_after }
    }

    /// Whether the state from which the request starts is not to be had any more (410), or never was there (504, after
    /// the server's database was restored from a backup).
    pub(super) fn is_expired(&self) -> bool {
        self.code == Some(410) || (self.code == Some(504) && self.reason.contains("Too large resource version"))
    }
}

/// Sends a request and returns the answer's whole text.
pub(super) async fn request_text(
    client: &Client,
    request: axum::http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<String, kube::Error> {
    timed(limit, client.request_text(request)).await
}

/// Bounds the time of a request.
pub(super) async fn timed<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service(format!("no answer within {} s", limit.as_secs_f32()).into());
    tokio::time::timeout(limit, request).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// Returns an error with its causes, each once: kube's errors repeat theirs.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: serde_json::Value) -> Refusal {
        let status: kube::core::Status = serde_json::from_value(json).unwrap();
        Refusal::new(&kube::Error::Api(status.boxed()), "watch", "nodes")
    }

    #[test]
    fn a_missing_permission_is_named() {
        let refused = refusal(serde_json::json!({"kind": "Status", "code": 403, "reason": "Forbidden",
            "message": "nodes is forbidden"}));
        assert!(refused.reason.contains("\"watch\" on the resource \"nodes\""), "{refused:?}");
        let refused = refusal(serde_json::json!({"code": 401, "reason": "Unauthorized", "message": "Unauthorized"}));
        assert!(refused.reason.contains("credentials"), "{refused:?}");
    }

    #[test]
    fn expiry_and_delays_are_understood() {
        assert!(refusal(serde_json::json!({"code": 410, "reason": "Expired"})).is_expired());
        let restored = serde_json::json!({"code": 504, "message": "Too large resource version: 9, current: 3"});
        assert!(refusal(restored).is_expired());
        let busy = refusal(serde_json::json!({"code": 429, "details": {"retryAfterSeconds": 3}}));
        assert_eq!((busy.is_expired(), busy.retry_after), (false, Some(Duration::from_secs(3))));
    }
}
