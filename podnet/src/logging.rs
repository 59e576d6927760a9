//! The daemon's logs: structured lines on standard error, whose levels can be changed while it runs.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use crate::{
    api::LogLevels,
    config::{LogConfig, LogFormat},
    datapath::logs::LogLevel,
};

/// A handle to the levels in force.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    ebpf: Arc<Mutex<LogLevel>>,
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
        Ok(Self { filter: handle, ebpf: Arc::new(Mutex::new(ebpf)) })
    }

    /// Changes the daemon's filter.
    ///
    /// # Errors
    ///
    /// The filter is no list of `tracing` directives.
    pub fn set_filter(&self, filter: &str) -> Result<()> {
        self.filter.reload(parse(filter)?).context("change the log filter")
    }

    /// Notes the level of the eBPF programs, which the engine has set.
    pub fn set_ebpf(&self, level: LogLevel) {
        *self.ebpf.lock().unwrap_or_else(PoisonError::into_inner) = level;
    }

    /// Returns the level of the eBPF programs.
    #[must_use]
    pub fn ebpf(&self) -> LogLevel {
        *self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the levels in force.
    #[must_use]
    pub fn levels(&self) -> LogLevels {
        LogLevels { daemon: self.filter.with_current(ToString::to_string).ok(), ebpf: Some(self.ebpf().to_string()) }
    }
}

fn parse(filter: &str) -> Result<EnvFilter> {
    filter
        .parse()
        .with_context(|| format!("{filter:?} is no log filter such as \"info\" or \"info,podnet::engine=debug\""))
}
