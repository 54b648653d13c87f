//! What survives a power cut: records that the driver makes durable, and the state that they add up to.

use crate::{ReleaseId, ResultCode};

/// One durable step. A driver appends it to its journal; [`Durable::apply`] says what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// An update began: nothing has been fetched yet. Written again at each cold start within it.
    Started(ReleaseId),
    /// The inactive slot holds the release, verified.
    Staged(ReleaseId),
    /// The inactive slot is about to be booted, once.
    Booting(ReleaseId),
    /// The release failed its trial for this reason; the device goes back.
    Reverting(ReleaseId, ResultCode),
    /// The update ended. With [`ResultCode::Ok`] the release is the committed one from now on.
    Ended(ReleaseId, ResultCode),
}

/// How far an update has come, as far as a power cut is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being fetched; counts the cold starts.
    Started {
        /// How often it was begun.
        starts: u8,
    },
    /// In the inactive slot; counts the boots of it.
    Staged {
        /// How often it was booted.
        boots: u8,
    },
    /// Failed its trial.
    Reverting(ResultCode),
}

/// An update in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What is being installed.
    pub release: ReleaseId,
    /// How far it is.
    pub phase: Phase,
}

/// The sum of a journal's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The release that boots by default: it was healthy once.
    pub committed: ReleaseId,
    /// The update in flight.
    pub pending: Option<Pending>,
    /// How the last update ended.
    pub last: Option<(ReleaseId, ResultCode)>,
    /// How often that one ended in the same way just before: a release that was committed and did not stay.
    pub repeats: u8,
}

impl Durable {
    /// A device that runs `committed` and has never updated.
    #[must_use]
    pub const fn new(committed: ReleaseId) -> Self {
        Self { committed, pending: None, last: None, repeats: 0 }
    }

    /// Adds a record.
    pub fn apply(&mut self, record: Record) {
        let before = |release| self.pending.filter(|pending| pending.release == release).map(|p| p.phase);
        let (release, phase) = match record {
            Record::Started(release) => {
                let starts = match before(release) {
                    Some(Phase::Started { starts }) => starts.saturating_add(1),
                    _ => 1,
                };
                (release, Phase::Started { starts })
            }
            Record::Staged(release) => (release, Phase::Staged { boots: 0 }),
            Record::Booting(release) => {
                let boots = match before(release) {
                    Some(Phase::Staged { boots }) => boots.saturating_add(1),
                    _ => 1,
                };
                (release, Phase::Staged { boots })
            }
            Record::Reverting(release, code) => (release, Phase::Reverting(code)),
            Record::Ended(release, code) => {
                if code == ResultCode::Ok {
                    self.committed = release;
                }
                let last = Some((release, code));
                self.repeats = if self.last == last { self.repeats.saturating_add(1) } else { 0 };
                self.last = last;
                self.pending = None;
                return;
            }
        };
        self.pending = Some(Pending { release, phase });
    }
}
