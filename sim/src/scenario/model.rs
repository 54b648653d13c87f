//! What a scenario file says, as types. Every section has defaults, so that a minimal scenario is short; every
//! key that is not here is an error.
//!
//! The doc comments of this module are the descriptions in the JSON Schema and the reference in
//! `docs/scenario.md`: they say what a key means to the run, in which unit, and what its default is for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dist::Dist;
use super::expect::Expectations;
use super::quantity::{Bandwidth, ByteSize, Count, Percent, Span, TimeOfDay};
use super::step::Step;

/// A whole scenario: a fleet, what happens to it, and what is expected of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Version of this format; this is 1.
    pub schema: SchemaVersion,
    /// Short name, which heads the summary and the run record.
    pub name: String,
    /// One line that says what the scenario shows.
    #[serde(default)]
    pub description: String,
    /// Seed of every random draw. The same scenario and seed give the same virtual run, bit for bit.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Time of the day, UTC, at which the run starts by the devices' calendar: what maintenance windows count from.
    #[serde(default)]
    pub clock: TimeOfDay,
    /// The devices.
    pub fleet: FleetSpec,
    /// The releases that configurations can roll out.
    #[serde(default, rename = "release")]
    pub releases: Vec<Release>,
    /// How every device's agent behaves.
    #[serde(default)]
    pub agent: Agent,
    /// The hub.
    #[serde(default)]
    pub hub: Hub,
    /// The service that grants downloads.
    #[serde(default)]
    pub grant: Grant,
    /// The store that payloads are downloaded from.
    #[serde(default)]
    pub blob: Blob,
    /// Settings that only the live engine has.
    #[serde(default)]
    pub live: Live,
    /// What scripted devices do: those of `fleetwave hub --devices`. Runs have agents in their place.
    #[serde(default)]
    pub script: Script,
    /// Limits of the run itself.
    #[serde(default)]
    pub harness: Harness,
    /// What happens, in order. A step starts when the one before it has ended, or at its `at`.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
    /// What is expected at the end: a metric's name and a condition, such as
    /// `"fan_out_latency.p99" = "<= 500ms"`.
    #[serde(default)]
    pub expect: Expectations,
}

/// Version of the scenario format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64", into = "u64")]
#[schemars(extend("const" = 1))]
pub struct SchemaVersion(u64);

impl TryFrom<u64> for SchemaVersion {
    type Error = String;

    fn try_from(version: u64) -> Result<Self, String> {
        match version {
            1 => Ok(Self(1)),
            other => Err(format!("schema {other} is not one that this program reads; it reads schema = 1")),
        }
    }
}

impl From<SchemaVersion> for u64 {
    fn from(version: SchemaVersion) -> Self {
        version.0
    }
}

/// The devices of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetSpec {
    /// How many devices there are.
    pub devices: Count,
    /// The release that every device runs when the run starts.
    #[serde(default)]
    pub release: RunningRelease,
    /// Kinds of devices. Without any, the whole fleet is one group of defaults, named `all`.
    #[serde(default, rename = "group")]
    pub groups: Vec<Group>,
}

/// What a device runs when the run starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunningRelease {
    /// The release's id.
    pub id: String,
    /// Its sequence number; a release with a lower or equal one is a downgrade.
    pub seq: u64,
}

impl Default for RunningRelease {
    fn default() -> Self {
        Self { id: "fw-1".to_owned(), seq: 1 }
    }
}

/// Devices that are alike: their part of the fleet, their tags, their link, and how they install.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The group's name, for steps and `--set`.
    pub name: String,
    /// What runs its devices: `"simulated"`, or `"agent"` for the real one, in this process, with real connections,
    /// downloads and files. Real agents need the live engine, its embedded hub, and TCP.
    #[serde(default)]
    pub driver: Driver,
    /// Its part of the fleet: a percentage, or `"rest"` for what the other groups leave.
    #[serde(default)]
    pub share: Share,
    /// The tags in the twin of each of its devices, for target conditions.
    #[serde(default)]
    pub tags: BTreeMap<String, serde_json::Value>,
    /// Its devices' connection.
    #[serde(default)]
    pub link: Link,
    /// How fast a device hashes what it downloaded.
    #[serde(default = "defaults::verify")]
    pub verify: Bandwidth,
    /// How long a device writes the release into its inactive slot.
    #[serde(default = "defaults::install")]
    pub install: Dist,
    /// How long a device is away when it boots, after an update or a power cut.
    #[serde(default = "defaults::reboot")]
    pub reboot: Dist,
    /// How long the health checks after an update take.
    #[serde(default = "defaults::probation")]
    pub probation: Dist,
    /// Chance that a device of this group does not boot a new release, and falls back to the old slot.
    #[serde(default)]
    pub boot_failure: Percent,
    /// Chance that a device of this group boots a new release but is not healthy, and rolls back.
    #[serde(default)]
    pub health_failure: Percent,
    /// Chance that a device of this group cannot write a new release into its slot.
    #[serde(default)]
    pub install_failure: Percent,
    /// When a device may start an update, and boot it; at any time if this is left out. What was begun is downloaded to
    /// its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<MaintenanceWindow>,
    /// When a device may download; in place of `window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_window: Option<StepWindow>,
    /// When a device may boot what it has installed; in place of `window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install_window: Option<StepWindow>,
    /// How far local time, which windows are in, is ahead of UTC, in minutes.
    #[serde(default)]
    pub utc_offset_minutes: i32,
    /// Chance that a device may not be interrupted, each time that its agent asks; it asks only with `agent.locks`.
    #[serde(default)]
    pub busy: Percent,
}

impl Group {
    /// A group of defaults that takes what other groups leave.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            driver: Driver::Simulated,
            share: Share::Rest,
            tags: BTreeMap::new(),
            link: Link::default(),
            verify: defaults::verify(),
            install: defaults::install(),
            reboot: defaults::reboot(),
            probation: defaults::probation(),
            boot_failure: Percent::ZERO,
            health_failure: Percent::ZERO,
            install_failure: Percent::ZERO,
            window: None,
            download_window: None,
            install_window: None,
            utc_offset_minutes: 0,
            busy: Percent::ZERO,
        }
    }
}

/// What runs a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// The harness: the agent's core, with a simulated machine around it.
    #[default]
    Simulated,
    /// The production agent.
    Agent,
}

/// A group's part of the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// So much of the fleet.
    Of(Percent),
    /// What the groups with a percentage leave, in equal parts if several groups say so.
    #[default]
    Rest,
}

/// A device's connection to the hub and to the blob store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// One-way latency. Drawn once for a device: it is near or far.
    #[serde(default = "defaults::latency")]
    pub latency: Dist,
    /// Share of messages that are lost once on the way. The connection sends them again (200 ms and a round trip
    /// later for each loss in a row), so loss shows as lateness, and as slower downloads.
    #[serde(default)]
    pub loss: Percent,
    /// From the network to the device.
    #[serde(default = "defaults::down")]
    pub down: Bandwidth,
    /// From the device to the network.
    #[serde(default = "defaults::up")]
    pub up: Bandwidth,
}

impl Default for Link {
    fn default() -> Self {
        Self { latency: defaults::latency(), loss: Percent::ZERO, down: defaults::down(), up: defaults::up() }
    }
}

/// A daily time in which updates may start, in local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// When it opens, in local time.
    pub opens: TimeOfDay,
    /// How long it stays open, at most a day.
    pub lasts: Span,
}

/// Times of the week in which one step of an update may begin, in local time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepWindow {
    /// The days on which it opens; every day if this is left out.
    #[serde(default = "defaults::days")]
    pub days: Vec<Weekday>,
    /// When it opens, in local time.
    pub opens: TimeOfDay,
    /// How long it stays open, at most a week.
    pub lasts: Span,
    /// How long what was begun in it may go on after its end.
    #[serde(default)]
    pub grace: Span,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Weekday {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];
}

/// A release that configurations can roll out, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The release's id.
    pub id: String,
    /// Its sequence number. Devices refuse one that does not rise, unless the configuration permits a downgrade.
    pub seq: u64,
    /// Size of the payload.
    #[serde(default = "defaults::size")]
    pub size: ByteSize,
    /// Defect: chance that a device does not boot it.
    #[serde(default)]
    pub boot_failure: Percent,
    /// Defect: chance that a device boots it and finds itself unhealthy.
    #[serde(default)]
    pub health_failure: Percent,
    /// Defect: chance that a device cannot write it into its slot.
    #[serde(default)]
    pub install_failure: Percent,
    /// Defect: the stored payload's bytes do not match the digest that was signed.
    #[serde(default)]
    pub corrupt: bool,
    /// Whether the reference that devices get carries a signature that they accept.
    #[serde(default)]
    pub signature: Signature,
    /// A chunked archive of the payload, of which devices fetch what they lack; they fetch all of the payload if this is
    /// left out. Only the virtual engine has deltas: a live run fetches payloads whole, and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
}

/// A release's chunked archive, and what a device lacks of it that runs the release before: the one with the next lower
/// sequence in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// Size of the archive, its header included. A device that has nothing in common with the release fetches all of
    /// it, or the payload if that is cheaper.
    pub archive: ByteSize,
    /// Size of the archive's header, which a device fetches before it knows what it lacks.
    pub header: ByteSize,
    /// The share of the archive's chunks that is not in the release before.
    pub changed: Percent,
    /// In how many places of the archive these lie, at the most. Each is a request, unless the next one is near.
    #[serde(default = "defaults::ranges")]
    pub ranges: u32,
}

/// Whether a release's signature holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Signature {
    /// Devices accept it.
    #[default]
    Good,
    /// Devices refuse the release before they download anything.
    Bad,
}

/// The policy that all agents of the fleet share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// An agent waits a random time up to this before it asks for a download.
    pub splay: Span,
    /// How long an answer of the hub may take (connection, twin, report) before the agent tries again.
    pub request_timeout: Span,
    /// How long a download grant may take before the agent asks again.
    pub grant_timeout: Span,
    /// Pauses between tries of a grant, a download or a report, each at least half its length.
    pub backoff: Backoff,
    /// Tries of a grant or a download without any progress before the update fails.
    pub attempts: u8,
    /// Whole downloads of a payload that turns out not to match its digest before the update fails.
    pub verify_attempts: u8,
    /// Boots of the new slot before the update fails.
    pub boot_attempts: u8,
    /// Cold starts within one update before it fails.
    pub start_attempts: u8,
    /// Pauses between tries to connect, drawn from nothing up: what spreads a fleet after an outage.
    pub reconnect: Backoff,
    /// How long the new release has to become healthy, and to reach the hub, before the agent rolls back.
    pub probation_timeout: Span,
    /// Whether the new release must reach the hub before it is committed.
    pub probation_needs_hub: bool,
    /// A download's progress is made durable every so many bytes: what a power cut can cost.
    pub checkpoint: ByteSize,
    /// MQTT keep-alive; `"0s"` turns it off.
    pub keep_alive: Span,
    /// Whether, and for how long, an agent asks before it interrupts its device; it does not if this is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locks: Option<Locks>,
    /// The most bytes that one update may cost a device, in all its attempts; any number if this is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_cap: Option<ByteSize>,
    /// Whether reports say what an update is going to cost.
    pub report_plan: bool,
}

/// How an agent deals with devices that may not be interrupted: how many those are, each group says in `busy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Locks {
    /// The pause before it asks again.
    pub retry: Span,
    /// How long it goes on asking.
    pub deadline: Span,
    /// What it does then.
    pub at_deadline: AtDeadline,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            retry: Span::from_secs(300),
            deadline: Span::from_secs(86_400),
            at_deadline: AtDeadline::Proceed,
        }
    }
}

/// What an agent does when its device could not be interrupted in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AtDeadline {
    /// It goes on.
    Proceed,
    /// The update fails.
    GiveUp,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            splay: Span::from_secs(5),
            request_timeout: Span::from_secs(30),
            grant_timeout: Span::from_secs(30),
            backoff: Backoff { first: Span::from_secs(1), max: Span::from_secs(60) },
            attempts: 10,
            verify_attempts: 2,
            boot_attempts: 3,
            start_attempts: 20,
            reconnect: Backoff { first: Span::from_secs(1), max: Span::from_secs(120) },
            probation_timeout: Span::from_secs(300),
            probation_needs_hub: true,
            checkpoint: ByteSize::from_bytes(256 << 10),
            keep_alive: Span::from_secs(240),
            locks: None,
            update_cap: None,
            report_plan: false,
        }
    }
}

/// Pauses that double from `first` up to `max`; each is drawn at random up to its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// The longest that the first pause can be.
    pub first: Span,
    /// The longest that any pause can be.
    pub max: Span,
}

/// The hub: how fast it may be used, and how often it applies configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hub {
    /// Whose limits hold.
    pub tier: Tier,
    /// Units of that tier; most limits grow with them.
    pub units: u32,
    /// When the hub applies configurations to twins: at once, or every so often, as IoT Hub does every five minutes.
    pub configuration_cycle: Cycle,
}

impl Default for Hub {
    fn default() -> Self {
        Self { tier: Tier::None, units: 1, configuration_cycle: Cycle::Immediate }
    }
}

/// A tier of IoT Hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tier {
    /// No limits.
    #[default]
    #[serde(rename = "none")]
    None,
    /// 400,000 messages a day and unit.
    S1,
    /// 6,000,000 messages a day and unit.
    S2,
    /// 300,000,000 messages a day and unit.
    S3,
}

/// When configurations reach twins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cycle {
    /// With the change.
    #[default]
    Immediate,
    /// At the next multiple of this span since the start.
    Every(Span),
}

/// The service that answers a device's request for a download with a signed, expiring URL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grant {
    /// How the URL reaches the device.
    pub channel: Channel,
    /// How long the service takes to answer.
    pub latency: Dist,
    /// How long a URL is good for.
    pub url_ttl: Span,
}

impl Default for Grant {
    fn default() -> Self {
        Self { channel: Channel::Method, latency: Dist::millis(5, 20), url_ttl: Span::from_secs(3600) }
    }
}

/// How a grant reaches the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// A direct method: the device must be connected.
    #[default]
    Method,
    /// A cloud-to-device message: queued until the device takes it.
    C2d,
}

/// The store that payloads are downloaded from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Blob {
    /// What the store sends in all, shared evenly by the downloads under way.
    pub bandwidth: Bandwidth,
    /// Time to the first byte of an answer, beside the link's latency.
    pub latency: Dist,
    /// Downloads at once; more wait their turn. 0 is no limit.
    pub concurrency: u32,
}

impl Default for Blob {
    fn default() -> Self {
        Self {
            bandwidth: Bandwidth::from_bits_per_second(10_000_000_000),
            latency: Dist::millis(5, 20),
            concurrency: 0,
        }
    }
}

/// Settings that only the live engine has. They change how fast a run is, never what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Live {
    /// Threads of the embedded hub.
    pub hub_threads: u16,
    /// Threads that the virtual devices live on.
    pub device_threads: u16,
    /// Threads of the embedded blob endpoint.
    pub blob_threads: u16,
    /// TCP port of the embedded hub or broker; 0 takes a free one.
    pub port: u16,
    /// HTTP port of the embedded blob endpoint; 0 takes a free one.
    pub blob_port: u16,
}

impl Default for Live {
    fn default() -> Self {
        Self { hub_threads: 1, device_threads: 1, blob_threads: 1, port: 0, blob_port: 0 }
    }
}

/// What scripted devices do when they are asked for something, and by themselves. Only `fleetwave hub --devices` has
/// such devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// How long a device takes to answer a direct method, or to report desired properties as its own.
    pub answer: Dist,
    /// The share of these that it refuses: status 500, or a report that names the refused version.
    pub refuse: Percent,
    /// The share of these at which it vanishes: its connection ends without a word.
    pub vanish: Percent,
    /// How long it is away then, or when its connection has ended otherwise.
    pub away: Dist,
    /// How often it sends telemetry; 0 is never.
    pub telemetry: Span,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            answer: Dist::millis(50, 250),
            refuse: Percent::ZERO,
            vanish: Percent::ZERO,
            away: Dist::millis(5_000, 15_000),
            telemetry: Span::ZERO,
        }
    }
}

/// Limits of the run itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Harness {
    /// A run whose own timers or writes were ever later than this is invalid: it measured the harness.
    pub max_lag: Span,
    /// The run ends after this long, whatever its steps still wait for.
    pub max_duration: Span,
    /// How long a run that was aborted waits for the devices that were under way.
    pub settle: Span,
}

impl Default for Harness {
    fn default() -> Self {
        Self {
            max_lag: Span::from_millis(250),
            max_duration: Span::from_secs(2 * 3600),
            settle: Span::from_secs(30),
        }
    }
}

/// Values of keys that a file leaves out.
mod defaults {
    use super::{Bandwidth, ByteSize, Dist, Weekday};

    pub(super) fn days() -> Vec<Weekday> {
        Weekday::ALL.to_vec()
    }
    pub(super) const fn seed() -> u64 {
        1
    }
    pub(super) const fn ranges() -> u32 {
        32
    }
    pub(super) const fn latency() -> Dist {
        Dist::millis(20, 80)
    }
    pub(super) const fn down() -> Bandwidth {
        Bandwidth::from_bits_per_second(20_000_000)
    }
    pub(super) const fn up() -> Bandwidth {
        Bandwidth::from_bits_per_second(5_000_000)
    }
    pub(super) const fn verify() -> Bandwidth {
        Bandwidth::from_bits_per_second(160_000_000)
    }
    pub(super) const fn install() -> Dist {
        Dist::millis(5_000, 15_000)
    }
    pub(super) const fn reboot() -> Dist {
        Dist::millis(20_000, 40_000)
    }
    pub(super) const fn probation() -> Dist {
        Dist::millis(5_000, 10_000)
    }
    pub(super) const fn size() -> ByteSize {
        ByteSize::from_bytes(64 << 10)
    }
}
