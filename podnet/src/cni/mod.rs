//! The CNI plugin: environment and standard input in, one request to the daemon, result or error on standard output.
//!
//! It holds no state but the queue of deletions (`deletions`), and this file alone knows the codes of the CNI
//! specification. Nothing but the result or the error object goes to standard output; diagnostics go to standard error.
//!
//! | code | means |
//! | --- | --- |
//! | 1 | `cniVersion` is not supported, or too old for the command |
//! | 2 | a field that podnet must not ignore (`ipam`) |
//! | 3 | CHECK: the attachment does not exist, nothing is left to clean up |
//! | 4 | an environment variable, or a value from `CNI_ARGS`, is missing or wrong |
//! | 5 | reading standard input went wrong |
//! | 6 | standard input is not a JSON object |
//! | 7 | a field of the network configuration is missing or wrong |
//! | 8 | `CNI_NETNS` is not the network namespace of a pod |
//! | 11 | the daemon cannot serve now: try again |
//! | 50 | STATUS: pods cannot be added now |
//! | 100 | ADD: the attachment, or an interface of that name, exists already |
//! | 101 | CHECK: the attachment is not as it was made |
//! | 102 | ADD: no free address is left |
//! | 103 | ADD: a requested address is in use |
//! | 999 | anything else; the daemon's log has more |

use std::{
    io::{self, Read as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::{
    api::{
        DeleteRequest, ErrorKind,
        client::{Client, ClientError},
    },
    config::Config,
};

pub mod call;
pub mod deletions;
pub mod env;
pub mod error;
pub mod netconf;
pub mod result;
pub mod version;

use call::{Add, Call, DaemonCall, Verb};
use env::{Command, Env};
use error::{CniError, Fault};
use version::Version;

/// Longest standard input read; a GC of a hundred thousand pods fits.
const STDIN_LIMIT: u64 = 64 << 20;

/// Longest that a call may take whose failure only means more work for the daemon later.
const SHORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the code of the CNI specification for a kind of error; those from 100 are podnet's own.
#[must_use]
pub const fn code(fault: Fault) -> u32 {
    match fault {
        Fault::Version => 1,
        Fault::UnsupportedField => 2,
        Fault::UnknownContainer => 3,
        Fault::Environment => 4,
        Fault::Io => 5,
        Fault::Decode => 6,
        Fault::Config => 7,
        Fault::Netns => 8,
        Fault::TryAgain => 11,
        Fault::NotAvailable => 50,
        Fault::AlreadyExists => 100,
        Fault::Mismatch => 101,
        Fault::Exhausted => 102,
        Fault::AddressInUse => 103,
        Fault::Internal => 999,
    }
}

/// Runs the plugin; `main` calls it when `CNI_COMMAND` is set.
#[must_use]
pub fn run() -> ExitCode {
    let mut stdin = Vec::new();
    let outcome = Env::parse(|name| std::env::var_os(name)).and_then(|env| {
        io::stdin().lock().take(STDIN_LIMIT).read_to_end(&mut stdin).map_err(|error| {
            CniError::new(Fault::Io, "cannot read the network configuration", format!("standard input: {error}"))
        })?;
        match Call::from_env(env, &stdin)? {
            Call::Version(answer) => Ok(answer),
            Call::Daemon(call) => serve(call),
        }
    });
    let (mut output, status) = match outcome {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => (error.to_json(Version::for_error(&stdin), code(error.fault)), ExitCode::FAILURE),
    };
    if output.is_empty() {
        return status;
    }
    output.push(b'\n');
    // One write, past the line buffer: the runtime gets all or nothing.
    match io::stdout().write_all(&output).and_then(|()| io::stdout().flush()) {
        Ok(()) => status,
        Err(error) => {
            note(&format!("write the result to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes a diagnostic to standard error.
fn note(text: &str) {
    // `eprintln!` would panic when the runtime has closed its end.
    if writeln!(io::stderr(), "podnet: {text}").is_err() {
        // There is nowhere else to say it.
    }
}

/// Serves a call with the daemon's help; returns what to print.
fn serve(call: DaemonCall) -> Result<Vec<u8>, CniError> {
    let client = Client::new(&call.socket).with_timeout(call.timeout);
    match call.verb {
        Verb::Add(request) => add(&client, call.version, &request),
        Verb::Delete { request, network } => delete(&client, &request, &network).map(|()| Vec::new()),
        Verb::Check(request) => {
            client.check(&request).map_err(|error| from_client(Command::Check, &error)).map(|()| Vec::new())
        }
        Verb::Gc(None) => {
            note("GC without cni.dev/valid-attachments: nothing is released");
            Ok(Vec::new())
        }
        Verb::Gc(Some(request)) => {
            let reply = client.gc(&request).map_err(|error| from_client(Command::Gc, &error))?;
            if !reply.released.is_empty() {
                note(&format!("GC of network {} released {} attachments", request.network, reply.released.len()));
            }
            Ok(Vec::new())
        }
        Verb::Status => {
            let client = client.with_timeout(call.timeout.min(SHORT_TIMEOUT));
            status(&client).map_err(|error| from_client(Command::Status, &error)).map(|()| Vec::new())
        }
    }
}

/// How long STATUS waits for a daemon that is started anew: a runtime that hears that the network is not there tells
/// kubelet, and a whole node counts as not ready because of a restart of seconds.
const RESTART_PATIENCE: Duration = Duration::from_secs(5);

fn status(client: &Client) -> Result<(), ClientError> {
    let start = Instant::now();
    loop {
        match client.readyz() {
            Err(ClientError::Unreachable { .. }) if start.elapsed() < RESTART_PATIENCE => {
                std::thread::sleep(Duration::from_millis(100));
            }
            outcome => return outcome,
        }
    }
}

fn add(client: &Client, version: Version, add: &Add) -> Result<Vec<u8>, CniError> {
    apply_queued(client, add)?;
    let attachment = client.add(&add.request).map_err(|error| {
        if is_ambiguous(&error) {
            undo(client, add);
        }
        let mut error = from_client(Command::Add, &error);
        if add.wishes_from_env && error.fault == Fault::Config {
            error.fault = Fault::Environment;
            error.details.insert_str(0, "CNI_ARGS: ");
        }
        error
    })?;
    result::render(version, &attachment, &add.request.netns, &add.earlier, &add.dns)
}

/// Applies a queued deletion of the same attachment before it is added anew; otherwise the daemon might apply the
/// old deletion to the new attachment.
fn apply_queued(client: &Client, add: &Add) -> Result<(), CniError> {
    let dir = Config::deletions_dir(client.socket());
    let queue_error = |error: io::Error| {
        CniError::new(Fault::TryAgain, "cannot read queued deletions", format!("{}: {error}", dir.display()))
    };
    let Some(claim) = deletions::claim(&dir, &add.request.key).map_err(queue_error)? else { return Ok(()) };
    delete_now(client, &DeleteRequest { key: add.request.key.clone() })
        .map_err(|error| from_client(Command::Add, &error))?;
    claim.remove().map_err(queue_error)
}

/// Whether the daemon may have acted on a request although no answer came.
fn is_ambiguous(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Api(_) => false,
        ClientError::Timeout { .. } | ClientError::Io { .. } | ClientError::Protocol { .. } => true,
    }
}

/// Takes back an ADD whose outcome is unknown: the runtime may never send a DEL for it.
fn undo(client: &Client, add: &Add) {
    let client = client.clone().with_timeout(SHORT_TIMEOUT);
    if let Err(error) = delete(&client, &DeleteRequest { key: add.request.key.clone() }, &add.request.network) {
        note(&format!("undo ADD of {}: {error}", add.request.key.container_id));
    }
}

/// Deletes by the daemon; what does not exist is deleted.
fn delete_now(client: &Client, request: &DeleteRequest) -> Result<(), ClientError> {
    match client.delete(request) {
        Err(ClientError::Api(api)) if api.kind == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Deletes, or queues the deletion when the daemon is away, starts or dies in the midst of it.
fn delete(client: &Client, request: &DeleteRequest, network: &str) -> Result<(), CniError> {
    let Err(error) = delete_now(client, request) else { return Ok(()) };
    if matches!(&error, ClientError::Api(api) if api.kind != ErrorKind::Unavailable) {
        return Err(from_client(Command::Delete, &error));
    }
    let dir = Config::deletions_dir(client.socket());
    deletions::enqueue(&dir, request, network).map_err(|queue| {
        CniError::new(
            Fault::TryAgain,
            "the podnet daemon is away and the deletion cannot be queued",
            format!("{error}; {queue:#}"),
        )
    })?;
    // The daemon may have started, and drained the queue, after the first attempt and before the file was there.
    if delete_now(&client.clone().with_timeout(SHORT_TIMEOUT), request).is_ok() {
        match deletions::claim(&dir, &request.key).and_then(|claim| claim.map_or(Ok(()), deletions::Claim::remove)) {
            Ok(()) => return Ok(()),
            Err(error) => note(&format!("take back a queued deletion in {}: {error}", dir.display())),
        }
    }
    note(&format!("{error}; the deletion is queued in {}", dir.display()));
    Ok(())
}

/// Maps an error of the daemon or of the way to it.
fn from_client(command: Command, error: &ClientError) -> CniError {
    let (fault, msg) = match error {
        _ if command == Command::Status => (Fault::NotAvailable, "pods cannot be added now"),
        ClientError::Unreachable { .. } => (Fault::TryAgain, "the podnet daemon is not reachable"),
        ClientError::Timeout { .. } | ClientError::Io { .. } => (Fault::TryAgain, "the podnet daemon did not answer"),
        ClientError::Protocol { .. } => (Fault::Internal, "the podnet daemon's answer is not understood"),
        ClientError::Api(api) => match api.kind {
            ErrorKind::InvalidRequest => (Fault::Config, "the request is not acceptable"),
            ErrorKind::InvalidNetns => (Fault::Netns, "CNI_NETNS is not the network namespace of a pod"),
            ErrorKind::AlreadyExists => (Fault::AlreadyExists, "the attachment exists already"),
            // The code tells a runtime that no DEL is needed: true after a CHECK of nothing, never after an ADD.
            ErrorKind::NotFound if command == Command::Check => {
                (Fault::UnknownContainer, "the attachment does not exist")
            }
            ErrorKind::Mismatch => (Fault::Mismatch, "the attachment is not as it was made"),
            ErrorKind::Exhausted => (Fault::Exhausted, "no free address is left"),
            ErrorKind::AddressInUse => (Fault::AddressInUse, "the requested address is in use"),
            ErrorKind::Unavailable => (Fault::TryAgain, "the podnet daemon cannot serve now"),
            ErrorKind::NotFound | ErrorKind::Internal => (Fault::Internal, "the podnet daemon met an error"),
        },
    };
    CniError::new(fault, msg, error.to_string())
}
