//! The invariants of the design, checked at each effect and at rest.

use fleetwave_agent_core::twin::{self, Desired, Progress, Status};
use fleetwave_agent_core::{Place, ReleaseId};

use super::World;

impl World {
    pub(super) fn check_stage(&self) {
        let payload = self.disk.payload.expect("stages something");
        assert!(self.verified && payload.genuine, "invariant 1: stages what was not verified");
        assert!(self.releases[payload.release].trust.is_ok(), "invariant 1: stages what nobody signed");
        assert_eq!(self.running, self.disk.default, "invariant 2: would overwrite the slot to go back to");
    }

    pub(super) fn check_reboot(&self) {
        let slot = self.disk.slots[1 - self.disk.default].expect("invariant 2: boots an empty slot");
        assert!(slot.verified, "invariant 1: boots what was not verified");
    }

    pub(super) fn check_commit(&self) {
        assert!(self.healthy, "commits a release that is not known to be healthy");
        assert_ne!(self.running, self.disk.default, "commits what is committed");
    }

    pub(super) fn check_fetch(&self, release: ReleaseId, offset: u64) {
        let Some(payload) = self.disk.payload else {
            assert_eq!(offset, 0, "goes on from bytes that are not there");
            return;
        };
        assert_eq!(offset, payload.bytes, "invariant 6: {} bytes were durable", payload.bytes);
        assert!(self.releases.same(release, payload.release), "goes on from another payload's bytes");
        assert!(offset < self.releases[release].size, "fetches nothing");
    }

    /// Nothing is fetched that a cap does not allow, and nothing at the wrong time.
    pub(super) fn check_cost(&self, release: ReleaseId, offset: u64) {
        let missing = self.releases[release].size - offset;
        if let Some(caps) = self.policy.caps.filter(|_| self.ledger_counts) {
            assert!(self.spent + missing <= caps.per_update, "{} spent, {missing} to come", self.spent);
        }
        if let Some(window) = self.policy.download_window {
            let place = window.place(self.policy.local(self.now.wall));
            assert_ne!(place, Place::Closed, "fetches outside of its window");
        }
    }

    pub(super) fn check_report(&self, status: &Status) {
        let default = self.slot(self.disk.default).release;
        assert!(
            self.releases.same(status.running, default),
            "invariant 5: says {status:?}, boots {default:?}"
        );
        if !matches!(status.progress, Progress::Updating(..)) {
            assert_eq!(self.running, self.disk.default, "invariant 5: at rest on trial");
        }
    }

    pub(super) fn check_versions(&mut self) {
        let version = self.agent.desired_version();
        // Zero: nothing heard on this connection yet.
        if version > 0 {
            assert!(version >= self.seen_version, "invariant 8: {version} after {}", self.seen_version);
            self.seen_version = version;
        }
    }

    /// Everything has come to rest: the device is converged, or has given up and said why, and the hub knows.
    pub(crate) fn assert_settled(&self) {
        let hub = serde_json::to_string(&self.hub.reported).expect("JSON");
        let context = || format!("{:?}; the hub: {hub}", self.agent);
        assert!(self.powered && self.agent.is_online(), "invariant 4: not online: {}", context());
        assert_eq!(self.agent.desired_version(), self.hub.version, "invariant 8: {}", context());
        let status = self.agent.status();
        let known = twin::read_status(&self.hub.reported, &self.releases);
        assert!(
            known.is_some_and(|known| known.reads_like(&status, &self.releases)),
            "untold: {}",
            context()
        );
        self.check_report(&status);
        let wanted = match self.agent.desired() {
            Desired::Release(release) => release,
            Desired::Nothing | Desired::Cancelled(_) => {
                assert!(!matches!(status.progress, Progress::Updating(..)), "invariant 4: {}", context());
                return;
            }
        };
        let done = self.releases.same(status.running, wanted);
        let given_up = matches!(status.progress, Progress::Failed(release, _) if release == wanted);
        assert!(done || given_up, "invariant 4: {}", context());
    }
}
