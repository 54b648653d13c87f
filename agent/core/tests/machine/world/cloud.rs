//! The hub's and the cloud side's answers.

use fleetwave_agent_core::twin::{self, Progress, Status};
use fleetwave_agent_core::{Event, GrantAnswer, ReleaseId};
use fleetwave_protocol::time::WallTime;

use super::script::Item;
use super::{NET, World};

impl World {
    /// Whether what is sent now arrives. If not, the device is about to hear that the connection is lost.
    pub(super) fn arrives(&self) -> bool {
        let told = |item: &Item| matches!(item, Item::Hub(_, Event::Disconnected));
        assert!(self.hub.connected || self.queue.values().any(told), "sends without a connection");
        self.hub.connected
    }

    pub(super) fn read_twin(&mut self) {
        if !self.arrives() {
            return;
        }
        let unlucky = || self.luck.as_mut().and_then(|luck| luck.answer(self.now.at));
        let answer = self.script.twins.pop_front().or_else(unlucky).unwrap_or(Some(200));
        let delay = NET + self.script.twin_delays.pop_front().unwrap_or_default();
        match answer {
            None => {}
            Some(200) => {
                let twin = twin::read_twin(&self.hub.twin(), &mut self.releases).expect("the hub's own twin");
                let (version, desired, reported) = (twin.version, twin.desired, twin.reported);
                self.hear(delay, Event::Twin { version, desired, reported });
            }
            Some(status) => self.hear(delay, Event::TwinRefused(status)),
        }
    }

    pub(super) fn report(&mut self, rid: u32, status: Status) {
        self.check_report(&status);
        if !self.arrives() {
            return;
        }
        let unlucky = || self.luck.as_mut().and_then(|luck| luck.answer(self.now.at));
        let answer = self.script.reports.pop_front().or_else(unlucky).unwrap_or(Some(204));
        // Taken but never answered is the worst case of no answer.
        if answer.is_none_or(|answer| answer < 300) {
            self.hub.report(&twin::write_report(&status, &self.releases));
            if let Progress::Idle(Some(code)) | Progress::Failed(_, code) = status.progress {
                self.codes.push(code);
            }
        }
        if let Some(status) = answer {
            self.hear(NET, Event::Reported { rid, status });
        }
    }

    pub(super) fn grant(&mut self, release: ReleaseId) {
        if !self.arrives() {
            return;
        }
        let expires = WallTime::from_unix_millis(self.now.wall.as_unix_millis() + 60_000);
        let unlucky = || self.luck.as_mut().and_then(|luck| luck.granting(self.now.at));
        let answer = self.script.grants.pop_front().or_else(unlucky);
        if let Some(answer) = answer.unwrap_or(Some(GrantAnswer::Granted { expires })) {
            self.hear(NET * 3, Event::Grant { release, answer });
        }
    }
}
