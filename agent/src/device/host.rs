//! What of the process and the machine a device may use. Agents that share a process with others have none of it.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::logs::Recent;
use crate::metrics::Counters;
use crate::notify::Supervisor;
use crate::unit::Unit;

/// Empty by default.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) supervisor: Supervisor,
    pub(crate) counters: Counters,
    /// The end of the process's log.
    pub(crate) recent: Option<Recent>,
    beat: Option<Interval>,
}

impl Host {
    /// Of a process that has one agent alone.
    pub(crate) fn of_this_process(recent: Option<Recent>) -> Self {
        let supervisor = Supervisor::of_this_process();
        let beat = supervisor.watchdog().map(|period: Duration| {
            let mut beat = interval(period);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beat
        });
        Self { supervisor, counters: Counters::default(), recent, beat }
    }

    /// Until the service manager wants to hear again that the loop is not stuck.
    pub(super) async fn beat(&mut self) {
        match &mut self.beat {
            Some(beat) => {
                beat.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Tells the service manager what the units do.
    pub(super) fn show(&mut self, units: &[Unit]) {
        if self.supervisor.listens() {
            let doing = units.iter().filter_map(Unit::doing).collect::<Vec<_>>().join(", ");
            self.supervisor.status(if doing.is_empty() { "up to date" } else { &doing });
        }
    }
}
