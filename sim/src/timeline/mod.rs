//! What both engines do, and when: the scenario's steps as a controller without a clock.
//!
//! An engine calls [`Timeline::poll`] with its time and its counts and carries out the actions that come back;
//! again at [`Timeline::next_wake`], and again whenever its counts have changed. It confirms configuration changes
//! ([`Timeline::confirm`]), so that no wait is judged by counts from before a change.

#[cfg(test)]
mod tests;

use std::time::Duration;

use fleetwave_protocol::Instant;

use crate::measure::ChangeId;
use crate::scenario::fault::Fault;
use crate::scenario::model::Scenario;
use crate::scenario::progress::{Progress, ProgressCondition};
use crate::scenario::step::{self, Arrival, Configure, Connect, OnTimeout, Step, Wait, WaitFor};

/// How many devices have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices in the fleet.
    pub total: u64,
    /// Devices that are connected.
    pub connected: u64,
    /// Devices that a configuration gives a release.
    pub targeted: u64,
    /// Targeted devices that know of their newest release.
    pub notified: u64,
    /// Targeted devices that run it.
    pub converged: u64,
    /// Targeted devices whose update ended with a failure.
    pub failed: u64,
    /// Those among them that went back.
    pub rolled_back: u64,
}

impl Counts {
    /// Targeted devices that have an outcome.
    #[must_use]
    pub const fn settled(&self) -> u64 {
        self.converged + self.failed
    }

    fn satisfy(&self, condition: &ProgressCondition) -> bool {
        let (count, whole) = match condition.progress {
            Progress::Connected => (self.connected, self.total),
            Progress::Notified => (self.notified, self.targeted),
            Progress::Converged => (self.converged, self.targeted),
            Progress::Failed => (self.failed, self.targeted),
            Progress::RolledBack => (self.rolled_back, self.targeted),
            Progress::Settled => (self.settled(), self.targeted),
        };
        condition.holds(count, whole)
    }
}

/// Something for the engine to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<'s> {
    /// Tell devices to connect, the `n`-th of them at `from` + [`arrival_offset`].
    Connect {
        /// When the first one is meant to connect.
        from: Instant,
        /// Which devices, and how they arrive.
        connect: &'s Connect,
    },
    /// Put a configuration. Answered with [`Timeline::confirm`].
    Configure {
        /// The change's number, for the meter.
        id: ChangeId,
        /// When it is meant to be sent; what latencies count from if the engine is later.
        intended: Instant,
        /// The configuration.
        configure: &'s Configure,
    },
    /// Remove a configuration.
    Cancel {
        /// The configuration's id.
        configuration: &'s str,
    },
    /// Something breaks.
    Fault {
        /// When it is meant to begin.
        intended: Instant,
        /// What breaks. Never [`Fault::LateStep`], which the timeline does itself.
        fault: &'s Fault,
    },
    /// The run is over.
    End(End),
}

/// Why a run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every step was done.
    Completed,
    /// A wait said to abort the rollout.
    Aborted {
        /// The step that waited.
        step: String,
        /// The condition that came true.
        condition: String,
    },
    /// A wait took too long.
    TimedOut {
        /// The step that waited.
        step: String,
        /// What it waited for.
        condition: String,
    },
    /// The run took as long as it may.
    OutOfTime {
        /// The step that it was at.
        step: String,
    },
}

/// When the device of this rank, of so many, is meant to connect: an offset from the step's start.
#[must_use]
pub fn arrival_offset(arrival: Arrival, rank: u64, devices: u64) -> Duration {
    match arrival {
        Arrival::Storm => Duration::ZERO,
        Arrival::At(rate) => rate.nth(rank),
        Arrival::Over(span) => {
            let gaps = u128::from(devices.saturating_sub(1).max(1));
            let micros = u128::from(span.as_micros()) * u128::from(rank) / gaps;
            Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
        }
    }
}

#[derive(Clone, Debug)]
enum State<'s> {
    /// The step `next` is to be started.
    Between,
    Waiting {
        wait: &'s Wait,
        since: Instant,
    },
    /// The rollout was aborted; devices under way may still report.
    Settling {
        until: Instant,
        end: End,
    },
    Over,
}

/// The controller of one run.
#[derive(Debug)]
pub struct Timeline<'s> {
    steps: &'s [Step],
    max_duration: Instant,
    settle: Duration,
    /// Devices that each step connects.
    connects: Vec<u64>,
    next: usize,
    state: State<'s>,
    /// When the last step that was started ends, waits aside.
    ended: Instant,
    /// How late the next step is to be sent, by a planted defect.
    lateness: Duration,
    changes: u16,
    unconfirmed: u16,
    configurations: Vec<&'s str>,
    notes: Vec<String>,
}

impl<'s> Timeline<'s> {
    /// The timeline of `scenario`; `devices_of` says how many devices a group has, or the fleet.
    #[must_use]
    pub fn new(scenario: &'s Scenario, devices_of: impl Fn(Option<&str>) -> u64) -> Self {
        let connects = scenario.steps.iter().map(|step| match &step.action {
            step::Action::Connect(connect) => devices_of(connect.group.as_deref()),
            _ => 0,
        });
        Self {
            steps: &scenario.steps,
            max_duration: Instant::ZERO + scenario.harness.max_duration.duration(),
            settle: scenario.harness.settle.duration(),
            connects: connects.collect(),
            next: 0,
            state: State::Between,
            ended: Instant::ZERO,
            lateness: Duration::ZERO,
            changes: 0,
            unconfirmed: 0,
            configurations: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// What is to be done now. After [`Action::End`] nothing is.
    pub fn poll(&mut self, now: Instant, counts: &Counts) -> Vec<Action<'s>> {
        let mut actions = Vec::new();
        while !matches!(self.state, State::Over) && self.advance(now, counts, &mut actions) {}
        actions
    }

    /// The hub has applied the change, and the counts from now on have its targets.
    pub fn confirm(&mut self, id: ChangeId) {
        debug_assert!(id.0 < self.changes, "{id:?} was never put");
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
    }

    /// When to poll again, even if no count changes; [`Instant::NEVER`] once the run is over.
    #[must_use]
    pub fn next_wake(&self) -> Instant {
        let wake = match &self.state {
            State::Over => return Instant::NEVER,
            State::Settling { until, .. } => *until,
            State::Waiting { wait, since } => deadline(wait, *since).unwrap_or(Instant::NEVER),
            State::Between => match self.steps.get(self.next) {
                Some(step) => self.intended_start(step) + self.lateness,
                None => self.ended,
            },
        };
        wake.min(self.max_duration)
    }

    /// The step that the run is at, in words.
    #[must_use]
    pub fn phase(&self) -> String {
        match &self.state {
            State::Between if self.next == 0 => "start".to_owned(),
            State::Between | State::Waiting { .. } => describe(&self.steps[self.next.saturating_sub(1)]),
            State::Settling { .. } => "aborted, waiting for devices under way".to_owned(),
            State::Over => "done".to_owned(),
        }
    }

    /// What happened that a reader of the figures has to know.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Goes one state further; false if there is none to go to yet.
    fn advance(&mut self, now: Instant, counts: &Counts, actions: &mut Vec<Action<'s>>) -> bool {
        if now >= self.max_duration {
            return self.end(End::OutOfTime { step: self.phase() }, actions);
        }
        match &self.state {
            State::Over => false,
            State::Settling { until, end } => {
                let settled = self.unconfirmed == 0 && counts.settled() >= counts.targeted;
                let end = (settled || now >= *until).then(|| end.clone());
                end.is_some_and(|end| self.end(end, actions))
            }
            &State::Waiting { wait, since } => self.wait(wait, since, now, counts, actions),
            State::Between => match self.steps.get(self.next) {
                Some(step) => self.start(step, now, actions),
                None => now >= self.ended && self.end(End::Completed, actions),
            },
        }
    }

    fn start(&mut self, step: &'s Step, now: Instant, actions: &mut Vec<Action<'s>>) -> bool {
        let intended = self.intended_start(step);
        let start = intended + self.lateness;
        if now < start {
            return false;
        }
        self.lateness = Duration::ZERO;
        self.ended = start;
        match &step.action {
            step::Action::Connect(connect) => {
                let devices = self.connects[self.next];
                let last = arrival_offset(connect.arrival, devices.saturating_sub(1), devices);
                self.ended = start + last;
                actions.push(Action::Connect { from: intended, connect });
            }
            step::Action::Configure(configure) => {
                let id = ChangeId(self.changes);
                self.changes += 1;
                self.unconfirmed += 1;
                self.configurations.push(&configure.id);
                actions.push(Action::Configure { id, intended, configure });
            }
            step::Action::Cancel(cancel) => {
                actions.push(Action::Cancel { configuration: &cancel.configuration });
            }
            step::Action::Fault(Fault::LateStep(late)) => self.lateness = late.by.duration(),
            step::Action::Fault(fault) => actions.push(Action::Fault { intended, fault }),
            step::Action::Wait(wait) => self.state = State::Waiting { wait, since: start },
        }
        self.next += 1;
        true
    }

    fn wait(
        &mut self,
        wait: &'s Wait,
        since: Instant,
        now: Instant,
        counts: &Counts,
        actions: &mut Vec<Action<'s>>,
    ) -> bool {
        let current = self.unconfirmed == 0;
        if let Some(condition) = wait.abort_if.filter(|abort| current && counts.satisfy(abort)) {
            self.abort(&condition, now, actions);
            return true;
        }
        let due = deadline(wait, since).filter(|deadline| now >= *deadline);
        match (&wait.what, due) {
            (WaitFor::Time(_), Some(due)) => self.go_on(due),
            (WaitFor::Progress { until, .. }, _) if current && counts.satisfy(until) => self.go_on(now),
            (WaitFor::Progress { until, on_timeout, .. }, Some(due)) => {
                let (step, condition) = (self.phase(), until.to_string());
                match on_timeout {
                    OnTimeout::Stop => return self.end(End::TimedOut { step, condition }, actions),
                    OnTimeout::Continue => {
                        self.notes.push(format!("went on after {step}, which timed out"));
                        self.go_on(due);
                    }
                }
            }
            (_, None) => return false,
        }
        true
    }

    /// The wait has ended at `at`.
    fn go_on(&mut self, at: Instant) {
        self.ended = at;
        self.state = State::Between;
    }

    fn abort(&mut self, condition: &ProgressCondition, now: Instant, actions: &mut Vec<Action<'s>>) {
        let end = End::Aborted { step: self.phase(), condition: condition.to_string() };
        let mut configurations = std::mem::take(&mut self.configurations);
        configurations.sort_unstable();
        configurations.dedup();
        actions.extend(configurations.into_iter().map(|configuration| Action::Cancel { configuration }));
        self.state = State::Settling { until: now + self.settle, end };
    }

    fn end(&mut self, end: End, actions: &mut Vec<Action<'s>>) -> bool {
        actions.push(Action::End(end));
        self.state = State::Over;
        true
    }

    /// When the step is meant to start: at its time, or when the step before it has ended if that is later, which is
    /// how long a wait took and no fault of the harness.
    fn intended_start(&self, step: &Step) -> Instant {
        step.at.map_or(self.ended, |at| (Instant::ZERO + at.duration()).max(self.ended))
    }
}

/// When the wait ends whatever the fleet does.
fn deadline(wait: &Wait, since: Instant) -> Option<Instant> {
    match &wait.what {
        WaitFor::Time(span) => Some(since + span.duration()),
        WaitFor::Progress { timeout, .. } => timeout.map(|timeout| since + timeout.duration()),
    }
}

fn describe(step: &Step) -> String {
    if let Some(name) = &step.name {
        return name.clone();
    }
    match &step.action {
        step::Action::Connect(_) => "connect".to_owned(),
        step::Action::Configure(configure) => format!("configure {}", configure.id),
        step::Action::Cancel(cancel) => format!("cancel {}", cancel.configuration),
        step::Action::Fault(fault) => format!("fault {}", fault.name()),
        step::Action::Wait(Wait { what: WaitFor::Time(span), .. }) => format!("wait for {span}"),
        step::Action::Wait(Wait { what: WaitFor::Progress { until, .. }, .. }) => {
            format!("wait until {until}")
        }
    }
}
