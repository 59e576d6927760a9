//! A process that the lab started: known by its ID and start time, so that nothing else is ever signalled.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::poll;
use crate::netns::Netns;

/// How long a process may live on after SIGKILL: the kernel has to free its memory and namespaces.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process; the pair is unique until the machine restarts, and files below `/run` do not outlive that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process ID.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It had ended before.
    Before,
    /// It ended at SIGTERM.
    Terminated,
    /// It did not, and was killed.
    Killed,
}

impl Process {
    /// Starts a command inside a network namespace, in a process group of its own, with its output appended to a
    /// log. It goes on when the caller ends.
    pub fn spawn(netns: &Netns, mut command: Command, log: &Path) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open log {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("open log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        // The child is found by its ID from here on: `lab down` is another process.
        let pid = netns.run(|| {
            let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
            Ok(child.id())
        })?;
        match read_stat(pid)? {
            Some(stat) => Ok(Self { pid, start_time: stat.start_time }),
            None => bail!("process {pid} vanished as it started"),
        }
    }

    /// Returns the processes whose command line ends with these arguments.
    pub fn find(arguments: &[&OsStr]) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").context("read /proc")? {
            let name = entry.context("read /proc")?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended meanwhile is none.
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let words: Vec<_> = line.strip_suffix(&[0]).unwrap_or(&line).split(|byte| *byte == 0).collect();
            if words.len() > arguments.len()
                && words.iter().rev().zip(arguments.iter().rev()).all(|(word, wanted)| *word == wanted.as_bytes())
                && let Some(stat) = read_stat(pid)?
            {
                found.push(Self { pid, start_time: stat.start_time });
            }
        }
        Ok(found)
    }

    /// Returns whether the process still runs; one that has ended and was not waited for does not.
    pub fn is_running(self) -> Result<bool> {
        // Reaps it if it is a child of this process; if not, its parent does.
        match waitpid(Pid::from_raw(self.pid.cast_signed()), Some(WaitPidFlag::WNOHANG)) {
            Ok(_) | Err(Errno::ECHILD) => {}
            Err(error) => bail!("wait for process {}: {error}", self.pid),
        }
        Ok(read_stat(self.pid)?.is_some_and(|stat| stat.start_time == self.start_time && !stat.ended))
    }

    /// Sends a signal, if the process still runs.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_running()? {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid.cast_signed()), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => bail!("send {signal} to process {}: {error}", self.pid),
        }
    }

    /// Ends the process: SIGTERM, then SIGKILL after the time of grace; returns when it is gone.
    pub fn stop(self, grace: Duration) -> Result<Stopped> {
        if !self.is_running()? {
            return Ok(Stopped::Before);
        }
        self.signal(Signal::SIGTERM)?;
        if poll::until(grace, || Ok((!self.is_running()?).then_some(())))?.is_some() {
            return Ok(Stopped::Terminated);
        }
        self.kill()?;
        Ok(Stopped::Killed)
    }

    /// Kills the process; returns when it is gone.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        match poll::until(KILL_DEADLINE, || Ok((!self.is_running()?).then_some(())))? {
            Some(()) => Ok(()),
            None => bail!("process {} is still there {} s after SIGKILL", self.pid, KILL_DEADLINE.as_secs()),
        }
    }
}

struct Stat {
    start_time: u64,
    ended: bool,
}

/// Returns `None` if there is no such process.
fn read_stat(pid: u32) -> Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    let mut text = String::new();
    match File::open(&path).and_then(|mut file| std::io::Read::read_to_string(&mut file, &mut text)) {
        Ok(_) => parse_stat(&text).with_context(|| format!("read {path}: unexpected form {text:?}")).map(Some),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

/// The second field, the command, may itself hold spaces and parentheses: fields are counted from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 3 was taken, so field 20 is the 17th from here, and field 22 the second behind that.
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    // The first thread of a killed process is a zombie while another one is still inside the kernel, and until that
    // one is gone, too, locks and sockets of the process are held.
    Some(Stat { start_time, ended: matches!(state, "Z" | "X" | "x") && threads <= 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(seconds: &str) -> (std::process::Child, Process) {
        let child = Command::new("sleep").arg(seconds).spawn().unwrap();
        let start_time = read_stat(child.id()).unwrap().unwrap().start_time;
        let process = Process { pid: child.id(), start_time };
        (child, process)
    }

    #[test]
    fn stat_is_read_past_a_command_with_parentheses() {
        let text = "7 (a) R (b) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 991 10 11 12";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.start_time, stat.ended), (991, true));
        let other_thread_lives = text.replace(" 20 0 1 0 991", " 20 0 2 0 991");
        assert!(!parse_stat(&other_thread_lives).unwrap().ended);
        assert!(parse_stat("7 (a) R 1").is_none());
    }

    #[test]
    fn stop_ends_the_process_and_can_be_repeated() {
        let (_child, process) = sleeper("60");
        assert!(process.is_running().unwrap());
        assert_eq!(process.stop(Duration::from_secs(5)).unwrap(), Stopped::Terminated);
        assert!(!process.is_running().unwrap());
        assert_eq!(process.stop(Duration::from_secs(5)).unwrap(), Stopped::Before);
    }

    #[test]
    fn a_process_is_found_by_its_arguments() {
        let (mut child, process) = sleeper("61.25");
        // Until it has become `sleep`, the child's command line is that of this process.
        let found = poll::until(Duration::from_secs(5), || {
            let found = Process::find(&["61.25".as_ref()])?;
            Ok((!found.is_empty()).then_some(found))
        });
        assert_eq!(found.unwrap().unwrap(), [process]);
        assert_eq!(Process::find(&["60".as_ref(), "61.25".as_ref()]).unwrap(), []);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_with_another_start_time_is_left_alone() {
        let (mut child, process) = sleeper("60");
        let other = Process { start_time: process.start_time + 1, ..process };
        assert_eq!(other.stop(Duration::ZERO).unwrap(), Stopped::Before);
        assert!(process.is_running().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_running().unwrap());
    }
}
