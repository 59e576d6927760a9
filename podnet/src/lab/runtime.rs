//! The container runtime's part: calls the `podnet` binary as a CNI plugin, with the environment and the standard
//! input that the CNI specification (1.1.0) prescribes, and reads its answer.

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Mac;

/// Name of the interface that pods get.
pub const IFNAME: &str = "eth0";

/// A runtime of one node.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The plugin.
    pub binary: PathBuf,
    /// The daemon's socket, which the network configuration names.
    pub socket: PathBuf,
}

/// The pod for which the plugin is called.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; `None` leaves it out, as a runtime may at DEL.
    pub netns: Option<PathBuf>,
    /// `K8S_POD_NAME` of `CNI_ARGS`.
    pub pod_name: String,
    /// Further keys of the network configuration, such as `prevResult` or `runtimeConfig`.
    pub netconf: serde_json::Map<String, Value>,
    /// Further pairs of `CNI_ARGS`, such as `IP=10.244.1.7`.
    pub args: Vec<String>,
}

/// What ADD answered.
#[derive(Clone, Debug)]
pub struct Added {
    /// Addresses with their prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Gateway of each address.
    pub gateways: Vec<IpAddr>,
    /// MAC of the pod's interface.
    pub mac: Mac,
    /// Name of the host-side veth.
    pub host_ifname: String,
    /// The result as the plugin printed it: the `prevResult` of later calls.
    pub result: Value,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("code {code}: {msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// Code of the CNI specification, or 100 and above.
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// More about it.
    #[serde(default)]
    pub details: String,
}

impl Runtime {
    /// Attaches a pod.
    ///
    /// # Errors
    ///
    /// The chain holds a [`CniError`] if the plugin answered one.
    pub fn add(&self, request: &Request) -> Result<Added> {
        let output = self.call("ADD", request)?;
        let result = serde_json::from_str(&output)
            .with_context(|| format!("CNI ADD of {}: the answer is not JSON: {output:?}", request.pod_name))?;
        Added::parse(result).with_context(|| format!("CNI ADD of {}: unexpected answer {output}", request.pod_name))
    }

    /// Detaches a pod.
    pub fn del(&self, request: &Request) -> Result<()> {
        self.call("DEL", request).map(drop)
    }

    /// Checks that a pod is attached as `added` says.
    pub fn check(&self, request: &Request, added: &Added) -> Result<()> {
        let mut request = request.clone();
        request.netconf.insert("prevResult".into(), added.result.clone());
        self.call("CHECK", &request).map(drop)
    }

    /// Calls the plugin and returns what it printed.
    pub fn call(&self, command: &str, request: &Request) -> Result<String> {
        self.run(command, request).with_context(|| format!("CNI {command} of {}", request.pod_name))
    }

    fn run(&self, command: &str, request: &Request) -> Result<String> {
        let mut netconf = json!({ "cniVersion": "1.1.0", "name": "podnet", "type": "podnet", "socket": self.socket });
        if let Some(keys) = netconf.as_object_mut() {
            keys.extend(request.netconf.clone());
        }
        let mut args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", request.pod_name);
        for pair in &request.args {
            args.push(';');
            args.push_str(pair);
        }
        let mut plugin = Command::new(&self.binary);
        plugin
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &request.container_id)
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", self.binary.parent().unwrap_or(Path::new("/")))
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(netns) = &request.netns {
            plugin.env("CNI_NETNS", netns);
        }
        let mut child = plugin.spawn().with_context(|| format!("start {}", self.binary.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses its environment ends without reading; what it says is better than EPIPE.
            match stdin.write_all(netconf.to_string().as_bytes()) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
                _ => {}
            }
        }
        let output = child.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(printed);
        }
        Err(serde_json::from_str::<CniError>(&printed).map_or_else(
            |_| {
                let errors = String::from_utf8_lossy(&output.stderr);
                anyhow!("{}, printed {printed:?} and {errors:?}", output.status)
            },
            Into::into,
        ))
    }
}

impl Added {
    fn parse(result: Value) -> Result<Self> {
        #[derive(Deserialize)]
        struct Answer {
            interfaces: Vec<Interface>,
            ips: Vec<Ip>,
        }
        #[derive(Deserialize)]
        struct Interface {
            name: String,
            #[serde(default)]
            mac: Option<Mac>,
            #[serde(default)]
            sandbox: String,
        }
        #[derive(Deserialize)]
        struct Ip {
            address: IpNetwork,
            gateway: IpAddr,
        }
        let answer = Answer::deserialize(&result)?;
        let inside = answer.interfaces.iter().find(|interface| !interface.sandbox.is_empty());
        let mac = inside.and_then(|interface| interface.mac).context("no interface in the pod that has a MAC")?;
        let host_ifname = answer
            .interfaces
            .iter()
            .filter(|interface| interface.sandbox.is_empty())
            .map(|interface| interface.name.clone())
            // The bridge is listed first, as the reference plugin does it.
            .next_back()
            .context("no interface of the node")?;
        Ok(Self {
            addresses: answer.ips.iter().map(|ip| ip.address).collect(),
            gateways: answer.ips.iter().map(|ip| ip.gateway).collect(),
            mac,
            host_ifname,
            result,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls a shell script in the plugin's place.
    fn add_by(script: &str) -> Result<Added> {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("plugin");
        // Written by another process: a child that a parallel test forks could inherit the open file (ETXTBSY).
        let mut writer = Command::new("sh");
        writer
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
            .arg(&binary)
            .arg(script);
        assert!(writer.status().unwrap().success());
        let runtime = Runtime { binary, socket: "/run/x.sock".into() };
        runtime.add(&Request { container_id: "c1".into(), pod_name: "pod1".into(), ..Request::default() })
    }

    #[test]
    fn a_result_is_read() {
        let added = add_by(
            r#"test "$CNI_COMMAND$CNI_CONTAINERID" = ADDc1 || exit 9
            case "$(cat)" in *'"socket":"/run/x.sock"'*) ;; *) exit 8 ;; esac
            echo '{"cniVersion":"1.1.0","interfaces":[{"name":"v-net-0","mac":"0a:58:0a:f4:01:01"},
              {"name":"pn1","mac":"0a:58:0a:f4:01:09"},{"name":"eth0","mac":"0a:58:0a:f4:01:02","sandbox":"/n"}],
              "ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2}]}'"#,
        )
        .unwrap();
        assert_eq!(added.addresses, ["10.244.1.2/24".parse().unwrap()]);
        assert_eq!((added.mac.to_string().as_str(), added.host_ifname.as_str()), ("0a:58:0a:f4:01:02", "pn1"));
    }

    #[test]
    fn an_error_keeps_its_code() {
        let error = add_by(r#"echo '{"cniVersion":"1.1.0","code":11,"msg":"try again"}'; exit 1"#).unwrap_err();
        assert_eq!(error.downcast_ref::<CniError>().unwrap().code, 11);
        assert_eq!(format!("{error:#}"), "CNI ADD of pod1: code 11: try again");
    }

    #[test]
    fn a_plugin_that_prints_no_error_is_quoted() {
        let error = add_by("echo oops >&2; exit 3").unwrap_err();
        assert!(format!("{error:#}").contains("exit status: 3"), "{error:#}");
        assert!(format!("{error:#}").contains("oops"));
    }
}
