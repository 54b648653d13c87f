//! What happens at the hub: messages become the hub core's inputs, and its outputs are sent.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_agent_core::twin::{self, Desired, Progress, TwinContent};
use fleetwave_agent_core::{ReleaseId, grant};
use fleetwave_hub_core::throttle::Operation;
use fleetwave_hub_core::{C2dMessage, Configuration, Cycle, DesiredPatch, Input, Output, Patch, Topics};
use fleetwave_protocol::time::micros;

use super::super::event::Kind;
use super::super::gate::Told;
use super::device_side::REFUSED;
use super::{Env, Event, Shard, Worker, flag, instant, now};
use crate::measure::ChangeId;
use crate::scenario::model::Channel;

/// In an event's second argument: the throttles have let it pass.
const ADMITTED: u32 = 1 << 31;

/// The cloud side's longest pause beyond what the hub asked for when it was refused, in microseconds.
const CLOUD_JITTER: f64 = 10e6;

/// How long the cloud side waits for a device's answer to a grant.
const METHOD_TIMEOUT: Duration = Duration::from_secs(30);

impl Shard {
    /// A message reaches the hub.
    pub(super) fn at_hub(&mut self, event: Event, env: &Env, worker: &mut Worker) {
        let Event { at, device: index, kind, generation, a, b } = event;
        let ix = Self::ix(index);
        let device = &mut self.devices[usize::from(index)];
        let mut outputs = core::mem::take(&mut self.outputs);
        let now = now(env, at);
        let known = device.hub_session != 0 && device.hub_session as u8 == generation;
        match kind {
            Kind::HubConnect if at < env.hub_back => {
                // Nobody listens: the device hears so a latency later.
                let at = at + u64::from(device.latency);
                self.schedule(Event { at, device: index, kind: Kind::Closed, generation, a: 0, b: 0 });
            }
            Kind::HubConnect => {
                let input = Input::Connect { device: ix, session: a, clean: false, model: None };
                self.hub.handle(now, input, &mut outputs);
            }
            Kind::HubDisconnect => {
                if device.hub_session == a {
                    device.hub_session = 0;
                    worker.delta.connected -= 1;
                }
                self.hub.handle(now, Input::Disconnect { device: ix, session: a }, &mut outputs);
            }
            Kind::HubGrantAnswer => self.grant_answer(index, at, a, env, &mut outputs),
            _ if !known => {}
            Kind::HubTwinGet => {
                if b & !ADMITTED != 0 {
                    self.hub.handle(now, Input::Subscribe { device: ix, topics: Topics::ALL }, &mut outputs);
                }
                self.request = a;
                self.hub.handle(now, Input::TwinGet { device: ix }, &mut outputs);
            }
            Kind::HubReport => {
                self.request = a;
                let place = (b & !ADMITTED) as usize;
                let patch = Patch::Interned(self.reports[place].patch);
                self.hub.handle(now, Input::Report { device: ix, base: None, patch }, &mut outputs);
                if matches!(outputs.first(), Some(Output::ReportAnswer { status: 204, .. })) {
                    self.accepted(index, at, place, worker);
                }
            }
            Kind::HubGrantRequest => {
                let body = &env.grant_texts(a as usize).request;
                let telemetry = Input::Telemetry { device: ix, properties: grant::PROPERTIES, body };
                self.hub.handle(now, telemetry, &mut outputs);
                if outputs.iter().any(|output| matches!(output, Output::Telemetry { .. })) {
                    self.pass_to_grant_service(index, at, a, env);
                }
            }
            Kind::HubMethodResponse => {
                let response = Input::MethodResponse { device: ix, call: a, status: b as i32, body: b"" };
                self.hub.handle(now, response, &mut outputs);
            }
            Kind::HubAck => self.hub.handle(now, Input::C2dAck { device: ix, delivery: a }, &mut outputs),
            _ => unreachable!("what happens at the device is not for the hub's side"),
        }
        self.deliver(at, &mut outputs, env, worker);
        self.outputs = outputs;
    }

    /// Runs the hub's own timers that were due in the window, at its end: what came before them has been heard.
    pub(super) fn hub_timers(&mut self, env: &Env, worker: &mut Worker) {
        let at = self.end;
        while self.hub.next_deadline().is_some_and(|due| due.as_micros() < at) {
            let mut outputs = core::mem::take(&mut self.outputs);
            self.hub.handle(now(env, at), Input::Timer, &mut outputs);
            self.deliver(at, &mut outputs, env, worker);
            self.outputs = outputs;
            if env.cycle() != Cycle::Immediate {
                // This may have been the evaluation of configurations.
                self.retarget_all(at, worker);
            }
        }
    }

    /// Sends what the hub wants sent.
    fn deliver(&mut self, at: u64, outputs: &mut Vec<Output>, env: &Env, worker: &mut Worker) {
        for output in outputs.drain(..) {
            match output {
                Output::Accepted { device, session, session_present } => {
                    let index = device.index() as u16;
                    let state = &mut self.devices[device.index()];
                    if state.hub_session == 0 {
                        worker.delta.connected += 1;
                    }
                    state.hub_session = session;
                    let bytes = env.sizes().connack;
                    self.send_down(
                        index,
                        at,
                        bytes,
                        Kind::Connack,
                        u32::from(session_present),
                        0,
                        env,
                        worker,
                    );
                }
                // A connection that another one took over is known to its device.
                Output::Close { device, .. } => {
                    let state = &mut self.devices[device.index()];
                    if state.hub_session != 0 {
                        state.hub_session = 0;
                        worker.delta.connected -= 1;
                    }
                }
                Output::Refused { device, session, .. } => {
                    let index = device.index() as u16;
                    let at = at + u64::from(self.devices[device.index()].latency);
                    let generation = session as u8;
                    self.schedule(Event { at, device: index, kind: Kind::Closed, generation, a: 0, b: 0 });
                }
                // Nobody has subscribed to answers.
                Output::TwinAnswer { deliver: false, .. } | Output::ReportAnswer { deliver: false, .. } => {}
                Output::TwinAnswer { device, .. } => {
                    let index = device.index() as u16;
                    let bytes = env.sizes().twin(self.request, self.hub.device_twin_len(device));
                    let (content, version) = self.content(index);
                    self.send_down(index, at, bytes, Kind::Twin, content, version as u32, env, worker);
                }
                Output::ReportAnswer { device, status, version, .. } => {
                    let index = device.index() as u16;
                    let bytes = env.sizes().reported(self.request, version);
                    let (rid, status) = (self.request, u32::from(status));
                    self.send_down(index, at, bytes, Kind::Reported, rid, status, env, worker);
                }
                Output::Desired { device, version, patch } => {
                    self.retarget(device.index() as u16, at, worker);
                    self.notify(device.index() as u16, at, version, &patch, env, worker);
                }
                Output::Method { device, call, payload, .. } => {
                    let bytes = env.sizes().method(call, payload.len());
                    let a = Self::grant_argument(&payload, env);
                    self.send_down(device.index() as u16, at, bytes, Kind::GrantCall, a, call, env, worker);
                }
                Output::C2d { device, delivery, message } => {
                    let bytes = env.sizes().message(message.body.len());
                    let a = Self::grant_argument(&message.body, env);
                    let kind = Kind::GrantMessage;
                    self.send_down(device.index() as u16, at, bytes, kind, a, delivery, env, worker);
                }
                Output::Service(Ok(_))
                | Output::MethodResult { .. }
                | Output::Telemetry { .. }
                | Output::Feedback { .. } => {}
                // A full queue: the device asks again.
                Output::Service(Err(_)) => {}
            }
        }
    }

    /// Sends a message to a device, over the connection that the hub knows.
    #[expect(clippy::too_many_arguments, reason = "an event's own members, and where it comes from")]
    fn send_down(
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
        worker.meter.down(bytes);
        let at = self.arrival(index, at, bytes, false, env);
        let generation = self.devices[usize::from(index)].hub_session as u8;
        self.schedule(Event { at, device: index, kind, generation, a, b });
    }

    /// Sends a change of desired properties, unless a fault is about it.
    fn notify(
        &mut self,
        index: u16,
        at: u64,
        version: u64,
        patch: &Arc<DesiredPatch>,
        env: &Env,
        worker: &mut Worker,
    ) {
        let number = self.first + u64::from(index);
        let bytes = env.sizes().desired(version, patch.len(version));
        let mut delay = 0;
        for fault in &env.notifications {
            if at < fault.until && env.hits(&fault.victims, number) {
                let Some(by) = fault.delay else {
                    worker.meter.down(bytes);
                    return;
                };
                delay += by;
            }
        }
        let Self { patch_of, patches, .. } = self;
        let place = *patch_of.entry(patch.serial()).or_insert_with(|| {
            patches.push(Arc::clone(patch));
            (patches.len() - 1) as u32
        });
        if delay == 0 {
            self.send_down(index, at, bytes, Kind::Desired, place, version as u32, env, worker);
            return;
        }
        // Only this message is late: what is sent after it may overtake it, as on another connection.
        worker.meter.down(bytes);
        let clear = self.devices[usize::from(index)].down_clear;
        let at = self.arrival(index, at, bytes, false, env) + delay;
        let device = &mut self.devices[usize::from(index)];
        device.down_clear = clear;
        let generation = device.hub_session as u8;
        self.schedule(Event {
            at,
            device: index,
            kind: Kind::Desired,
            generation,
            a: place,
            b: version as u32,
        });
    }

    /// The place of what a device's twin says now, and the version of its desired properties.
    fn content(&mut self, index: u16) -> (u32, u64) {
        let Self { hub, twins, twin_of, releases, .. } = self;
        let view = hub.twin(Self::ix(index));
        let serials = (view.desired.serial(), view.reported.serial());
        let place = *twin_of.entry(serials).or_insert_with(|| {
            let object = |text: &str| serde_json::from_str(text).unwrap_or_default();
            let desired = twin::read_desired(&object(view.desired.text()), releases);
            let reported =
                twin::read_status(&serde_json::Value::Object(object(view.reported.text())), releases);
            twins.push(TwinContent { version: 0, desired, reported });
            (twins.len() - 1) as u32
        });
        (place, view.desired_version)
    }

    /// Brings what the measures expect of a device in line with what its twin asks for.
    fn retarget(&mut self, index: u16, at: u64, worker: &mut Worker) {
        let (place, _) = self.content(index);
        let TwinContent { desired, reported, .. } = self.twins[place as usize];
        let device = &mut self.devices[usize::from(index)];
        if device.want == desired {
            return;
        }
        device.want = desired;
        let settled = flag::CONVERGED | flag::WITHDRAWN;
        if device.has(flag::TARGETED) && device.flags & settled == 0 {
            // Nobody waits for it any more.
            device.set(flag::WITHDRAWN);
            worker.meter.withdrawn(ChangeId(device.change), device.has(flag::NOTIFIED));
        }
        // A device that was given a release stays one of those that were, until it is given another.
        let Desired::Release(release) = desired else { return };
        let Some(&(_, change)) = self.changes.iter().rev().find(|(given, _)| *given == release) else {
            return;
        };
        let counts = |flag| i64::from(device.has(flag));
        worker.delta.targeted += 1 - counts(flag::TARGETED);
        worker.delta.notified -= counts(flag::NOTIFIED);
        worker.delta.converged -= counts(flag::CONVERGED);
        worker.delta.failed -= counts(flag::FAILED);
        worker.delta.rolled_back -= counts(flag::ROLLED_BACK);
        device.clear(flag::NOTIFIED | flag::FAILED | flag::ROLLED_BACK | settled);
        device.set(flag::TARGETED);
        device.change = change.0;
        worker.meter.targeted(change, 1);
        if reported.is_some_and(|status| self.releases.same(status.running, release)) {
            self.converged(index, at, worker);
        }
    }

    /// The release that a device was given last.
    fn given(&self, index: u16) -> Option<ReleaseId> {
        let device = &self.devices[usize::from(index)];
        let given = self.changes.iter().find(|(_, change)| change.0 == device.change);
        given.filter(|_| device.has(flag::TARGETED)).map(|(release, _)| *release)
    }

    /// The hub has accepted a report.
    fn accepted(&mut self, index: u16, at: u64, place: usize, worker: &mut Worker) {
        let status = self.reports[place].status;
        let Some(wanted) = self.given(index) else { return };
        let device = &mut self.devices[usize::from(index)];
        if device.has(flag::CONVERGED) {
            return;
        }
        if self.releases.same(status.running, wanted) {
            self.converged(index, at, worker);
            return;
        }
        let Progress::Failed(release, code) = status.progress else { return };
        if device.has(flag::FAILED) || !self.releases.same(release, wanted) {
            return;
        }
        device.set(flag::FAILED);
        worker.delta.failed += 1;
        if code.is_rollback() {
            device.set(flag::ROLLED_BACK);
            worker.delta.rolled_back += 1;
        }
        worker.meter.failed(code.name(), device.cause != code as u8);
        device.cause = code as u8;
    }

    fn converged(&mut self, index: u16, at: u64, worker: &mut Worker) {
        let device = &mut self.devices[usize::from(index)];
        if device.has(flag::FAILED) {
            worker.delta.failed -= 1;
            worker.delta.rolled_back -= i64::from(device.has(flag::ROLLED_BACK));
            device.clear(flag::FAILED | flag::ROLLED_BACK);
        }
        device.set(flag::CONVERGED);
        worker.delta.converged += 1;
        if !device.has(flag::WITHDRAWN) {
            worker.meter.converged(ChangeId(device.change), instant(at));
        }
    }

    // The grant service.

    fn pass_to_grant_service(&mut self, index: u16, at: u64, release: u32, env: &Env) {
        let number = self.first + u64::from(index);
        let device = &mut self.devices[usize::from(index)];
        let mut at = at + env.span(&env.world().scenario().grant.latency, number, &mut device.draws);
        if env.throttled() {
            // Throttles are asked between windows.
            at = at.max(self.end);
        }
        let generation = device.hub_session as u8;
        let kind = Kind::HubGrantAnswer;
        self.schedule(Event { at, device: index, kind, generation, a: release, b: 0 });
    }

    fn grant_answer(&mut self, index: u16, at: u64, release: u32, env: &Env, outputs: &mut Vec<Output>) {
        let ix = Self::ix(index);
        let texts = env.grant_texts(release as usize);
        let body = if self.is_wanted(index, env.release_at(release as usize)) {
            &texts.granted
        } else {
            &texts.refused
        };
        let input = match env.world().scenario().grant.channel {
            Channel::Method => Input::InvokeMethod {
                device: ix,
                name: grant::METHOD,
                payload: body,
                connect_timeout: Duration::ZERO,
                response_timeout: METHOD_TIMEOUT,
                tag: u64::from(index),
            },
            Channel::C2d => Input::SendC2d {
                device: ix,
                message: Arc::new(C2dMessage {
                    properties: grant::PROPERTIES.into(),
                    body: body.as_slice().into(),
                    ..C2dMessage::default()
                }),
            },
        };
        self.hub.handle(now(env, at), input, outputs);
    }

    fn is_wanted(&self, index: u16, release: ReleaseId) -> bool {
        let want = self.devices[usize::from(index)].want;
        matches!(want, Desired::Release(wanted) if self.releases.same(wanted, release))
    }

    /// An answer of the grant service as an event's argument.
    fn grant_argument(body: &[u8], env: &Env) -> u32 {
        env.world()
            .releases()
            .iter()
            .find_map(|(release, _)| {
                let texts = env.grant_texts(release.index());
                let refused = (texts.refused == body).then_some(REFUSED);
                refused.or((texts.granted == body).then_some(0)).map(|bit| bit | release.index() as u32)
            })
            .expect("only the grant service calls methods and sends messages")
    }

    // Throttles.

    /// What the hub has to be asked for before it takes this event.
    pub(super) fn asks_for(&self, event: &Event, env: &Env) -> Option<(Operation, u32)> {
        let device = &self.devices[usize::from(event.device)];
        let known = device.hub_session != 0 && device.hub_session as u8 == event.generation;
        if event.b & ADMITTED != 0 {
            return None;
        }
        match event.kind {
            Kind::HubConnect if event.at >= env.hub_back => Some((Operation::Connect, 1)),
            Kind::HubTwinGet if known => Some((Operation::TwinRead, 1)),
            Kind::HubReport if known => Some((Operation::TwinUpdate, 1)),
            Kind::HubGrantRequest if known => Some((Operation::DeviceToCloud, 1)),
            Kind::HubGrantAnswer => Some(match env.world().scenario().grant.channel {
                Channel::Method => {
                    let bytes = env.grant_texts(event.a as usize).granted.len();
                    (Operation::Method, bytes as u32)
                }
                Channel::C2d => (Operation::CloudToDevice, 1),
            }),
            _ => None,
        }
    }

    /// What the throttles said to an event of the window that does not pass at once.
    pub(super) fn heed(&mut self, place: u32, told: Told, env: &Env, worker: &mut Worker) {
        let event = self.events[place as usize];
        let Event { at, device: index, kind, generation, a, .. } = event;
        match told {
            Told::At(later) => {
                let admitted = Event { at: later, b: event.b | ADMITTED, ..event };
                if later < self.end {
                    self.events[place as usize] = admitted;
                    return;
                }
                self.wheel.push(admitted);
            }
            Told::No(_) if kind == Kind::HubConnect => {
                let at = at + u64::from(self.devices[usize::from(index)].latency);
                self.wheel.push(Event { at, device: index, kind: Kind::Closed, generation, a: 0, b: 0 });
            }
            Told::No(_) if kind == Kind::HubTwinGet => {
                let bytes = env.sizes().twin(a, 0);
                self.send_down(index, at, bytes, Kind::TwinRefused, 429, 0, env, worker);
            }
            Told::No(_) if kind == Kind::HubReport => {
                let bytes = env.sizes().twin(a, 0);
                self.send_down(index, at, bytes, Kind::Reported, a, 429, env, worker);
            }
            // The cloud side tries again, some seconds later, as a client with backoff and jitter does; a device's
            // message is lost, and the device asks again.
            Told::No(after) if kind == Kind::HubGrantAnswer => {
                let number = self.first + u64::from(index);
                let draws = &mut self.devices[usize::from(index)].draws;
                let jitter = (env.draw(number, draws) * CLOUD_JITTER) as u64;
                self.wheel.push(Event { at: (at + after + jitter).max(self.end), ..event });
            }
            Told::No(_) => {}
        }
        self.events[place as usize].kind = Kind::Gone;
    }

    // The timeline.

    /// The operator puts a configuration that gives `release`.
    pub(in super::super) fn configure(
        &mut self,
        at: u64,
        change: ChangeId,
        release: ReleaseId,
        configuration: &Arc<Configuration>,
        env: &Env,
        worker: &mut Worker,
    ) {
        self.changes.push((release, change));
        let input = Input::PutConfiguration { configuration: Arc::clone(configuration), if_match: None };
        self.service(at, input, env, worker);
    }

    /// The operator deletes a configuration.
    pub(in super::super) fn cancel(&mut self, at: u64, id: &str, env: &Env, worker: &mut Worker) {
        self.service(at, Input::DeleteConfiguration { id, if_match: None }, env, worker);
    }

    fn service(&mut self, at: u64, input: Input<'_>, env: &Env, worker: &mut Worker) {
        let mut outputs = core::mem::take(&mut self.outputs);
        self.hub.handle(now(env, at), input, &mut outputs);
        self.deliver(at, &mut outputs, env, worker);
        self.outputs = outputs;
        self.retarget_all(at, worker);
    }

    /// Devices that are away get no notification, and are targeted all the same.
    fn retarget_all(&mut self, at: u64, worker: &mut Worker) {
        for index in 0..self.devices.len() as u16 {
            self.retarget(index, at, worker);
        }
    }

    /// The hub goes down: every connection is reset.
    pub(in super::super) fn drop_connections(&mut self, at: u64, env: &Env, worker: &mut Worker) {
        let mut outputs = core::mem::take(&mut self.outputs);
        for index in 0..self.devices.len() as u16 {
            let device = &mut self.devices[usize::from(index)];
            let session = device.hub_session;
            if session == 0 {
                continue;
            }
            device.hub_session = 0;
            worker.delta.connected -= 1;
            let (generation, noticed) = (session as u8, at + u64::from(device.latency));
            let kind = Kind::Closed;
            self.wheel.push(Event { at: noticed, device: index, kind, generation, a: 0, b: 0 });
            self.hub.handle(
                now(env, at),
                Input::Disconnect { device: Self::ix(index), session },
                &mut outputs,
            );
        }
        outputs.clear();
        self.outputs = outputs;
    }

    /// Networks of devices go down: what is sent arrives when they are back, and downloads break off.
    pub(in super::super) fn break_links(
        &mut self,
        at: u64,
        span: u64,
        victims: &super::super::env::Victims,
        env: &Env,
        worker: &mut Worker,
    ) {
        for index in 0..self.devices.len() as u16 {
            if !env.hits(victims, self.first + u64::from(index)) {
                continue;
            }
            self.outages.insert(index, super::Outage { from: at, until: at + span });
            self.devices[usize::from(index)].set(flag::OUTAGE);
            let timeout = micros(env.policy(self.devices[usize::from(index)].group).request_timeout);
            self.cut_download(index, at, span.min(timeout), worker);
        }
    }
}
