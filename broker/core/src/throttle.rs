//! A hub's limits a second, by tier and units.
//!
//! Source of the rates: "IoT Hub quotas and throttling", `articles/iot-hub/iot-hub-devguide-quotas-throttling.md`
//! in MicrosoftDocs/azure-docs, which states most of them per minute; here all are, so that they are whole numbers.
//!
//! The same page describes *traffic shaping*: requests above the rate are processed at once for a limited time
//! ("the first minute or two" when twice the rate is sent), then they queue and are processed at the rate, and when
//! the queue is full they are refused with 429. It gives no sizes. **Assumed** here, for each operation alike: a
//! burst of one minute's worth of the rate (twice the rate passes for one minute) and a queue of one minute's worth.
//! [`Shaping`] changes both.

use core::time::Duration;

use fleetwave_protocol::Instant;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new connection.
    Connect,
    /// A device-to-cloud message.
    DeviceToCloud,
    /// A cloud-to-device message.
    CloudToDevice,
    /// A direct method; its cost is the payload's size in bytes, metered in steps of 4 KiB.
    Method,
    /// A twin read, by device or service.
    TwinRead,
    /// A twin update, by device or service.
    TwinUpdate,
    /// A query.
    Query,
    /// A registry operation.
    Registry,
    /// One device of a job.
    JobDevice,
    /// A configuration created, changed, listed or deleted.
    Configuration,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::Connect,
        Self::DeviceToCloud,
        Self::CloudToDevice,
        Self::Method,
        Self::TwinRead,
        Self::TwinUpdate,
        Self::Query,
        Self::Registry,
        Self::JobDevice,
        Self::Configuration,
    ];

    /// The rate a minute, in operations or (for methods) in meters of 4 KiB.
    const fn per_minute(self, tier: PaidTier, units: u64) -> u64 {
        use PaidTier::{S1, S2, S3};
        match (self, tier) {
            (Self::Connect | Self::DeviceToCloud, S1) => higher(100 * 60, 12 * 60 * units),
            (Self::Connect | Self::DeviceToCloud, S2) => 120 * 60 * units,
            (Self::Connect | Self::DeviceToCloud, S3) => 6000 * 60 * units,
            (Self::CloudToDevice | Self::Registry, S1 | S2) => 100 * units,
            (Self::CloudToDevice | Self::Registry, S3) => 5000 * units,
            (Self::Method, S1) => 40 * 60 * units,
            (Self::Method, S2) => 120 * 60 * units,
            (Self::Method, S3) => 24 * 256 * 60 * units,
            (Self::TwinRead, S1) => 100 * 60,
            (Self::TwinRead, S2) => higher(100 * 60, 10 * 60 * units),
            (Self::TwinRead, S3) => 500 * 60 * units,
            (Self::TwinUpdate, S1) => 50 * 60,
            (Self::TwinUpdate, S2) => higher(50 * 60, 5 * 60 * units),
            (Self::TwinUpdate, S3) => 250 * 60 * units,
            (Self::Query, S1 | S2) => 20 * units,
            (Self::Query, S3) => 1000 * units,
            (Self::JobDevice, S1) => 10 * 60,
            (Self::JobDevice, S2) => higher(10 * 60, 60 * units),
            (Self::JobDevice, S3) => 50 * 60 * units,
            (Self::Configuration, _) => 20 * units,
        }
    }

    const fn meters(self, cost: u32) -> u64 {
        match self {
            Self::Method => higher(1, (cost as u64).div_ceil(4096)),
            _ => cost as u64,
        }
    }
}

const fn higher(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// A hub's price tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// No limits.
    #[default]
    None,
    /// The smallest paid tier (and the free and B1 ones).
    S1,
    /// The middle tier.
    S2,
    /// The largest tier.
    S3,
}

#[derive(Clone, Copy)]
enum PaidTier {
    S1,
    S2,
    S3,
}

/// What traffic shaping does before it refuses; see the module's text for what is assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// How much passes at once above the rate, as time at the rate.
    pub burst: Duration,
    /// How much queues then, as time at the rate: the longest wait.
    pub queue: Duration,
}

impl Default for Shaping {
    fn default() -> Self {
        Self { burst: Duration::from_secs(60), queue: Duration::from_secs(60) }
    }
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Do it.
    Now,
    /// It waits in the queue: do it then.
    At(Instant),
    /// 429.
    Reject {
        /// When the queue will have room.
        retry_after: Duration,
    },
}

/// A backlog that drains at `per_minute`, in units of (meter × µs a minute), so that a microsecond drains exactly
/// `per_minute` units and nothing is rounded.
#[derive(Clone, Debug)]
struct Bucket {
    per_minute: u64,
    level: u128,
    at: Instant,
}

const MICROS_A_MINUTE: u128 = 60_000_000;

impl Bucket {
    fn admit(&mut self, meters: u64, shaping: Shaping, at: Instant) -> Admission {
        let rate = u128::from(self.per_minute);
        let passed = at.since(self.at).as_micros();
        self.level = self.level.saturating_sub(passed * rate);
        self.at = self.at.max(at);
        let level = self.level + u128::from(meters) * MICROS_A_MINUTE;
        let burst = shaping.burst.as_micros() * rate;
        let full = burst + shaping.queue.as_micros() * rate;
        // An operation that alone is larger than burst and queue together passes when the bucket is empty,
        // or it would never pass.
        if level > full && self.level > 0 {
            let over = (level - full).min(self.level);
            return Admission::Reject { retry_after: span(over.div_ceil(rate)) };
        }
        self.level = level;
        match level.saturating_sub(burst).div_ceil(rate) {
            0 => Admission::Now,
            wait => Admission::At(at + span(wait)),
        }
    }
}

fn span(micros: u128) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// The throttles of one hub.
///
/// ```
/// use fleetwave_hub_core::throttle::{Admission, Operation, Throttles, Tier};
/// use fleetwave_protocol::Instant;
///
/// let mut hub = Throttles::new(Tier::S1, 1);
/// assert_eq!(hub.admit(Operation::TwinUpdate, 1, Instant::ZERO), Admission::Now);
/// ```
#[derive(Clone, Debug)]
pub struct Throttles {
    buckets: Option<[Bucket; Operation::ALL.len()]>,
    shaping: Shaping,
}

impl Throttles {
    /// The throttles of a hub with `units` units (at least one) of `tier`.
    #[must_use]
    pub fn new(tier: Tier, units: u32) -> Self {
        Self::with_shaping(tier, units, Shaping::default())
    }

    /// The same with other assumptions about bursts and queues.
    #[must_use]
    pub fn with_shaping(tier: Tier, units: u32, shaping: Shaping) -> Self {
        let tier = match tier {
            Tier::None => None,
            Tier::S1 => Some(PaidTier::S1),
            Tier::S2 => Some(PaidTier::S2),
            Tier::S3 => Some(PaidTier::S3),
        };
        let buckets = tier.map(|tier| {
            Operation::ALL.map(|operation| Bucket {
                per_minute: operation.per_minute(tier, u64::from(units.max(1))),
                level: 0,
                at: Instant::ZERO,
            })
        });
        Self { buckets, shaping }
    }

    /// Asks for an operation of `cost` (1 for one operation; bytes for [`Operation::Method`]). Calls come in
    /// non-decreasing time; an earlier one is taken as made at the last one's time.
    pub fn admit(&mut self, operation: Operation, cost: u32, at: Instant) -> Admission {
        match &mut self.buckets {
            None => Admission::Now,
            Some(buckets) => buckets[operation as usize].admit(operation.meters(cost), self.shaping, at),
        }
    }

    /// The rate of an operation in a second, in operations or (for methods) bytes; `None` without a limit.
    #[must_use]
    pub fn per_second(&self, operation: Operation) -> Option<f64> {
        let meter = if operation == Operation::Method { 4096.0 } else { 1.0 };
        self.buckets.as_ref().map(|buckets| buckets[operation as usize].per_minute as f64 / 60.0 * meter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    #[test]
    fn the_table_is_the_documented_one() {
        let rate = |tier, units, op| Throttles::new(tier, units).per_second(op).unwrap();
        assert_eq!(rate(Tier::S1, 2, Operation::Connect), 100.0);
        assert_eq!(rate(Tier::S1, 9, Operation::DeviceToCloud), 108.0);
        assert_eq!(rate(Tier::S3, 10, Operation::TwinUpdate), 2500.0);
        assert_eq!(rate(Tier::S2, 30, Operation::TwinRead), 300.0);
        assert_eq!(rate(Tier::S1, 1, Operation::Method), 160.0 * 1024.0);
        assert_eq!(rate(Tier::S3, 1, Operation::Method), 24.0 * 1024.0 * 1024.0);
        assert!((rate(Tier::S3, 1, Operation::CloudToDevice) - 83.333).abs() < 0.001);
        assert_eq!(Throttles::new(Tier::None, 1).per_second(Operation::Query), None);
        for (place, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, place);
        }
    }

    #[test]
    fn twice_the_rate_passes_for_a_minute_then_queues_then_is_refused() {
        let mut hub = Throttles::new(Tier::S1, 1);
        let (mut immediate_until, mut refused_from) = (0, None);
        for i in 0..40_000_u64 {
            let millis = i * 5;
            match hub.admit(Operation::DeviceToCloud, 1, at(millis)) {
                Admission::Now => immediate_until = millis,
                Admission::At(_) => {}
                Admission::Reject { .. } => {
                    refused_from.get_or_insert(millis);
                }
            }
        }
        assert!((59_000..=61_000).contains(&immediate_until), "{immediate_until}");
        assert!((118_000..=122_000).contains(&refused_from.unwrap()), "{refused_from:?}");
    }

    #[test]
    fn queued_operations_leave_at_exactly_the_rate() {
        let shaping = Shaping { burst: Duration::ZERO, queue: Duration::from_secs(10) };
        let mut hub = Throttles::with_shaping(Tier::S1, 1, shaping);
        for i in 1..=500 {
            assert_eq!(hub.admit(Operation::TwinUpdate, 1, at(0)), Admission::At(at(i * 20)));
        }
        let Admission::Reject { retry_after } = hub.admit(Operation::TwinUpdate, 1, at(0)) else { panic!() };
        assert_eq!(retry_after, Duration::from_millis(20));
        let later = at(0) + retry_after;
        assert_eq!(
            hub.admit(Operation::TwinUpdate, 1, later),
            Admission::At(later + Duration::from_secs(10))
        );
    }

    #[test]
    fn a_method_counts_in_steps_of_four_kibibytes() {
        let shaping = Shaping { burst: Duration::from_secs(1), queue: Duration::ZERO };
        for (bytes, calls) in [(0, 40), (4096, 40), (4097, 20), (160 * 1024, 1)] {
            let mut hub = Throttles::with_shaping(Tier::S1, 1, shaping);
            let passed =
                (0..100).filter(|_| hub.admit(Operation::Method, bytes, at(0)) == Admission::Now).count();
            assert_eq!(passed, calls, "{bytes} bytes");
        }
    }
}
