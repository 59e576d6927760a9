//! A fake API server over real HTTP, which answers as a real one does: `GET /api/v1/nodes` as list in pages and as watch,
//! and `PATCH /api/v1/nodes/NAME/status`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State as Extract},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, patch},
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch};

use crate::{
    objects::{FakeNode, bookmark, failure},
    state::{Fault, Seen, State},
    tls::{Identity, TlsListener},
};

/// A fake API server. It listens in the network namespace of the thread that made it, until it is dropped.
pub(crate) struct FakeApi {
    shared: Shared,
    address: SocketAddr,
    identity: Option<Identity>,
    runtime: Option<Runtime>,
}

#[derive(Clone)]
pub(crate) struct Shared {
    state: Arc<Mutex<State>>,
    /// Wakes watches when something has changed.
    changed: watch::Sender<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl FakeApi {
    /// Starts a server at an address without TLS.
    pub(crate) fn start(address: &str) -> Self {
        Self::with(address, None)
    }

    /// Starts a server at an address, with TLS if it has an identity.
    pub(crate) fn with(address: &str, identity: Option<Identity>) -> Self {
        let shared = Shared { state: Arc::new(Mutex::new(State::new())), changed: watch::Sender::new(()) };
        let mut api = Self { shared, address: address.parse().unwrap(), identity, runtime: None };
        api.resume();
        api
    }

    /// Returns the address at which it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Breaks off all connections. New ones are refused until [`FakeApi::resume`].
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
        self.state(|state| state.watches = 0);
    }

    /// Serves again, in the network namespace of the calling thread.
    pub(crate) fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let router = Router::new()
            .route("/api/v1/nodes", get(nodes))
            .route("/api/v1/nodes/{name}/status", patch(status))
            .with_state(self.shared.clone());
        let identity = self.identity.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            match identity {
                None => axum::serve(listener, router).await.unwrap(),
                Some(identity) => axum::serve(TlsListener::new(listener, &identity), router).await.unwrap(),
            }
        });
        self.runtime = Some(runtime);
    }

    /// Looks at the state, or changes it; watches see what is new.
    pub(crate) fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.shared.lock());
        self.shared.changed.send_replace(());
        result
    }

    /// Adds or replaces nodes.
    pub(crate) fn put(&self, nodes: impl IntoIterator<Item = FakeNode>) {
        self.state(|state| nodes.into_iter().for_each(|node| state.put(node)));
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn refuse(code: u16, reason: &str, message: &str) -> Response {
    answer(code, &failure(code, reason, message))
}

fn answer(code: u16, body: &Value) -> Response {
    (StatusCode::from_u16(code).unwrap(), Json(body.clone())).into_response()
}

/// Checks who asks, and whether they may; then shows the fault that this request shall meet, if any.
async fn admit(shared: &Shared, headers: &HeaderMap, seen: Seen) -> Result<Option<Fault>, Response> {
    let Seen { verb, resource, .. } = seen;
    let fault = {
        let mut state = shared.lock();
        let fault = state.note(seen);
        let bearer = state.token.as_ref().map(|token| format!("Bearer {token}"));
        if bearer.is_some() && headers.get("authorization").and_then(|value| value.to_str().ok()) != bearer.as_deref() {
            return Err(refuse(401, "Unauthorized", "Unauthorized"));
        }
        if !state.allowed.contains(&(verb, resource)) {
            let message = format!(
                "nodes is forbidden: User \"system:serviceaccount:podnet:podnet\" cannot {verb} resource \"{resource}\" in API group \"\" at the cluster scope"
            );
            return Err(refuse(403, "Forbidden", &message));
        }
        fault
    };
    match fault {
        Some(Fault::Status(code, body)) => Err(answer(code, &body)),
        Some(Fault::Late(delay)) => {
            tokio::time::sleep(delay).await;
            Ok(None)
        }
        fault => Ok(fault),
    }
}

async fn nodes(
    Extract(shared): Extract<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let is_watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let verb = if is_watch { "watch" } else { "list" };
    let seen = Seen { verb, resource: "nodes", query: query.clone() };
    match admit(&shared, &headers, seen).await {
        Err(response) => response,
        Ok(fault) if is_watch => watch_nodes(shared, &query, fault),
        Ok(_) => list_nodes(&shared, &query),
    }
}

fn list_nodes(shared: &Shared, query: &BTreeMap<String, String>) -> Response {
    let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let token = query.get("continue").map(String::as_str);
    if token.is_some() && query.contains_key("resourceVersion") {
        return refuse(400, "BadRequest", "specifying resource version is not allowed when using continue");
    }
    let Some(page) = shared.lock().page(limit, token) else {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";
        return refuse(410, "Expired", message);
    };
    let mut metadata = json!({ "resourceVersion": page.version.to_string() });
    if let Some((token, remaining)) = page.next {
        metadata["continue"] = token.into();
        metadata["remainingItemCount"] = remaining.into();
    }
    answer(200, &json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": page.items }))
}

fn watch_nodes(shared: Shared, query: &BTreeMap<String, String>, fault: Option<Fault>) -> Response {
    let version: u64 = query["resourceVersion"].parse().unwrap();
    let newest = shared.lock().version;
    if version > newest {
        let message = format!("Timeout: Too large resource version: {version}, current: {newest}");
        return refuse(504, "Timeout", &message);
    }
    let timeout = query.get("timeoutSeconds").map_or(1800, |seconds| seconds.parse().unwrap());
    let feed = Feed {
        deadline: Instant::now() + Duration::from_secs(timeout),
        bookmark_at: query.contains_key("allowWatchBookmarks").then(|| Instant::now() + shared.lock().bookmarks),
        changed: shared.changed.subscribe(),
        open: Open::new(&shared),
        shared,
        version,
        fault,
        sent: 0,
        is_over: false,
    };
    let lines = futures::stream::unfold(feed, async |mut feed| Some((feed.next().await?, feed)));
    let body = Body::from_stream(lines.map(|line| line.map_err(|()| std::io::Error::other("cut"))));
    (StatusCode::OK, [("content-type", "application/json")], body).into_response()
}

/// Counts a watch as long as it is open.
struct Open(Shared);

impl Open {
    fn new(shared: &Shared) -> Self {
        shared.lock().watches += 1;
        Self(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.watches = state.watches.saturating_sub(1);
    }
}

/// The events of one watch.
struct Feed {
    shared: Shared,
    changed: watch::Receiver<()>,
    version: u64,
    deadline: Instant,
    bookmark_at: Option<Instant>,
    fault: Option<Fault>,
    sent: usize,
    is_over: bool,
    #[expect(dead_code, reason = "counts until it is dropped")]
    open: Open,
}

impl Feed {
    /// Returns the next piece of the body; `None`: its end; `Err`: the connection breaks.
    async fn next(&mut self) -> Option<Result<Bytes, ()>> {
        loop {
            if self.is_over {
                return match self.fault {
                    Some(Fault::CutAfter(_)) => {
                        // What was sent shall arrive before.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Some(Err(()))
                    }
                    _ => None,
                };
            }
            if let Some(piece) = self.ready() {
                return Some(Ok(piece));
            }
            let wake = self.bookmark_at.unwrap_or(self.deadline).min(self.deadline);
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Returns what is to be sent now.
    fn ready(&mut self) -> Option<Bytes> {
        let state = self.shared.lock();
        let now = Instant::now();
        if state.silent {
            self.bookmark_at = self.bookmark_at.map(|_| now + state.bookmarks);
            self.deadline = self.deadline.max(now + Duration::from_secs(1));
            return None;
        }
        if let Some(Fault::ErrorEvent(status)) = &self.fault {
            self.is_over = true;
            return Some(line(&json!({ "type": "ERROR", "object": status })));
        }
        if self.version < state.compacted {
            self.is_over = true;
            let message = format!("too old resource version: {} ({})", self.version, state.compacted);
            return Some(line(&json!({ "type": "ERROR", "object": failure(410, "Expired", &message) })));
        }
        if let Some((version, event)) = state.event_after(self.version) {
            let whole = line(&event);
            if matches!(self.fault, Some(Fault::CutAfter(count)) if self.sent >= count) {
                self.is_over = true;
                return Some(whole.slice(..whole.len() / 2));
            }
            self.version = version;
            self.sent += 1;
            return Some(whole);
        }
        if now >= self.deadline {
            self.is_over = true;
            return Some(Bytes::new());
        }
        if self.bookmark_at.is_some_and(|at| now >= at) {
            self.bookmark_at = Some(now + state.bookmarks);
            self.version = state.version;
            return Some(line(&bookmark(state.version)));
        }
        None
    }
}

fn line(event: &Value) -> Bytes {
    format!("{event}\n").into()
}

async fn status(
    Extract(shared): Extract<Shared>,
    Path(name): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Infallible> {
    let seen = Seen { verb: "patch", resource: "nodes/status", query };
    if let Err(response) = admit(&shared, &headers, seen).await {
        return Ok(response);
    }
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok());
    if kind != Some("application/strategic-merge-patch+json") {
        return Ok(refuse(
            415,
            "UnsupportedMediaType",
            &format!("the body of the request was in an unknown format: {kind:?}"),
        ));
    }
    let response = {
        let mut state = shared.lock();
        match merge(&mut state, &name, &body) {
            Ok(()) => {
                let (version, node) = &state.nodes[&name];
                answer(200, &node.object(*version))
            }
            Err(response) => *response,
        }
    };
    shared.changed.send_replace(());
    Ok(response)
}

/// Merges conditions by their type, as the API server does (`patchMergeKey`); anything else in the body is an error here.
fn merge(state: &mut State, name: &str, body: &[u8]) -> Result<(), Box<Response>> {
    let invalid = |message: String| Box::new(refuse(422, "Invalid", &message));
    if !state.nodes.contains_key(name) {
        return Err(Box::new(refuse(404, "NotFound", &format!("nodes \"{name}\" not found"))));
    }
    let body: Value = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    let keys = |value: &Value| value.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    if keys(&body) != ["status"] || keys(&body["status"]) != ["conditions"] {
        return Err(invalid(format!("the patch changes something else than conditions: {body}")));
    }
    let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in &conditions {
        let typed = serde_json::from_value::<k8s_openapi::api::core::v1::NodeCondition>(condition.clone());
        typed.map_err(|error| invalid(error.to_string()))?;
        if !["True", "False", "Unknown"].iter().any(|status| condition["status"] == *status) {
            return Err(invalid(format!("Unsupported value: {}", condition["status"])));
        }
    }
    state.patches.push(body);
    state.change(name, |node| {
        for condition in conditions {
            match node.conditions.iter_mut().find(|old| old["type"] == condition["type"]) {
                Some(old) => {
                    let fields = condition.as_object().unwrap().clone();
                    old.as_object_mut().unwrap().extend(fields);
                }
                None => node.conditions.push(condition),
            }
        }
    });
    Ok(())
}
