//! An amount over time, in a fixed number of windows.

use fleetwave_protocol::Instant;

const WINDOWS: usize = 256;
const FIRST_WIDTH: u64 = 1_000_000;

/// How much of something fell into each window of the run.
///
/// Windows are one second wide and double whenever the run outgrows them, so the memory is fixed. Sums are
/// exact at every width: the order of additions, merges and doublings does not change the result.
#[derive(Clone, Debug)]
pub struct Series {
    width: u64,
    sums: Box<[u64; WINDOWS]>,
}

impl Default for Series {
    fn default() -> Self {
        Self { width: FIRST_WIDTH, sums: Box::new([0; WINDOWS]) }
    }
}

impl Series {
    /// Spreads `amount` evenly over `from..to`; all of it falls at `to` if that is not later.
    pub fn add(&mut self, from: Instant, to: Instant, amount: u64) {
        let (from, to) = (from.as_micros().min(to.as_micros()), to.as_micros());
        while to / self.width >= WINDOWS as u64 {
            self.widen();
        }
        let (first, last) = (from / self.width, to / self.width);
        if first == last {
            self.sums[last as usize] += amount;
            return;
        }
        // What has arrived by an instant is rounded once, and windows get differences: nothing is lost.
        let arrived = |at: u64| (u128::from(amount) * u128::from(at - from) / u128::from(to - from)) as u64;
        let mut before = 0;
        for window in first..=last {
            let by = arrived(((window + 1) * self.width).min(to));
            self.sums[window as usize] += by - before;
            before = by;
        }
    }

    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &Self) {
        while self.width < other.width {
            self.widen();
        }
        let ratio = (self.width / other.width) as usize;
        for (window, sum) in other.sums.iter().enumerate() {
            self.sums[window / ratio] += sum;
        }
    }

    /// The largest sum of one window, a second.
    #[must_use]
    pub fn peak_per_second(&self) -> f64 {
        let most = self.sums.iter().max().copied().unwrap_or(0);
        most as f64 / (self.width as f64 / 1e6)
    }

    fn widen(&mut self) {
        for window in 0..WINDOWS {
            let pair =
                if window < WINDOWS / 2 { self.sums[2 * window] + self.sums[2 * window + 1] } else { 0 };
            self.sums[window] = pair;
        }
        self.width *= 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_best_window_is_that_in_which_most_arrived() {
        let mut series = Series::default();
        series.add(Instant::from_micros(500_000), Instant::from_micros(3_500_000), 3_000);
        series.add(Instant::from_micros(1_200_000), Instant::from_micros(1_200_000), 10);
        assert_eq!(series.peak_per_second(), 1_010.0);
    }

    proptest! {
        /// Assumes amounts anywhere in some hours. Does: adds them in one series, and split over two that are
        /// merged. Asserts that both are the same and that nothing is lost.
        #[test]
        fn order_and_merging_do_not_change_a_series(
            amounts in prop::collection::vec((0_u64..9_000_000_000, 0_u64..60_000_000, 0_u64..1_000_000), 0..40),
        ) {
            let mut whole = Series::default();
            let mut halves = [Series::default(), Series::default()];
            for (i, &(from, span, amount)) in amounts.iter().enumerate() {
                let (from, to) = (Instant::from_micros(from), Instant::from_micros(from + span));
                whole.add(from, to, amount);
                halves[i % 2].add(from, to, amount);
            }
            let [mut merged, other] = halves;
            merged.merge(&other);
            prop_assert_eq!(whole.width, merged.width.max(whole.width));
            prop_assert_eq!(&whole.sums[..], &merged.sums[..]);
            prop_assert_eq!(whole.sums.iter().sum::<u64>(), amounts.iter().map(|a| a.2).sum::<u64>());
        }
    }
}
