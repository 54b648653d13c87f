//! What can break on the way.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dist::Dist;
use super::quantity::{Bandwidth, Percent, Span};

/// One fault. Faults that happen to devices happen to a `share` of a `group`, or of the fleet: exactly so many,
/// drawn from the seed. A fault with `lasts` ends by itself; one without lasts until the end of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The hub goes down, drops every connection, and comes back with its twins.
    HubRestart(HubRestart),
    /// Devices lose their network; both sides notice by themselves, if at all.
    LinkDown(LinkDown),
    /// Notifications of twin changes are lost on the way to devices, which never learn of them.
    DropNotifications(DropNotifications),
    /// Notifications of twin changes take longer on the way to devices.
    DelayNotifications(DelayNotifications),
    /// Devices lose power.
    PowerCut(PowerCut),
    /// The blob store answers requests with an error.
    BlobError(BlobError),
    /// The blob store is slow.
    BlobSlow(BlobSlow),
    /// The blob store sends bytes that are not those of the payload.
    BlobCorrupt(BlobCorrupt),
    /// Planted defect: a thread of the harness stands still. A run that does not notice is lying.
    HarnessStall(HarnessStall),
    /// Planted defect: the next step is sent late. Latencies must count from when it was meant to be sent.
    LateStep(LateStep),
}

impl Fault {
    /// The fault's name in a scenario file.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::HubRestart(_) => "hub_restart",
            Self::LinkDown(_) => "link_down",
            Self::DropNotifications(_) => "drop_notifications",
            Self::DelayNotifications(_) => "delay_notifications",
            Self::PowerCut(_) => "power_cut",
            Self::BlobError(_) => "blob_error",
            Self::BlobSlow(_) => "blob_slow",
            Self::BlobCorrupt(_) => "blob_corrupt",
            Self::HarnessStall(_) => "harness_stall",
            Self::LateStep(_) => "late_step",
        }
    }

    /// The devices that the fault happens to; `None` for a fault that does not choose devices.
    #[must_use]
    pub fn scope(&self) -> Option<Scope<'_>> {
        let (share, group) = match self {
            Self::LinkDown(fault) => (fault.share, &fault.group),
            Self::DropNotifications(fault) => (fault.share, &fault.group),
            Self::DelayNotifications(fault) => (fault.share, &fault.group),
            Self::PowerCut(fault) => (fault.share, &fault.group),
            Self::HubRestart(_)
            | Self::BlobError(_)
            | Self::BlobSlow(_)
            | Self::BlobCorrupt(_)
            | Self::HarnessStall(_)
            | Self::LateStep(_) => return None,
        };
        Some(Scope { share, group: group.as_deref() })
    }
}

/// Which devices a fault happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope<'a> {
    /// How many of the group's devices.
    pub share: Percent,
    /// The group, or `None` for the fleet.
    pub group: Option<&'a str>,
}

const fn everyone() -> Percent {
    Percent::FULL
}

/// The hub goes down, drops every connection, and comes back with its twins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HubRestart {
    /// How long nobody can connect.
    pub down_for: Span,
}

/// Devices lose their network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkDown {
    /// How many devices.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// Of which group; of the fleet if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For how long.
    pub lasts: Span,
}

/// Notifications of twin changes are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropNotifications {
    /// On the way to how many devices.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// Of which group; of the fleet if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For how long; to the end of the run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// Notifications of twin changes take longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DelayNotifications {
    /// By how much.
    pub by: Span,
    /// On the way to how many devices.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// Of which group; of the fleet if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For how long; to the end of the run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// Devices lose power, once each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerCut {
    /// How many devices.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// Of which group; of the fleet if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When: at once, or in the named state of the device's next update, at a random moment of it.
    #[serde(default)]
    pub during: CutMoment,
    /// How long the power is off, before the device boots.
    #[serde(default = "few_seconds")]
    pub off_for: Dist,
}

const fn few_seconds() -> Dist {
    Dist::millis(1_000, 5_000)
}

/// When a device loses power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CutMoment {
    /// In a state of the update that is drawn for each device.
    #[default]
    Random,
    /// When the step starts, whatever the device does.
    Now,
    /// While it waits for its start.
    Deferred,
    /// While it waits for its URL.
    Granting,
    /// While it downloads.
    Downloading,
    /// While it hashes the payload.
    Verifying,
    /// While it writes its inactive slot.
    Staging,
    /// While it boots the new release.
    Rebooting,
    /// While it checks its health.
    Probation,
    /// While it makes the new release the one to boot.
    Committing,
}

impl CutMoment {
    /// What [`Random`](Self::Random) draws from, in the order of an update.
    pub const STATES: [Self; 8] = [
        Self::Deferred,
        Self::Granting,
        Self::Downloading,
        Self::Verifying,
        Self::Staging,
        Self::Rebooting,
        Self::Probation,
        Self::Committing,
    ];
}

/// The blob store answers requests with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobError {
    /// The HTTP status.
    pub status: BlobStatus,
    /// How many of the requests.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// For how long; to the end of the run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// An HTTP status with which blob stores refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16", into = "u16")]
#[schemars(extend("enum" = [403, 404, 429, 503]))]
pub struct BlobStatus(u16);

impl BlobStatus {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for BlobStatus {
    type Error = String;

    fn try_from(status: u16) -> Result<Self, String> {
        match status {
            403 | 404 | 429 | 503 => Ok(Self(status)),
            other => Err(format!(
                "{other} is not a status that the blob store can answer with; take 403 (expired or refused), 404 \
                 (no such blob), 429 (too many requests) or 503 (busy)"
            )),
        }
    }
}

impl From<BlobStatus> for u16 {
    fn from(status: BlobStatus) -> Self {
        status.0
    }
}

/// The blob store is slow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobSlow {
    /// What it sends in all, in place of `blob.bandwidth`.
    pub bandwidth: Bandwidth,
    /// For how long; to the end of the run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// The blob store sends bytes that are not those of the payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobCorrupt {
    /// In how many of the downloads.
    #[serde(default = "everyone")]
    pub share: Percent,
    /// For how long; to the end of the run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts: Option<Span>,
}

/// A thread of the harness stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HarnessStall {
    /// For how long.
    #[serde(rename = "for")]
    pub span: Span,
}

/// The next step is sent late.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LateStep {
    /// By how much.
    pub by: Span,
}
