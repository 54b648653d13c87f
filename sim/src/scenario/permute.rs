//! A shuffle that is computed and not stored: a million devices are put in random order without a table.

use fleetwave_protocol::rng::mix;

/// A bijection on `0..len` that depends on a seed: a four-round Feistel network on the smallest even number of
/// bits that holds `len`, walked until it lands inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    seed: u64,
}

impl Permutation {
    const ROUNDS: u64 = 4;

    pub(crate) const fn new(seed: u64, len: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2);
        Self { len, half_bits: if half_bits == 0 { 1 } else { half_bits }, seed }
    }

    /// Where `index` goes.
    ///
    /// # Panics
    /// If it is not below the length.
    pub(crate) fn place(&self, index: u64) -> u64 {
        self.walk(index, |at| {
            (0..Self::ROUNDS).fold(at, |at, round| {
                let (left, right) = self.halves(at);
                self.joined(right, left ^ self.round(round, right))
            })
        })
    }

    /// What goes to `place`: the inverse of [`place`](Self::place).
    ///
    /// # Panics
    /// If it is not below the length.
    pub(crate) fn index(&self, place: u64) -> u64 {
        self.walk(place, |at| {
            (0..Self::ROUNDS).rev().fold(at, |at, round| {
                let (left, right) = self.halves(at);
                self.joined(right ^ self.round(round, left), left)
            })
        })
    }

    /// The network's numbers may lie beyond the length: following them leads back inside, after fewer than four steps
    /// on average, because the network has at most four times the length.
    fn walk(&self, from: u64, network: impl Fn(u64) -> u64) -> u64 {
        assert!(from < self.len, "{from} is not below {}", self.len);
        let mut at = network(from);
        while at >= self.len {
            at = network(at);
        }
        at
    }

    const fn mask(&self) -> u64 {
        (1 << self.half_bits) - 1
    }

    const fn halves(&self, at: u64) -> (u64, u64) {
        (at >> self.half_bits, at & self.mask())
    }

    const fn joined(&self, left: u64, right: u64) -> u64 {
        (left << self.half_bits) | right
    }

    const fn round(&self, round: u64, half: u64) -> u64 {
        mix(self.seed ^ mix(half ^ (round << 56))) & self.mask()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_taken_once_and_the_inverse_leads_back() {
        for len in [1, 2, 3, 4, 5, 17, 64, 1000, 1025] {
            let shuffle = Permutation::new(7, len);
            let mut taken = vec![false; usize::try_from(len).unwrap()];
            for index in 0..len {
                let place = shuffle.place(index);
                assert!(!core::mem::replace(&mut taken[usize::try_from(place).unwrap()], true));
                assert_eq!(shuffle.index(place), index);
            }
        }
    }

    #[test]
    fn another_seed_gives_another_order() {
        let order = |seed| (0..100).map(|i| Permutation::new(seed, 100).place(i)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
    }
}
