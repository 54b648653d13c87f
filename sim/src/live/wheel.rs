//! The timers of a shard: a hashed wheel of one-millisecond ticks.

use fleetwave_protocol::Instant;

/// A tick, in microseconds.
const TICK: u64 = 1000;
/// Ticks of one turn; what is due later stays in its slot for another turn.
const SLOTS: u64 = 4096;

/// A device's turn comes at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) due: Instant,
    pub(super) device: u32,
}

/// Timers by the tick at which they are due. Nothing is ever taken out: a device that no longer wants its turn
/// lets it pass.
#[derive(Debug)]
pub(super) struct Wheel {
    slots: Vec<Vec<Entry>>,
    /// The last tick whose entries have been taken.
    tick: u64,
}

impl Wheel {
    pub(super) fn new(now: Instant) -> Self {
        Self { slots: vec![Vec::new(); SLOTS as usize], tick: now.as_micros() / TICK }
    }

    /// Gives the device its turn at `due`, or within a tick from now if that has passed.
    pub(super) fn insert(&mut self, due: Instant, device: u32) {
        let tick = due.as_micros().div_ceil(TICK).max(self.tick + 1);
        self.slots[(tick % SLOTS) as usize].push(Entry { due, device });
    }

    /// Moves everything that is due to `into`.
    pub(super) fn take(&mut self, now: Instant, into: &mut Vec<Entry>) {
        let until = now.as_micros() / TICK;
        let first = self.tick + 1;
        // After a long stall one turn visits every slot.
        for tick in first..=until.min(first + SLOTS - 1) {
            let slot = &mut self.slots[(tick % SLOTS) as usize];
            let due = |entry: &Entry| entry.due.as_micros().div_ceil(TICK) <= until;
            if slot.iter().all(due) {
                into.append(slot);
            } else {
                into.extend(slot.extract_if(.., |entry| due(entry)));
            }
        }
        self.tick = self.tick.max(until);
    }

    /// When the next entry is due, if that is before `horizon`.
    pub(super) fn next(&self, horizon: Instant) -> Option<Instant> {
        let last = horizon.as_micros() / TICK;
        (self.tick + 1..=last.min(self.tick + SLOTS)).find_map(|tick| {
            let due = self.slots[(tick % SLOTS) as usize].iter().map(|entry| entry.due).min()?;
            (due < horizon).then_some(due)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn what_is_due_in_another_turn_waits_for_it() {
        let mut wheel = Wheel::new(at(0));
        let mut taken = Vec::new();
        wheel.insert(at(2_500), 1);
        wheel.insert(at(2_500 + SLOTS * TICK), 2);
        wheel.take(at(3_000), &mut taken);
        assert_eq!(taken, [Entry { due: at(2_500), device: 1 }]);
        assert_eq!(wheel.next(at(10_000)), None);
        wheel.take(at(SLOTS * TICK + 3_000), &mut taken);
        assert_eq!(taken.len(), 2);
    }

    proptest! {
        /// Assumes timers anywhere in a minute, and any steps of time. Does: takes what is due at each step.
        /// Asserts that each comes exactly once, not before it is due, and at the first step that is a tick later.
        #[test]
        fn every_timer_comes_once_and_in_time(
            dues in prop::collection::vec(0_u64..60_000_000, 1..100),
            steps in prop::collection::vec(1_u64..9_000_000, 1..30),
        ) {
            let mut wheel = Wheel::new(at(0));
            for (device, due) in dues.iter().enumerate() {
                wheel.insert(at(*due), device as u32);
            }
            let (mut now, mut last, mut seen) = (0, 0, vec![0; dues.len()]);
            for step in steps.iter().chain([&120_000_000]) {
                now += step;
                let mut taken = Vec::new();
                wheel.take(at(now), &mut taken);
                for entry in taken {
                    seen[entry.device as usize] += 1;
                    prop_assert!(entry.due <= at(now));
                    prop_assert!(entry.due + std::time::Duration::from_micros(2 * TICK) > at(last));
                }
                last = now;
            }
            prop_assert!(seen.iter().all(|times| *times == 1));
        }
    }
}
