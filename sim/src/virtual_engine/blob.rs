//! The blob store as shared bandwidth, at a cost per change that does not grow with the downloads under way.
//!
//! Downloads of one group share a rate: the store's bandwidth divided evenly among all downloads, but no more
//! than the group's links take (max-min fairness, "water-filling"). So each group has *one* virtual clock, which
//! counts the bytes that each of its downloads has got since the start; a download that begins when the clock
//! shows `v` and has `n` bytes to come ends when it shows `v + n`, whatever the rates were meanwhile. A change
//! touches the groups' rates and one heap, and no other download. (Processor sharing by virtual time: Parekh and
//! Gallager, "A generalized processor sharing approach to flow control", 1993.)

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

use fleetwave_protocol::rng::mix;

use super::event::Kind;
use super::wheel::Event;

/// A device of the run: its shard, and its index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) shard: u32,
    pub(super) device: u16,
}

/// What a device sends to the store; [`Store::advance`] handles it at its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Request {
    /// When it reaches the store, in microseconds.
    pub(super) at: u64,
    pub(super) from: Address,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// Begin to send.
    Fetch {
        /// What it is.
        part: Part,
        /// The device's group.
        group: u16,
        /// The piece of work, repeated in what comes back.
        generation: u8,
        /// Bytes to come.
        bytes: u64,
        /// How long the last byte is under way.
        latency: u64,
        /// For draws: this request's own number.
        draw: u64,
    },
    /// Stop sending and say how far it came.
    Stop {
        /// The piece of work.
        generation: u8,
        /// Whether the device still waits for the outcome.
        wanted: bool,
        /// How long it takes the device to notice.
        notices: u64,
    },
}

/// What is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The payload.
    Payload,
    /// The header of its archive.
    Header,
    /// Chunks of it.
    Chunks,
}

/// What the store does to some of its answers, by a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Trouble {
    /// Refuse with this status, this share of the requests.
    pub(super) refuse: Option<(u16, f64)>,
    /// Send wrong bytes, in this share of the downloads.
    pub(super) corrupt: f64,
}

#[derive(Clone, Copy)]
struct Download {
    from: Address,
    part: Part,
    group: u16,
    generation: u8,
    corrupt: bool,
    /// In the queue, or being sent: neither once it is over.
    state: Sending,
    bytes: u64,
    latency: u64,
    /// What the group's clock shows when the last byte leaves.
    ends: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Waits for its turn: its number in the queue.
    Queued(u64),
    Active,
    Over,
}

/// A group's virtual clock.
struct Group {
    /// Bytes a microsecond that a link takes at most.
    cap: f64,
    /// Bytes that each download has got since the start.
    clock: f64,
    /// Bytes a microsecond that each download gets now.
    rate: f64,
    active: u64,
    /// When its downloads end, by its clock. What was stopped stays until it comes to the top.
    ends: BinaryHeap<Reverse<(Bytes, u32)>>,
}

/// A float that is never NaN, so that it has an order.
#[derive(Clone, Copy, PartialEq)]
struct Bytes(f64);

impl Eq for Bytes {}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Arrival(Request);

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Arrival {}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed, for a heap that gives the earliest; a device stops before it fetches again.
        let stops = |request: &Request| matches!(request.what, What::Stop { .. });
        (other.0.at, other.0.from, stops(&self.0)).cmp(&(self.0.at, self.0.from, stops(&other.0)))
    }
}

/// The store.
pub(super) struct Store {
    bandwidth: f64,
    concurrency: usize,
    groups: Vec<Group>,
    downloads: Vec<Download>,
    spare: Vec<u32>,
    /// Each shard's devices' downloads.
    current: Vec<Vec<u32>>,
    active: usize,
    queue: VecDeque<(u64, u32)>,
    queued: u64,
    /// Groups by rising cap.
    order: Vec<usize>,
    arrivals: BinaryHeap<Arrival>,
    now: u64,
    trouble: Trouble,
}

const NONE: u32 = u32::MAX;

impl Store {
    /// A store that sends `bandwidth` bytes a second, to at most `concurrency` devices at once (0: no limit), to
    /// groups whose links take `caps` bytes a second.
    pub(super) fn new(bandwidth: f64, concurrency: u32, caps: &[f64], shards: &[usize]) -> Self {
        let mut order: Vec<usize> = (0..caps.len()).collect();
        order.sort_by(|a, b| caps[*a].total_cmp(&caps[*b]));
        Self {
            bandwidth: bandwidth / 1e6,
            concurrency: if concurrency == 0 { usize::MAX } else { concurrency as usize },
            groups: caps
                .iter()
                .map(|cap| Group {
                    cap: cap / 1e6,
                    clock: 0.0,
                    rate: 0.0,
                    active: 0,
                    ends: BinaryHeap::new(),
                })
                .collect(),
            downloads: Vec::new(),
            spare: Vec::new(),
            current: shards.iter().map(|&devices| vec![NONE; devices]).collect(),
            active: 0,
            queue: VecDeque::new(),
            queued: 0,
            order,
            arrivals: BinaryHeap::new(),
            now: 0,
            trouble: Trouble::default(),
        }
    }

    /// Takes a request that will arrive.
    pub(super) fn submit(&mut self, request: Request) {
        self.arrivals.push(Arrival(request));
    }

    /// Changes what the store sends in all, in bytes a second, from the time reached on.
    pub(super) fn set_bandwidth(&mut self, bandwidth: f64) {
        self.bandwidth = bandwidth / 1e6;
        self.share();
    }

    /// Changes what the store does to its answers.
    pub(super) fn trouble(&mut self) -> &mut Trouble {
        &mut self.trouble
    }

    /// The earliest time at which something happens here.
    pub(super) fn next(&self) -> Option<u64> {
        let arrival = self.arrivals.peek().map(|arrival| arrival.0.at);
        match (arrival, self.next_end()) {
            (Some(a), Some((b, _))) => Some(a.min(b)),
            (a, b) => a.or(b.map(|(at, _)| at)),
        }
    }

    /// Handles everything before `until`, and appends what reaches devices.
    pub(super) fn advance(&mut self, until: u64, out: &mut Vec<(u32, Event)>) {
        loop {
            let arrival = self.arrivals.peek().map_or(u64::MAX, |arrival| arrival.0.at);
            let end = self.next_end();
            let at = arrival.min(end.map_or(u64::MAX, |(at, _)| at));
            if at >= until {
                self.run_clocks(until);
                return;
            }
            self.run_clocks(at);
            match end {
                Some((ends, group)) if ends <= arrival => self.finish(group, ends, out),
                _ => {
                    let Some(Arrival(request)) = self.arrivals.pop() else { return };
                    self.arrive(request, out);
                }
            }
        }
    }

    fn run_clocks(&mut self, to: u64) {
        if to <= self.now {
            return;
        }
        let span = (to - self.now) as f64;
        for group in &mut self.groups {
            group.clock += group.rate * span;
        }
        self.now = to;
    }

    /// When and where the next download ends.
    fn next_end(&self) -> Option<(u64, usize)> {
        let mut next: Option<(u64, usize)> = None;
        for (index, group) in self.groups.iter().enumerate() {
            let Some(&Reverse((Bytes(ends), _))) = group.ends.peek() else { continue };
            if group.rate <= 0.0 {
                continue;
            }
            let wait = ((ends - group.clock) / group.rate).max(0.0).ceil();
            let at = self.now.saturating_add(wait as u64);
            if next.is_none_or(|(earliest, _)| at < earliest) {
                next = Some((at, index));
            }
        }
        next
    }

    fn arrive(&mut self, request: Request, out: &mut Vec<(u32, Event)>) {
        let Address { shard, device } = request.from;
        let slot = self.current[shard as usize][usize::from(device)];
        match request.what {
            What::Fetch { part, group, generation, bytes, latency, draw } => {
                let chance = (mix(draw) >> 11) as f64 / (1u64 << 53) as f64;
                if let Some((status, share)) = self.trouble.refuse
                    && chance < share
                {
                    let (a, b) = told(u64::from(status), part);
                    let (at, kind) = (request.at + latency, Kind::FetchRefused);
                    out.push((shard, Event { at, device, kind, generation, a, b }));
                    return;
                }
                let corrupt = chance < self.trouble.corrupt;
                let download = Download {
                    from: request.from,
                    part,
                    group,
                    generation,
                    corrupt,
                    state: Sending::Over,
                    bytes,
                    latency,
                    ends: 0.0,
                };
                let slot = match self.spare.pop() {
                    Some(slot) => {
                        self.downloads[slot as usize] = download;
                        slot
                    }
                    None => {
                        self.downloads.push(download);
                        (self.downloads.len() - 1) as u32
                    }
                };
                self.current[shard as usize][usize::from(device)] = slot;
                if self.active < self.concurrency {
                    self.begin(slot);
                    self.share();
                } else {
                    self.queued += 1;
                    self.downloads[slot as usize].state = Sending::Queued(self.queued);
                    self.queue.push_back((self.queued, slot));
                }
            }
            What::Stop { generation, wanted, notices } => {
                if slot == NONE || self.downloads[slot as usize].generation != generation {
                    return;
                }
                let download = self.downloads[slot as usize];
                let mut got = 0;
                if download.state == Sending::Active {
                    let group = usize::from(download.group);
                    let left = (download.ends - self.groups[group].clock).max(0.0).ceil();
                    got = download.bytes.saturating_sub(left as u64);
                    self.end(slot);
                    self.clean(group);
                } else {
                    self.forget(slot);
                }
                let kind = if wanted { Kind::FetchCut } else { Kind::FetchDropped };
                let (a, b) = told(got, download.part);
                let at = request.at + download.latency + notices;
                out.push((shard, Event { at, device, kind, generation, a, b }));
            }
        }
    }

    fn begin(&mut self, slot: u32) {
        let download = &mut self.downloads[slot as usize];
        let group = &mut self.groups[usize::from(download.group)];
        download.state = Sending::Active;
        download.ends = group.clock + download.bytes as f64;
        group.ends.push(Reverse((Bytes(download.ends), slot)));
        group.active += 1;
        self.active += 1;
    }

    fn finish(&mut self, group: usize, at: u64, out: &mut Vec<(u32, Event)>) {
        let Some(Reverse((_, slot))) = self.groups[group].ends.pop() else { return };
        let Download { from, part, generation, corrupt, bytes, latency, .. } = self.downloads[slot as usize];
        let kind = if corrupt { Kind::FetchedCorrupt } else { Kind::Fetched };
        let (a, b) = told(bytes, part);
        out.push((from.shard, Event { at: at + latency, device: from.device, kind, generation, a, b }));
        self.end(slot);
        self.clean(group);
    }

    /// Drops what was stopped from the top of a group's heap.
    fn clean(&mut self, group: usize) {
        let Self { groups, downloads, .. } = self;
        while let Some(&Reverse((ends, slot))) = groups[group].ends.peek() {
            let download = &downloads[slot as usize];
            let current = download.state == Sending::Active
                && usize::from(download.group) == group
                && Bytes(download.ends) == ends;
            if current {
                return;
            }
            groups[group].ends.pop();
        }
    }

    /// An active download is over; the next in the queue takes its place.
    fn end(&mut self, slot: u32) {
        self.groups[usize::from(self.downloads[slot as usize].group)].active -= 1;
        self.active -= 1;
        self.forget(slot);
        while let Some((number, next)) = self.queue.pop_front() {
            if self.downloads[next as usize].state == Sending::Queued(number) {
                self.begin(next);
                break;
            }
        }
        self.share();
    }

    fn forget(&mut self, slot: u32) {
        let Address { shard, device } = self.downloads[slot as usize].from;
        let current = &mut self.current[shard as usize][usize::from(device)];
        if *current == slot {
            *current = NONE;
        }
        self.downloads[slot as usize].state = Sending::Over;
        self.spare.push(slot);
    }

    /// Divides the bandwidth: evenly, except that what a group's links can't take goes to the others.
    fn share(&mut self) {
        let (mut left, mut downloads) = (self.bandwidth, self.active as f64);
        for &index in &self.order {
            let group = &mut self.groups[index];
            let active = group.active as f64;
            let even = if downloads > 0.0 { left / downloads } else { 0.0 };
            group.rate = group.cap.min(even);
            left -= group.rate * active;
            downloads -= active;
        }
    }
}

/// Above the bits of a number of bytes: what they are of.
const PART: u32 = 30;

/// A number of bytes, and what they are of, as an event's two arguments.
pub(super) const fn told(bytes: u64, part: Part) -> (u32, u32) {
    (bytes as u32, (bytes >> 32) as u32 | (part as u32) << PART)
}

/// The number of bytes that an event [`told`].
pub(super) fn whole(event: &Event) -> u64 {
    u64::from(event.a) | u64::from(event.b & ((1 << PART) - 1)) << 32
}

/// What they are of.
pub(super) const fn part(event: &Event) -> Part {
    match event.b >> PART {
        0 => Part::Payload,
        1 => Part::Header,
        _ => Part::Chunks,
    }
}

#[cfg(test)]
mod tests;
