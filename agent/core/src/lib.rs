//! The update agent, as a state machine that does nothing by itself.
//!
//! There is no socket, file, clock, thread or random source in this crate. A driver (the production runtime,
//! the live engine, the virtual engine) gives an [`Agent`] one [`Event`] at a time together with the time, and
//! carries out the [`Effect`]s that come back. The same machine therefore runs on a Raspberry Pi and a million
//! times over in a simulation.
//!
//! * [`Agent`]: the machine; [`State`] names where its update stands.
//! * [`Event`], [`Effect`]: what goes in, what comes out.
//! * [`Durable`], [`Record`]: what survives a power cut, and the only thing that does.
//! * [`Release`], [`Releases`], [`TrustRoot`]: what may be installed, and the signatures that say so.
//! * [`delta`]: what an update costs by a chunked archive; a pure function.
//! * [`twin`], [`grant`]: the JSON that the agent reads and writes; pure functions.
//! * [`Policy`]: what a fleet shares: delays, limits, windows, locks and caps.
//! * [`ResultCode`]: every way in which an update ends.
//!
//! A driver's duties, which the machine relies on: effects are carried out in order; a [`Effect::Persist`] is
//! answered by [`Event::Persisted`] only once the record would survive a power cut; after [`Effect::Discard`] and
//! [`Effect::AbortFetch`] no event of the work before them follows; [`Boot::committed`] is what the boot loader
//! says; after [`Effect::Wake`] an [`Event::Timer`] comes at that time or later (spurious ones do no harm).

mod agent;
mod code;
pub mod delta;
mod event;
pub mod grant;
mod journal;
mod policy;
mod reference;
mod release;
pub mod twin;
mod window;

pub use agent::{Agent, Boot, Context};
pub use code::ResultCode;
pub use event::{
    Effect, Event, FetchError, GrantAnswer, HealthError, InstallError, LockAnswer, Method, Plan,
    StorageError, VerifyError,
};
pub use journal::{Durable, Pending, Phase, Record};
pub use policy::{AtDeadline, Backoff, Caps, Locks, Policy, PolicyError};
pub use reference::{Archive, FIRMWARE, TrustRoot, Unsigned, sign};
pub use release::{Release, ReleaseId, Releases};
pub use window::{Days, Place, Window};

/// Where an agent's update stands.
///
/// What is durable when a state is entered, and what a cold start from there does:
///
/// | state | durable | a cold start |
/// |---|---|---|
/// | `Idle`, `Failed` | the outcome of the last update | reads the twin |
/// | `Deferred` | nothing new; `Started` if the window of downloads closed, or they cost more than is left; `Staged` if the window closed before the reboot | waits again |
/// | `Granting`, `Downloading`, `Verifying`, `Staging`, `Backoff` | `Started`, and the bytes already written | asks for a grant, goes on from those bytes |
/// | `Rebooting` | `Staged`, then `Booting` | in the old slot: boots again, a bounded number of times |
/// | `Probation` | `Booting` | the boot loader is back in the old slot: as above |
/// | `Committing` | `Booting`; the slot becomes the default one, then `Committed` | done if the boot loader has it as the default one; as above if not |
/// | `RollingBack` | `Reverting` | in the old slot: gives the release up |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing to do.
    Idle,
    /// Waits for its turn: the random start delay, the maintenance window, or the next window of what downloads may cost.
    Deferred,
    /// Has asked for a link to the payload, or waits for the connection to ask.
    Granting,
    /// The payload is on its way.
    Downloading,
    /// The payload is compared with the signed digest.
    Verifying,
    /// The payload goes into the inactive slot.
    Staging,
    /// About to boot the other slot, once.
    Rebooting,
    /// Runs the new release on trial.
    Probation,
    /// Makes the new release the one that boots.
    Committing,
    /// Goes back to the release that ran before.
    RollingBack,
    /// Has given the desired release up and said why.
    Failed,
    /// Pauses before it tries a step again.
    Backoff,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 12] = [
        Self::Idle,
        Self::Deferred,
        Self::Granting,
        Self::Downloading,
        Self::Verifying,
        Self::Staging,
        Self::Rebooting,
        Self::Probation,
        Self::Committing,
        Self::RollingBack,
        Self::Failed,
        Self::Backoff,
    ];

    /// The name in scenarios, reports and traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Deferred => "deferred",
            Self::Granting => "granting",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Staging => "staging",
            Self::Rebooting => "rebooting",
            Self::Probation => "probation",
            Self::Committing => "committing",
            Self::RollingBack => "rolling_back",
            Self::Failed => "failed",
            Self::Backoff => "backoff",
        }
    }
}
