//! When a step may be taken: the start delay, the windows, and whoever runs on the device.

use core::time::Duration;

use fleetwave_protocol::time::{Instant, WallTime, micros};

use super::update::{Step, Then};
use super::{Agent, Flags, Turn};
use crate::journal::{Phase, Record};
use crate::policy::AtDeadline;
use crate::window::{Place, Window};
use crate::{Effect, LockAnswer, ReleaseId, ResultCode, State};

/// The longest that a device waits for a window without another look at its clock.
const LOOK_AGAIN: Duration = Duration::from_secs(1800);
/// The shortest pause before whoever runs on the device is asked again.
const SHORTEST_RETRY: Duration = Duration::from_secs(1);

impl Agent {
    /// When to look at a window again; `None` if it is open, or there is none. Not just when it opens, but at a random
    /// time soon after, so that a fleet does not start on the stroke.
    fn opens(&mut self, turn: &Turn<'_>, window: Option<Window>) -> Option<Instant> {
        let window = window?;
        let wait = window.wait(turn.cx.policy.local(turn.now.wall));
        if wait.is_zero() {
            return None;
        }
        // The clock may be set meanwhile: a device without one that runs on batteries begins in another year.
        if wait > LOOK_AGAIN {
            return Some(turn.now.at + LOOK_AGAIN);
        }
        let spread = turn.cx.policy.splay.min(window.lasts / 2);
        Some(turn.now.at + wait + Duration::from_micros(self.rng.between(0, micros(spread))))
    }

    // Downloads.

    /// Until when bytes may be fetched of an update that was started; `None` if not now.
    pub(super) fn download_until(&self, turn: &Turn<'_>) -> Option<Instant> {
        let Some(window) = turn.cx.policy.download_window else { return Some(Instant::NEVER) };
        match window.place(turn.cx.policy.local(turn.now.wall)) {
            Place::Open(left) => Some(turn.now.at + left.saturating_add(window.grace)),
            Place::Grace(left) => Some(turn.now.at + left),
            Place::Closed => None,
        }
    }

    /// Goes on with `release` in the next window.
    pub(super) fn wait_to_download(&mut self, turn: &mut Turn<'_>, release: ReleaseId) {
        let until = self.opens(turn, turn.cx.policy.download_window).unwrap_or(turn.now.at);
        self.enter(turn, Step::Deferred { release, until }, State::Deferred);
    }

    pub(super) fn turn_has_come(&mut self, turn: &mut Turn<'_>, release: ReleaseId) {
        if self.durable.pending.is_some_and(|pending| matches!(pending.phase, Phase::Started { .. })) {
            self.go_on(turn);
        } else if let Some(until) = self.opens(turn, turn.cx.policy.download_window) {
            self.step = Step::Deferred { release, until };
        } else {
            // Whatever an earlier update left behind: after a cold start it would pass for bytes of this one.
            turn.emit(Effect::Discard);
            self.persist(turn, Record::Started(release), Then::Grant);
        }
    }

    // What downloads may cost.

    /// When bytes may be fetched again, if the update under way waits for that because of what they cost.
    #[must_use]
    pub fn capped_until(&self) -> Option<WallTime> {
        match self.step {
            Step::Capped { opens, .. } => Some(opens),
            _ => None,
        }
    }

    /// The rest of the payload costs more than this window has left: goes on in the next one, with what has come. An
    /// update that has not got any further in so many windows is given up.
    pub(super) fn wait_for_allowance(&mut self, turn: &mut Turn<'_>) {
        let opens = turn.cx.policy.caps.and_then(|caps| caps.renewed(turn.now.wall));
        let Some(opens) = opens.filter(|_| self.tries < turn.cx.policy.attempts) else {
            self.give_up(turn, ResultCode::OverWindowCap);
            return;
        };
        self.tries += 1;
        // By then the device may have other things, and another price.
        self.flags.set(Flags::PLANNED, false);
        self.look_for_allowance(turn, opens);
    }

    /// Goes on if `opens` has come, a little after it, so that a fleet does not start on the stroke.
    pub(super) fn look_for_allowance(&mut self, turn: &mut Turn<'_>, opens: WallTime) {
        let (wall, policy) = (turn.now.wall, turn.cx.policy);
        if wall >= opens {
            self.go_on(turn);
            return;
        }
        // A clock that was ahead when the update began to wait is not waited for.
        let next = policy.caps.and_then(|caps| caps.renewed(wall));
        let opens = next.map_or(opens, |next| next.min(opens));
        let wait = Duration::from_millis(opens.as_unix_millis() - wall.as_unix_millis());
        let until = if wait > LOOK_AGAIN {
            turn.now.at + LOOK_AGAIN
        } else {
            turn.now.at + wait + Duration::from_micros(self.rng.between(0, micros(policy.splay)))
        };
        self.enter(turn, Step::Capped { until, opens }, State::Deferred);
    }

    // Installation.

    /// Whether an installation may begin now.
    pub(super) fn may_begin(&self, turn: &Turn<'_>) -> bool {
        let local = turn.cx.policy.local(turn.now.wall);
        turn.cx.policy.install_window.is_none_or(|window| window.wait(local).is_zero())
    }

    /// Boots what was staged, as soon as the window and whoever runs on the device permit it.
    pub(super) fn wait_to_activate(&mut self, turn: &mut Turn<'_>, ask_until: Instant, begun: bool) {
        let policy = turn.cx.policy;
        let mut begun = begun;
        if let Some(window) = policy.install_window {
            let place = window.place(policy.local(turn.now.wall));
            begun |= matches!(place, Place::Open(_));
            // What was begun goes on in the grace.
            if !begun || place == Place::Closed {
                let until = self.opens(turn, policy.install_window).unwrap_or(turn.now.at);
                self.enter(turn, Step::Staged { until, ask_until, begun }, State::Deferred);
                return;
            }
        }
        let Some(locks) = policy.locks else {
            self.activate(turn);
            return;
        };
        // The time that they may take begins with the first question, and goes on outside of the window.
        let ask_until = if ask_until == Instant::NEVER { turn.now.at + locks.deadline } else { ask_until };
        let until = turn.now.at + policy.request_timeout;
        self.enter(turn, Step::Asking { until, ask_until, begun }, State::Deferred);
        turn.emit(Effect::AskLocks);
    }

    fn activate(&mut self, turn: &mut Turn<'_>) {
        let release = self.pending_release();
        self.enter(turn, Step::Rebooting, State::Rebooting);
        self.persist(turn, Record::Booting(release), Then::Reboot);
    }

    pub(super) fn locks(&mut self, turn: &mut Turn<'_>, answer: LockAnswer) {
        let Step::Asking { ask_until, begun, .. } = self.step else { return };
        match answer {
            LockAnswer::Free => self.activate(turn),
            LockAnswer::Held => self.locked(turn, ask_until, begun),
        }
    }

    /// Somebody does not want to be interrupted now, or does not answer.
    pub(super) fn locked(&mut self, turn: &mut Turn<'_>, ask_until: Instant, begun: bool) {
        match turn.cx.policy.locks {
            Some(locks) if turn.now.at < ask_until => {
                let until = (turn.now.at + locks.retry.max(SHORTEST_RETRY)).min(ask_until);
                self.step = Step::Staged { until, ask_until, begun };
            }
            Some(locks) if locks.at_deadline == AtDeadline::GiveUp => {
                self.give_up(turn, ResultCode::LockTimeout);
            }
            _ => self.activate(turn),
        }
    }
}
