//! Runs a command for a bounded time and then kills it with all its descendants, each by its process ID.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::process::Cmd;

/// How a supervised command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ended with success.
    Passed,
    /// It ended with anything else.
    Failed,
    /// It was killed because its time was over.
    TimedOut,
}

/// Prints the command, runs it, and kills it when it takes longer than `limit`.
///
/// # Errors
///
/// The command cannot be started or waited for.
pub(crate) fn run(command: Cmd, limit: Duration) -> Result<Outcome> {
    let (mut command, shown) = command.announce();
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start `{shown}`"))?;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for `{shown}`"))? {
            return Ok(if status.success() { Outcome::Passed } else { Outcome::Failed });
        }
        if start.elapsed() > limit {
            kill_tree(child.id());
            child.wait().with_context(|| format!("wait for `{shown}`"))?;
            return Ok(Outcome::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills a process and its descendants. A process that has ended meanwhile is no error.
fn kill_tree(root: u32) {
    let mut doomed = vec![root];
    doomed.extend(descendants(root, &parents()));
    let ids: Vec<String> = doomed.iter().map(u32::to_string).collect();
    println!("time is over: killing processes {}", ids.join(" "));
    if let Err(error) = std::process::Command::new("kill").arg("-KILL").args(&ids).status() {
        println!("kill: {error}");
    }
}

/// Returns the parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The second field, the command's name in parentheses, may hold spaces and parentheses itself (proc(5)).
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

/// Returns the descendants of a process, nearest first.
fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut generation = vec![root];
    while !generation.is_empty() {
        generation = parents.iter().filter(|(_, parent)| generation.contains(parent)).map(|(pid, _)| *pid).collect();
        found.extend(&generation);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_over_generations() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 9)]);
        assert_eq!(descendants(2, &parents), [3, 4]);
        assert_eq!(descendants(1, &parents), [2, 5, 3, 4]);
        assert!(descendants(6, &parents).is_empty());
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_its_children() {
        let start = Instant::now();
        let command = Cmd::new("sh").args(["-c", "sleep 60; true"]);
        assert_eq!(run(command, Duration::from_millis(200)).unwrap(), Outcome::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn the_exit_status_decides() {
        assert_eq!(run(Cmd::new("true"), Duration::from_secs(30)).unwrap(), Outcome::Passed);
        assert_eq!(run(Cmd::new("false"), Duration::from_secs(30)).unwrap(), Outcome::Failed);
    }
}
