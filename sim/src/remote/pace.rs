//! Keeps a run within the limits of the hub that it drives, so that it never lives at the cost of others there.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleetwave_hub_core::throttle::{Admission, Operation, Shaping, Throttles, Tier};
use fleetwave_protocol::Instant;

/// What may pass at once, as time at the rate. A real hub lets more pass; those bursts are not ours to use up.
const BURST: Duration = Duration::from_secs(1);

/// The rates of a hub, shared by all that a run does there.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// Held for one question.
    throttles: Mutex<Throttles>,
    clock: fleetwave_hub::Clock,
}

impl Pacer {
    /// For a hub of that tier and so many units.
    pub(crate) fn new(tier: Tier, units: u32, clock: fleetwave_hub::Clock) -> Self {
        let shaping = Shaping { burst: BURST, queue: Duration::ZERO };
        Self { throttles: Mutex::new(Throttles::with_shaping(tier, units, shaping)), clock }
    }

    /// Takes a place for an operation of that cost.
    ///
    /// # Errors
    /// When to ask again, if there is none now.
    pub(crate) fn take(&self, operation: Operation, cost: u32) -> Result<(), Instant> {
        let now = self.clock.now().at;
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        match throttles.admit(operation, cost, now) {
            // Nothing queues here: it would be put off only if it alone were more than the burst, and then it goes
            // first and others wait.
            Admission::Now | Admission::At(_) => Ok(()),
            Admission::Reject { retry_after } => Err(now + retry_after.max(Duration::from_millis(1))),
        }
    }

    /// Waits for a place.
    pub(crate) async fn wait(&self, operation: Operation, cost: u32) {
        while let Err(at) = self.take(operation, cost) {
            tokio::time::sleep(at.since(self.clock.now().at)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_second_of_the_rate_passes_at_once() {
        let pacer = Pacer::new(Tier::S1, 1, fleetwave_hub::Clock::new());
        let passed = (0..1_000).filter(|_| pacer.take(Operation::Connect, 1).is_ok()).count();
        // The clock goes on meanwhile.
        assert!((100..200).contains(&passed), "{passed}");
        assert!(pacer.take(Operation::Configuration, 1).is_ok(), "one always passes");
        assert!(pacer.take(Operation::Configuration, 1).is_err());
    }
}
