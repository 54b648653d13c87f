//! Delays and limits.

use std::time::Duration;

use fleetwave_agent_core::{Backoff, Policy};
use serde::Deserialize;

/// A time in seconds; a part of one may be given, too.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Seconds(pub Duration);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        // Thirty years: what is longer is a slip.
        if !(0.0..=1e9).contains(&seconds) {
            return Err("a number of seconds, from 0 to 1000000000");
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

/// Delays and limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest random delay before an update starts.
    pub splay_seconds: Seconds,
    /// The first pause before a step is tried again; later ones are longer.
    pub retry_seconds: Seconds,
    /// The first pause before connecting again; later ones are longer.
    pub reconnect_seconds: Seconds,
    /// How long a new release has to become healthy and to reach the hub.
    pub probation_seconds: Seconds,
    /// The largest payload.
    pub slot_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            splay_seconds: Seconds(policy.splay),
            retry_seconds: Seconds(policy.retry.first),
            reconnect_seconds: Seconds(policy.reconnect.first),
            probation_seconds: Seconds(policy.probation_timeout),
            slot_bytes: policy.slot_size,
        }
    }
}

impl Limits {
    /// The policy that they make.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let policy = Policy::default();
        let first = |seconds: Seconds, backoff: Backoff| Backoff { first: seconds.0, ..backoff };
        Policy {
            splay: self.splay_seconds.0,
            retry: first(self.retry_seconds, policy.retry),
            reconnect: first(self.reconnect_seconds, policy.reconnect),
            probation_timeout: self.probation_seconds.0,
            slot_size: self.slot_bytes,
            // Whoever pays for the bytes is to know before they come.
            report_plan: true,
            ..policy
        }
    }
}
