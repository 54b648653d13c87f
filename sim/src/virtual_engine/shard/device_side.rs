//! What happens at a device: events become the agent's, and its effects are carried out.

use fleetwave_agent_core::twin::{Desired, Status};
use fleetwave_agent_core::{
    Context, Effect, Event as AgentEvent, GrantAnswer, Record, ReleaseId, State, VerifyError,
};
use fleetwave_protocol::time::micros;

use super::super::event::Kind;
use super::{Env, Event, NEVER, Shard, Worker, flag, instant, life, now, wall};
use crate::measure::{ChangeId, Connection};

/// In a grant's argument: the cloud side refused.
pub(super) const REFUSED: u32 = 1 << 31;

impl Shard {
    /// Something reaches a device, or happens on it.
    pub(super) fn at_device(&mut self, event: Event, env: &Env, worker: &mut Worker) {
        let index = event.device;
        let at = event.at;
        let device = &mut self.devices[usize::from(index)];
        match event.kind {
            Kind::Gone => {}
            // What comes over a connection that is no more, or belongs to work that was given up, is gone.
            Kind::Connack
            | Kind::Closed
            | Kind::Twin
            | Kind::TwinRefused
            | Kind::Reported
            | Kind::Desired
            | Kind::GrantCall
            | Kind::GrantMessage
                if event.generation != device.session as u8 || !device.has(flag::ON) => {}
            Kind::PowerOn
            | Kind::Fetched
            | Kind::FetchedCorrupt
            | Kind::FetchRefused
            | Kind::FetchCut
            | Kind::Verified
            | Kind::Staged
            | Kind::Health
            | Kind::PowerCut
                if event.generation != device.work => {}
            Kind::PowerOn => self.power_on(index, at, env, worker),
            Kind::PowerCut => self.power_cut(index, at, event.a, env, worker),
            Kind::Timer => self.timer(index, at, env, worker),
            Kind::Connack => {
                device.clear(flag::CONNECTING);
                let first = !device.has(flag::KNOWN);
                device.set(flag::KNOWN);
                worker.meter.connected(Connection {
                    intended: instant(device.intended),
                    started: instant(device.started),
                    accepted: instant(at),
                    first,
                });
                let session_present = event.a != 0 && device.life & life::HEARD != 0;
                self.tell(index, at, AgentEvent::Connected { session_present }, env, worker);
            }
            Kind::Closed => {
                device.session += 1;
                device.intended = at;
                self.tell(index, at, AgentEvent::Disconnected, env, worker);
            }
            Kind::Twin => {
                let content = self.twins[event.a as usize];
                let version = u64::from(event.b);
                self.take_version(index, version, worker);
                let heard =
                    AgentEvent::Twin { version, desired: content.desired, reported: content.reported };
                self.tell(index, at, heard, env, worker);
                self.notice(index, at, worker);
            }
            Kind::TwinRefused => {
                self.tell(index, at, AgentEvent::TwinRefused(event.a as u16), env, worker);
            }
            Kind::Reported => {
                let answer = AgentEvent::Reported { rid: event.a, status: event.b as u16 };
                self.tell(index, at, answer, env, worker);
            }
            Kind::Desired => {
                let before = device.agent.desired();
                let desired = self.read_patch(event.a, before);
                self.take_version(index, u64::from(event.b), worker);
                let change = AgentEvent::Desired { version: u64::from(event.b), desired };
                self.tell(index, at, change, env, worker);
                self.notice(index, at, worker);
            }
            Kind::GrantCall | Kind::GrantMessage => self.grant_arrives(event, env, worker),
            Kind::Fetched | Kind::FetchedCorrupt => self.fetched(&event, env, worker),
            Kind::FetchRefused => self.fetch_refused(&event, env, worker),
            Kind::FetchCut => self.fetch_cut(&event, env, worker),
            Kind::FetchDropped => self.salvage(event, env, worker),
            Kind::Verified => {
                let release = ReleaseIdOf(event.a).get(env);
                let spoilt = env.world().spec_of(release).is_some_and(|spec| spec.corrupt);
                let genuine = !device.has(flag::CORRUPT) && !spoilt;
                device.hardware.verified(genuine);
                if genuine {
                    device.forget_archive();
                } else if device.life & life::CHUNKS != 0 {
                    device.refuse_chunks();
                }
                let result = if genuine { Ok(()) } else { Err(VerifyError::Digest) };
                self.tell(index, at, AgentEvent::Verified(result), env, worker);
            }
            Kind::Staged => {
                let who = self.who(index);
                let release = ReleaseIdOf(event.a).get(env);
                let device = &mut self.devices[usize::from(index)];
                let result = device.hardware.end_stage(env.world(), who, release);
                self.tell(index, at, AgentEvent::Staged(result.map_err(Into::into)), env, worker);
            }
            Kind::Health => {
                let who = self.who(index);
                let result = self.devices[usize::from(index)].hardware.health(env.world(), who);
                self.tell(index, at, AgentEvent::Health(result), env, worker);
            }
            _ => unreachable!("what happens at the hub is not for the device's side"),
        }
    }

    /// Gives the agent an event, and carries out what follows from it.
    pub(super) fn tell(&mut self, index: u16, at: u64, event: AgentEvent, env: &Env, worker: &mut Worker) {
        let mut inbox = core::mem::take(&mut self.inbox);
        let mut effects = core::mem::take(&mut self.effects);
        inbox.push(event);
        let mut next = 0;
        while let Some(&event) = inbox.get(next) {
            next += 1;
            let device = &mut self.devices[usize::from(index)];
            let cx = Context { policy: env.policy(device.group), releases: &self.releases };
            effects.clear();
            device.agent.handle(&cx, now(env, at), event, &mut effects);
            for &effect in &effects {
                if !self.carry_out(index, at, effect, &mut inbox, env, worker) {
                    // The power is gone, and with it what was still to be done.
                    next = inbox.len();
                    break;
                }
            }
        }
        inbox.clear();
        self.inbox = inbox;
        self.effects = effects;
    }

    /// Carries out one effect; false if the device has lost power over it. What is known at once goes to `inbox`.
    fn carry_out(
        &mut self,
        index: u16,
        at: u64,
        effect: Effect,
        inbox: &mut Vec<AgentEvent>,
        env: &Env,
        worker: &mut Worker,
    ) -> bool {
        let who = self.who(index);
        let device = &mut self.devices[usize::from(index)];
        match effect {
            Effect::Connect => self.connect(index, at, env, worker),
            Effect::Disconnect => {
                let session = device.session;
                device.session += 1;
                device.intended = at;
                self.send(index, at, 2, Kind::HubDisconnect, session, 0, env, worker);
            }
            Effect::Subscribe => device.set(flag::SUBSCRIBE),
            Effect::GetTwin { rid } => {
                let subscribes = device.has(flag::SUBSCRIBE);
                device.clear(flag::SUBSCRIBE);
                device.life |= life::HEARD;
                if subscribes {
                    worker.meter.up(env.sizes().subscribe);
                    worker.meter.down(env.sizes().suback);
                }
                let bytes = env.sizes().get(rid);
                self.send(index, at, bytes, Kind::HubTwinGet, rid, u32::from(subscribes), env, worker);
            }
            Effect::Report { rid, status } => {
                device.hardware.reports(who, &status, &self.releases, &mut worker.violations);
                let place = self.report_text(&status);
                let bytes = env.sizes().report(rid, self.reports[place as usize].len);
                self.send(index, at, bytes, Kind::HubReport, rid, place, env, worker);
            }
            Effect::RequestGrant { release } => {
                if !device.has(flag::ASKED) {
                    device.set(flag::ASKED);
                    device.asked = at;
                    worker.meter.grant_requested();
                }
                let expected = 2 * u64::from(device.latency);
                let text = env.grant_texts(release.index());
                let bytes = env.sizes().telemetry(text.request.len());
                self.send(index, at, bytes, Kind::HubGrantRequest, release.index() as u32, 0, env, worker);
                self.doom(index, at, expected);
            }
            Effect::AnswerGrant { accepted } => {
                if accepted && device.has(flag::ASKED) {
                    device.clear(flag::ASKED);
                    worker.meter.granted(instant(device.asked), instant(at));
                }
                if let Some((Kind::GrantCall, call)) = self.grant_under_way.take() {
                    let status = if accepted { 200 } else { 409 };
                    let bytes = env.sizes().response(call);
                    self.send(index, at, bytes, Kind::HubMethodResponse, call, status, env, worker);
                }
            }
            Effect::Fetch { release, offset } => self.fetch(index, at, release, offset, env, worker),
            Effect::Plan { release, offset } => {
                if let Some(plan) = self.plan(index, at, release, offset, env, worker) {
                    inbox.push(AgentEvent::Planned(Ok(plan)));
                }
            }
            Effect::AbortFetch => self.stop_fetching(index, at, worker),
            Effect::PauseFetch => self.cut_download(index, at, 0, worker),
            Effect::Discard => {
                device.hardware.discard();
                device.forget_archive();
                self.stop_fetching(index, at, worker);
                self.devices[usize::from(index)].work = self.devices[usize::from(index)].work.wrapping_add(1);
            }
            Effect::Verify(release) => {
                let span = micros(env.world().verify_time(who, self.releases[release].size));
                self.later(index, at + span, Kind::Verified, release.index() as u32);
                self.doom(index, at, span);
            }
            Effect::Stage(release) => {
                let world = env.world();
                let span = device.hardware.begin_stage(world, who, release, &mut worker.violations);
                self.later(index, at + micros(span), Kind::Staged, release.index() as u32);
                self.doom(index, at, micros(span));
            }
            Effect::Persist(record) => {
                if let Record::Started(release) = record
                    && device.payload != release.index() as u16
                {
                    device.payload = release.index() as u16;
                    device.furthest = 0;
                    device.life &= life::HEARD;
                }
                device.hardware.persist(record);
                if matches!(record, Record::Ended(..)) {
                    self.spent.remove(&index);
                }
                inbox.push(AgentEvent::Persisted(Ok(())));
            }
            Effect::RebootIntoCandidate | Effect::RebootIntoCommitted => {
                if effect == Effect::RebootIntoCandidate {
                    device.hardware.arm();
                }
                self.reboot(index, at, env, worker);
            }
            Effect::CheckHealth => {
                let span = micros(device.hardware.probation_time(env.world(), who));
                self.later(index, at + span, Kind::Health, 0);
                self.doom(index, at, span);
            }
            Effect::CommitSlot => {
                let doomed = device.has(flag::DOOMED);
                if doomed && device.doom < 0.5 {
                    self.power_cut_now(index, at, env, worker);
                    return false;
                }
                let result = device.hardware.commit(who, &self.releases, &mut worker.violations);
                if doomed {
                    self.power_cut_now(index, at, env, worker);
                    return false;
                }
                inbox.push(AgentEvent::SlotCommitted(result));
            }
            Effect::AskLocks => inbox.push(AgentEvent::Locks(device.hardware.locks(env.world(), who))),
            // Nobody aborts here.
            Effect::AnswerAbort { .. } => {}
            Effect::Wake(wake) => {
                device.wake = wake.as_micros();
                self.arm_timer(index, at);
                if self.devices[usize::from(index)].agent.state() == State::Deferred {
                    self.doom(index, at, wake.as_micros().saturating_sub(at));
                }
            }
            Effect::Entered(state) => {
                device.hardware.entered(state);
                self.consider_doom(index, state, env);
            }
        }
        true
    }

    /// The agent's wake-up, unless it has asked for a later one meanwhile.
    fn timer(&mut self, index: u16, at: u64, env: &Env, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        if device.timer == at {
            device.timer = NEVER;
        }
        if !device.has(flag::ON) {
            return;
        }
        if device.wake <= at {
            device.wake = NEVER;
            self.tell(index, at, AgentEvent::Timer, env, worker);
        }
        self.arm_timer(index, at);
    }

    /// Sees to it that an event comes at the wake-up, or before: a device has few timer events, not one for each
    /// deadline that it ever had.
    fn arm_timer(&mut self, index: u16, at: u64) {
        let device = &mut self.devices[usize::from(index)];
        if device.wake < device.timer {
            device.timer = device.wake.max(at);
            let at = device.timer;
            self.schedule(Event { at, device: index, kind: Kind::Timer, generation: 0, a: 0, b: 0 });
        }
    }

    /// An event of the work under way.
    fn later(&mut self, index: u16, at: u64, kind: Kind, a: u32) {
        let generation = self.devices[usize::from(index)].work;
        self.schedule(Event { at, device: index, kind, generation, a, b: 0 });
    }

    fn connect(&mut self, index: u16, at: u64, env: &Env, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        device.session += 1;
        if !device.has(flag::CONNECTING) {
            device.set(flag::CONNECTING);
            device.started = at;
            worker.meter.connecting();
        }
        // A new connection has nothing under way.
        device.up_clear = 0;
        device.down_clear = 0;
        let (session, latency) = (device.session, u64::from(device.latency));
        // SYN and SYN-ACK come before CONNECT.
        let sent = at + 2 * latency;
        self.send(index, sent, env.sizes().connect, Kind::HubConnect, session, 0, env, worker);
    }

    /// Sends a message to the hub.
    #[expect(clippy::too_many_arguments, reason = "an event's own members, and where it comes from")]
    fn send(
        &mut self,
        index: u16,
        at: u64,
        bytes: u64,
        kind: Kind,
        a: u32,
        b: u32,
        env: &Env,
        worker: &mut Worker,
    ) {
        worker.meter.up(bytes);
        let arrives = self.arrival(index, at, bytes, true, env);
        let generation = self.devices[usize::from(index)].session as u8;
        self.schedule(Event { at: arrives, device: index, kind, generation, a, b });
    }

    fn grant_arrives(&mut self, event: Event, env: &Env, worker: &mut Worker) {
        let Event { device: index, at, kind, a, b, .. } = event;
        if kind == Kind::GrantMessage {
            self.send(index, at, env.sizes().puback, Kind::HubAck, b, 0, env, worker);
        }
        let release = ReleaseIdOf(a & !REFUSED).get(env);
        let answer = if a & REFUSED != 0 {
            GrantAnswer::Refused
        } else {
            let ttl = env.world().scenario().grant.url_ttl.duration();
            GrantAnswer::Granted { expires: wall(env, at + micros(ttl)) }
        };
        self.grant_under_way = Some((kind, b));
        self.tell(index, at, AgentEvent::Grant { release, answer }, env, worker);
    }

    /// The agent acts on a version of the desired properties, if it is a new one to it.
    fn take_version(&mut self, index: u16, version: u64, worker: &mut Worker) {
        let who = self.who(index);
        let device = &mut self.devices[usize::from(index)];
        if version >= device.agent.desired_version() {
            device.hardware.saw_version(who, version, &mut worker.violations);
        }
    }

    /// Counts the device as notified once its agent knows what the hub wants of it.
    fn notice(&mut self, index: u16, at: u64, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        let knows = device.agent.desired() == device.want;
        if device.has(flag::TARGETED) && !device.has(flag::NOTIFIED) && knows {
            device.set(flag::NOTIFIED);
            worker.delta.notified += 1;
            worker.meter.notified(ChangeId(device.change), instant(at));
        }
    }

    /// What a patch means to an agent that knew `before`.
    fn read_patch(&mut self, patch: u32, before: Desired) -> Desired {
        let Self { meaning, patches, releases, .. } = self;
        *meaning.entry((patch, before)).or_insert_with(|| {
            let text = patches[patch as usize].text();
            fleetwave_agent_core::twin::read_patch(text.as_bytes(), before, releases)
                .ok()
                .flatten()
                .unwrap_or(before)
        })
    }

    /// The place of what `status` is to the hub.
    fn report_text(&mut self, status: &Status) -> u32 {
        if let Some(place) = self.reports.iter().position(|report| report.status == *status) {
            return place as u32;
        }
        let text = fleetwave_agent_core::twin::write_report(status, &self.releases);
        let patch = self.hub.intern_patch(text.as_bytes()).expect("what the agent reports is a merge patch");
        self.reports.push(super::ReportText { status: *status, patch, len: text.len() });
        (self.reports.len() - 1) as u32
    }
}

/// A release's place in the catalogue, as an event's argument carries it.
struct ReleaseIdOf(u32);

impl ReleaseIdOf {
    fn get(self, env: &Env) -> ReleaseId {
        env.release_at(self.0 as usize)
    }
}
