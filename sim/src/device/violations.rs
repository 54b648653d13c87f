//! Invariants that a run must not break, and the list of those that it broke.

use std::collections::BTreeMap;

use crate::scenario::fleet::Fleet;

/// What holds for every device, whatever happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// No byte is made bootable that was not compared with what was signed.
    OnlyVerified,
    /// There is always a bootable slot with a release that was committed before.
    AlwaysBootable,
    /// The committed sequence never goes down without a signed permission.
    NeverDown,
    /// What a device reports is what it runs.
    HonestReports,
    /// Payload bytes that were durable are not downloaded again.
    NothingFetchedTwice,
    /// No device sees another device's messages.
    OwnMessagesOnly,
    /// The versions of desired properties that a device acts on never go back.
    VersionsRise,
}

impl Invariant {
    /// What happened where it is broken.
    const fn breach(self) -> &'static str {
        match self {
            Self::OnlyVerified => "a payload that was not verified was put into a slot",
            Self::AlwaysBootable => "the slot that a device has to be able to go back to was overwritten",
            Self::NeverDown => "a lower sequence was committed without permission",
            Self::HonestReports => "a device reported a release that it does not run",
            Self::NothingFetchedTwice => "payload bytes that were durable were downloaded again",
            Self::OwnMessagesOnly => "a device got a message that was not for it",
            Self::VersionsRise => "a device acted on desired properties older than those before",
        }
    }
}

/// How often an invariant was broken, and by which device first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Breach {
    count: u64,
    device: u64,
}

/// What a thread saw broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(BTreeMap<Invariant, Breach>);

impl Violations {
    /// A device broke an invariant.
    pub fn note(&mut self, invariant: Invariant, device: u64) {
        self.add(invariant, Breach { count: 1, device });
    }

    /// Adds what another thread saw. The order of merges does not change the result.
    pub fn merge(&mut self, other: &Self) {
        for (&invariant, &breach) in &other.0 {
            self.add(invariant, breach);
        }
    }

    /// Whether nothing was broken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A sentence for each invariant that was broken.
    #[must_use]
    pub fn sentences(&self, fleet: &Fleet) -> Vec<String> {
        let sentence = |(invariant, breach): (&Invariant, &Breach)| {
            let Breach { count, device } = *breach;
            format!("{} ({count} times, e.g. {})", invariant.breach(), fleet.id(device))
        };
        self.0.iter().map(sentence).collect()
    }

    fn add(&mut self, invariant: Invariant, breach: Breach) {
        let known = self.0.entry(invariant).or_insert(Breach { count: 0, device: breach.device });
        known.count += breach.count;
        known.device = known.device.min(breach.device);
    }
}
