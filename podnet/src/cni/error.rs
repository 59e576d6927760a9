//! What can go wrong in the plugin, and the CNI error object that says so.
//!
//! A [`Fault`] is the plugin's word for a kind of error; only `mod.rs` knows the codes of the CNI specification.

use serde::Serialize;

use super::version::Version;

/// Kind of a plugin error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `cniVersion` is none of the supported, or too old for the command.
    Version,
    /// The network configuration has a field that podnet must not ignore.
    UnsupportedField,
    /// The attachment does not exist, and nothing is left to clean up.
    UnknownContainer,
    /// An environment variable is missing or wrong.
    Environment,
    /// Reading or writing went wrong.
    Io,
    /// Standard input is not a JSON object.
    Decode,
    /// A field of the network configuration is missing or wrong.
    Config,
    /// `CNI_NETNS` is not the network namespace of a pod.
    Netns,
    /// The daemon cannot serve now; the same request may work later.
    TryAgain,
    /// Pods cannot be added now (answer to STATUS).
    NotAvailable,
    /// Anything else.
    Internal,
    /// The attachment or its interface already exists.
    AlreadyExists,
    /// The attachment is not as it was made.
    Mismatch,
    /// No free address is left.
    Exhausted,
    /// A requested address is in use.
    AddressInUse,
}

/// An error of the plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// Kind of the error.
    pub fault: Fault,
    /// Short text.
    pub msg: String,
    /// What exactly is wrong, and what to do about it.
    pub details: String,
}

impl CniError {
    /// Makes an error.
    pub fn new(fault: Fault, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { fault, msg: msg.into(), details: details.into() }
    }

    /// Makes an error about an environment variable.
    pub fn environment(details: impl Into<String>) -> Self {
        Self::new(Fault::Environment, "invalid environment", details)
    }

    /// Makes an error about a field of the network configuration.
    pub fn config(details: impl Into<String>) -> Self {
        Self::new(Fault::Config, "invalid network configuration", details)
    }

    /// Returns the CNI error object.
    #[must_use]
    pub fn to_json(&self, version: Version, code: u32) -> Vec<u8> {
        let object = ErrorObject { cni_version: version.as_str(), code, msg: &self.msg, details: &self.details };
        // Strings and a number always serialize.
        serde_json::to_vec(&object).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_keys_of_the_specification() {
        let json = CniError::config("mtu: \"x\"\nis wrong").to_json(Version::V1_0_0, 7);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"cniVersion":"1.0.0","code":7,"msg":"invalid network configuration","details":"mtu: \"x\"\nis wrong"}"#
        );
    }
}
