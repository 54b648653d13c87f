//! The event log: what the Event-Hub-compatible endpoint reads from.
//!
//! Events lie in partitions, by a hash of the device's id, so that those of one device keep their order. Each has a
//! sequence number, which counts up by one, and an offset, which counts bytes. Old events make room for new ones.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use fleetwave_protocol::WallTime;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// What kind of thing an event tells of: IoT Hub's message sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Messages of devices.
    Telemetry,
    /// Changes of twins.
    TwinChanges,
    /// Identities made and deleted.
    Lifecycle,
    /// Devices that connect and disconnect.
    ConnectionState,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Telemetry, Self::TwinChanges, Self::Lifecycle, Self::ConnectionState];

    /// The name that stands in `iothub-message-source`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "Telemetry",
            Self::TwinChanges => "twinChangeEvents",
            Self::Lifecycle => "deviceLifecycleEvents",
            Self::ConnectionState => "deviceConnectionStateEvents",
        }
    }
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The device, or `device/module`.
    pub id: Box<str>,
    /// The identity's generation id.
    pub generation: Box<str>,
    /// How the identity shows who it is: `sas` or `x509Certificate`.
    pub authentication: &'static str,
    /// The model that it named when it connected.
    pub model: Option<Box<str>>,
    /// What it tells of.
    pub source: Source,
    /// The encoded property bag, see [`fleetwave_protocol::bag`].
    pub properties: Box<str>,
    /// The payload.
    pub body: Bytes,
}

/// An event in its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the partition, from 0.
    pub sequence: u64,
    /// Where it begins, in bytes of all that the partition ever held.
    pub offset: u64,
    /// When it came.
    pub enqueued: WallTime,
    /// The event.
    pub event: Event,
}

impl Entry {
    /// What it counts against the retention.
    fn size(&self) -> usize {
        const RECORD: usize = 128;
        let event = &self.event;
        RECORD + event.id.len() + event.generation.len() + event.properties.len() + event.body.len()
    }
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest event that is there.
    Oldest,
    /// With the next event that comes.
    Latest,
    /// Behind, or at, a sequence number.
    Sequence {
        /// The number.
        number: u64,
        /// Whether the event of that number is wanted.
        inclusive: bool,
    },
    /// Behind, or at, an offset.
    Offset {
        /// The offset.
        offset: u64,
        /// Whether the event at that offset is wanted.
        inclusive: bool,
    },
    /// With the first event after, or at, a time.
    Enqueued {
        /// The time.
        time: WallTime,
        /// Whether events of that very millisecond are wanted.
        inclusive: bool,
    },
}

/// How much is kept, in each partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events.
    pub events: usize,
    /// Bytes of events and their properties.
    pub bytes: usize,
}

impl Default for Retention {
    /// A hundred thousand events and 32 MiB.
    fn default() -> Self {
        Self { events: 100_000, bytes: 32 << 20 }
    }
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The number of the oldest event, or of the next if there is none.
    pub first: u64,
    /// The number of the next event.
    pub next: u64,
    /// The newest event ever: offset and time.
    pub last: Option<(u64, WallTime)>,
}

impl PartitionInfo {
    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first == self.next
    }
}

#[derive(Debug, Default)]
struct Partition {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    next: u64,
    next_offset: u64,
    last: Option<(u64, WallTime)>,
}

/// The log.
pub struct EventLog {
    // Held for the few lines that append to a partition or copy references out of it.
    partitions: Box<[Mutex<Partition>]>,
    retention: Retention,
    created: WallTime,
    changed: Notify,
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog").field("partitions", &self.partitions.len()).finish_non_exhaustive()
    }
}

impl EventLog {
    /// An empty log of so many partitions, one at least.
    #[must_use]
    pub fn new(partitions: usize, retention: Retention, created: WallTime) -> Self {
        let partitions = (0..partitions.max(1)).map(|_| Mutex::default()).collect();
        Self { partitions, retention, created, changed: Notify::new() }
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    /// When the log was made.
    #[must_use]
    pub fn created(&self) -> WallTime {
        self.created
    }

    /// The partition of a device or of its modules.
    #[must_use]
    pub fn partition_of(&self, id: &str) -> usize {
        let device = id.split_once('/').map_or(id, |(device, _)| device);
        let hash = BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(device);
        // The high bits are the well-mixed ones.
        ((u128::from(hash) * self.partitions.len() as u128) >> 64) as usize
    }

    /// Appends an event. Readers that wait are woken.
    pub fn append(&self, event: Event, enqueued: WallTime) {
        let partition = self.partition_of(&event.id);
        {
            let mut partition = self.lock(partition);
            // Calendar time may jump back, but reading by time needs it in order.
            let enqueued = partition.last.map_or(enqueued, |(_, last)| enqueued.max(last));
            let entry = Entry { sequence: partition.next, offset: partition.next_offset, enqueued, event };
            let size = entry.size();
            partition.last = Some((entry.offset, enqueued));
            partition.next += 1;
            partition.next_offset += size as u64;
            partition.bytes += size;
            partition.entries.push_back(Arc::new(entry));
            while partition.entries.len() > self.retention.events
                || (partition.bytes > self.retention.bytes && partition.entries.len() > 1)
            {
                let oldest = partition.entries.pop_front();
                partition.bytes -= oldest.map_or(0, |entry| entry.size());
            }
        }
        self.changed.notify_waiters();
    }

    /// The sequence number from which a reader that begins at `start` reads on.
    #[must_use]
    pub fn position(&self, partition: usize, start: Start) -> u64 {
        let partition = self.lock(partition);
        let behind = |before: &dyn Fn(&Entry) -> bool| {
            let first = partition.next - partition.entries.len() as u64;
            first + partition.entries.partition_point(|entry| before(entry)) as u64
        };
        match start {
            Start::Oldest => 0,
            Start::Latest => partition.next,
            Start::Sequence { number, inclusive } => number.saturating_add(u64::from(!inclusive)),
            Start::Offset { offset, inclusive: true } => behind(&|entry| entry.offset < offset),
            Start::Offset { offset, inclusive: false } => behind(&|entry| entry.offset <= offset),
            Start::Enqueued { time, inclusive: true } => behind(&|entry| entry.enqueued < time),
            Start::Enqueued { time, inclusive: false } => behind(&|entry| entry.enqueued <= time),
        }
    }

    /// Up to `most` events of a partition from the sequence number `from` on, or from the oldest if that one is gone.
    #[must_use]
    pub fn read(&self, partition: usize, from: u64, most: usize) -> Vec<Arc<Entry>> {
        let partition = self.lock(partition);
        let first = partition.next - partition.entries.len() as u64;
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        partition.entries.iter().skip(skip).take(most).cloned().collect()
    }

    /// What a partition holds.
    #[must_use]
    pub fn info(&self, partition: usize) -> PartitionInfo {
        let partition = self.lock(partition);
        PartitionInfo {
            first: partition.next - partition.entries.len() as u64,
            next: partition.next,
            last: partition.last,
        }
    }

    /// Completes when something is appended after it was first polled or enabled.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes all readers, though nothing was appended.
    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    fn lock(&self, partition: usize) -> MutexGuard<'_, Partition> {
        let partition = &self.partitions[partition.min(self.partitions.len() - 1)];
        partition.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> WallTime {
        WallTime::from_unix_millis(millis)
    }

    fn event(body: &'static str) -> Event {
        Event {
            id: "d".into(),
            generation: "".into(),
            authentication: "sas",
            model: None,
            source: Source::Telemetry,
            properties: "".into(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    fn log(retention: Retention) -> EventLog {
        let log = EventLog::new(1, retention, at(0));
        for (millis, body) in [(10, "a"), (20, "b"), (20, "c"), (30, "d")] {
            log.append(event(body), at(millis));
        }
        log
    }

    fn bodies(log: &EventLog, from: u64) -> String {
        log.read(0, from, 100).iter().map(|entry| String::from_utf8_lossy(&entry.event.body)).collect()
    }

    #[test]
    fn reading_begins_where_it_was_asked_to() {
        let log = log(Retention::default());
        let offset = log.read(0, 1, 1)[0].offset;
        for (start, expected) in [
            (Start::Oldest, "abcd"),
            (Start::Latest, ""),
            (Start::Sequence { number: 1, inclusive: false }, "cd"),
            (Start::Sequence { number: 1, inclusive: true }, "bcd"),
            (Start::Offset { offset, inclusive: false }, "cd"),
            (Start::Offset { offset, inclusive: true }, "bcd"),
            (Start::Enqueued { time: at(20), inclusive: false }, "d"),
            (Start::Enqueued { time: at(20), inclusive: true }, "bcd"),
            (Start::Enqueued { time: at(5), inclusive: false }, "abcd"),
        ] {
            assert_eq!(bodies(&log, log.position(0, start)), expected, "{start:?}");
        }
        let latest = log.position(0, Start::Latest);
        log.append(event("e"), at(5));
        assert_eq!(bodies(&log, latest), "e");
        assert_eq!(log.read(0, latest, 1)[0].enqueued, at(30), "times never go back");
    }

    #[test]
    fn the_oldest_events_make_room() {
        let by_count = log(Retention { events: 2, bytes: 1 << 20 });
        assert_eq!(bodies(&by_count, 0), "cd");
        assert_eq!(by_count.info(0), PartitionInfo { first: 2, next: 4, last: by_count.info(0).last });
        let by_bytes = log(Retention { events: 100, bytes: 1 });
        assert_eq!(bodies(&by_bytes, 0), "d", "the newest stays however large it is");
    }

    #[test]
    fn devices_are_spread_and_modules_go_where_their_device_goes() {
        let log = EventLog::new(4, Retention::default(), at(0));
        assert_eq!(log.partition_of("d1"), log.partition_of("d1/m"));
        let mut used: Vec<usize> = (0..100).map(|n| log.partition_of(&format!("device-{n}"))).collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used, [0, 1, 2, 3]);
    }

    #[test]
    fn a_reader_that_waits_is_woken() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let log = log(Retention::default());
            let mut changed = std::pin::pin!(log.changed());
            changed.as_mut().enable();
            log.append(event("e"), at(40));
            changed.await;
        });
    }
}
