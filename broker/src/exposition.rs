//! What a hub measures, in Prometheus' text format.
//!
//! Shards count in plain numbers ([`HubMetrics`]), which are read when somebody asks. What is measured on other
//! threads, or has a distribution, is in [`Instruments`]. `docs/hub.md` describes every name.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub_core::throttle::{Admission, Operation};
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};

use crate::metrics::HubMetrics;

/// The content type of [`Instruments::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a tenth of a millisecond to ten seconds.
const LATENCIES: [f64; 14] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];

/// A value of a family, and how it is read from the shards' counters.
type Reading = (&'static str, fn(&HubMetrics) -> u64);

/// Counters of the shards: name, help, label, and the label's values. Without a label there is one value.
const COUNTERS: &[(&str, &str, &str, &[Reading])] = &[
    ("fleetwave_hub_connects_total", "MQTT connections that were accepted", "", &[("", |m| m.accepted)]),
    (
        "fleetwave_hub_refused_total",
        "MQTT connections that were refused, by cause",
        "cause",
        &[
            ("client_id", |m| m.refused_client_id),
            ("user_name", |m| m.refused_user_name),
            ("credentials", |m| m.refused_credentials),
            ("unknown", |m| m.refused_unknown),
            ("disabled", |m| m.refused_disabled),
            ("throttled", |m| m.refused_throttled),
        ],
    ),
    (
        "fleetwave_hub_closed_total",
        "MQTT connections that the hub closed, by cause",
        "cause",
        &[
            ("fault", |m| m.faulty),
            ("silent", |m| m.expired),
            ("slow", |m| m.slow),
            ("taken_over", |m| m.taken_over),
            ("withdrawn", |m| m.withdrawn),
        ],
    ),
    (
        "fleetwave_hub_mqtt_packets_total",
        "MQTT packets, by direction as devices see it",
        "direction",
        &[("up", |m| m.packets_in), ("down", |m| m.packets_out)],
    ),
    (
        "fleetwave_hub_mqtt_bytes_total",
        "MQTT bytes without TLS, by direction as devices see it",
        "direction",
        &[("up", |m| m.bytes_in), ("down", |m| m.bytes_out)],
    ),
    (
        "fleetwave_hub_messages_total",
        "Messages of devices and to devices that the hub has taken, by kind",
        "kind",
        &[
            ("telemetry", |m| m.telemetry),
            ("twin_read", |m| m.twin_reads),
            ("report", |m| m.reports),
            ("desired", |m| m.desired),
            ("method", |m| m.methods),
            ("c2d", |m| m.c2d),
            ("feedback", |m| m.feedback),
        ],
    ),
    (
        "fleetwave_hub_twin_operations_total",
        "Twin operations of devices and of the back end, by operation and result",
        "operation",
        &[
            ("read", |m| m.twin_reads),
            ("report", |m| m.reports),
            ("report_refused", |m| m.reports_refused),
            ("write", |m| m.twin_writes),
        ],
    ),
    (
        "fleetwave_hub_method_results_total",
        "Direct methods that ended, by whether the device answered",
        "result",
        &[("answered", |m| m.methods_answered), ("failed", |m| m.methods_failed)],
    ),
];

/// Gauges of the shards.
const GAUGES: &[(&str, &str, &str, &[Reading])] = &[
    ("fleetwave_hub_devices", "Devices that exist", "", &[("", |m| m.devices)]),
    ("fleetwave_hub_modules", "Modules that exist", "", &[("", |m| m.modules)]),
    ("fleetwave_hub_sessions", "MQTT connections that are open", "", &[("", |m| m.connections)]),
    (
        "fleetwave_hub_queue_depth",
        "What waits: C2D messages for their devices, operations for the hub's limits, commands for a shard",
        "queue",
        &[("c2d", |m| m.c2d_waiting), ("limits", |m| m.waiting), ("commands", |m| m.inbox)],
    ),
    (
        "fleetwave_hub_session_buffer_bytes",
        "Bytes that sessions hold for partial packets and unsent answers",
        "",
        &[("", |m| m.buffered)],
    ),
];

/// The label of an operation that counts against a limit.
const LIMITS: [(Operation, &str); 10] = [
    (Operation::Connect, "connect"),
    (Operation::DeviceToCloud, "telemetry"),
    (Operation::CloudToDevice, "c2d"),
    (Operation::Method, "method"),
    (Operation::TwinRead, "twin_read"),
    (Operation::TwinUpdate, "twin_update"),
    (Operation::Query, "query"),
    (Operation::Registry, "registry"),
    (Operation::JobDevice, "job"),
    (Operation::Configuration, "configuration"),
];

/// What a hub measures beside its shards' counters. Clones are the same instruments.
#[derive(Clone)]
pub struct Instruments(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    turn: Histogram,
    commit: Histogram,
    committed: IntCounter,
    amqp_links: IntGauge,
    delayed: Vec<IntCounter>,
    throttled: Vec<IntCounter>,
    bus_published: IntCounter,
    bus_dropped: IntCounter,
}

impl Default for Instruments {
    fn default() -> Self {
        Self::new()
    }
}

impl Instruments {
    /// Instruments that have measured nothing.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            register(&registry, IntCounter::new(name, help).expect("the name is a good one"))
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels).expect("the name is a good one");
            register(&registry, vec)
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(LATENCIES.to_vec());
            register(&registry, Histogram::with_opts(options).expect("the name is a good one"))
        };
        let by_limit = |vec: IntCounterVec| {
            LIMITS.iter().map(|(_, label)| vec.with_label_values(&[label])).collect::<Vec<_>>()
        };
        let request_options = HistogramOpts::new(
            "fleetwave_hub_request_duration_seconds",
            "How long REST requests took, by operation",
        )
        .buckets(LATENCIES.to_vec());
        let amqp_links = IntGauge::new("fleetwave_hub_amqp_links", "AMQP links that are attached")
            .expect("the name is a good one");
        let inner = Inner {
            requests: counters(
                "fleetwave_hub_requests_total",
                "REST requests that were answered, by operation and HTTP status",
                &["operation", "status"],
            ),
            request_seconds: register(
                &registry,
                HistogramVec::new(request_options, &["operation"]).expect("the name is a good one"),
            ),
            turn: histogram(
                "fleetwave_hub_turn_duration_seconds",
                "How long a shard was busy with one turn, commit included",
            ),
            commit: histogram(
                "fleetwave_hub_commit_duration_seconds",
                "How long the store took to make a batch durable",
            ),
            committed: counter(
                "fleetwave_hub_commit_records_total",
                "Records that the store has made durable",
            ),
            amqp_links: register(&registry, amqp_links),
            delayed: by_limit(counters(
                "fleetwave_hub_delayed_total",
                "Operations that waited for the hub's limits, by kind",
                &["limit"],
            )),
            throttled: by_limit(counters(
                "fleetwave_hub_throttled_total",
                "Operations that were refused with 429, by kind",
                &["limit"],
            )),
            bus_published: counter(
                "fleetwave_hub_bus_published_total",
                "Events that were published on the event bus",
            ),
            bus_dropped: counter(
                "fleetwave_hub_bus_dropped_total",
                "Events that the event bus lost because its queue was full",
            ),
            registry,
        };
        Self(Arc::new(inner))
    }

    /// A REST request was answered.
    pub fn request(&self, operation: &str, status: u16, took: Duration) {
        let mut digits = [0; 3];
        let status = digits_of(status, &mut digits);
        self.0.requests.with_label_values(&[operation, status]).inc();
        self.0.request_seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// A shard was busy so long.
    pub fn turn(&self, took: Duration) {
        self.0.turn.observe(took.as_secs_f64());
    }

    /// The store has made so many records durable.
    pub fn commit(&self, records: u64, took: Duration) {
        self.0.commit.observe(took.as_secs_f64());
        self.0.committed.inc_by(records);
    }

    /// An AMQP link was attached.
    pub fn link_attached(&self) {
        self.0.amqp_links.inc();
    }

    /// An AMQP link is gone.
    pub fn link_detached(&self) {
        self.0.amqp_links.dec();
    }

    /// The hub's limits have decided about an operation.
    pub(crate) fn admission(&self, operation: Operation, admission: Admission) {
        match admission {
            Admission::Now => {}
            Admission::At(_) => self.0.delayed[place(operation)].inc(),
            Admission::Reject { .. } => self.0.throttled[place(operation)].inc(),
        }
    }

    pub(crate) fn bus_published(&self) {
        self.0.bus_published.inc();
    }

    pub(crate) fn bus_dropped(&self) {
        self.0.bus_dropped.inc();
    }

    /// How many events the bus has lost.
    pub(crate) fn bus_lost(&self) -> u64 {
        self.0.bus_dropped.get()
    }

    /// Everything in Prometheus' text format, with what the shards have counted.
    #[must_use]
    pub fn render(&self, metrics: &HubMetrics) -> String {
        let mut families = self.0.registry.gather();
        let counters = COUNTERS.iter().map(|family| {
            let vec = IntCounterVec::new(Opts::new(family.0, family.1), labels(&family.2));
            let vec = vec.expect("the name is a good one");
            for (value, read) in family.3 {
                vec.with_label_values(label_values(value)).inc_by(read(metrics));
            }
            vec.collect()
        });
        families.extend(counters.flatten());
        let gauges = GAUGES.iter().map(|family| {
            let vec = prometheus::IntGaugeVec::new(Opts::new(family.0, family.1), labels(&family.2));
            let vec = vec.expect("the name is a good one");
            for (value, read) in family.3 {
                let value_now = i64::try_from(read(metrics)).unwrap_or(i64::MAX);
                vec.with_label_values(label_values(value)).set(value_now);
            }
            vec.collect()
        });
        families.extend(gauges.flatten());
        encode(families)
    }
}

fn encode(mut families: Vec<MetricFamily>) -> String {
    families.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = Vec::new();
    // It fails for families without a metric only, and the registry leaves those out.
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        tracing::error!(%error, "the metrics cannot be written");
    }
    String::from_utf8(text).expect("names, labels and numbers are text")
}

fn register<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> T {
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

/// The labels of a family that has at most one.
fn labels<'a>(label: &'a &'a str) -> &'a [&'a str] {
    if label.is_empty() { &[] } else { std::slice::from_ref(label) }
}

fn label_values<'a>(value: &'a &'a str) -> &'a [&'a str] {
    labels(value)
}

fn place(operation: Operation) -> usize {
    LIMITS.iter().position(|(limit, _)| *limit == operation).expect("every limit has a label")
}

/// A status as text, without an allocation.
fn digits_of(status: u16, digits: &mut [u8; 3]) -> &str {
    *digits = [b'0' + (status / 100 % 10) as u8, b'0' + (status / 10 % 10) as u8, b'0' + (status % 10) as u8];
    std::str::from_utf8(digits).expect("digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(text: &'a str, series: &str) -> &'a str {
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no {series} in\n{text}"))
    }

    #[test]
    fn counters_of_the_shards_and_measures_of_other_threads_come_out_together() {
        let instruments = Instruments::new();
        instruments.request("Get device", 404, Duration::from_millis(3));
        instruments.admission(Operation::TwinRead, Admission::Reject { retry_after: Duration::ZERO });
        instruments.commit(7, Duration::from_millis(2));
        instruments.link_attached();
        let metrics = HubMetrics { telemetry: 5, connections: 2, ..HubMetrics::default() };
        let text = instruments.render(&metrics);
        for (series, expected) in [
            (r#"fleetwave_hub_messages_total{kind="telemetry"}"#, "5"),
            (r#"fleetwave_hub_requests_total{operation="Get device",status="404"}"#, "1"),
            (r#"fleetwave_hub_request_duration_seconds_count{operation="Get device"}"#, "1"),
            (r#"fleetwave_hub_throttled_total{limit="twin_read"}"#, "1"),
            (r#"fleetwave_hub_throttled_total{limit="connect"}"#, "0"),
            ("fleetwave_hub_sessions", "2"),
            ("fleetwave_hub_commit_records_total", "7"),
            ("fleetwave_hub_amqp_links", "1"),
        ] {
            assert_eq!(value(&text, series), expected, "{series}");
        }
    }
}
