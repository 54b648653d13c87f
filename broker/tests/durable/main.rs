//! A hub in a process of its own is killed again and again while it is written to, and comes back with all that it
//! acknowledged.
//!
//! `FLEETWAVE_KILLS` says how often (30 times if not set), `FLEETWAVE_SEED` repeats the choices of a run that failed; which
//! write a kill meets is the system's to choose.

#![allow(clippy::unwrap_used, reason = "what panics here fails a test")]

mod child;
mod device;
mod operator;

use std::collections::BTreeMap;
use std::env;
use std::sync::mpsc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use child::HubProcess;
use device::{Consumer, Reporter};
use operator::Operator;

/// A number that only rises: what was acknowledged, and what was tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Register {
    pub(crate) acknowledged: u64,
    pub(crate) tried: u64,
}

impl Register {
    /// The next number to write.
    pub(crate) fn next(&mut self) -> u64 {
        self.tried += 1;
        self.tried
    }

    pub(crate) fn acknowledge(&mut self, number: u64) {
        self.acknowledged = number;
    }

    /// What is there must be at least what was acknowledged. From now on it is what is there.
    pub(crate) fn check(&mut self, what: &str, found: u64) {
        assert!(
            (self.acknowledged..=self.tried).contains(&found),
            "{what} is {found}; acknowledged was {}, tried {}",
            self.acknowledged,
            self.tried
        );
        self.acknowledged = found;
    }
}

const REPORTERS: usize = 4;

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FLEETWAVE_SEED").unwrap_or_else(rand::random);
    let kills = number("FLEETWAVE_KILLS").unwrap_or(30);
    eprintln!("FLEETWAVE_SEED={seed} FLEETWAVE_KILLS={kills}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut operator = Operator::default();
    let mut reporters: Vec<_> = (0..REPORTERS).map(|n| Reporter::new(&format!("r{n}"))).collect();
    let mut consumer = Consumer::default();
    let mut acknowledged = BTreeMap::new();
    for round in 0..=kills {
        let shards = rng.random_range(1..=3);
        let mut hub = HubProcess::spawn(dir.path(), shards);
        if rng.random_ratio(1, 6) && round < kills {
            // While it opens the store, or makes it.
            hub.wait_until_it_starts();
            hub.kill();
            continue;
        }
        let port = hub.ready();
        operator.prepare(&mut hub);
        operator.check(&mut hub);
        for reporter in &mut reporters {
            reporter.check(&hub.twin(reporter.id()));
        }
        if round == kills {
            consumer.drain(port, &operator);
            break;
        }
        let last = rng.random_range(0..150);
        let (ack, acks) = mpsc::channel::<&'static str>();
        std::thread::scope(|scope| {
            let (operator, consumer, queue) = (&mut operator, &mut consumer, mpsc::channel());
            let (commands, answers) = hub.take_pipes();
            let (own, seed) = (ack.clone(), rng.random());
            scope.spawn(move || operator.run(commands, answers, StdRng::seed_from_u64(seed), &own, &queue.0));
            let own = ack.clone();
            scope.spawn(move || consumer.run(port, &own, &queue.1));
            for reporter in &mut reporters {
                let own = ack.clone();
                scope.spawn(move || reporter.run(port, &own));
            }
            drop(ack);
            for kind in acks.iter().take(last) {
                *acknowledged.entry(kind).or_insert(0_u64) += 1;
            }
            hub.kill();
        });
    }
    eprintln!("acknowledged: {acknowledged:?}");
    if kills >= 30 {
        let kinds = ["c2d", "complete", "configuration", "create", "desired", "report", "row", "tags"];
        assert_eq!(acknowledged.keys().copied().collect::<Vec<_>>(), kinds);
    }
}
