//! Randomness that is counted, so that a device's draws do not depend on how many others run.

/// A counter-based generator: draw `n` of stream `seed` is a pure function of both.
///
/// The output function is SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", OOPSLA 2014). It is not for secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRng {
    seed: u64,
    drawn: u32,
}

impl CounterRng {
    /// The stream of `seed`, from its first draw.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    /// The stream of the `index`-th member of a family, e.g. of a device in a fleet.
    #[must_use]
    pub const fn of(family: u64, index: u64) -> Self {
        Self::new(mix(family ^ mix(index.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        mix(self.seed.wrapping_add((self.drawn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number below `bound`, or 0 if `bound` is 0. The bias is below 2⁻³² for bounds below 2³².
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// A number in `low..=high`; `low` if the range is empty.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.below(high - low + 1) }
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.unit() < p
    }
}

/// SplitMix64's finaliser: a bijection on 64 bits that spreads every input bit over the whole output.
#[must_use]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_draws_do_not_depend_on_the_others() {
        let mut alone = CounterRng::of(7, 3);
        let expected: Vec<u64> = (0..4).map(|_| alone.next_u64()).collect();
        let mut fleet: Vec<_> = (0..8).map(|i| CounterRng::of(7, i)).collect();
        let mut seen = Vec::new();
        for _ in 0..4 {
            for (i, rng) in fleet.iter_mut().enumerate() {
                let draw = rng.next_u64();
                if i == 3 {
                    seen.push(draw);
                }
            }
        }
        assert_eq!(seen, expected);
    }

    #[test]
    fn draws_stay_in_their_range_and_reach_both_ends() {
        let mut rng = CounterRng::new(1);
        let draws: Vec<u64> = (0..10_000).map(|_| rng.between(10, 12)).collect();
        assert!(draws.iter().all(|d| (10..=12).contains(d)));
        assert!(draws.contains(&10) && draws.contains(&12));
        let mean = (0..10_000).map(|_| rng.unit()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
