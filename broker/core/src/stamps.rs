//! When the parts of a twin were written: what `$metadata` is made of.

use fleetwave_protocol::WallTime;

use crate::store::NEW;

/// A time and a version, in twelve bytes: a fleet has millions of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    millis: [u32; 2],
    version: u32,
}

impl Stamp {
    pub(crate) const fn new(at: WallTime, version: u32) -> Self {
        let millis = at.as_unix_millis();
        Self { millis: [(millis >> 32) as u32, millis as u32], version }
    }

    pub(crate) const fn at(self) -> WallTime {
        WallTime::from_unix_millis((self.millis[0] as u64) << 32 | self.millis[1] as u64)
    }

    pub(crate) const fn version(self) -> u32 {
        self.version
    }
}

/// The stamps of all twin sections of a shard: a section has a run of as many as its pattern has slots, in a block of
/// the next power of two. Blocks are used again within their size.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    cells: Vec<Stamp>,
    /// The first free block of each size, by its logarithm; a free block's first cell has the next one in `version`.
    free: Vec<u32>,
    scratch: Vec<Stamp>,
}

/// The end of a list of free blocks.
const NONE: u32 = u32::MAX;

const fn class(count: usize) -> usize {
    count.next_power_of_two().trailing_zeros() as usize
}

impl Stamps {
    /// A run of one stamp.
    pub(crate) fn fresh(&mut self, stamp: Stamp) -> u32 {
        let start = self.allocate(0);
        self.cells[start as usize] = stamp;
        start
    }

    /// A run of at least one stamp, as it was.
    pub(crate) fn restore(&mut self, stamps: &[Stamp]) -> u32 {
        let start = self.allocate(class(stamps.len()));
        self.cells[start as usize..start as usize + stamps.len()].copy_from_slice(stamps);
        start
    }

    fn allocate(&mut self, class: usize) -> u32 {
        if let Some(first) = self.free.get_mut(class).filter(|first| **first != NONE) {
            let start = *first;
            *first = self.cells[start as usize].version;
            return start;
        }
        let start = u32::try_from(self.cells.len()).expect("fewer than 2³² stamps in a shard");
        self.cells.resize(self.cells.len() + (1 << class), Stamp::new(WallTime::from_unix_millis(0), 0));
        start
    }

    pub(crate) fn release(&mut self, start: u32, count: usize) {
        let class = class(count);
        if self.free.len() <= class {
            self.free.resize(class + 1, NONE);
        }
        self.cells[start as usize].version = std::mem::replace(&mut self.free[class], start);
    }

    pub(crate) fn run(&self, start: u32, count: usize) -> &[Stamp] {
        &self.cells[start as usize..start as usize + count]
    }

    /// Follows a transition: each slot of `map` continues an old slot or takes `stamp`. Answers where the run is now.
    pub(crate) fn follow(&mut self, start: u32, count: usize, map: &[u32], stamp: Stamp) -> u32 {
        let mut scratch = std::mem::take(&mut self.scratch);
        let old = self.run(start, count);
        scratch.extend(map.iter().map(|&slot| if slot == NEW { stamp } else { old[slot as usize] }));
        let start = if class(count) == class(map.len()) {
            start
        } else {
            self.release(start, count);
            self.allocate(class(map.len()))
        };
        self.cells[start as usize..start as usize + map.len()].copy_from_slice(&scratch);
        scratch.clear();
        self.scratch = scratch;
        start
    }

    /// Bytes on the heap.
    pub(crate) fn heap(&self) -> usize {
        self.cells.capacity() * size_of::<Stamp>() + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(version: u32) -> Stamp {
        Stamp::new(WallTime::from_unix_millis(u64::from(version) << 30), version)
    }

    #[test]
    fn a_stamp_keeps_times_beyond_32_bits() {
        let at = WallTime::from_unix_millis(1_700_000_000_123);
        assert_eq!((Stamp::new(at, 7).at(), Stamp::new(at, 7).version()), (at, 7));
    }

    #[test]
    fn runs_follow_their_map_and_leave_no_memory_behind() {
        let mut stamps = Stamps::default();
        let other = stamps.fresh(stamp(99));
        let mut start = stamps.fresh(stamp(1));
        let mut sizes = Vec::new();
        for round in 0..50 {
            let version = round * 3;
            start = stamps.follow(start, 1, &[NEW, 0], stamp(version + 2));
            start = stamps.follow(start, 2, &[NEW, 0, 1], stamp(version + 3));
            let oldest = if round == 0 { 1 } else { version + 1 };
            assert_eq!(stamps.run(start, 3), [stamp(version + 3), stamp(version + 2), stamp(oldest)]);
            start = stamps.follow(start, 3, &[NEW], stamp(version + 4));
            assert_eq!(stamps.run(start, 1), [stamp(version + 4)]);
            sizes.push(stamps.cells.len());
        }
        assert_eq!(stamps.run(other, 1), [stamp(99)]);
        assert_eq!(sizes[0], sizes[49]);
    }
}
