//! The events that a shard's devices wait for, without a heap: buckets as wide as the shortest latency.
//!
//! A near wheel has one list for each bucket of the current *page*; a far wheel one for each page after it;
//! what lies beyond waits in one list that is looked through rarely. Lists are chains of small chunks in one arena, so
//! that empty buckets cost nothing and the memory is that of the events outstanding at the peak.

/// Something that will happen to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// When, in microseconds.
    pub(super) at: u64,
    /// Whose, by its index in the shard.
    pub(super) device: u16,
    /// What.
    pub(super) kind: super::event::Kind,
    /// Of which connection, or of which piece of work: stale ones are dropped.
    pub(super) generation: u8,
    /// Depends on the kind.
    pub(super) a: u32,
    /// Depends on the kind.
    pub(super) b: u32,
}

/// Some events of one slot, in the order in which they were added.
#[derive(Clone, Copy)]
struct Chunk {
    events: [Event; CHUNK],
    len: u32,
    /// The chunk before it of the same slot, or the next free one.
    next: u32,
}

/// Events in a chunk: few, since most slots have few.
const CHUNK: usize = 5;

const NIL: u32 = u32::MAX;
/// Buckets in a page, and pages in the far wheel.
const SLOTS: u64 = 256;

type Occupancy = [u64; (SLOTS / 64) as usize];

/// Chains, by slot, and which of them are not empty.
struct Chains {
    heads: [u32; SLOTS as usize],
    occupied: Occupancy,
}

impl Chains {
    const EMPTY: Self = Self { heads: [NIL; SLOTS as usize], occupied: [0; (SLOTS / 64) as usize] };

    fn take(&mut self, slot: u64) -> u32 {
        self.occupied[(slot / 64) as usize] &= !(1 << (slot % 64));
        core::mem::replace(&mut self.heads[slot as usize], NIL)
    }

    fn put(&mut self, slot: u64, chunk: u32) {
        self.occupied[(slot / 64) as usize] |= 1 << (slot % 64);
        self.heads[slot as usize] = chunk;
    }

    /// The first occupied slot at or after `from`.
    fn first_from(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.occupied.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *self.occupied.get(word)?;
        }
    }
}

/// A shard's events.
pub(super) struct Wheel {
    width: u64,
    /// The page that the near wheel is about.
    page: u64,
    near: Chains,
    far: Chains,
    /// The page from which the far wheel was last filled: pages from there on plus [`SLOTS`] are beyond.
    base: u64,
    beyond: u32,
    beyond_min: u64,
    chunks: Vec<Chunk>,
    free: u32,
    scratch: Vec<Event>,
    chain: Vec<u32>,
}

impl Wheel {
    /// A wheel whose buckets are `width` microseconds wide.
    pub(super) fn new(width: u64) -> Self {
        Self {
            width,
            page: 0,
            near: Chains::EMPTY,
            far: Chains::EMPTY,
            base: 0,
            beyond: NIL,
            beyond_min: u64::MAX,
            chunks: Vec::new(),
            free: NIL,
            scratch: Vec::new(),
            chain: Vec::new(),
        }
    }

    /// Adds an event. Its bucket must not have been taken yet.
    pub(super) fn push(&mut self, event: Event) {
        let page = event.at / self.width / SLOTS;
        debug_assert!(page >= self.page, "an event of the past");
        if page == self.page {
            let slot = event.at / self.width % SLOTS;
            let head = self.add(self.near.heads[slot as usize], event);
            self.near.put(slot, head);
        } else if page < self.base + SLOTS {
            let slot = page % SLOTS;
            let head = self.add(self.far.heads[slot as usize], event);
            self.far.put(slot, head);
        } else {
            self.beyond_min = self.beyond_min.min(page);
            self.beyond = self.add(self.beyond, event);
        }
    }

    /// Adds an event to the chain that begins with `head`; its new head.
    fn add(&mut self, head: u32, event: Event) -> u32 {
        if let Some(chunk) = self.chunks.get_mut(head as usize)
            && (chunk.len as usize) < CHUNK
        {
            chunk.events[chunk.len as usize] = event;
            chunk.len += 1;
            return head;
        }
        let chunk = Chunk { events: [event; CHUNK], len: 1, next: head };
        if self.free == NIL {
            self.chunks.push(chunk);
            return (self.chunks.len() - 1) as u32;
        }
        let free = self.free;
        self.free = self.chunks[free as usize].next;
        self.chunks[free as usize] = chunk;
        free
    }

    /// Takes a chain apart, in the order in which its events were added.
    fn empty(&mut self, mut head: u32, out: &mut Vec<Event>) {
        self.chain.clear();
        while head != NIL {
            self.chain.push(head);
            head = self.chunks[head as usize].next;
        }
        for &index in self.chain.iter().rev() {
            let chunk = &mut self.chunks[index as usize];
            out.extend_from_slice(&chunk.events[..chunk.len as usize]);
            chunk.next = self.free;
            self.free = index;
        }
    }

    /// The earliest bucket that may have events, not before `from`; `None` if there are none at all.
    pub(super) fn next_bucket(&self, from: u64) -> Option<u64> {
        let slot = if from / SLOTS == self.page { from % SLOTS } else { 0 };
        if from / SLOTS <= self.page
            && let Some(slot) = self.near.first_from(slot)
        {
            return Some(self.page * SLOTS + slot);
        }
        // Pages after this one, round the wheel: none is farther than a turn.
        let start = (self.page + 1) % SLOTS;
        let later = self.far.first_from(start).map(|slot| slot - start);
        let wrapped = self.far.first_from(0).filter(|slot| *slot < start).map(|slot| slot + SLOTS - start);
        let page = later.or(wrapped).map(|ahead| self.page + 1 + ahead);
        let beyond = (self.beyond != NIL).then_some(self.beyond_min);
        let page = match (page, beyond) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(page * SLOTS)
    }

    /// Takes the events of `bucket`, in the order in which they were added. Buckets are taken in rising order.
    pub(super) fn take(&mut self, bucket: u64, out: &mut Vec<Event>) {
        let page = bucket / SLOTS;
        if page != self.page {
            self.turn_to(page);
        }
        let chain = self.near.take(bucket % SLOTS);
        self.empty(chain, out);
    }

    /// Makes `page` the near one; the pages skipped are empty.
    fn turn_to(&mut self, page: u64) {
        self.page = page;
        let chain = self.far.take(page % SLOTS);
        self.add_again(chain);
        if page >= self.base + SLOTS / 2 {
            self.base = page;
            let chain = core::mem::replace(&mut self.beyond, NIL);
            self.beyond_min = u64::MAX;
            self.add_again(chain);
        }
    }

    /// Adds a chain's events anew, now that they belong elsewhere.
    fn add_again(&mut self, chain: u32) {
        let mut events = core::mem::take(&mut self.scratch);
        self.empty(chain, &mut events);
        for event in events.drain(..) {
            self.push(event);
        }
        self.scratch = events;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::event::Kind;
    use super::*;

    fn event(at: u64, a: u32) -> Event {
        Event { at, device: 0, kind: Kind::Timer, generation: 0, a, b: 0 }
    }

    proptest! {
        /// Assumes spans from one bucket to far beyond the far wheel, added at the start and while buckets are
        /// taken. Does: takes bucket after bucket as the engine does. Asserts that every event comes out, in the
        /// order of a stable sort by bucket, and that no bucket with events is skipped.
        #[test]
        fn events_come_out_by_bucket_in_the_order_they_went_in(
            start in prop::collection::vec(0_u64..100_000_000, 1..60),
            later in prop::collection::vec((0_u64..200, 1_u64..50_000_000), 0..60),
        ) {
            let width = 100;
            let mut wheel = Wheel::new(width);
            let mut expected = Vec::new();
            let mut number = 0;
            let mut add = |wheel: &mut Wheel, expected: &mut Vec<Event>, at: u64| {
                let event = event(at, number);
                number += 1;
                wheel.push(event);
                expected.push(event);
            };
            for at in start {
                add(&mut wheel, &mut expected, at);
            }
            let mut later = later.into_iter();
            let (mut taken, mut from) = (Vec::new(), 0);
            while let Some(bucket) = wheel.next_bucket(from) {
                let before = taken.len();
                wheel.take(bucket, &mut taken);
                prop_assert!(taken[before..].iter().all(|event| event.at / width == bucket));
                from = bucket + 1;
                if let Some((ahead, span)) = later.next() {
                    add(&mut wheel, &mut expected, (bucket + 1 + ahead) * width + span);
                }
            }
            expected.sort_by_key(|event| event.at / width);
            prop_assert_eq!(taken, expected);
        }
    }
}
