//! The daemon's logs: structured lines on standard error, whose levels can be changed while it runs.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use crate::{
    api::LogLevels,
    config::{LogConfig, LogFormat},
    datapath::logs::{LogLevel, TARGET},
};

/// A handle to the levels in force.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    levels: Arc<Mutex<Levels>>,
}

/// The levels as they were asked for.
#[derive(Debug)]
struct Levels {
    daemon: String,
    ebpf: LogLevel,
}

impl Logging {
    /// Starts logging to standard error.
    ///
    /// # Errors
    ///
    /// A level or filter is unusable, or logging has been started already.
    pub fn start(config: &LogConfig) -> Result<Self> {
        let ebpf = config.ebpf.parse().map_err(anyhow::Error::msg).context("log.ebpf")?;
        let (filter, handle) = reload::Layer::new(parse(&config.daemon).context("log.daemon")?);
        let registry = tracing_subscriber::registry().with(filter);
        let writer = std::io::stderr;
        match config.format {
            LogFormat::Text => registry
                .with(fmt::layer().with_writer(writer).with_ansi(writer().is_terminal()).with_target(false))
                .try_init(),
            LogFormat::Json => registry.with(fmt::layer().json().with_writer(writer)).try_init(),
        }
        .context("start logging")?;
        let levels = Levels { daemon: config.daemon.clone(), ebpf };
        Ok(Self { filter: handle, levels: Arc::new(Mutex::new(levels)) })
    }

    /// Changes the daemon's filter.
    ///
    /// # Errors
    ///
    /// The filter is no list of `tracing` directives.
    pub fn set_filter(&self, filter: &str) -> Result<()> {
        self.filter.reload(parse(filter)?).context("change the log filter")?;
        filter.clone_into(&mut self.lock().daemon);
        Ok(())
    }

    /// Notes the level of the eBPF programs, which the engine has set.
    pub fn set_ebpf(&self, level: LogLevel) {
        self.lock().ebpf = level;
    }

    /// Returns the level of the eBPF programs.
    #[must_use]
    pub fn ebpf(&self) -> LogLevel {
        self.lock().ebpf
    }

    /// Returns the levels in force.
    #[must_use]
    pub fn levels(&self) -> LogLevels {
        let levels = self.lock();
        LogLevels { daemon: Some(levels.daemon.clone()), ebpf: Some(levels.ebpf.to_string()) }
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parses a filter, and lets the programs' lines through: their level is set in the programs themselves.
fn parse(filter: &str) -> Result<EnvFilter> {
    let unusable = || format!("{filter:?} is no log filter such as \"info\" or \"info,podnet::engine=debug\"");
    let directive = format!("{TARGET}=trace").parse().context("let the programs' log lines through")?;
    Ok(filter.parse::<EnvFilter>().with_context(unusable)?.add_directive(directive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_let_the_programs_lines_through() {
        assert!(parse("info,podnet::engine=debug").unwrap().to_string().contains("podnet::ebpf=trace"));
        assert!(format!("{:#}", parse("podnet=loud").unwrap_err()).contains("podnet=loud"));
    }
}
