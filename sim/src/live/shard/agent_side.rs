//! What agents are told, and what they ask for.

use fleetwave_agent_core::grant::{PROPERTIES, Request};
use fleetwave_agent_core::twin::{self, Status};
use fleetwave_agent_core::{Context, Effect, Event, LockAnswer, Plan, ReleaseId, State};
use fleetwave_protocol::{Instant, Now, Up};

use super::hub_side::GrantUnderWay;
use super::slot::{Work, flag};
use super::{MOST_MEANINGS, Shard};
use crate::live::transport::Line;

/// Whether the device still runs after an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    On,
    Off,
}

impl Shard {
    /// Tells a device's agent something, carries out what it asks for, and tells it what comes of that at once.
    pub(super) fn tell(&mut self, index: u32, event: Event) {
        if !self.slots[index as usize].has(flag::ON) {
            return;
        }
        let now = self.now();
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut effects = std::mem::take(&mut self.effects);
        inbox.push(event);
        let mut next = 0;
        while let Some(&event) = inbox.get(next) {
            next += 1;
            let slot = &mut self.slots[index as usize];
            let policy = self.world.policy(usize::from(slot.group));
            slot.agent.handle(&Context { policy, releases: &self.releases }, now, event, &mut effects);
            for effect in effects.drain(..) {
                if self.carry_out(index, now, effect, &mut inbox) == Life::Off {
                    // A device that is down does nothing more of what it meant to.
                    inbox.clear();
                    next = 0;
                    break;
                }
            }
        }
        inbox.clear();
        self.inbox = inbox;
        self.effects = effects;
        self.transmit(index, now.at);
        self.ask_for_turn(index);
    }

    /// Carries out an effect that had to wait for its place.
    pub(super) fn carry_out_late(&mut self, index: u32, effect: Effect) {
        let now = self.now();
        let mut inbox = Vec::new();
        // None of those that wait is one that ends the device's life.
        self.carry_out_now(index, now, effect, &mut inbox);
        self.transmit(index, now.at);
        for event in inbox {
            self.tell(index, event);
        }
        self.ask_for_turn(index);
    }

    fn carry_out(&mut self, index: u32, now: Now, effect: Effect, inbox: &mut Vec<Event>) -> Life {
        match self.within_limits(index, effect) {
            Some(effect) => self.carry_out_now(index, now, effect, inbox),
            None => Life::On,
        }
    }

    fn carry_out_now(&mut self, index: u32, now: Now, effect: Effect, inbox: &mut Vec<Event>) -> Life {
        let at = now.at;
        match effect {
            Effect::Connect => self.connect(index, at, inbox),
            Effect::Disconnect => self.disconnect(index, at),
            Effect::Subscribe => {
                self.name(index);
                self.writer.subscribe(&self.id);
            }
            Effect::GetTwin { rid } => {
                self.slots[index as usize].twin_rid = rid;
                self.send_up(index, &Up::TwinGet { rid: itoa(rid).as_str() });
            }
            Effect::Report { rid, status } => self.report(index, rid, &status),
            Effect::RequestGrant { release } => self.request_grant(index, at, release),
            Effect::AnswerGrant { accepted } => self.answer_grant(index, at, accepted),
            Effect::Fetch { release, offset } => self.fetch(index, release, offset, inbox),
            Effect::Plan { release, offset } => {
                let spent = self.payloads.get(&index).map_or(0, |payload| payload.spent);
                let plan = Plan { spent, ..Plan::full(self.releases[release].size, offset) };
                inbox.push(Event::Planned(Ok(plan)));
            }
            Effect::AbortFetch => self.stop_fetching(index),
            Effect::PauseFetch => self.interrupt_fetching(index),
            Effect::Discard => self.discard(index),
            Effect::Verify(release) => {
                let size = self.releases[release].size;
                let span = self.world.verify_time(self.who(index), size);
                self.work(index, at, Work::Verify(release), span);
            }
            Effect::Stage(release) => {
                let who = self.who(index);
                let hardware = &mut self.slots[index as usize].hardware;
                let span = hardware.begin_stage(&self.world, who, release, &mut self.violations);
                self.work(index, at, Work::Stage(release), span);
            }
            Effect::Persist(record) => {
                self.slots[index as usize].hardware.persist(record);
                self.forget_payload(index, record);
                inbox.push(Event::Persisted(Ok(())));
            }
            Effect::RebootIntoCandidate => {
                self.slots[index as usize].hardware.arm();
                self.reboot(index, at);
                return Life::Off;
            }
            Effect::RebootIntoCommitted => {
                self.reboot(index, at);
                return Life::Off;
            }
            Effect::CheckHealth => {
                let who = self.who(index);
                let span = self.slots[index as usize].hardware.probation_time(&self.world, who);
                self.work(index, at, Work::Health, span);
            }
            Effect::CommitSlot => return self.commit(index, inbox),
            Effect::AskLocks => {
                let who = self.who(index);
                let answer = self.slots[index as usize].hardware.locks(&self.world, who);
                inbox.push(Event::Locks(if self.trouble.free { LockAnswer::Free } else { answer }));
            }
            Effect::AnswerAbort { taken } => self.called_off(index, taken),
            Effect::Wake(wake) => {
                let slot = &mut self.slots[index as usize];
                slot.wake = wake;
                if slot.agent.state() == State::Deferred {
                    self.doom(index, at, wake.since(at));
                }
            }
            Effect::Entered(state) => {
                self.slots[index as usize].hardware.entered(state);
                if self.tell_stories {
                    self.stories[index as usize].push(state);
                }
                self.enter_doom(index, state);
            }
        }
        Life::On
    }

    /// The device means to connect from now on, if it did not before.
    pub(super) fn begin_connecting(&mut self, index: u32, at: Instant) {
        let slot = &mut self.slots[index as usize];
        if !slot.has(flag::CONNECTING) {
            slot.set(flag::CONNECTING);
            slot.started = at;
            self.meter.connecting();
        }
    }

    fn connect(&mut self, index: u32, at: Instant, inbox: &mut Vec<Event>) {
        self.begin_connecting(index, at);
        if self.trouble.is_unreachable(at) {
            inbox.push(Event::Disconnected);
            return;
        }
        // Nobody hears a device whose link is down: it notices by itself.
        if self.is_link_down(index) {
            return;
        }
        self.name(index);
        match self.transport.connect(index, &self.id) {
            Ok(line) => {
                self.slots[index as usize].line = line;
                let login = self.login.as_ref().map(|login| login.of(&self.id));
                let keep_alive = self.world.scenario().agent.keep_alive.duration().as_secs();
                self.writer.connect(&self.id, login, u16::try_from(keep_alive).unwrap_or(u16::MAX));
                self.transmit(index, at);
            }
            Err(error) => {
                tracing::debug!(device = self.id, %error, "a device cannot connect");
                inbox.push(Event::Disconnected);
            }
        }
    }

    /// Gives the connection up in good order.
    pub(super) fn disconnect(&mut self, index: u32, at: Instant) {
        let slot = &self.slots[index as usize];
        if slot.line == Line::NONE {
            return;
        }
        if slot.has(flag::UP) {
            self.name(index);
            self.writer.goodbye(&self.id);
            self.transmit(index, at);
        }
        self.lose_line(index);
    }

    /// Ends the connection without a word.
    pub(super) fn lose_line(&mut self, index: u32) {
        let at = self.clock.now().at;
        let slot = &mut self.slots[index as usize];
        if !slot.has(flag::CONNECTING) {
            slot.intended = at;
        }
        if slot.has(flag::UP) {
            slot.clear(flag::UP | flag::PINGED);
            self.tally.connected.sub(1);
        }
        slot.ping = Instant::NEVER;
        self.transport.close(std::mem::replace(&mut slot.line, Line::NONE));
        self.partial.remove(&index);
        self.writer.clear();
        self.forget_held(index);
        self.forget_outside(index);
    }

    /// Sends what has been written.
    pub(super) fn transmit(&mut self, index: u32, at: Instant) {
        let slot = &mut self.slots[index as usize];
        let (bytes, packets) = self.writer.written();
        if packets > 0 && slot.line != Line::NONE {
            self.meter.traffic(packets, bytes.len() as u64, 0, 0);
            if !slot.has(flag::RARE) || !trouble_holds(&mut self.rare, index, bytes) {
                self.transport.send(slot.line, bytes);
            }
            let keep_alive = self.world.scenario().agent.keep_alive.duration();
            if !keep_alive.is_zero() && !slot.has(flag::PINGED) {
                slot.ping = at + keep_alive;
            }
        }
        self.writer.clear();
    }

    fn send_up(&mut self, index: u32, message: &Up<'_>) {
        self.name(index);
        self.writer.up(&self.id, message);
    }

    fn report(&mut self, index: u32, rid: u32, status: &Status) {
        let who = self.who(index);
        let hardware = &self.slots[index as usize].hardware;
        hardware.reports(who, status, &self.releases, &mut self.violations);
        if self.reports.len() == MOST_MEANINGS {
            self.reports.clear();
        }
        let text = self.reports.entry(*status).or_insert_with(|| twin::write_report(status, &self.releases));
        if let Some(outside) = &mut self.outside {
            outside.reports(index, rid, *status);
        }
        let rid = itoa(rid);
        let message = Up::Report { rid: rid.as_str(), base: None, patch: text.as_bytes() };
        self.id.clear();
        self.world.fleet().write_id(who.number, &mut self.id);
        self.writer.up(&self.id, &message);
    }

    /// Counts a request for a grant, unless one waits for its answer.
    pub(super) fn asks_for_grant(&mut self, index: u32, at: Instant) {
        let slot = &mut self.slots[index as usize];
        if !slot.has(flag::ASKED) {
            slot.set(flag::ASKED);
            slot.asked = at;
            self.meter.grant_requested();
        }
    }

    /// Counts the grant that the device waited for.
    pub(super) fn has_grant(&mut self, index: u32, at: Instant) {
        let slot = &mut self.slots[index as usize];
        if slot.has(flag::ASKED) {
            slot.clear(flag::ASKED);
            self.meter.granted(slot.asked, at);
        }
    }

    fn request_grant(&mut self, index: u32, at: Instant, release: ReleaseId) {
        self.asks_for_grant(index, at);
        let release = &self.releases[release];
        let request = Request { id: release.id.to_string(), seq: release.sequence, target: None };
        let body = serde_json::to_vec(&request).expect("a request is JSON");
        let message = Up::Telemetry { properties: PROPERTIES, body: &body };
        match &mut self.outside {
            Some(outside) => {
                let packet = outside.packet();
                outside.asks(index, packet, request);
                self.name(index);
                self.writer.up_acknowledged(&self.id, &message, packet);
            }
            None => self.send_up(index, &message),
        }
        // Not later than the earliest answer: the state is to be this one still.
        self.doom(index, at, self.world.scenario().grant.latency.min());
    }

    /// The agent has said whether it waited for the grant that it was told of.
    fn answer_grant(&mut self, index: u32, at: Instant, accepted: bool) {
        let Some(GrantUnderWay { url, method }) = self.grant.take() else { return };
        if accepted {
            self.has_grant(index, at);
            if let Some(url) = url {
                self.payloads.entry(index).or_default().url = url;
            }
        }
        if let Some(rid) = method {
            let status = if accepted { 200 } else { 409 };
            self.send_up(index, &Up::MethodResponse { rid: &rid, status, body: b"null" });
        }
    }

    fn commit(&mut self, index: u32, inbox: &mut Vec<Event>) -> Life {
        let who = self.who(index);
        let doom = self.take_doom(index);
        if let Some((through, off_for)) = doom
            && through < 0.5
        {
            self.power_cut(index, &off_for);
            return Life::Off;
        }
        let hardware = &mut self.slots[index as usize].hardware;
        let result = hardware.commit(who, &self.releases, &mut self.violations);
        if let Some((_, off_for)) = doom {
            self.power_cut(index, &off_for);
            return Life::Off;
        }
        inbox.push(Event::SlotCommitted(result));
        Life::On
    }
}

/// Keeps bytes of a device whose link is down; false if it is not.
fn trouble_holds(
    rare: &mut rustc_hash::FxHashMap<u32, super::trouble::Rare>,
    index: u32,
    bytes: &[u8],
) -> bool {
    rare.get_mut(&index).is_some_and(|rare| rare.hold_up(bytes))
}

/// A request id as text, without an allocation.
fn itoa(number: u32) -> Digits {
    let mut digits = Digits { text: [0; 10], from: 10 };
    let mut rest = number;
    loop {
        digits.from -= 1;
        digits.text[digits.from] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return digits;
        }
    }
}

struct Digits {
    text: [u8; 10],
    from: usize,
}

impl Digits {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[self.from..]).expect("digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_they_are_written() {
        for number in [0, 7, 10, 4_294_967_295] {
            assert_eq!(itoa(number).as_str(), number.to_string());
        }
    }
}
