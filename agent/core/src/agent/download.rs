//! The payload: a link to it, its bytes, their verification, and their way into the slot.

use core::time::Duration;

use fleetwave_protocol::time::{Instant, WallTime};

use super::update::{Step, Then};
use super::{Agent, Flags, Turn};
use crate::journal::Record;
use crate::{
    Effect, FetchError, GrantAnswer, InstallError, Plan, ReleaseId, ResultCode, State, StorageError,
    VerifyError,
};

/// The longest pause that somebody else may ask for: a mistyped `Retry-After` must not park a device for good.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

impl Agent {
    pub(super) fn ask_for_grant(&mut self, turn: &mut Turn<'_>) {
        let release =
            self.durable.pending.expect("a grant is asked for after the update was started").release;
        self.step = Step::Granting { until: turn.now.at + turn.cx.policy.grant_timeout };
        turn.emit(Effect::RequestGrant { release });
    }

    pub(super) fn granted(&mut self, turn: &mut Turn<'_>, release: ReleaseId, answer: GrantAnswer) {
        let waiting = matches!(self.step, Step::Granting { .. })
            && self.in_flight().is_some_and(|wanted| turn.cx.releases.same(wanted, release));
        turn.emit(Effect::AnswerGrant { accepted: waiting });
        if !waiting {
            return;
        }
        match answer {
            GrantAnswer::Granted { expires } => {
                self.grant_expires = expires;
                self.fetch(turn);
            }
            GrantAnswer::Later(pause) => {
                if self.postponed >= turn.cx.policy.postponements {
                    self.give_up(turn, ResultCode::GrantTimeout);
                    return;
                }
                let spread = turn.cx.policy.retry.spread(self.postponed, &mut self.rng);
                self.postponed += 1;
                let until = turn.now.at + pause.min(LONGEST_PAUSE) + spread;
                self.enter(turn, Step::Backoff { until }, State::Backoff);
            }
            GrantAnswer::Refused => self.give_up(turn, ResultCode::GrantRefused),
        }
    }

    fn fetch(&mut self, turn: &mut Turn<'_>) {
        let release = self.durable.pending.expect("a grant belongs to an update that was started").release;
        let Some(until) = self.download_until(turn) else {
            self.wait_to_download(turn, release);
            return;
        };
        let priced = turn.cx.policy.caps.is_some() || turn.cx.releases[release].delta.is_some();
        if priced && !self.flags.has(Flags::PLANNED) {
            self.enter(turn, Step::Planning, State::Granting);
            turn.emit(Effect::Plan { release, offset: self.fetched });
            return;
        }
        self.enter(turn, Step::Downloading { until }, State::Downloading);
        turn.emit(Effect::Fetch { release, offset: self.fetched });
    }

    pub(super) fn planned(&mut self, turn: &mut Turn<'_>, result: Result<Plan, FetchError>) {
        if self.step != Step::Planning {
            return;
        }
        let plan = match result {
            Ok(plan) => plan,
            Err(error) => {
                self.stopped(turn, error);
                return;
            }
        };
        self.method = turn.cx.policy.report_plan.then_some(plan.method);
        if let Some(caps) = turn.cx.policy.caps {
            if plan.spent.saturating_add(plan.bytes) > caps.per_update {
                self.give_up(turn, ResultCode::OverUpdateCap);
                return;
            }
            // More than a whole window: no other one will do.
            if plan.bytes > caps.per_window {
                self.give_up(turn, ResultCode::OverWindowCap);
                return;
            }
            if plan.bytes > plan.allowance {
                self.wait_for_allowance(turn);
                return;
            }
        }
        self.flags.set(Flags::PLANNED, true);
        self.fetch(turn);
    }

    /// The window of downloads is over, and so is its grace.
    pub(super) fn pause_fetch(&mut self, turn: &mut Turn<'_>) {
        self.step = Step::Downloading { until: Instant::NEVER };
        turn.emit(Effect::PauseFetch);
    }

    /// Forgets the bytes that were fetched, and what they were planned to cost.
    fn discard(&mut self, turn: &mut Turn<'_>) {
        turn.emit(Effect::Discard);
        self.fetched = 0;
        self.flags.set(Flags::PLANNED, false);
    }

    pub(super) fn fetch_failed(&mut self, turn: &mut Turn<'_>, error: FetchError, durable: u64) {
        if !matches!(self.step, Step::Downloading { .. }) {
            return;
        }
        if durable > self.furthest {
            self.furthest = durable;
            self.tries = 0;
        }
        self.fetched = durable;
        if error == FetchError::Protocol {
            // Nothing says which bytes are right: begin again.
            self.discard(turn);
        }
        self.stopped(turn, error);
    }

    /// Planning or fetching came to an end before its time.
    fn stopped(&mut self, turn: &mut Turn<'_>, error: FetchError) {
        match error {
            // The window is over. A try that brought nothing counts, however many windows it takes.
            FetchError::Stopped if self.download_until(turn).is_none() => {
                if self.tries >= turn.cx.policy.attempts {
                    self.give_up(turn, error.code());
                    return;
                }
                self.tries += 1;
                self.go_on(turn);
            }
            FetchError::Busy(pause) => {
                self.failed(turn, error.code());
                // The store knows best; its word is a lower bound.
                if let Step::Backoff { until } = &mut self.step {
                    *until = (*until).max(turn.now.at + pause.min(LONGEST_PAUSE));
                }
            }
            FetchError::Forbidden | FetchError::NotFound => {
                self.grant_expires = WallTime::default();
                self.failed(turn, error.code());
            }
            FetchError::Storage(StorageError::ReadOnly) | FetchError::Unfit | FetchError::OverUpdateCap => {
                self.give_up(turn, error.code());
            }
            FetchError::OverWindowCap => self.wait_for_allowance(turn),
            FetchError::Unplanned => {
                self.flags.set(Flags::PLANNED, false);
                self.failed(turn, error.code());
            }
            FetchError::Server
            | FetchError::Interrupted
            | FetchError::Stopped
            | FetchError::Protocol
            | FetchError::Storage(_) => self.failed(turn, error.code()),
        }
    }

    /// A try of grant or download failed: pause, or give the release up.
    pub(super) fn failed(&mut self, turn: &mut Turn<'_>, code: ResultCode) {
        if self.tries >= turn.cx.policy.attempts {
            self.give_up(turn, code);
            return;
        }
        let until = turn.now.at + turn.cx.policy.retry.pause(self.tries, &mut self.rng);
        self.tries += 1;
        self.enter(turn, Step::Backoff { until }, State::Backoff);
    }

    pub(super) fn give_up(&mut self, turn: &mut Turn<'_>, code: ResultCode) {
        let release = self.pending_release();
        self.discard(turn);
        self.end(turn, release, code);
    }

    /// Stops whatever is under way for `release`, which nobody wants any more.
    pub(super) fn stop(&mut self, turn: &mut Turn<'_>, release: ReleaseId, code: ResultCode) {
        if matches!(self.step, Step::Planning | Step::Downloading { .. }) {
            turn.emit(Effect::AbortFetch);
        }
        self.discard(turn);
        self.end(turn, release, code);
    }

    /// Gets what is still missing of the payload.
    pub(super) fn go_on(&mut self, turn: &mut Turn<'_>) {
        let release = self.pending_release();
        if self.fetched >= turn.cx.releases[release].size {
            self.verify(turn);
        } else if self.download_until(turn).is_none() {
            self.wait_to_download(turn, release);
        } else if self.grant_expires > turn.now.wall {
            self.fetch(turn);
        } else {
            self.enter(turn, Step::Granting { until: Instant::NEVER }, State::Granting);
        }
    }

    pub(super) fn fetched(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.step, Step::Downloading { .. }) {
            let release = self.pending_release();
            self.fetched = turn.cx.releases[release].size;
            self.verify(turn);
        }
    }

    fn verify(&mut self, turn: &mut Turn<'_>) {
        self.tries = 0;
        self.enter(turn, Step::Verifying, State::Verifying);
        turn.emit(Effect::Verify(self.pending_release()));
    }

    pub(super) fn verified(&mut self, turn: &mut Turn<'_>, result: Result<(), VerifyError>) {
        if self.step != Step::Verifying {
            return;
        }
        let Err(error) = result else {
            let begun = self.may_begin(turn);
            self.enter(turn, Step::Staging { begun }, State::Staging);
            turn.emit(Effect::Stage(self.pending_release()));
            return;
        };
        self.mismatches += 1;
        self.furthest = 0;
        if self.mismatches >= turn.cx.policy.verify_attempts {
            self.give_up(turn, error.code());
        } else {
            self.discard(turn);
            self.failed(turn, error.code());
        }
    }

    pub(super) fn staged(&mut self, turn: &mut Turn<'_>, result: Result<(), InstallError>) {
        let Step::Staging { begun } = self.step else { return };
        match result {
            Ok(()) => {
                let release = self.pending_release();
                self.persist(turn, Record::Staged(release), Then::Activate { begun });
            }
            Err(error) => self.give_up(turn, error.code()),
        }
    }
}
