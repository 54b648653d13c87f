//! The update agent for a device: the sans-IO machine of [`fleetwave_agent_core`] with real MQTT, real HTTP and real
//! files around it.
//!
//! What is not real yet is the boot: slots are directories, and in place of a reboot the agent drops all that it
//! knows and starts again from what is on disk. `docs/agent.md` lists what else is missing.
//!
//! * [`Config`]: the operator's file.
//! * [`run`]: the agent's life.
//! * [`status`]: what is on disk, told to people.

mod boot;
mod command;
mod config;
mod files;
mod health;
mod install;
mod journal;
mod life;
mod link;
mod locks;
mod logs;
mod metrics;
mod notify;
mod payload;
mod probation;
mod slots;
mod status;
mod watchdog;

#[cfg(test)]
#[path = "../tests/common/loader.rs"]
mod loader;
#[cfg(test)]
#[path = "../tests/common/real.rs"]
mod real;

use fleetwave_agent_core::ResultCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use command::Command;
pub use config::{Config, ConfigError, ConnectionString, Health, Hub, Installed, Limits, Trust};
pub use health::Checks;
pub use locks::{AtDeadline, LocalUrl, Locks};
pub use logs::{Filter, Log, Recent, start as start_log};
pub use metrics::{Loopback, Metrics};
pub use slots::StateError;
pub use status::status;

use life::{Death, Life};
use slots::Store;

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
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
        /// The release that runs.
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

/// Runs the agent on this thread until SIGINT or SIGTERM; with `once`, no longer than until the hub wants nothing
/// more of the device and knows that.
///
/// # Errors
/// If the state directory cannot be used. Everything else the agent lives with.
pub fn run(config: &Config, once: bool) -> Result<Ended, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = Stop::new()?;
        let mut store = Store::open(&config.state, &config.installed)?;
        tracing::warn!(
            "nothing boots what this version installs: slots are directories, and a reboot is a new start of the agent"
        );
        loop {
            match Life::begin(config, &mut store)?.live(once, &mut stop).await {
                Death::Reboot => {}
                Death::Ended(ended) => return Ok(ended),
            }
        }
    })
}

/// The signals that ask the agent to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
