//! The update: from what the twin asks for to a committed release, or to a reason why not.

use core::time::Duration;

use fleetwave_protocol::time::{Instant, WallTime, micros};

use super::{Agent, Boot, Context, Flags, Turn};
use crate::journal::{Pending, Phase, Record};
use crate::twin::Desired;
use crate::{Effect, HealthError, InstallError, Method, ReleaseId, ResultCode, State, StorageError};

/// Where the update stands, with what that needs. [`State`] is its public face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing under way.
    Idle,
    /// `release` waits for its turn to be started, or for the next window in which bytes of it may be fetched.
    Deferred { release: ReleaseId, until: Instant },
    /// Needs more than may be fetched before `opens`; looks at the calendar then.
    Capped { until: Instant, opens: WallTime },
    /// Staged: waits for its turn to be booted. Whoever runs on the device is asked at the most until `ask_until`;
    /// nobody was asked yet if that is never.
    Staged { until: Instant, ask_until: Instant, begun: bool },
    /// Has asked whoever runs on the device; no answer by `until` is as good as a refusal.
    Asking { until: Instant, ask_until: Instant, begun: bool },
    /// Picked up after a cold start: goes on once the twin has been read.
    Resuming,
    /// A record is being made durable; `then` relies on it.
    Persisting { record: Record, then: Then },
    /// A record could not be made durable; tries again then.
    PersistPause { record: Record, then: Then, until: Instant },
    /// Wants a grant; asked for it if there is a deadline.
    Granting { until: Instant },
    /// What the payload will cost is being found out.
    Planning,
    /// Bytes are coming, until then at the most.
    Downloading { until: Instant },
    /// Being verified.
    Verifying,
    /// Being put into the slot, which was begun in the window of installations or not.
    Staging { begun: bool },
    /// The device is about to go down.
    Rebooting,
    /// On trial: healthy or not known yet.
    Probation { until: Instant, healthy: bool },
    /// The slot is being made the default one.
    Committing,
    /// Pauses before the next grant or download.
    Backoff { until: Instant },
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Ask for a grant.
    Grant,
    /// Boot the slot when that is allowed.
    Activate { begun: bool },
    /// Boot the slot now.
    Reboot,
    /// Go back to the committed slot.
    Revert,
    /// The update has ended.
    Rest,
}

impl Step {
    pub(super) fn deadline(self) -> Instant {
        match self {
            Self::Deferred { until, .. }
            | Self::Capped { until, .. }
            | Self::Staged { until, .. }
            | Self::Asking { until, .. }
            | Self::Downloading { until }
            | Self::PersistPause { until, .. }
            | Self::Granting { until }
            | Self::Backoff { until }
            | Self::Probation { until, .. } => until,
            _ => Instant::NEVER,
        }
    }
}

impl Step {
    /// Whether an update may be ended here because nobody wants it any more.
    const fn may_be_left(self) -> bool {
        match self {
            Self::Idle
            | Self::Resuming
            | Self::Deferred { .. }
            | Self::Capped { .. }
            | Self::Staged { .. }
            | Self::Asking { .. }
            | Self::Granting { .. }
            | Self::Planning
            | Self::Downloading { .. }
            | Self::Verifying
            | Self::Staging { .. }
            | Self::PersistPause { .. }
            | Self::Backoff { .. } => true,
            // From here on the slot decides: the next release waits for the end of this one.
            Self::Persisting { .. } | Self::Rebooting | Self::Probation { .. } | Self::Committing => false,
        }
    }
}

impl Agent {
    /// What is being installed, or waits for its turn.
    #[must_use]
    pub fn in_flight(&self) -> Option<ReleaseId> {
        match self.step {
            Step::Deferred { release, .. } | Step::PersistPause { record: Record::Started(release), .. } => {
                Some(release)
            }
            _ => self.durable.pending.map(|pending| pending.release),
        }
    }

    /// Goes on from the durable records alone, and from what the device really runs.
    pub(super) fn resume(&mut self, turn: &mut Turn<'_>, boot: Boot) {
        let releases = turn.cx.releases;
        // The boot loader knows better than the journal: the record of the last commit may have been lost, or
        // someone may have flashed the device by hand.
        self.durable.committed = boot.committed;
        let pending = self.durable.pending;
        let runs_pending = pending.is_some_and(|pending| releases.same(pending.release, boot.running));
        if !releases.same(boot.running, boot.committed) {
            self.resume_on_trial(turn, runs_pending);
            return;
        }
        let Some(pending) = pending else { return };
        let release = pending.release;
        self.expect_method(turn, release);
        match pending.phase {
            // It could not be left, and the boot loader has made it the default one: that is how it is.
            Phase::Reverting(code) if runs_pending && code != ResultCode::CommitFailed => {
                self.end(turn, release, code);
            }
            // The slot was committed, and the power went before that was recorded.
            _ if runs_pending => self.end(turn, release, ResultCode::Ok),
            Phase::Reverting(code) => self.end(turn, release, code),
            Phase::Staged { boots } if boots >= turn.cx.policy.boot_attempts => {
                self.end(turn, release, ResultCode::BootFailed);
            }
            Phase::Started { starts } if starts >= turn.cx.policy.start_attempts => {
                self.end(turn, release, ResultCode::StartLoop);
            }
            Phase::Staged { .. } | Phase::Started { .. } => self.step = Step::Resuming,
        }
    }

    fn resume_on_trial(&mut self, turn: &mut Turn<'_>, runs_pending: bool) {
        match self.durable.pending.filter(|_| runs_pending) {
            Some(pending) => match pending.phase {
                Phase::Staged { .. } => {
                    let until = turn.now.at + turn.cx.policy.probation_timeout;
                    self.enter(turn, Step::Probation { until, healthy: false }, State::Probation);
                    turn.emit(Effect::CheckHealth);
                }
                Phase::Reverting(code) => self.revert(turn, pending.release, code),
                Phase::Started { .. } => self.revert(turn, pending.release, ResultCode::BootFailed),
            },
            // Nothing says that this was verified. The journal is about something else, so nothing to record.
            None => {
                self.enter(turn, Step::Rebooting, State::RollingBack);
                turn.emit(Effect::RebootIntoCommitted);
            }
        }
    }

    /// Takes every step that needs no more events: called at the end of each turn.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) {
        match self.step {
            Step::Resuming if self.is_online() => match self.durable.pending {
                Some(Pending { phase: Phase::Staged { .. }, .. }) => {
                    self.wait_to_activate(turn, Instant::NEVER, false);
                }
                Some(pending) => self.persist(turn, Record::Started(pending.release), Then::Grant),
                None => self.step = Step::Idle,
            },
            Step::Granting { until: Instant::NEVER } if self.is_online() => self.ask_for_grant(turn),
            Step::Probation { healthy: true, .. }
                if self.is_online() || !turn.cx.policy.probation_needs_hub =>
            {
                self.enter(turn, Step::Committing, State::Committing);
                turn.emit(Effect::CommitSlot);
            }
            _ => {}
        }
    }

    /// Brings what is under way in line with what is desired, where that is safe.
    pub(super) fn reconcile(&mut self, turn: &mut Turn<'_>) {
        if !self.is_online() {
            return;
        }
        let wanted = match self.desired {
            Desired::Release(release) => Some(release),
            Desired::Nothing | Desired::Cancelled(_) => None,
        };
        let runs = |release| turn.cx.releases.same(release, self.durable.committed);
        self.flags.set(Flags::CONTENT, wanted.is_some_and(runs));
        if !self.step.may_be_left() {
            return;
        }
        match (self.in_flight(), wanted) {
            (Some(release), Some(wanted)) if turn.cx.releases.same(release, wanted) => {}
            (Some(release), wanted) => {
                let code = if wanted.is_some() { ResultCode::Superseded } else { ResultCode::Cancelled };
                self.stop(turn, release, code);
            }
            (None, Some(wanted)) => self.consider(turn, wanted),
            (None, None) => self.show(turn, State::Idle),
        }
    }

    /// Starts the update to `wanted`, unless the device has it, has given it up, or must not take it.
    fn consider(&mut self, turn: &mut Turn<'_>, wanted: ReleaseId) {
        let releases = turn.cx.releases;
        if releases.same(wanted, self.durable.committed) {
            self.show(turn, State::Idle);
            return;
        }
        if let Some((release, code)) = self.durable.last
            && code.is_failure()
            && release == wanted
        {
            self.show(turn, State::Failed);
            return;
        }
        if let Err(code) = self.may_take(&turn.cx, wanted) {
            self.end(turn, wanted, code);
            return;
        }
        self.tries = 0;
        self.mismatches = 0;
        self.postponed = 0;
        self.fetched = 0;
        self.furthest = 0;
        self.flags.set(Flags::PLANNED, false);
        self.expect_method(turn, wanted);
        let delay = self.rng.between(0, micros(turn.cx.policy.splay));
        let until = turn.now.at + Duration::from_micros(delay);
        self.enter(turn, Step::Deferred { release: wanted, until }, State::Deferred);
    }

    /// Whether the device may take `wanted`, which it does not run.
    ///
    /// # Errors
    /// Why not.
    pub fn may_take(&self, cx: &Context<'_>, wanted: ReleaseId) -> Result<(), ResultCode> {
        let (policy, release) = (cx.policy, &cx.releases[wanted]);
        release.trust?;
        release.fit?;
        if release.size > policy.slot_size {
            return Err(ResultCode::TooLarge);
        }
        if release.sequence < cx.releases[self.durable.committed].sequence && !release.downgrade {
            return Err(ResultCode::Downgrade);
        }
        // It was installed again and again, and something took it back each time.
        let again = self.durable.last == Some((wanted, ResultCode::Ok));
        if again && self.durable.repeats.saturating_add(1) >= policy.start_attempts {
            return Err(ResultCode::StartLoop);
        }
        // Without a cheaper way its cost is known before anyone is asked.
        if release.delta.is_none() && policy.caps.is_some_and(|caps| release.size > caps.per_update) {
            return Err(ResultCode::OverUpdateCap);
        }
        Ok(())
    }

    /// How `release` will be fetched, to be told, if there is but one way.
    fn expect_method(&mut self, turn: &Turn<'_>, release: ReleaseId) {
        let known = turn.cx.policy.report_plan && turn.cx.releases[release].delta.is_none();
        self.method = known.then_some(Method::Full);
    }

    pub(super) fn step_deadline(&mut self, turn: &mut Turn<'_>) {
        if self.step.deadline() > turn.now.at {
            return;
        }
        match self.step {
            Step::Deferred { release, .. } => self.turn_has_come(turn, release),
            Step::Capped { opens, .. } => self.look_for_allowance(turn, opens),
            Step::Staged { ask_until, begun, .. } => self.wait_to_activate(turn, ask_until, begun),
            Step::Asking { ask_until, begun, .. } => self.locked(turn, ask_until, begun),
            Step::Downloading { .. } => self.pause_fetch(turn),
            Step::PersistPause { record, then, .. } => self.persist(turn, record, then),
            Step::Granting { .. } => self.failed(turn, ResultCode::GrantTimeout),
            Step::Backoff { .. } => self.go_on(turn),
            Step::Probation { .. } => {
                let release = self.pending_release();
                self.revert(turn, release, ResultCode::ProbationTimeout);
            }
            _ => {}
        }
    }

    pub(super) fn abort(&mut self, turn: &mut Turn<'_>) {
        let release = self.in_flight().filter(|_| self.step.may_be_left());
        turn.emit(Effect::AnswerAbort { taken: release.is_some() });
        if let Some(release) = release {
            self.stop(turn, release, ResultCode::Aborted);
        }
    }

    pub(super) fn pending_release(&self) -> ReleaseId {
        self.durable.pending.expect("a trial has a record that it was booted").release
    }

    // Records.

    pub(super) fn persist(&mut self, turn: &mut Turn<'_>, record: Record, then: Then) {
        self.step = Step::Persisting { record, then };
        turn.emit(Effect::Persist(record));
    }

    pub(super) fn persisted(&mut self, turn: &mut Turn<'_>, result: Result<(), StorageError>) {
        let Step::Persisting { record, then } = self.step else { return };
        if let Err(error) = result {
            match record {
                // Without a record nothing is begun. The device says so at once, and tries again for a while; after
                // that, at its next start.
                Record::Started(release) => {
                    self.durable.apply(Record::Ended(release, error.code()));
                    let paused = self.pause_of_record(turn, record, then);
                    self.enter(turn, paused.unwrap_or(Step::Idle), State::Failed);
                    return;
                }
                // Nothing relies on the end: if it is lost, a cold start comes to the same one.
                Record::Ended(..) => {}
                // It only names the cause. A release that failed its trial must not go on running for want of it:
                // without it the number of boots ends the trial.
                Record::Reverting(..) => {}
                Record::Staged(_) | Record::Booting(_) => {
                    match self.pause_of_record(turn, record, then) {
                        Some(paused) => self.step = paused,
                        None => self.give_up(turn, error.code()),
                    }
                    return;
                }
            }
        }
        self.durable.apply(record);
        match then {
            Then::Grant => {
                self.tries = 0;
                self.go_on(turn);
            }
            // Not straight into the reboot: this is the last moment at which the update can be called off.
            Then::Activate { begun } => {
                self.step = Step::Staged { until: turn.now.at, ask_until: Instant::NEVER, begun };
            }
            Then::Reboot => {
                self.step = Step::Rebooting;
                turn.emit(Effect::RebootIntoCandidate);
            }
            Then::Revert => {
                self.step = Step::Rebooting;
                turn.emit(Effect::RebootIntoCommitted);
            }
            Then::Rest => {
                self.grant_expires = WallTime::default();
                let failed = matches!(record, Record::Ended(_, code) if code.is_failure());
                self.enter(turn, Step::Idle, if failed { State::Failed } else { State::Idle });
            }
        }
    }

    /// The pause before a record is tried again that could not be made durable; `None` if it was tried often enough.
    fn pause_of_record(&mut self, turn: &Turn<'_>, record: Record, then: Then) -> Option<Step> {
        if self.tries >= turn.cx.policy.attempts {
            return None;
        }
        let until = turn.now.at + turn.cx.policy.retry.pause(self.tries, &mut self.rng);
        self.tries += 1;
        Some(Step::PersistPause { record, then, until })
    }

    /// Ends the update: the outcome is durable before it is told.
    pub(super) fn end(&mut self, turn: &mut Turn<'_>, release: ReleaseId, code: ResultCode) {
        self.persist(turn, Record::Ended(release, code), Then::Rest);
    }

    pub(super) fn revert(&mut self, turn: &mut Turn<'_>, release: ReleaseId, code: ResultCode) {
        self.enter(turn, Step::Rebooting, State::RollingBack);
        self.persist(turn, Record::Reverting(release, code), Then::Revert);
    }

    /// What was staged could not be made to run; what is committed does, as if nothing had been tried.
    pub(super) fn not_activated(&mut self, turn: &mut Turn<'_>, error: InstallError) {
        let pending = self.durable.pending;
        if self.step == Step::Rebooting && pending.is_some_and(|p| matches!(p.phase, Phase::Staged { .. })) {
            self.give_up(turn, error.code());
        }
    }

    // Trial.

    pub(super) fn health(&mut self, turn: &mut Turn<'_>, result: Result<(), HealthError>) {
        let Step::Probation { until, .. } = self.step else { return };
        match result {
            Ok(()) => self.step = Step::Probation { until, healthy: true },
            Err(HealthError) => {
                let release = self.pending_release();
                self.revert(turn, release, ResultCode::Unhealthy);
            }
        }
    }

    pub(super) fn slot_committed(&mut self, turn: &mut Turn<'_>, result: Result<(), StorageError>) {
        if self.step != Step::Committing {
            return;
        }
        let release = self.pending_release();
        match result {
            Ok(()) => self.end(turn, release, ResultCode::Ok),
            Err(_) => self.revert(turn, release, ResultCode::CommitFailed),
        }
    }

    // The connection.

    /// A request that was under way is lost with the connection; a download is not.
    pub(super) fn link_lost(&mut self) {
        if matches!(self.step, Step::Granting { .. }) {
            self.step = Step::Granting { until: Instant::NEVER };
        }
    }

    pub(super) fn enter(&mut self, turn: &mut Turn<'_>, step: Step, state: State) {
        self.step = step;
        self.show(turn, state);
    }
}
