//! Every way in which an update ends, as a closed list with stable names.

macro_rules! result_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $class:ident;)+) => {
        /// How an update ended. The names are what devices report: they never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ResultCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ResultCode {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable name, as reported.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }
        }
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// The operator got what was asked for.
    Fine,
    /// The device gave the release up without having booted it.
    Failure,
    /// The device booted the release, or tried to, and is back on the one before.
    RolledBack,
}

result_codes! {
    /// Installed, booted, healthy, committed.
    Ok = "ok", Fine;
    /// Stopped because the back end said so.
    Cancelled = "cancelled", Fine;
    /// Stopped because a newer release is desired.
    Superseded = "superseded", Fine;
    /// The release reference in the twin lacks a member or has one of the wrong form.
    ReferenceMalformed = "reference_malformed", Failure;
    /// Too few of the release keys signed the reference.
    SignatureMissing = "signature_missing", Failure;
    /// A signature by a known key does not match the reference.
    SignatureInvalid = "signature_invalid", Failure;
    /// The sequence is below the committed one and the reference does not permit that.
    Downgrade = "downgrade", Failure;
    /// The release is signed for another target than the one whose section of the twin asks for it.
    WrongTarget = "wrong_target", Failure;
    /// The release is signed for other types of devices.
    Incompatible = "incompatible", Failure;
    /// The payload is larger than a slot.
    TooLarge = "too_large", Failure;
    /// The update would cost, or has cost, more bytes than one update may.
    OverUpdateCap = "over_update_cap", Failure;
    /// The update would cost more bytes than the device may fetch in a whole window, or did not get any further in so
    /// many of them. One that fits into the next window waits for it.
    OverWindowCap = "over_window_cap", Failure;
    /// The cloud side refused a link to the payload.
    GrantRefused = "grant_refused", Failure;
    /// The cloud side did not answer with a link, however often it was asked.
    GrantTimeout = "grant_timeout", Failure;
    /// The link was refused again and again although it was new.
    DownloadForbidden = "download_forbidden", Failure;
    /// The link leads nowhere.
    DownloadNotFound = "download_not_found", Failure;
    /// The blob store went on asking for patience.
    DownloadThrottled = "download_throttled", Failure;
    /// The blob store went on failing.
    DownloadServerError = "download_server_error", Failure;
    /// The connection to the blob store was lost or refused again and again.
    DownloadInterrupted = "download_interrupted", Failure;
    /// The blob store answered with something that is not the range asked for.
    DownloadProtocol = "download_protocol", Failure;
    /// The payload is not of the size that was signed.
    SizeMismatch = "size_mismatch", Failure;
    /// The payload's digest is not the one that was signed.
    DigestMismatch = "digest_mismatch", Failure;
    /// No space for the payload.
    NoSpace = "no_space", Failure;
    /// The device's storage is read-only.
    ReadOnly = "read_only", Failure;
    /// The device's storage failed.
    StorageFailed = "storage_failed", Failure;
    /// The payload is what was signed, and not what the installer takes.
    PayloadUnfit = "payload_unfit", Failure;
    /// A command that the operator put before a step failed, or took too long.
    HookFailed = "hook_failed", Failure;
    /// A program that the installer needs failed, or took too long.
    InstallFailed = "install_failed", Failure;
    /// Whoever runs the release (a cluster, another updater, the service manager) refused it.
    InstallRefused = "install_refused", Failure;
    /// What runs on the device could not be interrupted in time.
    LockTimeout = "lock_timeout", Failure;
    /// Stopped on the device itself, or by a direct method: it is not begun again.
    Aborted = "aborted", Failure;
    /// The same update was started too often without coming to an end: something resets the device.
    StartLoop = "start_loop", Failure;
    /// The new slot did not come up, as often as it was tried.
    BootFailed = "boot_failed", RolledBack;
    /// The new release came up and failed its health checks.
    Unhealthy = "unhealthy", RolledBack;
    /// The new release came up and did not become healthy in time, or did not reach the hub.
    ProbationTimeout = "probation_timeout", RolledBack;
    /// The new slot could not be made the default one.
    CommitFailed = "commit_failed", RolledBack;
}

impl ResultCode {
    /// The code of a stable name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// Whether the device gave the release up.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self.class() != Class::Fine
    }

    /// Whether the device had booted the release, or tried to, and went back.
    #[must_use]
    pub fn is_rollback(self) -> bool {
        self.class() == Class::RolledBack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back_to_their_code() {
        for &code in ResultCode::ALL {
            assert_eq!(ResultCode::from_name(code.name()), Some(code));
        }
    }
}
