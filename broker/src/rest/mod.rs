//! The hub's HTTPS surface: what service SDKs call, and what devices can do over HTTPS.
//!
//! `router` has the table of operations: all that is served, or refused by name, stands there, and
//! `docs/hub-coverage.md` is made from it. Each operation is an async function from a `Call` to a `Reply`; the
//! shards do the work by jobs ([`crate::HubControl::with_device`]).

mod call;
mod coverage;
mod device_access;
mod error;
mod reply;
mod router;
mod server;

mod bulk;
mod configurations;
mod device;
mod devicebound;
mod devices;
mod digital;
mod files;
mod header_case;
mod identity;
mod jobs;
mod messages;
mod methods;
mod modules;
mod provisioning;
mod query;
mod statistics;
mod twins;
mod unmodelled;

pub(crate) use call::Call;
pub use coverage::coverage;
pub(crate) use error::ApiError;
pub(crate) use reply::Reply;
pub(crate) use router::{Access, Operation};
pub(crate) use server::{RestServer, Upgrade};

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::HubControl;
use crate::auth::Gate;
use crate::dps::Dps;
use crate::events::CloudEvents;
use crate::jobs::Jobs;
use crate::policy::Policies;
use crate::upload::Uploads;

/// What all operations share.
pub(crate) struct Api {
    /// The way to the shards.
    pub(crate) control: HubControl,
    /// Who may do what.
    pub(crate) policies: Arc<Policies>,
    /// Who is a device.
    pub(crate) gate: Arc<Gate>,
    /// Scheduled jobs.
    pub(crate) jobs: Arc<Jobs>,
    /// The provisioning service, if there is one.
    pub(crate) dps: Option<Arc<Dps>>,
    /// What the back end is told: feedback, and files that were uploaded.
    pub(crate) cloud: Arc<CloudEvents>,
    /// Where devices' files go, if there is a place for them.
    pub(crate) uploads: Option<Arc<Uploads>>,
    /// Held by who writes a configuration.
    pub(crate) configurations: tokio::sync::Mutex<()>,
    /// Numbers requests, for tracking ids.
    pub(crate) requests: AtomicU64,
}

impl Api {
    pub(crate) fn new(
        control: HubControl,
        gate: Arc<Gate>,
        jobs: Arc<Jobs>,
        dps: Option<Arc<Dps>>,
        cloud: Arc<CloudEvents>,
        uploads: Option<Arc<Uploads>>,
    ) -> Self {
        Self {
            control,
            policies: gate.policies.clone(),
            gate,
            jobs,
            dps,
            cloud,
            uploads,
            configurations: tokio::sync::Mutex::default(),
            requests: AtomicU64::new(0),
        }
    }
}
