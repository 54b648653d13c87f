//! What one thread of an engine counts and times.

use std::time::Duration;

use fleetwave_protocol::Instant;
use fleetwave_protocol::time::micros;

use super::{Distribution, Series};

/// The number of a configuration change, counted from 0 in the order in which the timeline makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId(pub u16);

/// When a configuration change happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When the timeline meant to send it.
    pub intended: Instant,
    /// When the harness sent it. If that is later than intended, the harness was late.
    pub sent: Instant,
    /// When the hub accepted it.
    pub accepted: Instant,
}

impl Change {
    /// What latencies count from: the hub's acceptance, had the harness not been late.
    #[must_use]
    pub fn origin(&self) -> Instant {
        self.accepted - self.sent.since(self.intended)
    }
}

/// A connection that a device was given, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// When the device was meant to connect.
    pub intended: Instant,
    /// When its first attempt began.
    pub started: Instant,
    /// When the CONNACK of the attempt that succeeded was accepted.
    pub accepted: Instant,
    /// Whether it is the device's first connection of the run.
    pub first: bool,
}

/// What came of one configuration change.
#[derive(Clone, Debug, Default)]
pub(super) struct ChangeTally {
    pub(super) change: Option<Change>,
    pub(super) targeted: u64,
    pub(super) notified: u64,
    pub(super) converged: u64,
    /// Targets that ended before the device was notified, or had converged.
    pub(super) withdrawn: u64,
    pub(super) withdrawn_notified: u64,
    pub(super) last_notified: Instant,
}

impl ChangeTally {
    fn merge(&mut self, other: &Self) {
        self.change = self.change.or(other.change);
        self.targeted += other.targeted;
        self.notified += other.notified;
        self.converged += other.converged;
        self.withdrawn += other.withdrawn;
        self.withdrawn_notified += other.withdrawn_notified;
        self.last_notified = self.last_notified.max(other.last_notified);
    }
}

/// Things that were begun and have to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outstanding {
    begun: u64,
    ended: u64,
}

impl Outstanding {
    /// How many have not ended.
    pub(super) fn open(self) -> u64 {
        self.begun.saturating_sub(self.ended)
    }

    fn merge(&mut self, other: Self) {
        self.begun += other.begun;
        self.ended += other.ended;
    }
}

/// What came by chunked archives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DeltaTally {
    pub(super) bytes: u64,
    pub(super) downloads: u64,
}

impl DeltaTally {
    fn merge(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.downloads += other.downloads;
    }
}

/// Failures of one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailureTally {
    /// The agent's result code.
    pub(super) cause: &'static str,
    /// How often it happened.
    pub(super) count: u64,
    /// On how many different devices.
    pub(super) devices: u64,
}

/// What one thread of an engine counts and times. Its size does not depend on the number of devices.
///
/// All methods that take a [`ChangeId`] expect that [`change`](Self::change) was called on this meter before.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    pub(super) changes: Vec<ChangeTally>,
    pub(super) fan_out: Distribution,
    pub(super) fan_out_uncorrected: Distribution,
    pub(super) convergence: Distribution,
    pub(super) convergence_uncorrected: Distribution,
    pub(super) fleet: Distribution,
    pub(super) connect: Distribution,
    pub(super) connect_uncorrected: Distribution,
    pub(super) grant: Distribution,
    pub(super) lag: Distribution,
    pub(super) download_rate: Distribution,
    pub(super) connections: Outstanding,
    pub(super) grants: Outstanding,
    pub(super) first_connections: u64,
    pub(super) first_start: Option<Instant>,
    pub(super) last_first_connack: Instant,
    pub(super) messages: [u64; 2],
    pub(super) bytes: [u64; 2],
    pub(super) payload: u64,
    pub(super) refetched: u64,
    pub(super) deltas: DeltaTally,
    pub(super) requests: u64,
    pub(super) payload_from: Option<Instant>,
    pub(super) payload_to: Instant,
    pub(super) payload_windows: Series,
    pub(super) failures: Vec<FailureTally>,
    pub(super) events: u64,
}

/// The places of `messages` and `bytes`.
const UP: usize = 0;
const DOWN: usize = 1;

impl Meter {
    /// A configuration change happened. Every thread's meter is told, whether or not it has devices for it.
    pub fn change(&mut self, id: ChangeId, change: Change) {
        self.tally(id).change = Some(change);
    }

    /// The change gave `devices` more devices a release.
    pub fn targeted(&mut self, id: ChangeId, devices: u64) {
        self.tally(id).targeted += devices;
    }

    /// A device's target ended before it converged: a later change replaced it, or the configuration was
    /// removed. From then on nobody waits for it, so that it is not missing.
    pub fn withdrawn(&mut self, id: ChangeId, was_notified: bool) {
        let tally = self.tally(id);
        tally.withdrawn += 1;
        tally.withdrawn_notified += u64::from(was_notified);
    }

    /// A device's core got the desired patch of the change, or read it in its twin. Once per device and change.
    pub fn notified(&mut self, id: ChangeId, at: Instant) {
        let tally = self.tally(id);
        tally.notified += 1;
        tally.last_notified = tally.last_notified.max(at);
        if let Some(change) = tally.change {
            self.fan_out.record(at.since(change.origin()));
            self.fan_out_uncorrected.record(at.since(change.accepted));
        }
    }

    /// The hub accepted a device's report that it runs the release of the change. Once per device and change.
    pub fn converged(&mut self, id: ChangeId, at: Instant) {
        let tally = self.tally(id);
        tally.converged += 1;
        if let Some(change) = tally.change {
            self.convergence.record(at.since(change.origin()));
            self.convergence_uncorrected.record(at.since(change.accepted));
        }
        if let Some(first) = self.changes.iter().find_map(|tally| tally.change) {
            self.fleet.record(at.since(first.origin()));
        }
    }

    /// A device means to connect. Once until [`connected`](Self::connected), however often it tries.
    pub fn connecting(&mut self) {
        self.connections.begun += 1;
    }

    /// A device's connection was accepted.
    pub fn connected(&mut self, connection: Connection) {
        self.connections.ended += 1;
        self.connect.record(connection.accepted.since(connection.intended));
        self.connect_uncorrected.record(connection.accepted.since(connection.started));
        if connection.first {
            self.first_connections += 1;
            let earlier = self.first_start.unwrap_or(Instant::NEVER).min(connection.started);
            self.first_start = Some(earlier);
            self.last_first_connack = self.last_first_connack.max(connection.accepted);
        }
    }

    /// A device asked for a download grant. Once until [`granted`](Self::granted) or
    /// [`grant_withdrawn`](Self::grant_withdrawn), however often it repeats the request.
    pub fn grant_requested(&mut self) {
        self.grants.begun += 1;
    }

    /// A device that first asked at `asked` has its URL.
    pub fn granted(&mut self, asked: Instant, at: Instant) {
        self.grants.ended += 1;
        self.grant.record(at.since(asked));
    }

    /// A device no longer wants the grant that it asked for.
    pub fn grant_withdrawn(&mut self) {
        self.grants.ended += 1;
    }

    /// A device sent an MQTT packet of so many bytes.
    pub fn up(&mut self, bytes: u64) {
        self.traffic(1, bytes, 0, 0);
    }

    /// A device was sent an MQTT packet of so many bytes.
    pub fn down(&mut self, bytes: u64) {
        self.traffic(0, 0, 1, bytes);
    }

    /// Many MQTT packets at once.
    pub fn traffic(&mut self, messages_up: u64, bytes_up: u64, messages_down: u64, bytes_down: u64) {
        self.messages[UP] += messages_up;
        self.bytes[UP] += bytes_up;
        self.messages[DOWN] += messages_down;
        self.bytes[DOWN] += bytes_down;
    }

    /// A device received `bytes` of payload during `from..to`, `refetched` of them not for the first time.
    pub fn payload(&mut self, from: Instant, to: Instant, bytes: u64, refetched: u64) {
        self.payload += bytes;
        self.refetched += refetched;
        self.payload_from = Some(self.payload_from.unwrap_or(Instant::NEVER).min(from));
        self.payload_to = self.payload_to.max(to);
        self.payload_windows.add(from, to, bytes);
    }

    /// Bytes of that payload were part of a chunked archive.
    pub fn by_delta(&mut self, bytes: u64) {
        self.deltas.bytes += bytes;
    }

    /// A payload was put together from chunks.
    pub fn assembled(&mut self) {
        self.deltas.downloads += 1;
    }

    /// A device sent the blob store so many requests.
    pub fn requested(&mut self, requests: u64) {
        self.requests += requests;
    }

    /// A download of `bytes` was finished `took` after its first request.
    pub fn downloaded(&mut self, bytes: u64, took: Duration) {
        let rate = u128::from(bytes) * 1_000_000 / u128::from(micros(took).max(1));
        self.download_rate.record_value(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    /// A device failed with a result code; `first` says that it is the device's first failure of this cause.
    pub fn failed(&mut self, cause: &'static str, first: bool) {
        self.add_failures(FailureTally { cause, count: 1, devices: u64::from(first) });
    }

    /// A timer or a write of the harness ran so late.
    pub fn lag(&mut self, late: Duration) {
        self.lag.record(late);
    }

    /// The engine handled so many events.
    pub fn events(&mut self, handled: u64) {
        self.events += handled;
    }

    /// Adds everything that `other` counted. The order of merges does not change the result.
    pub fn merge(&mut self, other: &Self) {
        if self.changes.len() < other.changes.len() {
            self.changes.resize_with(other.changes.len(), ChangeTally::default);
        }
        for (mine, theirs) in self.changes.iter_mut().zip(&other.changes) {
            mine.merge(theirs);
        }
        for (mine, theirs) in self.distributions_mut().into_iter().zip(other.distributions()) {
            mine.merge(theirs);
        }
        self.connections.merge(other.connections);
        self.grants.merge(other.grants);
        self.first_connections += other.first_connections;
        self.first_start = earliest(self.first_start, other.first_start);
        self.last_first_connack = self.last_first_connack.max(other.last_first_connack);
        for direction in [UP, DOWN] {
            self.messages[direction] += other.messages[direction];
            self.bytes[direction] += other.bytes[direction];
        }
        self.payload += other.payload;
        self.refetched += other.refetched;
        self.deltas.merge(other.deltas);
        self.requests += other.requests;
        self.payload_from = earliest(self.payload_from, other.payload_from);
        self.payload_to = self.payload_to.max(other.payload_to);
        self.payload_windows.merge(&other.payload_windows);
        for &failure in &other.failures {
            self.add_failures(failure);
        }
        self.events += other.events;
    }

    fn tally(&mut self, id: ChangeId) -> &mut ChangeTally {
        let index = usize::from(id.0);
        if self.changes.len() <= index {
            self.changes.resize_with(index + 1, ChangeTally::default);
        }
        &mut self.changes[index]
    }

    fn add_failures(&mut self, more: FailureTally) {
        match self.failures.iter_mut().find(|known| known.cause == more.cause) {
            Some(known) => {
                known.count += more.count;
                known.devices += more.devices;
            }
            None => self.failures.push(more),
        }
    }

    fn distributions(&self) -> [&Distribution; 10] {
        [
            &self.fan_out,
            &self.fan_out_uncorrected,
            &self.convergence,
            &self.convergence_uncorrected,
            &self.fleet,
            &self.connect,
            &self.connect_uncorrected,
            &self.grant,
            &self.lag,
            &self.download_rate,
        ]
    }

    fn distributions_mut(&mut self) -> [&mut Distribution; 10] {
        [
            &mut self.fan_out,
            &mut self.fan_out_uncorrected,
            &mut self.convergence,
            &mut self.convergence_uncorrected,
            &mut self.fleet,
            &mut self.connect,
            &mut self.connect_uncorrected,
            &mut self.grant,
            &mut self.lag,
            &mut self.download_rate,
        ]
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
