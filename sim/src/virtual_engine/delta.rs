//! What payloads cost that are fetched by chunks, from archives that nobody has made.
//!
//! A real agent asks its core which ranges of an archive to fetch, by the archive's dictionary and what of it stands in
//! the slot that runs. Here is neither. What the scenario says of a release in `delta` is laid out in its place: which
//! parts of an archive are not those of the release before. A device lacks these for each release between the one that
//! it runs and the one that it gets, up or down; across a release that says nothing of a delta it lacks everything.
//! What is then fetched is the core's own plan of that.
//!
//! There is one layout for two releases, and none for a device.

use core::ops::Range;

use fleetwave_agent_core::delta::{self, Chunk, DeltaPlan, Prices, worth_a_look};
use fleetwave_agent_core::{Archive, ReleaseId};
use fleetwave_protocol::rng::mix;

use crate::device::World;
use crate::scenario::model::{Delta, Release};

/// The longest header that real agents take into memory.
const LONGEST_HEADER: u64 = 4 << 20;

/// Chunks of a dictionary are shorter than 4 GiB.
const LONGEST_CHUNK: u64 = 1 << 30;

/// What each release of a run lacks of each other one.
pub(super) struct Deltas {
    releases: usize,
    /// From the one, by rows, to the other.
    pairs: Vec<Option<Pair>>,
}

impl Deltas {
    pub(super) fn new(world: &World) -> Self {
        let scenario = world.scenario();
        if scenario.releases.iter().all(|release| release.delta.is_none()) {
            return Self { releases: 0, pairs: Vec::new() };
        }
        let known: Vec<(ReleaseId, u64)> =
            world.releases().iter().map(|(id, release)| (id, release.sequence)).collect();
        let to = |running: u64, (id, sequence): (ReleaseId, u64)| {
            let wanted = world.spec_of(id)?;
            let between = running.min(sequence) + 1..=running.max(sequence);
            let mut steps: Vec<&Release> =
                scenario.releases.iter().filter(|release| between.contains(&release.seq)).collect();
            let initial = &scenario.fleet.release;
            let unknown = between.contains(&initial.seq) && steps.iter().all(|step| step.seq != initial.seq);
            steps.sort_by_key(|step| step.seq);
            let steps: Option<Vec<(u64, &Delta)>> =
                steps.iter().map(|step| Some((step.seq, step.delta.as_ref()?))).collect();
            Pair::new(wanted.delta.as_ref()?, wanted.size.bytes(), steps.filter(|_| !unknown).as_deref())
        };
        let pairs =
            known.iter().flat_map(|&(_, running)| known.iter().map(move |&wanted| to(running, wanted)));
        Self { releases: known.len(), pairs: pairs.collect() }
    }

    /// What a device that runs the one release lacks of the other; `None` if that is not worth a look, or there is no
    /// archive of it.
    pub(super) fn between(&self, running: ReleaseId, wanted: ReleaseId) -> Option<&Pair> {
        let place = running.index() * self.releases + wanted.index();
        let known = running.index().max(wanted.index()) < self.releases;
        self.pairs.get(place).filter(|_| known)?.as_ref()
    }
}

/// What a device that runs one release lacks of another one.
#[derive(Debug)]
pub(super) struct Pair {
    archive: Archive,
    /// Of the payload.
    size: u64,
    /// What it lacks of the archive.
    missing: Vec<Range<u64>>,
}

impl Pair {
    /// `steps` are the releases between the two, each with its sequence; `None` if one of them is not known to have
    /// anything in common with another.
    fn new(wanted: &Delta, size: u64, steps: Option<&[(u64, &Delta)]>) -> Option<Self> {
        let archive = Archive {
            size: wanted.archive.bytes(),
            header_size: wanted.header.bytes(),
            header_digest: [0; 32],
        };
        let body = archive.size.checked_sub(archive.header_size)?;
        if !worth_a_look(&archive, size) || archive.header_size > LONGEST_HEADER {
            return None;
        }
        let mut missing: Vec<Range<u64>> = match steps {
            None => core::iter::once(0..body).collect(),
            Some(steps) => steps.iter().flat_map(|(sequence, step)| changes(step, *sequence, body)).collect(),
        };
        for range in &mut missing {
            *range = range.start + archive.header_size..range.end + archive.header_size;
        }
        missing.sort_unstable_by_key(|range| (range.start, range.end));
        Some(Self { archive, size, missing })
    }

    /// How long the archive's header is.
    pub(super) const fn header(&self) -> u64 {
        self.archive.header_size
    }

    /// What the core makes of it for a device that has `offset` bytes of the payload.
    pub(super) fn plan(&self, offset: u64) -> DeltaPlan {
        self.planned(offset, self.size.saturating_sub(offset))
    }

    /// The same, whatever all of the payload would cost: it was decided.
    pub(super) fn by_chunks(&self, offset: u64) -> DeltaPlan {
        self.planned(offset, u64::MAX / 2)
    }

    fn planned(&self, offset: u64, full: u64) -> DeltaPlan {
        let from = self.place(offset);
        let missing = self.missing.iter().filter(|range| range.end > from);
        let chunks = missing.flat_map(|range| {
            let start = range.start.max(from);
            let pieces = (start..range.end).step_by(LONGEST_CHUNK as usize);
            pieces.map(move |at| {
                let stored = (range.end - at).min(LONGEST_CHUNK) as u32;
                Chunk { hash: b"", at, stored }
            })
        });
        delta::plan(&self.archive, chunks, |_| false, full, &Prices::default())
            .expect("changes are laid out within the archive")
    }

    /// So many bytes of the payload are there once the first `got` bytes of what was planned at `offset` are: what
    /// stands on the device costs nothing.
    pub(super) fn reached(&self, offset: u64, got: u64) -> u64 {
        let mut left = got;
        for range in self.by_chunks(offset).ranges {
            let length = range.end - range.start;
            if left < length {
                return self.payload(range.start + left).max(offset);
            }
            left -= length;
        }
        self.size
    }

    /// Bytes that it costs to come from one byte of the payload to another.
    pub(super) fn cost(&self, from: u64, to: u64) -> u64 {
        let until = self.place(to);
        let within = |range: Range<u64>| range.end.min(until).saturating_sub(range.start);
        self.by_chunks(from).ranges.into_iter().map(within).sum()
    }

    fn body(&self) -> u64 {
        self.archive.size - self.archive.header_size
    }

    /// Where a byte of the payload is in the archive.
    fn place(&self, payload: u64) -> u64 {
        self.archive.header_size + share(self.body(), payload.min(self.size), self.size.max(1))
    }

    /// The other way: the first byte whose place is this or behind it.
    fn payload(&self, place: u64) -> u64 {
        let (place, body) = (u128::from(place - self.archive.header_size), u128::from(self.body().max(1)));
        (place * u128::from(self.size)).div_ceil(body) as u64
    }
}

/// Where a release is not the one before, in an archive with `body` bytes of chunks: once in each of as many equal
/// stretches.
fn changes(delta: &Delta, sequence: u64, body: u64) -> impl Iterator<Item = Range<u64>> {
    let (count, all) = (u64::from(delta.ranges), u64::from(delta.changed.millionths()));
    let changed = share(body, all, 1_000_000);
    (0..count).map(move |place| {
        let part = |of| share(of, place, count)..share(of, place + 1, count);
        let (stretch, own) = (part(body), part(changed));
        let length = (own.end - own.start).min(stretch.end - stretch.start);
        let room = stretch.end - stretch.start - length;
        let start = stretch.start + mix(mix(sequence) ^ place) % (room + 1);
        start..start + length
    })
}

fn share(of: u64, part: u64, whole: u64) -> u64 {
    (u128::from(of) * u128::from(part) / u128::from(whole)) as u64
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::Method;
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    fn delta(archive: u64, changed: &str, ranges: u32) -> Delta {
        let size = |bytes: u64| format!("{bytes}B").parse().expect("a size");
        Delta {
            archive: size(archive),
            header: size(80_000),
            changed: changed.parse().expect("a share"),
            ranges,
        }
    }

    fn pair(wanted: &Delta, steps: &[(u64, &Delta)]) -> Pair {
        Pair::new(wanted, 100 * MB, Some(steps)).expect("worth a look")
    }

    #[test]
    fn a_device_lacks_what_has_changed_since_the_release_that_it_runs() {
        let eight = delta(40 * MB, "8%", 20);
        let plan = pair(&eight, &[(2, &eight)]).plan(0);
        assert_eq!((plan.method, plan.bytes, plan.requests), (Method::Delta, 3_193_600, 20));
        // Of two releases some of the changes lie in the same places.
        let two = pair(&eight, &[(2, &eight), (3, &eight)]).plan(0);
        assert!((3_193_600..=2 * 3_193_600).contains(&two.bytes), "{two:?}");
        let none = delta(40 * MB, "0%", 20);
        assert_eq!(pair(&none, &[(2, &none)]).plan(0).bytes, 0);
    }

    #[test]
    fn a_device_that_has_nothing_in_common_takes_what_is_cheaper() {
        let small = Pair::new(&delta(40 * MB, "8%", 20), 100 * MB, None).expect("worth a look");
        assert_eq!((small.plan(0).method, small.plan(0).bytes), (Method::Delta, 40 * MB - 80_000));
        let large = Pair::new(&delta(101 * MB, "8%", 20), 100 * MB, None).expect("worth a look");
        assert_eq!((large.plan(0).method, large.plan(0).bytes), (Method::Full, 100 * MB));
        // A header of more than a hundredth of the payload.
        assert!(Pair::new(&delta(MB, "8%", 20), 7 * MB, None).is_none());
    }

    proptest! {
        /// Does: breaks a download off after some bytes, and goes on. Asserts: what came and what is still to come is
        /// what there was to come, gaps that need not be fetched twice aside; the payload never gets shorter, and the
        /// way to where it broke off costs what came.
        #[test]
        fn a_download_that_breaks_off_goes_on_where_it_was(
            changed in 1..=100u32,
            ranges in 1..50u32,
            archive in 10 * MB..100 * MB,
            at in 0.0..1.0f64,
        ) {
            let delta = delta(archive, &format!("{changed}%"), ranges);
            let pair = pair(&delta, &[(7, &delta)]);
            let all = pair.by_chunks(0);
            let got = (all.bytes as f64 * at) as u64;
            let reached = pair.reached(0, got);
            let rest = pair.by_chunks(reached);
            prop_assert!(got + rest.bytes <= all.bytes);
            prop_assert!(got + rest.bytes + 4096 >= all.bytes);
            prop_assert_eq!(pair.reached(reached, rest.bytes), 100 * MB);
            prop_assert!(pair.reached(reached, 0) >= reached);
            prop_assert!(pair.cost(0, reached).abs_diff(got) <= 4096);
        }
    }
}
