//! Log lines of the programs, forwarded to `tracing` under the target `podnet::ebpf`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;

/// Target of the programs' log lines in `tracing`.
pub const TARGET: &str = "podnet::ebpf";

/// Which of the programs' log statements are active. It is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// None: they cost nothing.
    #[default]
    Off = 0,
    /// Errors.
    Error = 1,
    /// Warnings.
    Warn = 2,
    /// Information.
    Info = 3,
    /// Each drop.
    Debug = 4,
    /// Each redirect and each change of a flow.
    Trace = 5,
}

impl LogLevel {
    /// Every level, quietest first.
    pub const ALL: [Self; 6] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the level's name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no log level; use off, error, warn, info, debug or trace"))
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reader of one load's log lines. Its descriptor is readable when there are some: drive it with `AsyncFd`, and call
/// [`Logs::forward`] when it is ready.
pub struct Logs(EbpfLogger<ToTracing>);

impl Logs {
    /// Takes the log ring of a loaded object. The programs must be loaded already: they refer to the map by the
    /// descriptor that is taken here.
    pub(super) fn take(ebpf: &mut aya::Ebpf) -> Result<Self> {
        EbpfLogger::init_with_logger(ebpf, ToTracing).map(Self).context("open the log ring AYA_LOGS")
    }

    /// Forwards what the programs have logged since the last call.
    pub fn forward(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for Logs {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Logs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

/// `aya-log` writes through the `log` crate; this hands each record to `tracing`. A level is part of a `tracing` call
/// site, hence five of them.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let file = record.file().unwrap_or_default();
        let line = record.line().unwrap_or_default();
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, file, line, "{message}"),
            log::Level::Warn => tracing::warn!(target: TARGET, file, line, "{message}"),
            log::Level::Info => tracing::info!(target: TARGET, file, line, "{message}"),
            log::Level::Debug => tracing::debug!(target: TARGET, file, line, "{message}"),
            log::Level::Trace => tracing::trace!(target: TARGET, file, line, "{message}"),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_round_trip() {
        for level in LogLevel::ALL {
            assert_eq!(level.as_str().parse::<LogLevel>(), Ok(level));
        }
        assert!("verbose".parse::<LogLevel>().unwrap_err().contains("off, error, warn"));
    }
}
