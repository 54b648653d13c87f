//! The metrics that a scenario can expect something of, and their values in a [`RunRecord`].

use core::cmp::Ordering;
use core::fmt;

use crate::record::{Latency, Percentiles, RunRecord};

/// What a metric's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// A count of things.
    Count,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// A count a second.
    PerSecond,
    /// A count over the devices of the fleet.
    PerDevice,
    /// Bytes over the devices of the fleet.
    BytesPerDevice,
    /// A part of a whole, 0 to 1.
    Fraction,
}

/// One figure of a [`RunRecord`].
#[derive(Clone, Copy)]
pub struct Metric {
    /// Its name: the path of the figure in the record.
    pub name: &'static str,
    /// What its number counts.
    pub unit: Unit,
    /// What it means, in one line.
    pub doc: &'static str,
    read: fn(&RunRecord) -> Option<MetricValue>,
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).field("unit", &self.unit).finish_non_exhaustive()
    }
}

impl Metric {
    /// The metric's value in `record`; `None` if the run had nothing to measure it on.
    #[must_use]
    pub fn value(&self, record: &RunRecord) -> Option<MetricValue> {
        (self.read)(record)
    }
}

/// A metric's value. Infinite is a value: it is larger than every finite one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    /// A number in the metric's unit.
    Finite(f64),
    /// It never happened.
    Infinite,
}

impl MetricValue {
    /// The number, or `None` for infinite, as the run record writes it.
    #[must_use]
    pub const fn finite(self) -> Option<f64> {
        match self {
            Self::Finite(value) => Some(value),
            Self::Infinite => None,
        }
    }

    /// How the value compares to a finite bound.
    #[must_use]
    pub fn compare(self, bound: f64) -> Ordering {
        match self {
            Self::Finite(value) => value.total_cmp(&bound),
            Self::Infinite => Ordering::Greater,
        }
    }
}

impl PartialOrd for MetricValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Infinite, Self::Infinite) => Ordering::Equal,
            (Self::Infinite, Self::Finite(_)) => Ordering::Greater,
            (Self::Finite(_), Self::Infinite) => Ordering::Less,
            (Self::Finite(a), Self::Finite(b)) => a.total_cmp(b),
        })
    }
}

/// Where a finite-or-`null` figure of the record becomes a value.
fn nullable(figure: Option<f64>) -> MetricValue {
    figure.map_or(MetricValue::Infinite, MetricValue::Finite)
}

/// A percentile of `latency`: nothing if its population is empty.
fn percentile(latency: &Latency, figure: fn(&Percentiles) -> Option<f64>) -> Option<MetricValue> {
    (latency.count + latency.missing > 0).then(|| nullable(figure(&latency.corrected)))
}

/// As [`percentile`], from the time at which the origin really happened.
fn uncorrected(latency: &Latency, figure: fn(&Percentiles) -> Option<f64>) -> Option<MetricValue> {
    let percentiles = latency.uncorrected.as_ref().unwrap_or(&latency.corrected);
    (latency.count + latency.missing > 0).then(|| nullable(figure(percentiles)))
}

fn of_targeted(record: &RunRecord, part: u64) -> Option<MetricValue> {
    (record.devices.targeted > 0).then(|| MetricValue::Finite(part as f64 / record.devices.targeted as f64))
}

/// Non-capturing readers, so that the table below is a constant.
macro_rules! metric {
    ($name:expr, $unit:ident, $doc:expr, |$r:ident| $value:expr) => {
        Metric {
            name: $name,
            unit: Unit::$unit,
            doc: $doc,
            read: |$r| Some(MetricValue::Finite($value as f64)),
        }
    };
}

macro_rules! optional {
    ($name:expr, $unit:ident, $doc:expr, |$r:ident| $value:expr) => {
        Metric { name: $name, unit: Unit::$unit, doc: $doc, read: |$r| $value }
    };
}

/// The rows of one latency: a macro, because a constant's name has to be made of literals.
macro_rules! latency {
    ($field:ident, $what:literal) => {
        [
            latency!(@ $field, "p50", percentile, p50, concat!($what, "; half were at most this late")),
            latency!(@ $field, "p90", percentile, p90, concat!($what, "; 90 % were at most this late")),
            latency!(@ $field, "p99", percentile, p99, concat!($what, "; 99 % were at most this late")),
            latency!(@ $field, "p99_9", percentile, p99_9, concat!($what, "; 99.9 % were at most this late")),
            latency!(@ $field, "max", percentile, max, concat!($what, "; all were at most this late")),
            latency!(@ $field, "uncorrected.p50", uncorrected, p50, concat!($what, "; p50 from the real origin")),
            latency!(@ $field, "uncorrected.p90", uncorrected, p90, concat!($what, "; p90 from the real origin")),
            latency!(@ $field, "uncorrected.p99", uncorrected, p99, concat!($what, "; p99 from the real origin")),
            latency!(@ $field, "uncorrected.p99_9", uncorrected, p99_9, concat!($what, "; p99.9 from the real origin")),
            latency!(@ $field, "uncorrected.max", uncorrected, max, concat!($what, "; the latest from the real origin")),
            metric!(concat!(stringify!($field), ".count"), Count, concat!($what, "; how many answered"), |r| r.$field.count),
            metric!(concat!(stringify!($field), ".missing"), Count, concat!($what, "; how many never answered"), |r| r.$field.missing),
        ]
    };
    (@ $field:ident, $figure:literal, $reader:ident, $percentile:ident, $doc:expr) => {
        optional!(concat!(stringify!($field), ".", $figure), Seconds, $doc, |r| $reader(&r.$field, |p| p.$percentile))
    };
}

macro_rules! convergence {
    ($share:literal, $field:ident) => {
        optional!(
            concat!("fleet_convergence.", $share),
            Seconds,
            concat!(
                "from the first configuration change until ",
                $share,
                " % of the targeted devices ran it"
            ),
            |r| (r.devices.targeted > 0).then(|| nullable(r.fleet_convergence.$field))
        )
    };
}

const FAN_OUT: [Metric; 12] =
    latency!(fan_out_latency, "from a configuration change to the device having it");
const CONVERGENCE: [Metric; 12] =
    latency!(twin_convergence, "from a configuration change to the device running it");
const CONNECT: [Metric; 12] = latency!(connect_latency, "from a connection's intended start to its CONNACK");
const GRANT: [Metric; 12] = latency!(grant_latency, "from a request for a download to its URL");

const FLEET: [Metric; 5] = [
    convergence!("50", p50),
    convergence!("90", p90),
    convergence!("99", p99),
    convergence!("99.9", p99_9),
    convergence!("100", p100),
];

const DEVICES: [Metric; 10] = [
    metric!("devices.total", Count, "devices in the fleet", |r| r.devices.total),
    metric!("devices.targeted", Count, "devices that a change gave a release", |r| r.devices.targeted),
    metric!("devices.notified", Count, "targeted devices that learned of it", |r| r.devices.notified),
    metric!("devices.converged", Count, "targeted devices that run it", |r| r.devices.converged),
    metric!("devices.failed", Count, "targeted devices that reported a failure", |r| r.devices.failed),
    metric!("devices.rolled_back", Count, "failed devices that went back", |r| r.devices.rolled_back),
    metric!("devices.missing", Count, "targeted devices that reported neither", |r| r.devices.missing),
    optional!("devices.converged_share", Fraction, "converged over targeted devices", |r| of_targeted(
        r,
        r.devices.converged
    )),
    optional!("devices.failed_share", Fraction, "failed over targeted devices", |r| of_targeted(
        r,
        r.devices.failed
    )),
    optional!("devices.missing_share", Fraction, "missing over targeted devices", |r| of_targeted(
        r,
        r.devices.missing
    )),
];

const REST: [Metric; 23] = [
    metric!("blob.bytes", Bytes, "payload bytes received", |r| r.blob.bytes),
    metric!("blob.refetched_bytes", Bytes, "payload bytes received again", |r| r.blob.refetched_bytes),
    metric!("blob.bytes_per_second", BytesPerSecond, "payload bytes a second, fleet-wide", |r| r
        .blob
        .bytes_per_second),
    metric!("blob.peak_bytes_per_second", BytesPerSecond, "payload bytes in the best second", |r| r
        .blob
        .peak_bytes_per_second),
    metric!("blob.requests", Count, "requests to the blob store", |r| r.blob.requests),
    metric!("blob.downloads", Count, "downloads finished", |r| r.blob.downloads),
    metric!("blob.delta_bytes", Bytes, "bytes received from chunked archives", |r| r.blob.delta_bytes),
    metric!("blob.delta_downloads", Count, "downloads put together from chunks", |r| r.blob.delta_downloads),
    metric!("blob.download_p50_bytes_per_second", BytesPerSecond, "rate of the median download", |r| r
        .blob
        .download_p50_bytes_per_second),
    metric!(
        "blob.download_p1_bytes_per_second",
        BytesPerSecond,
        "rate of the slowest 1 % of downloads",
        |r| r.blob.download_p1_bytes_per_second
    ),
    metric!("rates.connects_per_second", PerSecond, "first connections of devices a second", |r| r
        .rates
        .connects_per_second),
    metric!("rates.notifications_per_second", PerSecond, "devices notified a second", |r| r
        .rates
        .notifications_per_second),
    metric!("rates.events_per_second", PerSecond, "events a wall second", |r| r.rates.events_per_second),
    metric!("messages_per_device", PerDevice, "MQTT messages, both directions, a device", |r| r
        .messages_per_device),
    metric!("bytes_per_device", BytesPerDevice, "MQTT bytes, both directions, a device", |r| r
        .bytes_per_device),
    metric!("failures.count", Count, "failures of every cause", |r| r
        .failures
        .iter()
        .map(|f| f.count)
        .sum::<u64>()),
    metric!("duration_seconds", Seconds, "length of the run", |r| r.duration_seconds),
    metric!("harness.wall_seconds", Seconds, "wall time of the run", |r| r.harness.wall_seconds),
    metric!("harness.lag_p99", Seconds, "how late the harness's own timers ran, p99", |r| r.harness.lag_p99),
    metric!("harness.lag_max", Seconds, "how late the harness's own timers ran, worst", |r| r
        .harness
        .lag_max),
    metric!("harness.peak_rss_bytes", Bytes, "highest resident memory of the process", |r| r
        .harness
        .peak_rss_bytes),
    metric!(
        "harness.resident_bytes_per_device",
        BytesPerDevice,
        "resident memory a device, hub included",
        |r| { r.harness.resident_bytes_per_device }
    ),
    metric!("harness.events", Count, "events that the engine handled", |r| r.harness.events),
];

const COUNT: usize = 10 + 4 * 12 + 5 + 23;

const fn joined() -> [Metric; COUNT] {
    let groups: [&[Metric]; 7] = [&DEVICES, &FAN_OUT, &CONVERGENCE, &CONNECT, &GRANT, &FLEET, &REST];
    let mut all = [DEVICES[0]; COUNT];
    let (mut group, mut filled) = (0, 0);
    while group < groups.len() {
        let mut i = 0;
        while i < groups[group].len() {
            all[filled] = groups[group][i];
            filled += 1;
            i += 1;
        }
        group += 1;
    }
    assert!(filled == COUNT, "COUNT is the sum of the groups' lengths");
    all
}

/// Every metric, in the order of the record.
pub const METRICS: &[Metric] = &joined();

/// The metric of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// The value of the metric `name` in `record`; `None` if there is no such metric, or if the run had nothing to
/// measure it on.
#[must_use]
pub fn value(record: &RunRecord, name: &str) -> Option<MetricValue> {
    find(name)?.value(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_metrics_name_is_the_path_of_its_figure_in_the_record() {
        let record = sample::passed();
        let json = serde_json::to_value(&record).unwrap();
        for metric in METRICS {
            let Some((first, rest)) = metric.name.split_once('.') else { continue };
            // Derived figures, and those that a record leaves out when they are the same, are not in it.
            let Some(figure) = json[first].get(rest) else { continue };
            let value = metric.value(&record).and_then(MetricValue::finite);
            assert_eq!(figure.as_f64(), value, "{}", metric.name);
        }
    }

    #[test]
    fn no_two_metrics_share_a_name() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn infinite_is_above_every_bound() {
        assert_eq!(MetricValue::Infinite.compare(f64::MAX), Ordering::Greater);
        assert!(MetricValue::Infinite > MetricValue::Finite(1e300));
    }

    #[test]
    fn a_run_without_a_population_has_no_value() {
        let mut record = sample::passed();
        record.grant_latency = Latency::default();
        record.devices.targeted = 0;
        assert_eq!(value(&record, "grant_latency.p99"), None);
        assert_eq!(value(&record, "devices.missing_share"), None);
        assert_eq!(value(&record, "grant_latency.count"), Some(MetricValue::Finite(0.0)));
        assert_eq!(value(&record, "no.such"), None);
    }

    #[test]
    fn the_uncorrected_figure_is_the_corrected_one_where_they_do_not_differ() {
        let mut record = sample::passed();
        assert_eq!(value(&record, "fan_out_latency.uncorrected.p99"), value(&record, "fan_out_latency.p99"));
        record.fan_out_latency.uncorrected = Some(Percentiles { p99: Some(0.01), ..Percentiles::default() });
        assert_eq!(value(&record, "fan_out_latency.uncorrected.p99"), Some(MetricValue::Finite(0.01)));
    }
}
