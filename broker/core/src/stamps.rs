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
    /// Free blocks by the logarithm of their size.
    free: Vec<Vec<u32>>,
    scratch: Vec<Stamp>,
}

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

    fn allocate(&mut self, class: usize) -> u32 {
        if let Some(start) = self.free.get_mut(class).and_then(Vec::pop) {
            return start;
        }
        let start = u32::try_from(self.cells.len()).expect("fewer than 2³² stamps in a shard");
        self.cells.resize(self.cells.len() + (1 << class), Stamp::new(WallTime::from_unix_millis(0), 0));
        start
    }

    pub(crate) fn release(&mut self, start: u32, count: usize) {
        let class = class(count);
        if self.free.len() <= class {
            self.free.resize(class + 1, Vec::new());
        }
        self.free[class].push(start);
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
        self.cells.capacity() * size_of::<Stamp>()
            + self.free.iter().map(|free| free.capacity() * size_of::<u32>()).sum::<usize>()
    }
}
