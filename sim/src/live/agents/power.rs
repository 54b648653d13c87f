//! The power of a device that a real agent runs: when it goes, everything that the agent was in the middle of is dropped.

use std::cell::RefCell;
use std::time::Duration;

use fleetwave_agent_core::State;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// A state lasts as long as it takes; a cut in it comes within this, and with its end at the latest.
const WITHIN: Duration = Duration::from_millis(50);
/// Longer than it takes to commit.
const UNTIL_ITS_END: Duration = Duration::from_secs(60);

/// A power cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// In this state of the firmware's update; at once if there is none.
    pub(super) state: Option<State>,
    /// How far through it: 0 to 1.
    pub(super) through: f64,
    /// How long the power is off.
    pub(super) off: Duration,
}

/// What is to happen to a device's power.
#[derive(Debug)]
pub(super) struct Power {
    /// Those that wait for their state.
    armed: RefCell<Vec<Cut>>,
    /// When it goes, and for how long.
    due: watch::Sender<Option<(Instant, Duration)>>,
}

impl Default for Power {
    fn default() -> Self {
        Self { armed: RefCell::default(), due: watch::Sender::new(None) }
    }
}

impl Power {
    /// It is to go: now, or in a state that is still to come.
    pub(super) fn is_to_go(&self, cut: Cut) {
        match cut.state {
            Some(_) => self.armed.borrow_mut().push(cut),
            None => drop(self.due.send_replace(Some((Instant::now(), cut.off)))),
        }
    }

    /// The agent has entered a state: the one before is over.
    pub(super) fn enters(&self, state: State) {
        let due = *self.due.borrow();
        if let Some((_, off)) = due {
            self.due.send_replace(Some((Instant::now(), off)));
            return;
        }
        let mut armed = self.armed.borrow_mut();
        if let Some(place) = armed.iter().position(|cut| cut.state == Some(state)) {
            let Cut { through, off, .. } = armed.remove(place);
            let after = match state {
                // Before the boot loader has been told, or after.
                State::Committing if through >= 0.5 => UNTIL_ITS_END,
                // Over at once: at their start.
                State::Committing | State::Verifying | State::Staging => Duration::ZERO,
                _ => WITHIN.mul_f64(through),
            };
            self.due.send_replace(Some((Instant::now() + after, off)));
        }
    }

    /// Waits until it goes; says for how long.
    pub(super) async fn goes(&self) -> Duration {
        let mut due = self.due.subscribe();
        loop {
            let next = *due.borrow_and_update();
            tokio::select! {
                biased;
                // The sender lives as long as this does.
                _ = due.changed() => {}
                off = at(next) => {
                    self.due.send_replace(None);
                    return off;
                }
            }
        }
    }
}

async fn at(next: Option<(Instant, Duration)>) -> Duration {
    match next {
        // A timer would let the agent go on for a moment.
        Some((at, off)) if at <= Instant::now() => off,
        Some((at, off)) => {
            sleep_until(at).await;
            off
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Duration = Duration::from_secs(3);

    async fn is_off(power: &Power) -> bool {
        tokio::time::timeout(Duration::from_millis(1), power.goes()).await.is_ok_and(|off| off == OFF)
    }

    #[tokio::test]
    async fn a_cut_waits_for_its_state_and_comes_within_it_once() {
        let power = Power::default();
        power.is_to_go(Cut { state: Some(State::Committing), through: 0.9, off: OFF });
        power.enters(State::Probation);
        assert!(!is_off(&power).await);
        power.enters(State::Committing);
        assert!(!is_off(&power).await, "only at its end");
        power.enters(State::Idle);
        assert!(is_off(&power).await);
        power.enters(State::Committing);
        assert!(!is_off(&power).await);
        power.is_to_go(Cut { state: None, through: 0.0, off: OFF });
        assert!(is_off(&power).await);
    }
}
