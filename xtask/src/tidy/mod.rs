//! `tidy`: the rules that no other tool checks. Who may import what (ARCHITECTURE.md says why), how long a file may be,
//! which words must not appear. Each violation names file and line, the rule, and the fix.

use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};

use crate::{process::Cmd, workspace};

mod code;
mod rules;

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    rule: String,
    fix: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line, self.rule, self.fix)
    }
}

/// Runs the verb.
pub(crate) fn run() -> Result<()> {
    let paths = tracked_files()?;
    let mut violations = Vec::new();
    for path in &paths {
        let file = workspace::root().join(path);
        // A tracked file may be deleted in the work tree, and a file that is no text has no lines to check.
        let Ok(bytes) = fs::read(&file) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        violations.extend(rules::check(path, &text));
    }
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("{} violation(s) of the rules that `cargo xtask tidy` checks", violations.len());
    }
    println!("tidy: {} files keep the rules", paths.len());
    Ok(())
}

/// Returns the files that git tracks, or would if they were added.
fn tracked_files() -> Result<Vec<String>> {
    let files = Cmd::new("git")
        .dir(workspace::root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .capture()
        .context("list the files of the repository")?;
    Ok(files.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_tree_keeps_the_rules() {
        run().unwrap();
    }
}
