//! What goes into the machine and what comes out.

use core::time::Duration;

use fleetwave_protocol::time::{Instant, WallTime};

use crate::journal::Record;
use crate::twin::{Desired, Status};
use crate::{Boot, ReleaseId, ResultCode, State};

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device has started, or the agent has.
    Booted(Boot),
    /// The hub accepted the connection; or another one that took the place of the one there was, without a gap.
    Connected {
        /// The hub still knows the subscriptions.
        session_present: bool,
    },
    /// The connection was lost, or refused, or could not be made.
    Disconnected,
    /// The twin came.
    Twin {
        /// The version of its desired properties.
        version: u64,
        /// What they ask for.
        desired: Desired,
        /// What the hub believes of this device, if it is of the form that this agent reports.
        reported: Option<Status>,
    },
    /// The twin was refused with this status.
    TwinRefused(u16),
    /// Desired properties changed.
    Desired {
        /// The version that the change made.
        version: u64,
        /// What they ask for now.
        desired: Desired,
    },
    /// A report was answered.
    Reported {
        /// Its request id.
        rid: u32,
        /// The hub's status.
        status: u16,
    },
    /// The cloud side answered a grant request.
    Grant {
        /// For which release.
        release: ReleaseId,
        /// What it said.
        answer: GrantAnswer,
    },
    /// What [`Effect::Plan`] asked for.
    Planned(Result<Plan, FetchError>),
    /// A download stopped before its end.
    FetchFailed {
        /// Why.
        error: FetchError,
        /// Bytes of the payload that would survive a power cut: from its start, unless it is put together from
        /// chunks.
        durable: u64,
    },
    /// A download has come to its end; all bytes are durable.
    Fetched,
    /// The payload was compared with what was signed.
    Verified(Result<(), VerifyError>),
    /// The payload was put into the inactive slot.
    Staged(Result<(), InstallError>),
    /// Whether what runs may be interrupted now.
    Locks(LockAnswer),
    /// What was staged could not be made to run, in place of the boot that [`Effect::RebootIntoCandidate`] asked
    /// for: what is committed runs, untouched.
    NotActivated(InstallError),
    /// The last [`Effect::Persist`] is durable, or can't be.
    Persisted(Result<(), StorageError>),
    /// The health checks of the release on trial ended.
    Health(Result<(), HealthError>),
    /// The running slot was made the default one, or can't be.
    SlotCommitted(Result<(), StorageError>),
    /// Somebody on the device, or a direct method, wants the update under way to end.
    Abort,
    /// The time of the last [`Effect::Wake`] has come.
    Timer,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the hub.
    Connect,
    /// Give the connection up; no [`Event::Disconnected`] follows.
    Disconnect,
    /// Subscribe to everything that the profile lists.
    Subscribe,
    /// Read the twin.
    GetTwin {
        /// The request's id.
        rid: u32,
    },
    /// Report this, as [`crate::twin::write_report`] writes it.
    Report {
        /// The request's id.
        rid: u32,
        /// What to say.
        status: Status,
    },
    /// Ask for a link to the payload.
    RequestGrant {
        /// Of which release.
        release: ReleaseId,
    },
    /// Answer the direct method that carried a grant: whether it was waited for.
    AnswerGrant {
        /// Whether it was taken.
        accepted: bool,
    },
    /// Find out what the rest of the payload will cost, by the links of the last grant that was taken, and how it is
    /// to be fetched. Asked for only if the policy has caps, or the release a chunked archive.
    Plan {
        /// Of which release.
        release: ReleaseId,
        /// So many bytes of its payload are durable already.
        offset: u64,
    },
    /// Fetch the payload by the link of the last grant that was taken; as planned, if a plan was asked for.
    Fetch {
        /// What is fetched.
        release: ReleaseId,
        /// From this byte: what lies before is durable already.
        offset: u64,
    },
    /// Stop planning or fetching; no event follows.
    AbortFetch,
    /// Stop fetching for now: [`Event::FetchFailed`] with [`FetchError::Stopped`] says what is durable.
    PauseFetch,
    /// Forget the bytes that were fetched.
    Discard,
    /// Compare the payload with size and digest of the release.
    Verify(ReleaseId),
    /// Put the payload into the inactive slot.
    Stage(ReleaseId),
    /// Make the record durable.
    Persist(Record),
    /// Ask whoever runs on the device whether it may be interrupted now.
    AskLocks,
    /// Boot the inactive slot, once: if nothing commits it, the next boot is into the committed one again.
    RebootIntoCandidate,
    /// Boot the slot that boots by default.
    RebootIntoCommitted,
    /// Run the health checks.
    CheckHealth,
    /// Make the running slot the default one.
    CommitSlot,
    /// Answer whoever sent [`Event::Abort`].
    AnswerAbort {
        /// Whether there was an update under way that could still be ended.
        taken: bool,
    },
    /// Give an [`Event::Timer`] at this time; replaces the one before.
    Wake(Instant),
    /// Nothing to do: the update has entered this state, for whoever watches.
    Entered(State),
}

/// What the cloud side said to a grant request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantAnswer {
    /// The driver has the link; it is good until then.
    Granted {
        /// When the link ends.
        expires: WallTime,
    },
    /// Not now.
    Later(Duration),
    /// Never.
    Refused,
}

/// How a payload is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// All of it.
    Full,
    /// What the device lacks, from a chunked archive.
    Delta,
}

impl Method {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
        }
    }

    /// The method of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Full, Self::Delta].into_iter().find(|method| method.name() == name)
    }
}

/// What the rest of a download will cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How it is fetched.
    pub method: Method,
    /// Bytes still to be fetched.
    pub bytes: u64,
    /// Requests for them.
    pub requests: u32,
    /// Bytes that this update has cost before, in all its attempts.
    pub spent: u64,
    /// Bytes that the device may still fetch in this window of [`crate::Caps`]; [`u64::MAX`] without such a limit.
    pub allowance: u64,
}

impl Plan {
    /// To fetch all that is missing of a payload of `size` bytes, of which `durable` are there, and no limits.
    #[must_use]
    pub const fn full(size: u64, durable: u64) -> Self {
        let bytes = size.saturating_sub(durable);
        Self { method: Method::Full, bytes, requests: 1, spent: 0, allowance: u64::MAX }
    }
}

/// Whether what runs on a device may be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAnswer {
    /// Nobody minds.
    Free,
    /// Somebody is in the middle of something.
    Held,
}

/// Why a download stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// 403: the link has expired or was never good.
    Forbidden,
    /// 404.
    NotFound,
    /// 429 or 503 with the pause that was asked for.
    Busy(Duration),
    /// Any other 5xx.
    Server,
    /// Not connected, cut, timed out.
    Interrupted,
    /// An answer that makes no sense: no range, wrong range, too many bytes.
    Protocol,
    /// What was planned cannot be carried out: a chunk is not what was signed, or is not on the device any more. Plan
    /// again.
    Unplanned,
    /// The device could not keep the bytes.
    Storage(StorageError),
    /// The installer does not take such a payload, and so has no place for it.
    Unfit,
    /// The machine asked for it, by [`Effect::PauseFetch`].
    Stopped,
    /// This update has cost as many bytes as one may.
    OverUpdateCap,
    /// The device has fetched as much as it may in this window.
    OverWindowCap,
}

impl FetchError {
    /// The code with which an update ends that cannot get past this.
    #[must_use]
    pub const fn code(self) -> ResultCode {
        match self {
            Self::Forbidden => ResultCode::DownloadForbidden,
            Self::NotFound => ResultCode::DownloadNotFound,
            Self::Busy(_) => ResultCode::DownloadThrottled,
            Self::Server => ResultCode::DownloadServerError,
            Self::Interrupted | Self::Stopped => ResultCode::DownloadInterrupted,
            Self::OverUpdateCap => ResultCode::OverUpdateCap,
            Self::OverWindowCap => ResultCode::OverWindowCap,
            Self::Protocol | Self::Unplanned => ResultCode::DownloadProtocol,
            Self::Unfit => ResultCode::PayloadUnfit,
            Self::Storage(error) => error.code(),
        }
    }
}

/// What was wrong with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// Not as long as was signed.
    Size,
    /// Not the bytes that were signed.
    Digest,
    /// Not to be read back from where it was put.
    Unreadable,
}

impl VerifyError {
    /// The code with which an update ends that cannot get past this.
    #[must_use]
    pub const fn code(self) -> ResultCode {
        match self {
            Self::Size => ResultCode::SizeMismatch,
            Self::Digest => ResultCode::DigestMismatch,
            Self::Unreadable => ResultCode::StorageFailed,
        }
    }
}

/// What was wrong with the device's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageError {
    /// Full.
    NoSpace,
    /// Mounted read-only.
    ReadOnly,
    /// Anything else.
    Failed,
}

impl StorageError {
    /// The code with which an update ends that cannot get past this.
    #[must_use]
    pub const fn code(self) -> ResultCode {
        match self {
            Self::NoSpace => ResultCode::NoSpace,
            Self::ReadOnly => ResultCode::ReadOnly,
            Self::Failed => ResultCode::StorageFailed,
        }
    }
}

/// Why a release could not be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// The device's storage failed.
    Storage(StorageError),
    /// The payload is not what the installer takes.
    Payload,
    /// A command that the operator put before the step.
    Hook,
    /// A program that the installer needs.
    Failed,
    /// Whoever runs the release refused it.
    Refused,
}

impl From<StorageError> for InstallError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl InstallError {
    /// The code with which an update ends that cannot get past this.
    #[must_use]
    pub const fn code(self) -> ResultCode {
        match self {
            Self::Storage(error) => error.code(),
            Self::Payload => ResultCode::PayloadUnfit,
            Self::Hook => ResultCode::HookFailed,
            Self::Failed => ResultCode::InstallFailed,
            Self::Refused => ResultCode::InstallRefused,
        }
    }
}

/// The release on trial is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthError;
