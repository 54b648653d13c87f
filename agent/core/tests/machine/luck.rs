//! Faults drawn from a seed, until a time at which they end.

use std::time::Duration;

use fleetwave_agent_core::{FetchError, GrantAnswer, Method, Plan, StorageError};
use fleetwave_protocol::CounterRng;
use fleetwave_protocol::time::{Instant, WallTime};

use crate::world::{Fetching, SIZE};

#[derive(Debug)]
pub(crate) struct Luck {
    rng: CounterRng,
    until: Instant,
}

impl Luck {
    pub(crate) fn new(seed: u64, until: Instant) -> Self {
        Self { rng: CounterRng::of(seed, 1), until }
    }

    /// Whether a fault happens that happens once in `one_in` times.
    pub(crate) fn strikes(&mut self, now: Instant, one_in: u64) -> bool {
        now < self.until && self.rng.below(one_in) == 0
    }

    pub(crate) fn pick(&mut self, of: usize) -> usize {
        self.rng.below(of as u64) as usize
    }

    pub(crate) fn fetching(&mut self, now: Instant) -> Fetching {
        if !self.strikes(now, 2) {
            return Fetching::Whole;
        }
        let errors = [
            FetchError::Forbidden,
            FetchError::NotFound,
            FetchError::Busy(Duration::from_secs(90)),
            FetchError::Server,
            FetchError::Interrupted,
            FetchError::Protocol,
            FetchError::Storage(StorageError::NoSpace),
        ];
        match self.pick(errors.len() + 2) {
            0 => Fetching::Corrupted,
            1 => Fetching::Short,
            n => Fetching::Fails(self.rng.below(SIZE + 1), errors[n - 2]),
        }
    }

    /// The hub's answer to a request if it is not a good one: none, or a bad status.
    pub(crate) fn answer(&mut self, now: Instant) -> Option<Option<u16>> {
        self.strikes(now, 4).then(|| [None, Some(400), Some(429), Some(500), Some(503)][self.pick(5)])
    }

    pub(crate) fn planning(&mut self, now: Instant) -> Option<Result<Plan, FetchError>> {
        self.strikes(now, 4).then(|| {
            let method = Method::Delta;
            [
                Err(FetchError::Server),
                Err(FetchError::NotFound),
                Err(FetchError::Protocol),
                Ok(Plan { method, bytes: SIZE / 8, requests: 3, spent: 0, allowance: u64::MAX }),
                Ok(Plan { method, bytes: SIZE / 8, requests: 3, spent: u64::MAX, allowance: 1 }),
            ][self.pick(5)]
        })
    }

    pub(crate) fn granting(&mut self, now: Instant) -> Option<Option<GrantAnswer>> {
        self.strikes(now, 4).then(|| {
            [
                None,
                Some(GrantAnswer::Later(Duration::from_secs(30))),
                Some(GrantAnswer::Granted { expires: WallTime::default() }),
                Some(GrantAnswer::Refused),
            ][self.pick(4)]
        })
    }
}
