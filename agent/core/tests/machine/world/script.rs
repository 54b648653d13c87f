//! What may happen to the device, and what it keeps.

use std::collections::VecDeque;
use std::time::Duration;

use fleetwave_agent_core::{
    Durable, Event, FetchError, GrantAnswer, InstallError, LockAnswer, Plan, Record, ReleaseId, StorageError,
};
use serde_json::{Map, Value};

/// How the power goes at an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The effect does not happen.
    Before,
    /// It happens in part: a torn record, half a payload, half a slot. None of it counts but the payload's bytes.
    Midway,
    /// It happens, and its event does not come.
    After,
}

/// What is made to happen just before (or, for a cut, at) an effect.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Cut(Cut),
    Desire(Map<String, Value>),
    Cancel,
    Remove,
    Abort,
    Drop,
}

/// How one fetch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fetching {
    Whole,
    /// So many further bytes become durable, then this.
    Fails(u64, FetchError),
    Corrupted,
    Short,
}

/// One slot of the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) release: ReleaseId,
    /// It was verified before it was written.
    pub(super) verified: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    pub(super) release: ReleaseId,
    pub(super) bytes: u64,
    pub(super) genuine: bool,
}

/// What a power cut leaves.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) journal: Vec<Record>,
    pub(super) initial: Durable,
    pub(super) slots: [Option<Slot>; 2],
    pub(super) default: usize,
    pub(super) armed: bool,
    pub(super) payload: Option<Payload>,
}

#[derive(Debug)]
pub(super) enum Item {
    Boot,
    /// From the hub, on the connection of this number.
    Hub(u32, Event),
    /// A patch of desired properties, likewise, with its version.
    Patch(u32, u64, Vec<u8>),
    Device(Event),
    /// The end of work on the payload, unless it was discarded since.
    Work(u32, Work),
    Persist(Record, Result<(), StorageError>),
    Commit(Result<(), StorageError>),
    HubBack,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Fetch(ReleaseId, u64, Fetching),
    Verify,
    Stage(ReleaseId, Result<(), InstallError>),
    Plan(Result<Plan, FetchError>),
}

/// What goes wrong by script: each queue is used up from its front, and then all goes well.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) fetches: VecDeque<Fetching>,
    pub(crate) grants: VecDeque<Option<GrantAnswer>>,
    /// Downloads bring nothing.
    pub(crate) stalls: bool,
    /// For records of which this is true, the error.
    pub(crate) persist: Option<fn(Record) -> Option<StorageError>>,
    pub(crate) stage: VecDeque<InstallError>,
    /// What stands in the way of a boot of the other slot.
    pub(crate) activate: VecDeque<InstallError>,
    pub(crate) plans: VecDeque<Result<Plan, FetchError>>,
    /// `None`: no answer.
    pub(crate) locks: VecDeque<Option<LockAnswer>>,
    pub(crate) commit: VecDeque<StorageError>,
    /// What reports are answered with; `None`: no answer.
    pub(crate) reports: VecDeque<Option<u16>>,
    /// What twin reads are answered with; `None`: no answer, 200: the twin.
    pub(crate) twins: VecDeque<Option<u16>>,
    /// How much longer than others the answers of twin reads take.
    pub(crate) twin_delays: VecDeque<Duration>,
    /// So many of the next patches get lost on the way.
    pub(crate) lost_patches: u32,
    /// Names of the releases that do not boot.
    pub(crate) dead: Vec<&'static str>,
    /// Names of the releases that are not healthy.
    pub(crate) sick: Vec<&'static str>,
    /// Health checks that never end.
    pub(crate) endless_checks: bool,
    /// The hub goes away for so long when a release boots on trial, the first time.
    pub(crate) hub_away_in_trial: Option<Duration>,
    /// By number of the effect.
    pub(crate) happenings: VecDeque<(usize, Happening)>,
}
