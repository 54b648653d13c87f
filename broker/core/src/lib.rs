//! An IoT-Hub-compatible hub as a deterministic state machine without IO.
//!
//! A [`Hub`] is one *shard*: it owns a subset of the devices, and shards share nothing. A driver gives it
//! [`Input`]s with the time, and does what its [`Output`]s say; configuration changes it broadcasts to all shards, and
//! adds up their [counts](Hub::configuration_counts). [Throttles](throttle) are hub-wide and apart from the shards: the
//! driver asks them first and delivers an operation when it is admitted.
//!
//! ```
//! use std::sync::Arc;
//!
//! use fleetwave_hub_core::{Configuration, ConfigurationSpec, DeviceSpec, Hub, Input, Options, Output, Topics};
//! use fleetwave_protocol::Now;
//!
//! let mut hub = Hub::new(Options::default());
//! let mut out = Vec::new();
//! let now = Now::default();
//! let device = hub.create_device(now, "dev-1", DeviceSpec { tags: Some(r#"{"ring":1}"#), ..DeviceSpec::default() })?;
//! hub.handle(now, Input::Connect { device, session: 1, clean: true, model: None }, &mut out);
//! hub.handle(now, Input::Subscribe { device, topics: Topics::ALL }, &mut out);
//! out.clear();
//!
//! let configuration = Configuration::new(&ConfigurationSpec {
//!     id: "fw-2",
//!     target_condition: "tags.ring = 1",
//!     device_content: r#"{"properties.desired.firmware":{"id":"fw-2"}}"#,
//!     ..ConfigurationSpec::default()
//! })?;
//! let configuration = Arc::new(configuration);
//! hub.handle(now, Input::PutConfiguration { configuration, if_match: None }, &mut out);
//! let [Output::Service(Ok(_)), Output::Desired { version: 2, patch, .. }] = &out[..] else { panic!() };
//! assert_eq!(patch.text(), r#"{"firmware":{"id":"fw-2"}}"#);
//! # Ok::<(), fleetwave_hub_core::HubError>(())
//! ```
//!
//! What it costs: twins with equal content share it, and so do all things that are computed from it, see the `store`
//! module. A device's own record is some 60 bytes and 12 for each time that its twin's parts were written at.

mod apply;
mod c2d;
mod changes;
mod configuration;
mod device;
mod error;
mod hub;
mod identities;
mod identity;
mod io;
pub mod limits;
mod method;
pub mod query;
mod record;
mod restore;
mod rollout;
mod service;
mod session;
mod slab;
mod stamps;
mod store;
pub mod throttle;
mod time_text;
mod timers;
mod tree;
mod twin;

#[cfg(test)]
mod deployment_tests;
#[cfg(test)]
mod hub_tests;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod restore_tests;

pub use c2d::{C2dMessage, Feedback, FeedbackStatus};
pub use changes::{Change, Numbers};
pub use configuration::{
    Configuration, ConfigurationEtag, ConfigurationSpec, ConfigurationView, MAX_CONFIGURATIONS, Metric,
    Targets,
};
pub use error::{ErrorCode, HubError};
pub use hub::{Cycle, DeviceSpec, Hub, Options};
pub use identity::{
    Authentication, DeviceEtag, Identity, IdentityChange, IdentityView, Statistics, Thumbprint,
};
pub use io::{
    CloseReason, DeviceIx, Done, Input, MethodAnswer, Output, Patch, ReceivedC2d, Refusal, Settlement, Topics,
};
pub use record::RecordError;
pub use restore::{Parts, Restore, device_id};
pub use rollout::Counts;
pub use store::{DesiredPatch, Doc, PatchId};
pub use time_text::{Iso8601, Since};
pub use twin::{Etag, TwinView};
