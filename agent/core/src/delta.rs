//! What an update costs by a chunked archive: which ranges of it to ask for, or that all of the payload is cheaper.
//!
//! The archive begins with a header, which is signed as a whole, and holds each chunk once, compressed. The header's
//! dictionary says where each chunk lies. A device that has read it knows the chunks that it lacks, and this is all
//! that the plan needs.
//!
//! ```
//! use fleetwave_agent_core::delta::{Chunk, Prices, plan};
//! use fleetwave_agent_core::{Archive, Method};
//!
//! let archive = Archive { size: 1_000, header_size: 100, header_digest: [0; 32] };
//! let dictionary = [(b"a", 100, 200), (b"b", 300, 50), (b"c", 350, 250), (b"d", 600, 400)];
//! let dictionary = dictionary.iter().map(|&(hash, at, stored)| Chunk { hash, at, stored });
//! let prices = Prices { request: 60, most_requests: 10 };
//! let plan = plan(&archive, dictionary, |hash| hash == b"b" || hash == b"d", 2_000, &prices).unwrap();
//! // The gap that `b` leaves is cheaper than another request.
//! assert_eq!((plan.method, plan.ranges, plan.bytes), (Method::Delta, vec![100..600], 500));
//! ```

use core::ops::Range;

mod dictionary;

pub use dictionary::{Cut, Dictionary, Entry, HeaderError, Rule};

use crate::{Archive, Method, Plan};

/// A chunk in an archive's dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The digest of what it holds, as the dictionary has it.
    pub hash: &'a [u8],
    /// Where it lies in the archive.
    pub at: u64,
    /// How long it is there.
    pub stored: u32,
}

/// What is weighed against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// A request is as dear as so many bytes: a gap that is smaller is fetched, too.
    pub request: u64,
    /// The most requests of one plan, where a store counts them.
    pub most_requests: u32,
}

impl Default for Prices {
    /// Headers and a round trip over a slow link come to some 4 KiB; stores that count allow a thousand.
    fn default() -> Self {
        Self { request: 4096, most_requests: 500 }
    }
}

/// How a payload is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaPlan {
    /// The cheaper way.
    pub method: Method,
    /// The ranges of the archive to ask for, one a request, in order and apart from each other; none if all of the
    /// payload is fetched.
    pub ranges: Vec<Range<u64>>,
    /// Bytes still to be fetched.
    pub bytes: u64,
    /// Requests for them.
    pub requests: u32,
}

impl DeltaPlan {
    /// What the machine is told: the same beside what the update has cost before, and what the device may still fetch.
    #[must_use]
    pub const fn price(&self, spent: u64, allowance: u64) -> Plan {
        Plan { method: self.method, bytes: self.bytes, requests: self.requests, spent, allowance }
    }
}

/// A dictionary that does not belong to its archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk lies at {at} and is {stored} long, in an archive of {} with a header of {}", archive.size, archive.header_size)]
pub struct DictionaryError {
    at: u64,
    stored: u32,
    archive: Archive,
}

/// The share of a payload that a header may take, so that one who reads it in vain has not paid much for it.
const HEADER_SHARE: u64 = 100;

/// Whether the archive of a payload of `size` bytes is worth a look at its header: whatever the plan turns out to be,
/// header and plan together stay below 101 % of the payload.
#[must_use]
pub const fn worth_a_look(archive: &Archive, size: u64) -> bool {
    archive.header_size <= size / HEADER_SHARE
}

/// Plans to fetch those chunks of `dictionary` whose hash is not `local`: they stand nowhere on the device, neither in
/// what runs nor in what an interrupted attempt has left. `full_left` is what all of the payload would still cost.
///
/// # Errors
/// [`DictionaryError`] if a chunk lies outside of the archive.
pub fn plan<'a>(
    archive: &Archive,
    dictionary: impl IntoIterator<Item = Chunk<'a>>,
    local: impl Fn(&[u8]) -> bool,
    full_left: u64,
    prices: &Prices,
) -> Result<DeltaPlan, DictionaryError> {
    let mut ranges = Vec::new();
    for Chunk { hash, at, stored } in dictionary {
        let end =
            at.checked_add(u64::from(stored)).filter(|end| at >= archive.header_size && *end <= archive.size);
        let end = end.ok_or(DictionaryError { at, stored, archive: *archive })?;
        if stored > 0 && !local(hash) {
            ranges.push(at..end);
        }
    }
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    join(&mut ranges, |gap| gap <= prices.request);
    bound(&mut ranges, prices.most_requests.max(1) as usize);
    let bytes = ranges.iter().map(|range| range.end - range.start).sum();
    let requests = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    let cost =
        |bytes: u64, requests: u32| u128::from(bytes) + u128::from(prices.request) * u128::from(requests);
    // At the same price all of it is the simpler way.
    if cost(bytes, requests) < cost(full_left, 1) {
        Ok(DeltaPlan { method: Method::Delta, ranges, bytes, requests })
    } else {
        Ok(DeltaPlan { method: Method::Full, ranges: Vec::new(), bytes: full_left, requests: 1 })
    }
}

/// Joins neighbours of a sorted list that overlap, touch, or have a gap between them of which that is true.
fn join(ranges: &mut Vec<Range<u64>>, mut closes: impl FnMut(u64) -> bool) {
    ranges.dedup_by(|next, range| {
        let joined = next.start <= range.end || closes(next.start - range.end);
        if joined {
            range.end = range.end.max(next.end);
        }
        joined
    });
}

/// Closes the smallest gaps until there are no more than `most` ranges.
fn bound(ranges: &mut Vec<Range<u64>>, most: usize) {
    let Some(surplus) = ranges.len().checked_sub(most).filter(|surplus| *surplus > 0) else { return };
    let mut gaps: Vec<_> = ranges.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    let (smaller, &mut widest, _) = gaps.select_nth_unstable(surplus - 1);
    // Of those that are as wide as the widest only so many.
    let mut of_widest = surplus - smaller.iter().filter(|gap| **gap < widest).count();
    join(ranges, |gap| {
        let is_widest = gap == widest && of_widest > 0;
        of_widest -= usize::from(is_widest);
        gap < widest || is_widest
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Chunks one after the other behind a header, each of them local or not: length, and whether it is local.
    fn chunks() -> impl Strategy<Value = Vec<(u32, bool)>> {
        prop::collection::vec((0..3_000u32, any::<bool>()), 0..80)
    }

    fn prices() -> impl Strategy<Value = Prices> {
        (0..5_000u64, 0..20u32).prop_map(|(request, most_requests)| Prices { request, most_requests })
    }

    struct Case {
        archive: Archive,
        /// Where each lies, how long it is, and whether it is local.
        chunks: Vec<(u64, u32, bool)>,
    }

    impl Case {
        fn new(chunks: &[(u32, bool)]) -> Self {
            let header_size = 100;
            let mut at = header_size;
            let mut placed = Vec::new();
            for &(stored, local) in chunks {
                placed.push((at, stored, local));
                at += u64::from(stored);
            }
            Self { archive: Archive { size: at, header_size, header_digest: [0; 32] }, chunks: placed }
        }

        fn plan(&self, full_left: u64, prices: &Prices) -> DeltaPlan {
            // In an order of their own, and each twice: a chunk may stand in several places of the payload.
            let twice = self.chunks.iter().rev().chain(&self.chunks);
            let hashes: Vec<_> = twice.map(|chunk| (chunk.0.to_be_bytes(), chunk)).collect();
            let dictionary = hashes.iter().map(|(hash, chunk)| Chunk { hash, at: chunk.0, stored: chunk.1 });
            let local = |hash: &[u8]| {
                self.chunks.iter().any(|chunk| chunk.0.to_be_bytes() == *hash && chunk.2 && chunk.1 > 0)
            };
            plan(&self.archive, dictionary, local, full_left, prices).expect("they lie in the archive")
        }
    }

    proptest! {
        /// Asserts: each missing chunk lies in one range and no other; ranges are in order, apart by more than what a
        /// request costs unless their number is bounded, and begin and end with a missing chunk; sums are right.
        #[test]
        fn every_missing_chunk_is_fetched_once(chunks in chunks(), prices in prices()) {
            let case = Case::new(&chunks);
            let plan = case.plan(u64::MAX / 2, &prices);
            prop_assert_eq!(plan.method, Method::Delta);
            for &(at, stored, _) in case.chunks.iter().filter(|chunk| chunk.1 > 0 && !chunk.2) {
                let end = at + u64::from(stored);
                let covering = plan.ranges.iter().filter(|range| range.start < end && at < range.end);
                let covering: Vec<_> = covering.collect();
                prop_assert!(matches!(covering[..], [range] if range.start <= at && end <= range.end));
            }
            for range in &plan.ranges {
                let missing = |is: &dyn Fn(u64, u64) -> bool| {
                    case.chunks.iter().any(|chunk| !chunk.2 && is(chunk.0, chunk.0 + u64::from(chunk.1)))
                };
                prop_assert!(missing(&|start, _| start == range.start) && missing(&|_, end| end == range.end));
            }
            prop_assert!(plan.ranges.windows(2).all(|pair| pair[1].start - pair[0].end > prices.request));
            prop_assert!(plan.ranges.len() <= prices.most_requests.max(1) as usize);
            prop_assert_eq!(plan.requests as usize, plan.ranges.len());
            prop_assert_eq!(plan.bytes, plan.ranges.iter().map(|range| range.end - range.start).sum::<u64>());
        }

        /// Asserts: whichever it takes is not dearer than the other, and no plan is above all of the payload.
        #[test]
        fn the_cheaper_way_is_taken(chunks in chunks(), prices in prices(), full_left in 0..100_000u64) {
            let case = Case::new(&chunks);
            let by_chunks = case.plan(u64::MAX / 2, &prices);
            let plan = case.plan(full_left, &prices);
            let cost = |bytes, requests: u32| bytes + prices.request * u64::from(requests);
            let cheapest = cost(by_chunks.bytes, by_chunks.requests).min(cost(full_left, 1));
            prop_assert_eq!(cost(plan.bytes, plan.requests), cheapest);
            prop_assert!(plan.bytes <= full_left);
            if plan.method == Method::Full {
                prop_assert_eq!((plan.ranges.len(), plan.bytes, plan.requests), (0, full_left, 1));
            }
        }

        /// Asserts: the bound is met at the least cost, found by trying every choice of gaps.
        #[test]
        fn the_smallest_gaps_are_closed(gaps in prop::collection::vec(1..50u64, 1..10), most in 1..10usize) {
            let mut ranges: Vec<_> = std::iter::once(0..10).collect();
            for gap in &gaps {
                let start = ranges.last().map_or(0, |range: &Range<u64>| range.end) + gap;
                ranges.push(start..start + 10);
            }
            let before: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            let surplus = ranges.len().saturating_sub(most);
            bound(&mut ranges, most);
            let mut sorted = gaps.clone();
            sorted.sort_unstable();
            let least: u64 = sorted[..surplus].iter().sum();
            let after: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!((ranges.len(), after - before), (gaps.len() + 1 - surplus, least));
        }
    }

    #[test]
    fn a_device_that_has_all_chunks_fetches_nothing() {
        let plan = Case::new(&[(500, true), (700, true)]).plan(10_000, &Prices::default());
        assert_eq!((plan.method, plan.bytes, plan.requests), (Method::Delta, 0, 0));
        assert_eq!(
            plan.price(5, 7),
            Plan { method: Method::Delta, bytes: 0, requests: 0, spent: 5, allowance: 7 }
        );
    }

    #[test]
    fn a_device_that_has_next_to_nothing_fetches_all_of_the_payload() {
        // Compressed chunks came to more than the payload.
        let plan = Case::new(&[(500, false), (700, false)]).plan(1_100, &Prices::default());
        assert_eq!((plan.method, plan.bytes), (Method::Full, 1_100));
    }

    #[test]
    fn a_header_that_is_a_large_part_of_the_payload_is_not_looked_at() {
        let archive = |header_size| Archive { size: 50_000, header_size, header_digest: [0; 32] };
        assert!(worth_a_look(&archive(1_000), 100_000));
        assert!(!worth_a_look(&archive(1_001), 100_000));
    }

    #[test]
    fn chunks_outside_of_the_archive_are_refused() {
        let archive = Archive { size: 1_000, header_size: 100, header_digest: [0; 32] };
        for (at, stored) in [(99, 1), (999, 2), (u64::MAX, 2), (0, 0)] {
            let dictionary = [Chunk { hash: b"a", at, stored }];
            let error = plan(&archive, dictionary, |_| true, 1, &Prices::default()).expect_err("outside");
            assert!(error.to_string().contains("archive of 1000"), "{error}");
        }
    }
}
