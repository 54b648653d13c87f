//! The update agent for a device: the sans-IO machine of [`fleetwave_agent_core`] with real MQTT, real HTTP and real
//! files around it.
//!
//! A device has *targets*, each with an installer of its own; `docs/agent.md` lists what there is and what is missing.
//!
//! * [`Config`]: the operator's file.
//! * [`run`]: the agent's life, as a process has it; [`live`] is the same as a future, for many of them in one.
//! * [`status`]: what is on disk, told to people.

mod boot;
#[cfg(feature = "delta")]
pub mod chunks;
mod command;
mod config;
mod crash;
mod device;
mod fetch;
mod files;
mod health;
mod hooks;
mod identity;
mod install;
mod journal;
mod link;
mod local;
mod locks;
mod logs;
mod metrics;
mod notify;
mod probation;
mod status;
mod target;
mod telemetry;
mod unit;
mod units;
mod upload;
mod watch;
mod watchdog;

#[cfg(test)]
#[path = "../tests/common/board.rs"]
mod board;
#[cfg(all(test, feature = "kubernetes"))]
#[path = "../tests/common/cluster.rs"]
mod cluster;
#[cfg(test)]
#[path = "../tests/common/loader.rs"]
mod loader;
#[cfg(all(test, feature = "delta"))]
#[path = "../tests/common/pack.rs"]
mod pack;
#[cfg(test)]
#[path = "../tests/common/pods.rs"]
mod pods;
#[cfg(test)]
#[path = "../tests/common/real.rs"]
mod real;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use fleetwave_agent_core::ResultCode;
use tokio::signal::unix::{SignalKind, signal};

pub use command::Command;
pub use config::{
    Clock, Config, ConfigError, Days, Installed, Limits, TargetConfig, Trust, Understood, Window, Windows,
};
pub use device::{Reboot, utc_offset};
pub use fetch::{Download, LedgerLimits, Proxy};
pub use health::Checks;
pub use hooks::Hooks;
pub use identity::{Identity, KeySource};
pub use link::{Address, ConnectionString, Hub, ProfileName, Provisioning, SecretKey, TlsPool};
pub use local::How;
pub use locks::{AtDeadline, LocalUrl, Locks};
pub use logs::{Filter, Log, Recent, start as start_log};
pub use metrics::{Loopback, Metrics};
pub use status::{status, status_json};
pub use target::Target;
pub use telemetry::{Pace, Telemetry};
pub use units::{Bytes, Rate, Span};
pub use watch::{Around, Calendar, Seen, Watch};

#[cfg(all(test, feature = "delta"))]
use chunks::Chunks;
use device::Host;
use link::Access;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another agent runs in it.
    #[error("the state directory {} is in use by another agent", .0.display())]
    InUse(PathBuf),
}

impl StateError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// What the configuration says about the hub does not go together.
    #[error("{0}")]
    Hub(String),
    /// The runtime, or its signal handlers.
    #[error("the agent cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By a signal.
    Stopped,
    /// The hub wants nothing more, and knows what runs.
    Settled {
        /// The release that runs; with several targets, those of all of them.
        running: String,
    },
    /// The hub knows that the desired release was given up.
    GivenUp {
        /// The release.
        release: String,
        /// Why.
        code: ResultCode,
    },
}

/// Runs the agent on this thread until SIGINT or SIGTERM, `recent` being the end of its log, for whoever asks for that; with `once`, no longer than until the hub wants nothing
/// more of the device and knows that.
///
/// # Errors
/// If the state directory cannot be used. Everything else the agent lives with.
pub fn run(config: &Config, once: bool, recent: Option<Recent>) -> Result<Ended, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = told_to_end()?;
        let access = access(config, &TlsPool::default())?;
        let mut host = Host::of_this_process(recent);
        let _page = serve_metrics(config, &host).await;
        Ok(device::live(config, access, once, &mut host, stop).await?)
    })
}

/// Installs the release in the directory `path`, or that of a `release.json`: by the agent that runs on this state
/// directory, or on this thread if there is none, without a hub. Tells how it goes on standard output, and how it ended:
/// with a code of exit, and words.
#[must_use]
pub fn install(config: &Config, path: &std::path::Path, how: How) -> (u8, String) {
    let verdict = local::install(config, path, how);
    (verdict.exit, verdict.text)
}

/// Until SIGINT or SIGTERM.
pub(crate) fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

pub(crate) fn access(config: &Config, pool: &TlsPool) -> Result<Arc<Access>, RunError> {
    let access = config.access(pool).map_err(RunError::Hub)?;
    access.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(Arc::new(access))
}

/// An agent whose metrics cannot be read does its work all the same.
async fn serve_metrics(config: &Config, host: &Host) -> Option<metrics::Page> {
    let Loopback(address) = config.metrics.listen?;
    match metrics::Page::serve(address, host.counters.clone()).await {
        Ok(page) => {
            tracing::info!(address = %page.address(), "metrics are served");
            Some(page)
        }
        Err(error) => {
            tracing::error!(%address, %error, "metrics cannot be served");
            None
        }
    }
}

/// The same as a future, until `stop` ends. It takes no signals and shares nothing with others but what is in `pool`: as
/// many agents as memory holds may live on one thread, in a `tokio::task::LocalSet`. Dropping it is as good as a power
/// cut.
///
/// # Errors
/// If another agent uses the state directory. Everything else the agent lives with.
pub async fn live(
    config: &Config,
    pool: &TlsPool,
    once: bool,
    stop: impl Future<Output = ()>,
) -> Result<Ended, RunError> {
    live_within(config, pool, once, stop, Around::default()).await
}

/// The same, in surroundings of its own.
///
/// # Errors
/// As [`live`].
pub async fn live_within(
    config: &Config,
    pool: &TlsPool,
    once: bool,
    stop: impl Future<Output = ()>,
    around: Around,
) -> Result<Ended, RunError> {
    let mut host = Host::within(around);
    Ok(device::live(config, access(config, pool)?, once, &mut host, stop).await?)
}
