//! Versions of the CNI specification that the plugin speaks, and what differs between them.

use serde_json::{Map, Value};

use super::{
    env::Command,
    error::{CniError, Fault},
};

/// A supported version, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: the same formats as 0.3.1.
    V0_3_0,
    /// 0.3.1: lists of interfaces and addresses.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: `ips` without `version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, `mtu` of interfaces.
    V1_1_0,
}

/// All supported versions, oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

impl Version {
    /// The newest supported version.
    pub const LATEST: Self = Self::V1_1_0;

    /// Returns the version as `cniVersion` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        SUPPORTED[self as usize]
    }

    fn from_text(text: &str) -> Option<Self> {
        [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0]
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Returns the version that a network configuration asks for.
    ///
    /// # Errors
    ///
    /// Names the version, if it is not supported, and those that are.
    pub fn of(config: &Map<String, Value>) -> Result<Self, CniError> {
        let text = match config.get("cniVersion") {
            // The specification's meaning of an absent version.
            None | Some(Value::Null) => "0.1.0",
            Some(Value::String(text)) if text.is_empty() => "0.1.0",
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(CniError::config(format!("cniVersion: {other} is not a string such as \"1.1.0\"")));
            }
        };
        Self::from_text(text).ok_or_else(|| {
            CniError::new(
                Fault::Version,
                "incompatible CNI version",
                format!(
                    "cniVersion {text:?}{} is not supported; podnet supports {}",
                    if config.contains_key("cniVersion") { "" } else { " (the meaning of an absent cniVersion)" },
                    SUPPORTED.join(", ")
                ),
            )
        })
    }

    /// Returns the version to put into an error about this standard input.
    #[must_use]
    pub fn for_error(stdin: &[u8]) -> Self {
        serde_json::from_slice(stdin).ok().and_then(|config| Self::of(&config).ok()).unwrap_or(Self::LATEST)
    }

    /// Checks that the version has a command.
    pub fn require(self, command: Command) -> Result<(), CniError> {
        let since = match command {
            Command::Check => Self::V0_4_0,
            Command::Gc | Command::Status => Self::V1_1_0,
            Command::Add | Command::Delete | Command::Version => Self::V0_3_0,
        };
        if self >= since {
            return Ok(());
        }
        Err(CniError::new(
            Fault::Version,
            "incompatible CNI version",
            format!("cniVersion {:?} has no {command}, which needs {:?} or later", self.as_str(), since.as_str()),
        ))
    }

    /// Whether each entry of a result's `ips` says its family in `version`.
    #[must_use]
    pub fn has_address_family(self) -> bool {
        self < Self::V1_0_0
    }

    /// Whether an interface of a result says its `mtu`.
    #[must_use]
    pub fn has_mtu(self) -> bool {
        self >= Self::V1_1_0
    }
}

/// Answers VERSION: standard input is empty, or an object that may say a `cniVersion` to echo.
pub fn answer(stdin: &[u8]) -> Result<Vec<u8>, CniError> {
    let requested = if stdin.iter().all(u8::is_ascii_whitespace) {
        None
    } else {
        match super::netconf::decode(stdin)?.remove("cniVersion") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text).filter(|text| !text.is_empty()),
            Some(other) => return Err(CniError::config(format!("cniVersion: {other} is not a string"))),
        }
    };
    let version = requested.as_deref().unwrap_or(Version::LATEST.as_str());
    let answer = serde_json::json!({ "cniVersion": version, "supportedVersions": SUPPORTED });
    Ok(answer.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_version_parses_back() {
        for text in SUPPORTED {
            assert_eq!(Version::from_text(text).unwrap().as_str(), text);
        }
        assert_eq!(Version::LATEST.as_str(), SUPPORTED[SUPPORTED.len() - 1]);
    }

    #[test]
    fn commands_need_their_version() {
        for (command, oldest) in [
            (Command::Add, "0.3.0"),
            (Command::Delete, "0.3.0"),
            (Command::Check, "0.4.0"),
            (Command::Gc, "1.1.0"),
            (Command::Status, "1.1.0"),
        ] {
            let first = SUPPORTED.iter().find(|text| Version::from_text(text).unwrap().require(command).is_ok());
            assert_eq!(first, Some(&oldest), "{command}");
        }
    }

    #[test]
    fn version_echoes_what_it_was_asked() {
        let ask = |stdin: &str| String::from_utf8(answer(stdin.as_bytes()).unwrap()).unwrap();
        let reply = |version| {
            format!(r#"{{"cniVersion":"{version}","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}}"#)
        };
        assert_eq!(ask(""), reply("1.1.0"));
        assert_eq!(ask(" \n"), reply("1.1.0"));
        assert_eq!(ask("{}"), reply("1.1.0"));
        assert_eq!(ask(r#"{"cniVersion":"0.4.0"}"#), reply("0.4.0"));
        assert_eq!(ask(r#"{"cniVersion":"9.0.0"}"#), reply("9.0.0"));
        assert_eq!(answer(b"{").unwrap_err().fault, Fault::Decode);
        assert_eq!(answer(br#"{"cniVersion":1}"#).unwrap_err().fault, Fault::Config);
    }
}
