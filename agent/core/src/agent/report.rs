//! Reports: sparse, one at a time, repeated until the hub has taken them, and not made when the hub knows.

use fleetwave_protocol::time::Instant;

use super::{Agent, Flags, Turn};
use crate::Effect;
use crate::twin::{Progress, Status};

/// Where a report stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reporting {
    /// None under way.
    Quiet,
    /// Sent; given up then.
    Sent { rid: u32, status: Status, until: Instant },
    /// Was refused or lost; the next try is then.
    Pausing(Instant),
    /// Was refused for good: this status is not sent again.
    Refused(Status),
}

impl Reporting {
    pub(super) fn deadline(self) -> Instant {
        match self {
            Self::Quiet | Self::Refused(_) => Instant::NEVER,
            Self::Sent { until, .. } | Self::Pausing(until) => until,
        }
    }
}

impl Agent {
    /// What there is to say, from what is durable and what is desired alone: after a power cut it is the same. That a
    /// release failed is said until another outcome takes its place, or what runs is desired again.
    #[must_use]
    pub fn status(&self) -> Status {
        let progress = match (self.durable.pending, self.durable.last) {
            // One that is being reverted too: the outcome is told when the device is back.
            (Some(pending), _) => Progress::Updating(pending.release, self.method),
            (None, Some((_, code))) if code.is_failure() && self.flags.has(Flags::CONTENT) => {
                Progress::Idle(None)
            }
            (None, Some((release, code))) if code.is_failure() => Progress::Failed(release, code),
            (None, last) => Progress::Idle(last.map(|(_, code)| code)),
        };
        Status { running: self.durable.committed, progress }
    }

    pub(super) fn report_if_due(&mut self, turn: &mut Turn<'_>) {
        // Also while the twin is read again: a deadline that stays in the past would wake the device for ever.
        if self.reporting.deadline() <= turn.now.at {
            self.reporting = match self.reporting {
                Reporting::Sent { .. } => self.report_pause(turn),
                _ => Reporting::Quiet,
            };
        }
        if !self.is_online() {
            return;
        }
        let status = self.status();
        let due = match self.reporting {
            Reporting::Quiet => true,
            Reporting::Refused(refused) => refused != status,
            Reporting::Sent { .. } | Reporting::Pausing(_) => false,
        };
        if due && !self.told.is_some_and(|told| told.reads_like(&status, turn.cx.releases)) {
            let rid = self.rid();
            self.reporting =
                Reporting::Sent { rid, status, until: turn.now.at + turn.cx.policy.request_timeout };
            turn.emit(Effect::Report { rid, status });
        }
    }

    pub(super) fn reported(&mut self, turn: &mut Turn<'_>, answered: u32, answer: u16) {
        let Reporting::Sent { rid, status, .. } = self.reporting else { return };
        if rid != answered {
            return;
        }
        self.reporting = match answer {
            200..300 => {
                self.told = Some(status);
                self.report_tries = 0;
                Reporting::Quiet
            }
            // Throttled, or the hub's own trouble: it will pass.
            429 | 500.. => self.report_pause(turn),
            _ => Reporting::Refused(status),
        };
    }

    fn report_pause(&mut self, turn: &mut Turn<'_>) -> Reporting {
        let pause = turn.cx.policy.retry.pause(self.report_tries, &mut self.rng);
        self.report_tries = self.report_tries.saturating_add(1);
        Reporting::Pausing(turn.now.at + pause)
    }
}
