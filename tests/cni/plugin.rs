//! Runs the real binary as a container runtime does.

use std::{
    ffi::OsString,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use podnet::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with the daemon's socket in it, and calls of the plugin that use it.
pub(crate) struct Plugin {
    root: TempDir,
}

/// What a run of the plugin gave.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether the exit status was 0.
    pub(crate) success: bool,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Outcome {
    /// Returns the JSON of a successful run.
    pub(crate) fn json(&self) -> Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that the run succeeded without a result.
    pub(crate) fn assert_silent_success(&self) {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
    }

    /// Checks the code of an error, the shape of its object, and that it says `text`.
    pub(crate) fn assert_error(&self, code: u32, text: &str) {
        assert!(!self.success, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(error["code"], code, "{self:?}");
        assert!(error["cniVersion"].is_string() && !error["msg"].as_str().unwrap_or("").is_empty(), "{self:?}");
        assert!(error["details"].as_str().unwrap_or("").contains(text), "no {text:?} in {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

impl Plugin {
    /// Makes the folder.
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().expect("temporary folder") }
    }

    /// Returns the daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.path().join("podnet.sock")
    }

    /// Returns the folder of queued deletions.
    pub(crate) fn deletions(&self) -> PathBuf {
        Config::deletions_dir(&self.socket())
    }

    /// Returns the number of queued deletions.
    pub(crate) fn queued(&self) -> usize {
        std::fs::read_dir(self.deletions()).map_or(0, Iterator::count)
    }

    /// Returns a network configuration with these members besides the usual ones.
    pub(crate) fn conf(&self, version: &str, members: &Value) -> String {
        let mut conf = json!({"cniVersion": version, "name": "podnet", "type": "podnet", "socket": self.socket()});
        let object = conf.as_object_mut().expect("object");
        object.extend(members.as_object().expect("members").clone());
        conf.to_string()
    }

    /// Runs the plugin with the usual environment, changed by `variables`; an empty value unsets.
    pub(crate) fn run_with(&self, command: &str, variables: &[(&str, OsString)], stdin: &str) -> Outcome {
        let mut process = Command::new(harness::binary());
        process
            .current_dir(self.root.path())
            .env_clear()
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, value) in [
            ("CNI_CONTAINERID", "0123abc"),
            ("CNI_NETNS", "/run/netns/pod"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"),
            ("CNI_PATH", "/opt/cni/bin"),
        ] {
            process.env(name, value);
        }
        for (name, value) in variables {
            if value.is_empty() {
                process.env_remove(name);
            } else {
                process.env(name, value);
            }
        }
        let mut child = process.spawn().expect("run the plugin");
        // An error of the environment may end the plugin before it reads.
        child.stdin.take().expect("stdin").write_all(stdin.as_bytes()).unwrap_or_default();
        let output = child.wait_with_output().expect("wait for the plugin");
        Outcome {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs the plugin with the usual environment.
    pub(crate) fn run(&self, command: &str, stdin: &str) -> Outcome {
        self.run_with(command, &[], stdin)
    }

    /// Runs the plugin with the usual environment and configuration.
    pub(crate) fn call(&self, command: &str) -> Outcome {
        self.run(command, &self.conf("1.1.0", &json!({})))
    }
}
