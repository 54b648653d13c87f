//! The connection: connect, subscribe, read the twin, and come back after a loss without a stampede.

use fleetwave_protocol::time::Instant;

use super::report::Reporting;
use super::{Agent, Flags, Turn};
use crate::Effect;
use crate::twin::{Desired, Status};

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The device is off.
    Off,
    /// Not connected; the next try is then.
    Waiting(Instant),
    /// Asked to connect; gives up then.
    Connecting(Instant),
    /// Connected; the twin has been asked for and is given up then.
    Reading(Instant),
    /// Connected; the twin was refused and is asked for again then.
    Rereading(Instant),
    /// Connected, and the twin is known.
    Online,
}

impl Link {
    pub(super) fn deadline(self) -> Instant {
        match self {
            Self::Off | Self::Online => Instant::NEVER,
            Self::Waiting(at) | Self::Connecting(at) | Self::Reading(at) | Self::Rereading(at) => at,
        }
    }

    fn is_connected(self) -> bool {
        matches!(self, Self::Reading(_) | Self::Rereading(_) | Self::Online)
    }
}

impl Agent {
    pub(super) fn connected(&mut self, turn: &mut Turn<'_>, session_present: bool) {
        if self.link.is_connected() {
            // Another connection has taken the place of the one there was, as when a token is renewed: what had
            // been asked on that one is not answered any more.
            self.reporting = Reporting::Quiet;
            self.link_lost();
        } else if self.link == Link::Off {
            // Asked for or not: a machine that shares the connection of another has not.
            return;
        }
        // Versions are compared within a connection: a twin that was made anew begins at 1 again.
        self.heard_version = 0;
        // A session that the hub remembers may lack what was asked for on a connection that broke off too early.
        if !session_present || self.flags.has(Flags::UNHEARD) {
            self.flags.set(Flags::UNHEARD, true);
            turn.emit(Effect::Subscribe);
        }
        self.read_twin(turn);
    }

    fn read_twin(&mut self, turn: &mut Turn<'_>) {
        self.link = Link::Reading(turn.now.at + turn.cx.policy.request_timeout);
        let rid = self.rid();
        turn.emit(Effect::GetTwin { rid });
    }

    pub(super) fn disconnected(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.link, Link::Connecting(_)) || self.link.is_connected() {
            self.lost(turn);
        }
    }

    fn lost(&mut self, turn: &mut Turn<'_>) {
        let pause = turn.cx.policy.reconnect.spread(self.link_tries, &mut self.rng);
        self.link_tries = self.link_tries.saturating_add(1);
        self.link = Link::Waiting(turn.now.at + pause);
        self.reporting = Reporting::Quiet;
        self.link_lost();
    }

    pub(super) fn take_twin(
        &mut self,
        turn: &mut Turn<'_>,
        version: u64,
        desired: Desired,
        reported: Option<Status>,
    ) {
        if !matches!(self.link, Link::Reading(_) | Link::Rereading(_)) {
            return;
        }
        // A change overtook the answer: only a newer answer is the whole twin. The first time it will come at
        // once; a hub that keeps giving old ones is not to be asked in a tight loop.
        if version < self.heard_version {
            if self.link_tries == 0 {
                self.link_tries = 1;
                self.read_twin(turn);
            } else {
                self.reread_later(turn);
            }
            return;
        }
        self.link = Link::Online;
        self.link_tries = 0;
        self.flags.set(Flags::UNHEARD, false);
        self.told = reported;
        self.heard_version = version;
        self.desired = desired;
    }

    pub(super) fn twin_refused(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.link, Link::Reading(_)) {
            self.reread_later(turn);
        }
    }

    fn reread_later(&mut self, turn: &mut Turn<'_>) {
        let pause = turn.cx.policy.retry.pause(self.link_tries, &mut self.rng);
        self.link_tries = self.link_tries.saturating_add(1);
        self.link = Link::Rereading(turn.now.at + pause);
    }

    pub(super) fn take_desired(&mut self, turn: &mut Turn<'_>, version: u64, desired: Desired) {
        if !self.link.is_connected() || version <= self.heard_version {
            return;
        }
        let follows = version == self.heard_version + 1;
        self.heard_version = version;
        if !self.is_online() {
            return;
        }
        // A patch builds on the one before: with a gap between them only the whole twin tells.
        if follows {
            self.desired = desired;
        } else {
            self.read_twin(turn);
        }
    }

    pub(super) fn link_deadline(&mut self, turn: &mut Turn<'_>) {
        if self.link.deadline() > turn.now.at {
            return;
        }
        match self.link {
            Link::Off | Link::Online => {}
            Link::Waiting(_) => {
                self.link = Link::Connecting(turn.now.at + turn.cx.policy.request_timeout);
                turn.emit(Effect::Connect);
            }
            Link::Rereading(_) => self.read_twin(turn),
            Link::Connecting(_) | Link::Reading(_) => {
                if matches!(self.link, Link::Reading(_)) {
                    self.flags.set(Flags::UNHEARD, true);
                }
                turn.emit(Effect::Disconnect);
                self.lost(turn);
            }
        }
    }
}
