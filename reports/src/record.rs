//! The run record: everything that one run measured, as one JSON document.
//!
//! Machines read the names, so a name never changes its meaning: a change that would break a reader raises
//! [`SCHEMA_VERSION`]; a new field does not. Unless a field says otherwise, times are seconds, sizes are
//! bytes, and a figure that can be infinite is `null` when it is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the document that this crate writes.
pub const SCHEMA_VERSION: u32 = 1;

/// One run: what was run, how it ended, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRecord {
    /// The version of this document's format.
    pub schema_version: u32,
    /// The version of fleetwave that wrote it.
    pub fleetwave_version: String,
    /// The scenario that was run.
    pub scenario: ScenarioRef,
    /// The engine that ran it.
    pub engine: Engine,
    /// What the devices connected to: `hub`, `rumqttd`, or the address of a broker.
    pub target: String,
    /// What carried the messages. Every figure holds for this transport only.
    pub transport: Transport,
    /// The seed of every random draw. The whole range of 64 bits is used: read it as an integer.
    pub seed: u64,
    /// A hash of every event, 16 hexadecimal digits. Only the virtual engine has one: the same scenario and
    /// seed give the same hash on any number of threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_hash: Option<String>,
    /// How the run ended.
    pub verdict: Verdict,
    /// What a reader of the figures has to know, a sentence each: why the verdict is not `passed`, a rollout
    /// that was aborted, a wait that timed out.
    pub notes: Vec<String>,
    /// The process's exit code that belongs to the verdict.
    pub exit_code: u8,
    /// The command that runs the same again.
    pub replay: String,
    /// How long the run took on the clock that its latencies were measured on (virtual time for the virtual
    /// engine), in seconds.
    pub duration_seconds: f64,
    /// How many devices reached which outcome.
    pub devices: Devices,
    /// From the hub's acceptance of a configuration change to the device's core having the desired patch.
    /// The population is every device that a change targeted.
    pub fan_out_latency: Latency,
    /// From the hub's acceptance of a configuration change to its acceptance of the report that the device
    /// runs the release. The population is every device that a change targeted.
    pub twin_convergence: Latency,
    /// From when a device was meant to connect, or to connect again, to its accepted CONNACK, however many
    /// attempts that took. The population is every connection that was meant.
    pub connect_latency: Latency,
    /// From a device's request for a download grant to its having the URL. The population is every request.
    pub grant_latency: Latency,
    /// From the first configuration change until a share of all targeted devices had converged.
    pub fleet_convergence: FleetConvergence,
    /// What was downloaded.
    pub blob: Blob,
    /// What the run sustained, to be read against [`Harness::floor`].
    pub rates: Rates,
    /// MQTT messages in both directions, over `devices.total`.
    pub messages_per_device: f64,
    /// Bytes of MQTT packets in both directions, over `devices.total`; downloads are in `blob`.
    pub bytes_per_device: f64,
    /// The totals behind the figures per device.
    pub traffic: Traffic,
    /// What went wrong on devices, by cause, the most frequent first.
    pub failures: Vec<Failure>,
    /// The scenario's expectations, in the scenario's order.
    pub expectations: Vec<Expectation>,
    /// What the measuring itself cost, and whether it was in the way.
    pub harness: Harness,
}

/// Which scenario was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScenarioRef {
    /// The scenario's own name.
    pub name: String,
    /// SHA-256 over the scenario's text and the changes made on the command line, 64 hexadecimal digits.
    pub sha256: String,
    /// The changes made on the command line (`--set KEY=VALUE`), in order.
    pub overrides: Vec<String>,
}

/// How the devices were run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// In virtual time, without bytes.
    Virtual,
    /// In real time, with real MQTT and HTTP bytes.
    Live,
}

/// What carries the messages between devices and their target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The virtual engine's model of the links; no bytes exist.
    Model,
    /// Real bytes over channels in one process.
    Memory,
    /// Real bytes over TCP.
    Tcp,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every expectation was met.
    Passed,
    /// An expectation was missed.
    Failed,
    /// The harness was the bottleneck, so that the figures say nothing about the fleet.
    Invalid,
    /// The run was stopped from outside; the figures are those until then.
    Interrupted,
}

impl Verdict {
    /// The exit code of a process whose run ended so.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Failed => 99,
            Self::Invalid => 3,
            Self::Interrupted => 130,
        }
    }
}

/// How many devices reached which outcome. `converged`, `failed` and `missing` add up to `targeted`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Devices {
    /// Devices in the fleet.
    pub total: u64,
    /// Devices that at least one configuration change gave a release.
    pub targeted: u64,
    /// Targeted devices whose core got the desired patch, or read it in its twin.
    pub notified: u64,
    /// Targeted devices that at the end run and have reported the release that the hub wants them to run.
    pub converged: u64,
    /// Targeted devices that at the end have reported a terminal failure instead.
    pub failed: u64,
    /// Those among `failed` that had started the new release and went back to the old one.
    pub rolled_back: u64,
    /// Targeted devices that at the end have reported neither.
    pub missing: u64,
}

/// A latency's distribution over its whole population, in seconds.
///
/// A member that never answered is infinitely late and takes its rank: with 1 % missing, `p99_9` and `max`
/// are `null`. If `count` and `missing` are both 0 there was nothing to measure, and every figure is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// The percentiles, from the intended origin: a late harness counts against the figure.
    #[serde(flatten)]
    pub corrected: Percentiles,
    /// Members that answered.
    pub count: u64,
    /// Members that never answered.
    pub missing: u64,
    /// The percentiles from the time at which the origin really happened, if that was not the intended one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncorrected: Option<Percentiles>,
}

/// Percentiles in seconds; `null` is infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Percentiles {
    /// Half of the population was at most this late.
    pub p50: Option<f64>,
    /// 90 % of the population were at most this late.
    pub p90: Option<f64>,
    /// 99 % of the population were at most this late.
    pub p99: Option<f64>,
    /// 99.9 % of the population were at most this late.
    pub p99_9: Option<f64>,
    /// Everybody was at most this late.
    pub max: Option<f64>,
}

/// The time from the first configuration change until a share of all targeted devices had converged, in
/// seconds; `null` if it never happened. In a staged rollout the waits between the stages are part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetConvergence {
    /// 50 % of the targeted devices.
    #[serde(rename = "50")]
    pub p50: Option<f64>,
    /// 90 % of the targeted devices.
    #[serde(rename = "90")]
    pub p90: Option<f64>,
    /// 99 % of the targeted devices.
    #[serde(rename = "99")]
    pub p99: Option<f64>,
    /// 99.9 % of the targeted devices.
    #[serde(rename = "99.9")]
    pub p99_9: Option<f64>,
    /// All targeted devices.
    #[serde(rename = "100")]
    pub p100: Option<f64>,
}

/// What was downloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Blob {
    /// Payload bytes that devices received, those received again included.
    pub bytes: u64,
    /// Payload bytes among them that a device had already received before.
    pub refetched_bytes: u64,
    /// `bytes` over the seconds between the first and the last payload byte, fleet-wide.
    pub bytes_per_second: f64,
    /// The best window: bytes received in it, over its length. A window is one second long, or longer in a
    /// long run.
    pub peak_bytes_per_second: f64,
    /// Requests for them that the blob store was sent; 0 in records from before they were counted.
    #[serde(default)]
    pub requests: u64,
    /// Downloads that were finished.
    pub downloads: u64,
    /// Bytes among `bytes` that came from chunked archives: what deltas cost, headers included.
    #[serde(default)]
    pub delta_bytes: u64,
    /// Downloads among `downloads` that were put together from chunks.
    #[serde(default)]
    pub delta_downloads: u64,
    /// The rate of single downloads from request to last byte; half of them were slower. 0 without downloads.
    pub download_p50_bytes_per_second: f64,
    /// The rate of single downloads; one in a hundred was slower. 0 without downloads.
    pub download_p1_bytes_per_second: f64,
    /// How many downloads the harness lets run at once; `null` is no limit.
    pub concurrency: Option<u64>,
}

/// What the run sustained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// First connections of devices, over the seconds between the first start and the last CONNACK of them.
    pub connects_per_second: f64,
    /// Devices notified, over the seconds between each change's acceptance and its last device notified.
    pub notifications_per_second: f64,
    /// Events that the engine handled, over the wall seconds that it took.
    pub events_per_second: f64,
}

/// MQTT traffic of the whole fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Packets from devices.
    pub messages_up: u64,
    /// Packets to devices.
    pub messages_down: u64,
    /// Bytes of packets from devices.
    pub bytes_up: u64,
    /// Bytes of packets to devices.
    pub bytes_down: u64,
}

/// One way in which devices failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The agent's result code, e.g. `digest_mismatch`.
    pub cause: String,
    /// How often it happened; a device may fail, try again and succeed.
    pub count: u64,
    /// On how many different devices it happened.
    pub devices: u64,
}

/// One expectation of the scenario and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Expectation {
    /// The metric's name, see [`crate::metric::METRICS`].
    pub metric: String,
    /// The condition as the scenario states it, e.g. `<= 500ms`.
    pub want: String,
    /// What was measured, in the metric's unit; `null` is infinite, or not measured if `note` says so.
    pub got: Option<f64>,
    /// Whether the condition holds.
    pub passed: bool,
    /// What the reader has to know about `got`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What the measuring itself cost, and whether it was in the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Harness {
    /// Seconds of wall time from the making of the fleet to its last event.
    pub wall_seconds: f64,
    /// How late the harness's own timers and writes ran, in seconds: 99 % were at most this late. 0 in
    /// virtual time.
    pub lag_p99: f64,
    /// The latest of them, in seconds.
    pub lag_max: f64,
    /// Above this `lag_max` the run is invalid, in seconds.
    pub lag_limit: f64,
    /// The process's highest resident memory, in bytes.
    pub peak_rss_bytes: u64,
    /// The highest resident memory less that before the fleet was made, over `devices.total`; the hub's
    /// part is included.
    pub resident_bytes_per_device: f64,
    /// Events that the engine handled.
    pub events: u64,
    /// Threads that ran devices and hub.
    pub threads: u32,
    /// The best that this machine does on this transport, measured at the start of the run; `null` if it was
    /// not measured.
    pub floor: Option<Floor>,
}

/// What this machine does at best, without agent and hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Floor {
    /// Connections made, accepted and closed, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<f64>,
    /// Small messages from one writer to many receivers, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<f64>,
    /// Payload bytes from one sender to one receiver, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_bytes_per_second: Option<f64>,
    /// Events whose only work is a read and a write of a random device's memory, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
}

/// The JSON Schema (draft 2020-12) of [`RunRecord`].
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(RunRecord).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_record_is_valid_by_its_own_schema_and_reads_back_the_same() {
        let mut record = sample::passed();
        record.fan_out_latency.corrected.max = None;
        record.fan_out_latency.uncorrected = Some(Percentiles::default());
        record.harness.floor = Some(Floor { connects_per_second: Some(1.0), ..Floor::default() });
        record.failures.push(Failure { cause: "digest_mismatch".to_owned(), count: 2, devices: 1 });
        let json = serde_json::to_value(&record).unwrap();
        let validator = jsonschema::validator_for(&schema()).unwrap();
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        assert_eq!(serde_json::from_value::<RunRecord>(json).unwrap(), record);
    }

    #[test]
    fn a_record_without_a_figure_is_not_valid() {
        let mut json = serde_json::to_value(sample::passed()).unwrap();
        json["fan_out_latency"].as_object_mut().unwrap().remove("missing");
        assert!(!jsonschema::is_valid(&schema(), &json));
    }

    #[test]
    fn machines_find_the_names_that_are_promised() {
        let mut record = sample::passed();
        record.fan_out_latency.corrected.p99_9 = None;
        let json = serde_json::to_value(record).unwrap();
        for pointer in [
            "/schema_version",
            "/scenario/name",
            "/scenario/sha256",
            "/event_hash",
            "/devices/rolled_back",
            "/grant_latency/p99",
            "/fleet_convergence/99.9",
            "/blob/refetched_bytes",
            "/messages_per_device",
            "/expectations/0/want",
            "/harness/resident_bytes_per_device",
        ] {
            assert!(json.pointer(pointer).is_some_and(|value| !value.is_null()), "{pointer}");
        }
        assert_eq!(json["verdict"], "passed");
        assert_eq!(json["engine"], "virtual");
        assert!(json["fan_out_latency"]["p99_9"].is_null());
    }

    #[test]
    fn exit_codes_are_those_that_gates_know() {
        let codes = [Verdict::Passed, Verdict::Failed, Verdict::Invalid, Verdict::Interrupted]
            .map(Verdict::exit_code);
        assert_eq!(codes, [0, 99, 3, 130]);
    }
}
