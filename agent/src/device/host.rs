//! What of the process and the machine a device may use. Agents that share a process with others have none of it.

use std::time::Duration;

use fleetwave_agent_core::ReleaseId;
use fleetwave_agent_core::twin::Desired;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::logs::Recent;
use crate::metrics::Counters;
use crate::notify::Supervisor;
use crate::target::Target;
use crate::telemetry::News;
use crate::unit::Unit;
use crate::watch::{Around, Calendar, Seen, Watch};

/// Empty by default.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) supervisor: Supervisor,
    pub(crate) counters: Counters,
    /// What is told beside the twin; once the configuration is known.
    pub(super) news: Option<News>,
    /// The end of the process's log.
    pub(crate) recent: Option<Recent>,
    /// Whoever runs many agents in one process, and measures them.
    watch: Option<Watch>,
    /// The calendar, if it is not the machine's.
    pub(super) calendar: Option<Calendar>,
    /// What the watch was told last that the firmware is to be.
    wanted: Option<ReleaseId>,
    beat: Option<Interval>,
    /// There is one agent alone in this process, and others talk to it.
    pub(super) owns_process: bool,
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
        Self {
            supervisor,
            counters: Counters::default(),
            recent,
            beat,
            owns_process: true,
            ..Self::default()
        }
    }

    /// Of one agent among many.
    pub(crate) fn within(around: Around) -> Self {
        Self { watch: around.watch, calendar: around.calendar, ..Self::default() }
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

    /// Whoever watches may want to end it right here, as a power cut would.
    pub(super) async fn give_way(&self) {
        if self.watch.is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// What the calendar is ahead of the machine's.
    pub(super) fn ahead(&self) -> Duration {
        self.calendar.map_or(Duration::ZERO, |calendar| calendar.ahead)
    }

    /// Tells the watch, if there is one.
    pub(super) fn watched(&self, seen: Seen<'_>) {
        if let Some(watch) = &self.watch {
            watch(seen);
        }
    }

    /// Tells the watch what the firmware is to be, when that has changed.
    pub(super) fn watch_wanted(&mut self, units: &[Unit]) {
        let Some(watch) = &self.watch else { return };
        let firmware = units.iter().find(|unit| unit.target == Target::firmware());
        let Some((unit, agent)) = firmware.and_then(|unit| Some((unit, unit.agent()?))) else { return };
        let wanted = match agent.desired() {
            Desired::Release(release) => Some(release),
            _ => None,
        };
        if let Some(release) = wanted.filter(|_| wanted != self.wanted) {
            watch(Seen::Wanted(unit.releases[release].reference()));
        }
        self.wanted = wanted;
    }

    /// The device begins anew: the connection is over, and what was wanted is read again.
    pub(super) fn life_ends(&mut self) {
        self.wanted = None;
        self.watched(Seen::Lost);
    }

    /// Tells the service manager what the units do.
    pub(super) fn show(&mut self, units: &[Unit], connected: bool) {
        if self.supervisor.listens() {
            let lost = (!connected).then(|| "not connected".to_owned());
            let doing =
                lost.into_iter().chain(units.iter().filter_map(Unit::doing)).collect::<Vec<_>>().join(", ");
            self.supervisor.status(if doing.is_empty() { "up to date" } else { &doing });
        }
    }
}
