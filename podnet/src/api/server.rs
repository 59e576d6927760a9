//! The daemon's end of the API: an HTTP router that passes each request to the engine.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRef, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use tokio::net::{TcpListener, UnixListener};

use super::{
    AddRequest, ApiError, Attachment, CheckRequest, DatapathRequest, DeleteRequest, ErrorKind, GcReply, GcRequest,
    LogLevels, NodeInfo, Pod, Status,
    client::{Client, ClientError},
    path,
};
use crate::{
    engine::{Command, Handle},
    install::keep::Installation,
    logging::Logging,
};

/// What handlers need.
#[derive(Clone, Debug)]
pub struct Context {
    /// The engine.
    pub engine: Handle,
    /// Health of the daemon.
    pub health: Health,
    /// The daemon's logs.
    pub logging: Logging,
    /// The plugin's installation.
    pub installation: Installation,
}

/// Health of a daemon, told from before it has an engine.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<Progress>>,
}

/// How far the daemon has come.
#[derive(Clone, Debug)]
enum Progress {
    /// It waits for something.
    Waiting(String),
    /// The engine serves.
    Serving(Handle),
}

impl Default for Progress {
    fn default() -> Self {
        Self::Waiting("the daemon is starting".into())
    }
}

impl Health {
    /// Notes what the start waits for.
    pub fn wait_for(&self, reason: String) {
        *self.lock() = Progress::Waiting(reason);
    }

    /// Notes that the engine serves.
    pub fn serve(&self, engine: Handle) {
        *self.lock() = Progress::Serving(engine);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the engine, or what the start waits for.
    fn engine(&self) -> Result<Handle, String> {
        match &*self.lock() {
            Progress::Waiting(reason) => Err(reason.clone()),
            Progress::Serving(engine) => Ok(engine.clone()),
        }
    }
}

impl FromRef<Context> for Health {
    fn from_ref(context: &Context) -> Self {
        context.health.clone()
    }
}

/// Largest request body: a GC with tens of thousands of attachments fits.
const BODY_LIMIT: usize = 16 << 20;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ErrorKind::InvalidRequest | ErrorKind::InvalidNetns => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::Mismatch | ErrorKind::AddressInUse => StatusCode::CONFLICT,
            ErrorKind::Exhausted | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// Unpacks a body, or says what is wrong with it.
fn body<T>(body: Body<T>) -> Result<T, ApiError> {
    body.map(|Json(value)| value).map_err(|rejection| ApiError::new(ErrorKind::InvalidRequest, rejection.body_text()))
}

/// An answer without content.
fn done(_: ()) -> Json<serde_json::Value> {
    Json(serde_json::json!({}))
}

/// Returns the router of the unix socket: the whole API.
pub fn router(context: Context) -> Router {
    Router::new()
        .route(path::ADD, post(add))
        .route(path::DELETE, post(delete))
        .route(path::CHECK, post(check))
        .route(path::GC, post(gc))
        .route(path::STATUS, get(status))
        .route(path::PODS, get(pods))
        .route(path::NODES, get(nodes))
        .route(path::LOG, put(log))
        .route(path::DATAPATH, put(datapath))
        .merge(health_routes())
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .fallback(|| async {
            ApiError::new(
                ErrorKind::InvalidRequest,
                "podnet's API has no such path; client and daemon may differ in version",
            )
        })
        .with_state(context)
}

/// Returns the router of the optional TCP address: health only.
pub fn health_router(health: Health) -> Router {
    health_routes().with_state(health)
}

fn health_routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Health: FromRef<S>,
{
    Router::new().route(path::HEALTHZ, get(healthz)).route(path::READYZ, get(readyz))
}

async fn add(State(context): State<Context>, request: Body<AddRequest>) -> Answer<Attachment> {
    let request = Box::new(body(request)?);
    context.engine.ask(|reply| Command::Add(request, reply)).await.map(Json)
}

async fn delete(State(context): State<Context>, request: Body<DeleteRequest>) -> Answer<serde_json::Value> {
    let request = body(request)?;
    context.engine.ask(|reply| Command::Delete(request, reply)).await.map(done)
}

async fn check(State(context): State<Context>, request: Body<CheckRequest>) -> Answer<serde_json::Value> {
    let request = body(request)?;
    context.engine.ask(|reply| Command::Check(request, reply)).await.map(done)
}

async fn gc(State(context): State<Context>, request: Body<GcRequest>) -> Answer<GcReply> {
    let request = body(request)?;
    context.engine.ask(|reply| Command::Gc(request, reply)).await.map(Json)
}

async fn status(State(context): State<Context>) -> Answer<Status> {
    let mut status = context.engine.ask(Command::Status).await?;
    status.warnings.extend(context.installation.warnings());
    Ok(Json(status))
}

async fn pods(State(context): State<Context>) -> Answer<Vec<Pod>> {
    context.engine.ask(Command::Pods).await.map(Json)
}

async fn nodes(State(context): State<Context>) -> Answer<Vec<NodeInfo>> {
    context.engine.ask(Command::Nodes).await.map(Json)
}

async fn log(State(context): State<Context>, levels: Body<LogLevels>) -> Answer<LogLevels> {
    let levels = body(levels)?;
    let invalid = |error: anyhow::Error| ApiError::new(ErrorKind::InvalidRequest, format!("{error:#}"));
    // Both are parsed before either is set.
    let ebpf = levels.ebpf.as_deref().map(str::parse).transpose().map_err(anyhow::Error::msg).map_err(invalid)?;
    if let Some(filter) = &levels.daemon {
        context.logging.set_filter(filter).map_err(invalid)?;
    }
    if let Some(level) = ebpf {
        context.engine.ask(|reply| Command::SetEbpfLog(level, reply)).await?;
        context.logging.set_ebpf(level);
    }
    Ok(Json(context.logging.levels()))
}

async fn datapath(State(context): State<Context>, request: Body<DatapathRequest>) -> Answer<serde_json::Value> {
    let request = body(request)?;
    context.engine.ask(|reply| Command::Datapath(request, reply)).await.map(done)
}

/// Alive is a daemon whose engine answers, and one that waits for its pod CIDRs: to start it anew would not help.
async fn healthz(State(health): State<Health>) -> Result<&'static str, ApiError> {
    match health.engine() {
        Ok(engine) => engine.ask(Command::Status).await.map(|_| "ok\n"),
        Err(_) => Ok("ok\n"),
    }
}

async fn readyz(State(health): State<Health>) -> Result<&'static str, ApiError> {
    let not_ready = match health.engine() {
        Ok(engine) => engine.ask(Command::Status).await?.not_ready_reason,
        Err(waiting) => Some(waiting),
    };
    not_ready.map_or(Ok("ok\n"), |reason| Err(ApiError::new(ErrorKind::Unavailable, reason)))
}

/// Binds the unix socket, for root alone.
///
/// # Errors
///
/// Another daemon serves it already, or it cannot be made.
pub fn bind(socket: &Path) -> Result<UnixListener> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    ensure_not_served(socket)?;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the stale socket {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("bind {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", socket.display()))?;
    Ok(listener)
}

/// Makes sure that no daemon serves a socket. A daemon that was killed may take a moment to go, since a thread of it
/// may be inside the kernel; it holds its socket so long, but answers no more.
///
/// # Errors
///
/// A daemon answers there, something holds the socket for longer than a dying daemon would, or a file is there.
pub fn ensure_not_served(socket: &Path) -> Result<()> {
    let is_other = std::fs::symlink_metadata(socket).is_ok_and(|metadata| !metadata.file_type().is_socket());
    ensure!(!is_other, "{} exists and is no socket; remove it, or set socket to another path", socket.display());
    let start = Instant::now();
    loop {
        match Client::new(socket).with_timeout(Duration::from_secs(1)).status() {
            Err(ClientError::Unreachable { .. }) => return Ok(()),
            Ok(_) | Err(ClientError::Api(_)) => bail!(
                "another podnet daemon serves {}; stop it first, or give this one a socket of its own",
                socket.display()
            ),
            Err(error) if start.elapsed() > DYING => {
                bail!("{} is held by a process that does not answer as a daemon: {error}", socket.display())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// How long a killed daemon may hold its socket.
const DYING: Duration = Duration::from_secs(10);

/// Serves a router on the unix socket until `shutdown` ends; requests under way are answered.
pub async fn serve_unix(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await.context("serve the API")
}

/// Serves a router on a TCP address until the runtime ends.
pub async fn serve_tcp(listener: TcpListener, router: Router) -> Result<()> {
    axum::serve(listener, router).await.context("serve the health address")
}

/// How long a shutdown waits for requests under way.
pub const DRAIN: Duration = Duration::from_secs(5);
