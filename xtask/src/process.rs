//! Commands: each is printed before it runs, and an error says which one failed and how.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

/// A command and the line by which it is shown.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
    shown: String,
}

impl Cmd {
    /// Makes a command without arguments.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        Self { command: Command::new(program), shown: quote(program) }
    }

    /// Shows the program under another name. Call it before the arguments are given.
    pub(crate) fn shown_as(mut self, name: &str) -> Self {
        name.clone_into(&mut self.shown);
        self
    }

    /// Appends an argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&quote(arg.as_ref()));
        self.command.arg(arg);
        self
    }

    /// Appends arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable and shows it.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref();
        self.shown = format!("{name}={} {}", quote(value), self.shown);
        self.command.env(name, value);
        self
    }

    /// Sets an environment variable without showing it.
    pub(crate) fn quiet_env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the working folder.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Returns the line by which the command is shown.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Prints the command and returns it, ready to start.
    pub(crate) fn announce(self) -> (Command, String) {
        println!("$ {}", self.shown);
        (self.command, self.shown)
    }

    /// Prints the command and runs it; its output is the caller's own.
    ///
    /// # Errors
    ///
    /// It cannot be started, or ends with anything but success.
    pub(crate) fn run(self) -> Result<()> {
        let (mut command, shown) = self.announce();
        let status = command.status().with_context(|| format!("start `{shown}`"))?;
        ensure!(status.success(), "`{shown}` failed: {status}");
        Ok(())
    }

    /// Runs the command silently and returns its standard output.
    ///
    /// # Errors
    ///
    /// It cannot be started, or ends with anything but success; then its standard error is part of the message.
    pub(crate) fn capture(mut self) -> Result<String> {
        let output = self.command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", self.shown))?;
        ensure!(
            output.status.success(),
            "`{}` failed: {}\n{}",
            self.shown,
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Returns a word as a shell would need it to be written.
fn quote(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            c if c.is_control() => {
                // Writing to a `String` cannot fail.
                write!(quoted, "\\x{:02x}", u32::from(c)).unwrap_or_default();
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// Looks a command up in `PATH` and in the folders of system commands, which are not in every user's `PATH`.
pub(crate) fn find_command(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Returns whether this process is root.
///
/// # Errors
///
/// /proc is not mounted.
pub(crate) fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        .context("find the effective user in /proc/self/status")?;
    Ok(effective == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_shell_takes_them() {
        let command = Cmd::new("echo").arg("a b").arg("it's").args(["-x", ""]).env("A", "1 2");
        assert_eq!(command.shown(), r"A='1 2' echo 'a b' 'it'\''s' -x ''");
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = Cmd::new("false").capture().unwrap_err().to_string();
        assert!(error.contains("`false` failed: exit status: 1"), "{error}");
    }
}
