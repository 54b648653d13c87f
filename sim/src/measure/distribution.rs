//! A latency's distribution over a population of which not all answered.

use std::time::Duration;

use fleetwave_protocol::time::micros;
use fleetwave_report::record::Percentiles;
use hdrhistogram::Histogram;

/// A histogram of spans in microseconds, three significant digits.
///
/// Its memory is bounded (some 130 KB for spans of a day, 20 KB for milliseconds) and does not depend on
/// how many spans it holds; still, give one to each thread, not to each shard of devices.
#[derive(Clone, Debug)]
pub struct Distribution(Histogram<u32>);

impl Default for Distribution {
    fn default() -> Self {
        let mut histogram =
            Histogram::new(3).expect("three significant digits are within the crate's 0 to 5");
        histogram.auto(true);
        Self(histogram)
    }
}

impl Distribution {
    /// Counts one span.
    pub fn record(&mut self, span: Duration) {
        self.record_value(micros(span));
    }

    /// Counts one value in a unit of the caller's.
    pub(crate) fn record_value(&mut self, value: u64) {
        self.0.record(value).expect("a histogram that resizes itself takes every 64-bit value");
    }

    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("a histogram that resizes itself takes every other");
    }

    /// How many spans it holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The longest span, 0 if there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    /// The value that `per_mille` of `population` are at most, members beyond those recorded being infinite:
    /// `None`, as is everything in an empty population.
    #[must_use]
    pub fn at_rank(&self, per_mille: u32, population: u64) -> Option<u64> {
        let rank = (u128::from(population) * u128::from(per_mille)).div_ceil(1000).max(1);
        if rank > u128::from(self.count()) {
            return None;
        }
        let mut seen = 0;
        self.0.iter_recorded().find_map(|step| {
            seen += u128::from(step.count_since_last_iteration());
            (seen >= rank).then(|| self.0.highest_equivalent(step.value_iterated_to()))
        })
    }

    /// [`at_rank`](Self::at_rank) in seconds.
    #[must_use]
    pub fn seconds_at(&self, per_mille: u32, population: u64) -> Option<f64> {
        self.at_rank(per_mille, population).map(|value| value as f64 / 1e6)
    }

    /// The percentiles of a run record, `missing` members being infinitely late.
    #[must_use]
    pub fn percentiles(&self, missing: u64) -> Percentiles {
        let at = |per_mille| self.seconds_at(per_mille, self.count() + missing);
        Percentiles { p50: at(500), p90: at(900), p99: at(990), p99_9: at(999), max: at(1000) }
    }

    /// The histogram itself, in microseconds.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u32> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(spans: &[u64]) -> Distribution {
        let mut distribution = Distribution::default();
        for &span in spans {
            distribution.record(Duration::from_micros(span));
        }
        distribution
    }

    #[test]
    fn a_thousandth_missing_leaves_p99_9_and_two_thousandths_take_it() {
        let spans: Vec<u64> = (1..=999).collect();
        let one_missing = of(&spans).percentiles(1);
        assert_eq!(one_missing.p99_9, Some(999e-6));
        assert_eq!(one_missing.max, None);
        let two_missing = of(&spans[..998]).percentiles(2);
        assert_eq!(two_missing.p99_9, None);
        assert_eq!(two_missing.p99, Some(990e-6));
    }

    #[test]
    fn the_largest_value_of_all_is_taken() {
        assert!(of(&[u64::MAX]).at_rank(1000, 1).is_some());
    }

    #[test]
    fn nothing_recorded_and_nobody_missing_has_no_percentiles() {
        assert_eq!(of(&[]).percentiles(0), Percentiles::default());
    }

    #[test]
    fn merging_is_recording_everything_in_one() {
        let mut merged = of(&[5, 90_000_000]);
        merged.merge(&of(&[7, 3_600_000_000, 86_400_000_000]));
        let whole = of(&[5, 90_000_000, 7, 3_600_000_000, 86_400_000_000]);
        assert_eq!(merged.histogram(), whole.histogram());
    }

    proptest! {
        /// Assumes spans of up to a month. Does: percentiles by rank. Asserts that each is what a sorted list
        /// with infinities at its end has at that rank, to three digits.
        #[test]
        fn percentiles_are_those_of_a_sorted_list_with_infinities(
            spans in prop::collection::vec(0_u64..2_600_000_000_000, 0..300),
            missing in 0_u64..50,
        ) {
            let mut sorted: Vec<Option<u64>> = spans.iter().copied().map(Some).collect();
            sorted.sort_unstable();
            sorted.extend((0..missing).map(|_| None));
            let distribution = of(&spans);
            for per_mille in [1, 10, 500, 900, 990, 999, 1000] {
                let got = distribution.at_rank(per_mille, sorted.len() as u64);
                let rank = (sorted.len() * per_mille as usize).div_ceil(1000);
                let naive = sorted.get(rank.max(1) - 1).copied().flatten();
                match (naive, got) {
                    (Some(want), Some(got)) => {
                        let error = got.abs_diff(want);
                        prop_assert!(error * 1000 <= want.max(1), "{got} for {want}");
                    }
                    (want, got) => prop_assert_eq!(want, got),
                }
            }
        }
    }
}
