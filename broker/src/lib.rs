//! The hub's runtime: what listens, carries bytes and serves around the sans-IO hub core.
//!
//! * [`HubServer`] is a local IoT Hub. Devices reach it by MQTT over [TLS](tls), [WebSocket](websocket), plain TCP, and a
//!   [memory transport](memory) for fleets beyond the descriptor limit; [`pki`] makes its certificates.
//! * [`plain::PlainHub`] is the same hub core on a plain MQTT broker, an embedded rumqttd or any other.
//! * [`blob::BlobServer`] serves firmware over HTTP.

pub mod admin;
mod amqp;
mod auth;
pub mod blob;
mod bus;
mod clock;
mod codec;
mod control;
mod delay;
mod dialog;
mod dps;
mod engine;
mod enrol;
pub mod events;
pub mod exposition;
mod front;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod hooks;
mod inbox;
mod jobs;
mod listen;
pub mod memory;
mod metrics;
pub mod pki;
pub mod plain;
pub mod policy;
mod reactor;
pub mod recorder;
pub mod rest;
mod server;
mod session;
pub mod store;
pub mod tls;
mod transport;
mod upload;
mod view;
pub mod websocket;
pub mod x509;

use std::fmt;
use std::sync::Arc;

pub use clock::Clock;
pub use control::{
    Accepted, ControlError, HubControl, MethodCall, MethodOutcome, NewDevice, PendingMethod, TwinChange,
};
pub use dps::{DpsError, DpsSettings, Provisioning};
pub use hooks::{Hooks, Replies, Reply, Telemetry};
pub use listen::ListenError;
pub use metrics::HubMetrics;
pub use server::{HubServer, HubServerBuilder, StartError};
pub use upload::{StorageAccount, StorageError};
pub use view::ShardView;

/// Which of a hub's shards a device belongs to.
#[derive(Clone)]
pub struct Assign(Arc<AssignFn>);

type AssignFn = dyn Fn(&str, usize) -> usize + Send + Sync;

impl Assign {
    /// Devices go where `shard(device id, number of shards)` says; beyond the last shard counts as the last.
    pub fn by(shard: impl Fn(&str, usize) -> usize + Send + Sync + 'static) -> Self {
        Self(Arc::new(shard))
    }

    /// Devices are spread by a hash of their id.
    #[must_use]
    pub fn by_hash() -> Self {
        Self::by(|device, shards| {
            use std::hash::{BuildHasher, BuildHasherDefault};
            let hash = BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(device);
            // The high bits are the well-mixed ones.
            ((u128::from(hash) * shards as u128) >> 64) as usize
        })
    }

    /// The shard of a device or module: a module's is its device's.
    pub(crate) fn shard(&self, client: &str, shards: usize) -> usize {
        let device = client.split_once('/').map_or(client, |(device, _)| device);
        if shards <= 1 { 0 } else { (self.0)(device, shards).min(shards - 1) }
    }
}

impl fmt::Debug for Assign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assign")
    }
}
