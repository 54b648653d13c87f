//! The power of a device that a real agent runs: when it goes, everything that the agent was in the middle of is dropped.

use std::cell::{Cell, RefCell};
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

/// Why what an agent was in the middle of has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// The power has gone, for so long.
    Cut(Duration),
    /// The machine went down in good order.
    Down,
}

/// What is to happen to a device's power.
#[derive(Debug)]
pub(super) struct Power {
    /// Those that wait for their state.
    armed: RefCell<Vec<Cut>>,
    /// One that comes in the middle of the next boot.
    in_boot: Cell<Option<Cut>>,
    /// When it goes, and how.
    due: watch::Sender<Option<(Instant, Gone)>>,
}

impl Default for Power {
    fn default() -> Self {
        Self { armed: RefCell::default(), in_boot: Cell::default(), due: watch::Sender::new(None) }
    }
}

impl Power {
    /// It is to go: now, or in a state that is still to come.
    pub(super) fn is_to_go(&self, cut: Cut) {
        match cut.state {
            Some(_) => self.armed.borrow_mut().push(cut),
            None => self.ends(Duration::ZERO, Gone::Cut(cut.off)),
        }
    }

    fn ends(&self, after: Duration, gone: Gone) {
        self.due.send_replace(Some((Instant::now() + after, gone)));
    }

    /// The agent has entered a state: the one before is over.
    pub(super) fn enters(&self, state: State) {
        let due = *self.due.borrow();
        if let Some((_, gone)) = due {
            return self.ends(Duration::ZERO, gone);
        }
        let mut armed = self.armed.borrow_mut();
        let Some(place) = armed.iter().position(|cut| cut.state == Some(state)) else { return };
        let cut = armed.remove(place);
        let after = match state {
            State::Rebooting => return self.in_boot.set(Some(cut)),
            // Before the boot loader has been told, or after.
            State::Committing if cut.through >= 0.5 => UNTIL_ITS_END,
            // Over at once: at their start.
            State::Committing | State::Verifying | State::Staging => Duration::ZERO,
            _ => WITHIN.mul_f64(cut.through),
        };
        self.ends(after, Gone::Cut(cut.off));
    }

    /// The machine goes down by itself.
    pub(super) fn goes_down(&self) {
        self.ends(Duration::ZERO, Gone::Down);
    }

    /// The cut that comes in the middle of a boot which begins now.
    pub(super) fn in_boot(&self) -> Option<Cut> {
        self.in_boot.take()
    }

    /// Waits until it goes, one way or another.
    pub(super) async fn goes(&self) -> Gone {
        let mut due = self.due.subscribe();
        loop {
            let next = *due.borrow_and_update();
            tokio::select! {
                biased;
                // The sender lives as long as this does.
                _ = due.changed() => {}
                gone = at(next) => {
                    self.due.send_replace(None);
                    return gone;
                }
            }
        }
    }
}

async fn at(next: Option<(Instant, Gone)>) -> Gone {
    match next {
        // A timer would let the agent go on for a moment.
        Some((at, gone)) if at <= Instant::now() => gone,
        Some((at, gone)) => {
            sleep_until(at).await;
            gone
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Duration = Duration::from_secs(3);

    async fn is_off(power: &Power) -> bool {
        tokio::time::timeout(Duration::from_millis(1), power.goes())
            .await
            .is_ok_and(|gone| gone == Gone::Cut(OFF))
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
        power.is_to_go(Cut { state: Some(State::Rebooting), through: 0.5, off: OFF });
        power.enters(State::Rebooting);
        power.goes_down();
        assert_eq!(power.goes().await, Gone::Down);
        assert_eq!(power.in_boot().map(|cut| cut.off), Some(OFF));
        power.is_to_go(Cut { state: None, through: 0.0, off: OFF });
        assert!(is_off(&power).await);
    }
}
