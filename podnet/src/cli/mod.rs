//! The command line: parses, asks the daemon (or reads the pinned maps), prints a table for people or JSON for
//! programs.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    api::{DatapathRequest, LogLevels, client::Client},
    config::{DEFAULT_BPFFS, DEFAULT_SOCKET},
    daemon, install, lab,
};

mod maps;
mod nodes;
mod pod;
mod router_config;
mod status;

/// Pod networking for Kubernetes nodes: daemon, CNI plugin and command line.
///
/// With CNI_COMMAND set, podnet is a CNI plugin and ignores its arguments.
#[derive(Debug, Parser)]
#[command(name = "podnet", version, propagate_version = true)]
struct Cli {
    /// Unix socket of the daemon.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, env = "PODNET_SOCKET", value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's daemon, or remove what it made.
    Daemon(daemon::DaemonArgs),
    /// Show the node's state.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// List the node's pods.
    Pods {
        #[command(flatten)]
        output: Output,
    },
    /// List the cluster's nodes, and how their pods are reached from this one.
    Nodes {
        #[command(flatten)]
        output: Output,
    },
    /// Inspect the eBPF maps; works from their pins, whether or not the daemon runs.
    #[command(subcommand)]
    Maps(MapsCommand),
    /// Attach or detach a network namespace by hand, as the CNI plugin does.
    #[command(subcommand)]
    Pod(pod::PodCommand),
    /// Attach, detach or reload the eBPF programs while traffic flows.
    Datapath {
        /// What to do.
        #[arg(value_enum)]
        action: DatapathAction,
    },
    /// Show or change log levels while the daemon runs.
    Log {
        /// Filter of the daemon, such as `debug` or `info,podnet::engine=debug`.
        #[arg(long)]
        daemon: Option<String>,
        /// Level of the eBPF programs: off, error, warn, info, debug or trace.
        #[arg(long)]
        ebpf: Option<String>,
    },
    /// Print the table of pod CIDRs for a router between the nodes.
    RouterConfig(router_config::RouterConfigArgs),
    /// Install the CNI plugin and its network configuration.
    Install(install::InstallArgs),
    /// Build a cluster out of network namespaces on this machine.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum MapsCommand {
    /// Print one map, or all of them.
    Dump {
        /// Name of the map; all if absent.
        map: Option<String>,
        /// Mount point of the node's bpffs; default: the daemon's, if it runs.
        #[arg(long, env = "PODNET_BPFFS", value_name = "PATH")]
        bpffs: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Output {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DatapathAction {
    /// Attach the programs.
    Attach,
    /// Detach the programs; the kernel path takes over.
    Detach,
    /// Load the programs anew and replace the attached ones atomically.
    Reload,
}

/// Runs the command that the arguments name. Prints errors to standard error.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            // A reader that went away (`podnet pods | head`) is no error of ours.
            let broken_pipe =
                error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
            if broken_pipe {
                return ExitCode::SUCCESS;
            }
            #[expect(clippy::print_stderr, reason = "the command line's own error message")]
            {
                eprintln!("podnet: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    let client = || Client::new(&cli.socket);
    match cli.command {
        Command::Daemon(args) if args.cleanup => daemon::cleanup(&args)?,
        Command::Daemon(args) => daemon::run(args)?,
        Command::Status { output } => return status::show(&client(), output.output),
        Command::Pods { output } => pod::list(&client(), output.output)?,
        Command::Nodes { output } => nodes::list(&client(), output.output)?,
        Command::Maps(MapsCommand::Dump { map, bpffs, output }) => {
            let pins = pins(bpffs, &client());
            maps::dump(&pins, map.as_deref(), output.output, &client())?;
        }
        Command::Pod(command) => pod::run(&client(), command)?,
        Command::Datapath { action } => client().datapath(match action {
            DatapathAction::Attach => DatapathRequest::Attach,
            DatapathAction::Detach => DatapathRequest::Detach,
            DatapathAction::Reload => DatapathRequest::Reload,
        })?,
        Command::Log { daemon, ebpf } => {
            let levels = client().set_log(&LogLevels { daemon, ebpf })?;
            print(&format!(
                "daemon: {}\nebpf:   {}",
                levels.daemon.as_deref().unwrap_or("unknown"),
                levels.ebpf.as_deref().unwrap_or("unknown")
            ))?;
        }
        Command::RouterConfig(args) => router_config::run(&client(), &args)?,
        Command::Install(args) => print(&install::install(&args)?.to_string())?,
        Command::Lab(command) => return lab::run(command),
        Command::Completions { shell } => {
            // It panics where it cannot write, as when the reader of standard output went away.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "podnet", &mut script);
            io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the folder of the pinned maps: below the bpffs given, or where the daemon says, or below the default.
fn pins(bpffs: Option<PathBuf>, client: &Client) -> PathBuf {
    let version = format!("v{}", podnet_common::LAYOUT_VERSION);
    if let Some(bpffs) = bpffs {
        return bpffs.join(version);
    }
    let told = client.status().ok().and_then(|status| status.datapath.pins);
    told.map_or_else(|| PathBuf::from(DEFAULT_BPFFS).join(version), PathBuf::from)
}

/// Prints a line to standard output.
fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

/// Prints a value as JSON.
fn print_json(value: &impl Serialize) -> Result<()> {
    print(&serde_json::to_string_pretty(value).context("format JSON")?)
}

/// Returns a table without borders, with a heading.
fn table<const N: usize>(heading: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(heading);
    table
}
