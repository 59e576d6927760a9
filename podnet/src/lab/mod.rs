//! `podnet lab`: the reference cluster on one Linux machine, out of network namespaces.
//!
//! ```text
//!   netns LAB-switch   netns LAB-node1                        netns LAB-pod1, LAB-pod2, ...
//!   +-----------+      +------------------------------+       +-----------+
//!   | subnet1 --+------| eth0 192.168.1.11            |       |           |
//!   |     ...   |      | podnet daemon   own bpffs    |  veth | eth0      |
//!   +-----------+      | v-net-0 10.244.1.1 ----------+-------| 10.244.1.2|
//!                      +------------------------------+       +-----------+
//! ```
//!
//! [`network`] shows the rest: further nodes, the router, the host outside of the cluster. A lab of one node has none.
//!
//! The lab is data ([`topology`]); [`Lab::up`] makes it real and [`Lab::down`] leaves nothing of it. Pods are attached
//! by the real CNI plugin ([`runtime`]). Nothing here touches the machine's own interfaces, routes or firewall.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use ipnetwork::IpNetwork;

use self::{network::Subnet, ping::report};
use crate::{api::DatapathMode, config::RoutingMode, netns::Netns};

pub mod options;
pub mod topology;
pub mod up;
pub mod network;
pub mod store;
pub mod node;
pub mod runtime;
pub mod node_api;
pub mod ping;
pub mod echo;
pub mod process;
pub mod poll;

pub use options::{Families, Options};
pub use topology::{Lab, Node, Pod};

/// What to do with a lab.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make a lab: nodes with their daemons, and pods
    Up(UpArgs),
    /// Show a lab's nodes and pods
    Status {
        /// Which lab
        #[command(flatten)]
        lab: LabName,
    },
    /// Run a command in the network namespace of a node, a pod, the switch, the router or the outside host
    Exec {
        /// Which lab
        #[command(flatten)]
        lab: LabName,
        /// Such as node1, pod2, switch, router, outside
        target: String,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Ping every pod from every other pod and from the nodes, and the outside from every pod; show the paths taken
    Ping(PingArgs),
    /// Remove a lab
    Down {
        /// Which lab
        #[command(flatten)]
        lab: LabName,
    },
}

/// Arguments of `podnet lab ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    #[command(flatten)]
    lab: LabName,
    /// Requests for each pair and family
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    count: u16,
    /// Show a line for each pair instead of one for all pairs of the same nodes
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people
    Table,
    /// For programs: every pair
    Json,
}

/// Which lab.
#[derive(Debug, Args)]
pub struct LabName {
    /// Name of the lab
    #[arg(long, default_value = options::DEFAULT_NAME)]
    name: String,
}

/// Arguments of `podnet lab up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    lab: LabName,
    /// Number of nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Pods per node
    #[arg(long, default_value_t = 3)]
    pods: u16,
    /// How pods of other nodes are reached
    #[arg(long, value_enum, default_value_t = RoutingMode::Direct)]
    mode: RoutingMode,
    /// Which path carries pod-to-pod packets
    #[arg(long, value_enum, default_value_t = DatapathMode::Ebpf)]
    datapath: DatapathMode,
    /// Nodes whose path is the kernel's all the same: a mixed cluster
    #[arg(long, value_name = "NODE,...", value_delimiter = ',')]
    kernel_nodes: Vec<String>,
    /// Nodes that the router parts from the others, or "none" [default: the last one in mode auto, none in others]
    #[arg(long, value_name = "NODE,...", value_delimiter = ',')]
    second_subnet: Option<Vec<String>>,
    /// Give pods and nodes IPv6 addresses as well as IPv4 ones (the default)
    #[arg(long, overrides_with = "no_ipv6")]
    ipv6: bool,
    /// Give pods and nodes IPv4 addresses only
    #[arg(long)]
    no_ipv6: bool,
    /// Pod CIDR of the only node instead of the reference ones; repeat it for the other family
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNetwork>,
    /// MTU in bytes of the network between the nodes
    #[arg(long, default_value_t = 1500)]
    uplink_mtu: u32,
    /// MTU of pods in bytes [default: follows from the network and the mode]
    #[arg(long)]
    mtu: Option<u32>,
    /// Filter of the daemon's log
    #[arg(long, default_value = "info")]
    log: String,
    /// The podnet binary to run [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

impl UpArgs {
    fn options(self) -> Result<Options> {
        let reference = Options::reference()?;
        Ok(Options {
            name: self.lab.name,
            nodes: self.nodes,
            pods: self.pods,
            mode: self.mode,
            datapath: self.datapath,
            kernel_nodes: self.kernel_nodes,
            second_subnet: self.second_subnet.map(|names| names.into_iter().filter(|name| name != "none").collect()),
            families: if self.no_ipv6 && !self.ipv6 { Families::V4 } else { Families::Dual },
            pod_cidrs: self.pod_cidrs,
            uplink_mtu: self.uplink_mtu,
            mtu: self.mtu,
            log: self.log,
            binary: match self.binary {
                Some(binary) => binary.canonicalize().with_context(|| format!("find {}", binary.display()))?,
                None => reference.binary,
            },
        })
    }
}

/// Runs `podnet lab`.
///
/// # Errors
///
/// What went wrong, and what to do about it.
pub fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Up(args) => up(args),
        LabCommand::Status { lab } => status(&lab.name),
        LabCommand::Exec { lab, target, command } => exec(&lab.name, &target, &command),
        LabCommand::Ping(args) => ping(&args),
        LabCommand::Down { lab } => down(&lab.name),
    }
}

fn up(args: UpArgs) -> Result<ExitCode> {
    use std::fmt::Write as _;
    let lab = Lab::up(&args.options()?)?;
    let mut text = describe(&lab)?;
    let option = if lab.name == options::DEFAULT_NAME { String::new() } else { format!(" --name {}", lab.name) };
    writeln!(text, "\nNext:\n  podnet lab ping{option}")?;
    if let [first, second, ..] = &lab.pods().map(|(_, pod)| pod.name.as_str()).collect::<Vec<_>>()[..] {
        writeln!(
            text,
            "  podnet lab exec{option} {first} -- ip address        # or a shell, iperf3, tcpdump, ... in {second}"
        )?;
    }
    for node in &lab.nodes {
        writeln!(text, "  podnet status --socket {}", node.socket().display())?;
    }
    print(&format!("{text}  podnet lab down{option}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints text to standard output. A reader that went away (`podnet lab ping | head`) is an error, which `print!` would
/// panic about.
fn print(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn status(name: &str) -> Result<ExitCode> {
    up::require_root("asks daemons over sockets that only root may use")?;
    let lab = Lab::load(name)?;
    print(&describe(&lab)?)?;
    let all_ready = lab.nodes.iter().all(|node| node_api::not_ready_reason(&node.socket()).is_none());
    Ok(if all_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Describes a lab's nodes and pods for people.
fn describe(lab: &Lab) -> Result<String> {
    use std::fmt::Write as _;
    let mut text = format!("lab {} in {}\n", lab.name, lab.dir().display());
    for node in &lab.nodes {
        writeln!(text, "  {}: {}", node.name, describe_daemon(node)?)?;
        if !node.addresses.is_empty() {
            writeln!(text, "    addresses {}, mode {}", join(&node.addresses), node.mode)?;
        }
        writeln!(text, "    pod CIDRs {}", join(&node.pod_cidrs))?;
        for pod in &node.pods {
            let addresses: Vec<_> = pod.addresses.iter().map(IpNetwork::ip).collect();
            let shown = if addresses.is_empty() { "not attached".into() } else { join(&addresses) };
            writeln!(text, "    {}: {shown}", pod.name)?;
        }
    }
    if let Some(network) = &lab.network {
        let mut routers = Subnet::First.router(network.families)?;
        if lab.nodes.iter().any(|node| node.subnet == Some(Subnet::Second)) {
            routers.extend(Subnet::Second.router(network.families)?);
        }
        let table = if network.router_knows_pods { "; has the table of pod CIDRs" } else { "" };
        writeln!(text, "  router: {}{table}", join(&routers))?;
        writeln!(text, "  outside: {}", join(&network.outside_addresses()?))?;
    }
    Ok(text)
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn describe_daemon(node: &Node) -> Result<String> {
    let Some(daemon) = node.daemon else { return Ok("daemon not started".into()) };
    Ok(match node_api::status(&node.socket()) {
        Ok(status) if status.ready => {
            let path = match (status.datapath.attached, status.datapath.reason) {
                (true, _) => "datapath ebpf".into(),
                (false, None) => "datapath kernel".into(),
                (false, Some(reason)) => format!("datapath kernel ({reason})"),
            };
            format!("daemon ready (pid {}), {path}", status.pid)
        }
        Ok(status) => format!("daemon not ready: {}", status.not_ready_reason.unwrap_or_default()),
        Err(error) if daemon.is_running()? => format!("daemon does not answer: {error:#}"),
        Err(_) => format!("daemon ended (pid {}); its log: {}", daemon.pid, node.log_path().display()),
    })
}

fn exec(name: &str, target: &str, command: &[String]) -> Result<ExitCode> {
    up::require_root("enters network namespaces")?;
    let lab = Lab::load(name)?;
    let place = lab.find(target)?;
    let [program, arguments @ ..] = command else { anyhow::bail!("give a command after --") };
    // The new program takes this process over, terminal and signals included; the kernel keeps the namespace of
    // the thread that calls exec.
    Netns::open_named(place.netns)?.run(|| {
        let mut command = std::process::Command::new(program);
        if let Some(node) = place.node {
            command.env("PODNET_SOCKET", node.socket());
        }
        Err(command.args(arguments).exec()).with_context(|| format!("run {program} in {target}"))
    })
}

fn ping(args: &PingArgs) -> Result<ExitCode> {
    up::require_root("enters network namespaces")?;
    let start = std::time::Instant::now();
    let rows = Lab::load(&args.lab.name)?.ping(args.count)?;
    let failed = rows.iter().filter(|row| !row.complete()).count();
    match args.output {
        OutputFormat::Json => {
            print(&format!("{}\n", serde_json::to_string_pretty(&rows).context("encode the rows")?))?;
        }
        OutputFormat::Table => {
            let table = if args.verbose { report::details(&rows) } else { report::summary(&rows) };
            let failures = report::failures(&rows);
            let seconds = start.elapsed().as_secs_f32();
            let all = rows.len();
            let sum = if failed == 0 {
                format!("all {all} pairs answer ({seconds:.1} s)")
            } else {
                format!("{failed} of {all} pairs lose packets ({seconds:.1} s)")
            };
            print(&format!("{table}\n\n{failures}{sum}\n"))?;
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn down(name: &str) -> Result<ExitCode> {
    match Lab::down(name)? {
        up::Removed::Lab { warnings } => {
            for warning in warnings {
                eprintln!("warning: {warning}");
            }
            print(&format!("lab {name} is gone\n"))?;
        }
        up::Removed::Nothing => print(&format!("there is no lab {name}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: LabCommand,
    }

    fn parse(arguments: &str) -> LabCommand {
        Cli::try_parse_from(std::iter::once("lab").chain(arguments.split(' '))).unwrap().command
    }

    #[test]
    fn up_takes_its_options_from_the_command_line() {
        let LabCommand::Up(args) = parse("up --name t --pods 1 --datapath kernel --no-ipv6 --mtu 9000") else {
            panic!()
        };
        let options = args.options().unwrap();
        assert_eq!((options.name.as_str(), options.pods, options.mtu), ("t", 1, Some(9000)));
        assert_eq!((options.datapath, options.families), (DatapathMode::Kernel, Families::V4));
        let LabCommand::Up(args) =
            parse("up --nodes 4 --mode auto --kernel-nodes node2,node3 --second-subnet none --uplink-mtu 1400")
        else {
            panic!()
        };
        let options = args.options().unwrap();
        assert_eq!((options.nodes, options.mode, options.uplink_mtu), (4, RoutingMode::Auto, 1400));
        assert_eq!((options.kernel_nodes.join(" "), options.second_subnet), ("node2 node3".into(), Some(Vec::new())));
        let LabCommand::Up(args) = parse("up --no-ipv6 --ipv6") else { panic!() };
        assert_eq!(args.options().unwrap().families, Families::Dual);
    }

    #[test]
    fn exec_passes_the_command_on_as_it_is() {
        let LabCommand::Exec { lab, target, command } = parse("exec --name t pod1 -- ip -6 route") else { panic!() };
        assert_eq!((lab.name.as_str(), target.as_str()), ("t", "pod1"));
        assert_eq!(command, ["ip", "-6", "route"]);
    }
}
