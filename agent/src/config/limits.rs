//! Delays and limits.

use std::time::Duration;

use fleetwave_agent_core::{Backoff, Policy};
use serde::Deserialize;

/// Delays and limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest random delay before an update starts.
    pub splay_seconds: u64,
    /// The first pause before a step is tried again; later ones are longer.
    pub retry_seconds: u64,
    /// The first pause before connecting again; later ones are longer.
    pub reconnect_seconds: u64,
    /// How long a new release has to become healthy and to reach the hub.
    pub probation_seconds: u64,
    /// The largest payload.
    pub slot_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            splay_seconds: policy.splay.as_secs(),
            retry_seconds: policy.retry.first.as_secs(),
            reconnect_seconds: policy.reconnect.first.as_secs(),
            probation_seconds: policy.probation_timeout.as_secs(),
            slot_bytes: policy.slot_size,
        }
    }
}

impl Limits {
    /// The policy that they make.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let policy = Policy::default();
        let first =
            |seconds: u64, backoff: Backoff| Backoff { first: Duration::from_secs(seconds), ..backoff };
        Policy {
            splay: Duration::from_secs(self.splay_seconds),
            retry: first(self.retry_seconds, policy.retry),
            reconnect: first(self.reconnect_seconds, policy.reconnect),
            probation_timeout: Duration::from_secs(self.probation_seconds),
            slot_size: self.slot_bytes,
            // Whoever pays for the bytes is to know before they come.
            report_plan: true,
            ..policy
        }
    }
}
