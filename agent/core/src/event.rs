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
    /// A download stopped before its end.
    FetchFailed {
        /// Why.
        error: FetchError,
        /// Bytes from the start that would survive a power cut.
        durable: u64,
    },
    /// A download has come to its end; all bytes are durable.
    Fetched,
    /// The payload was compared with what was signed.
    Verified(Result<(), VerifyError>),
    /// The payload was put into the inactive slot.
    Staged(Result<(), StorageError>),
    /// The last [`Effect::Persist`] is durable, or can't be.
    Persisted(Result<(), StorageError>),
    /// The health checks of the release on trial ended.
    Health(Result<(), HealthError>),
    /// The running slot was made the default one, or can't be.
    SlotCommitted(Result<(), StorageError>),
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
    /// Fetch the payload by the link of the last grant that was taken.
    Fetch {
        /// What is fetched.
        release: ReleaseId,
        /// From this byte: what lies before is durable already.
        offset: u64,
    },
    /// Stop fetching; no event follows.
    AbortFetch,
    /// Forget the bytes that were fetched.
    Discard,
    /// Compare the payload with size and digest of the release.
    Verify(ReleaseId),
    /// Put the payload into the inactive slot.
    Stage(ReleaseId),
    /// Make the record durable.
    Persist(Record),
    /// Boot the inactive slot, once: if nothing commits it, the next boot is into the committed one again.
    RebootIntoCandidate,
    /// Boot the slot that boots by default.
    RebootIntoCommitted,
    /// Run the health checks.
    CheckHealth,
    /// Make the running slot the default one.
    CommitSlot,
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
    /// The device could not keep the bytes.
    Storage(StorageError),
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
            Self::Interrupted => ResultCode::DownloadInterrupted,
            Self::Protocol => ResultCode::DownloadProtocol,
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
}

impl VerifyError {
    /// The code with which an update ends that cannot get past this.
    #[must_use]
    pub const fn code(self) -> ResultCode {
        match self {
            Self::Size => ResultCode::SizeMismatch,
            Self::Digest => ResultCode::DigestMismatch,
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

/// The release on trial is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthError;
