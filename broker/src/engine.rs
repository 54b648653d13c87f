//! Drives one shard of the hub core: messages in, throttles, hooks, and messages out through an [`Outlet`].
//!
//! It knows no transport: the reactor and the link to a plain broker are its two drivers.

mod device;
mod service;

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleetwave_hub_core::throttle::{Admission, Operation, Throttles};
use fleetwave_hub_core::{
    DesiredPatch, DeviceIx, Done, ErrorCode, Hub, HubError, Input, MethodAnswer, Output,
};
use fleetwave_protocol::{Down, Instant, Now};
use rustc_hash::FxHashMap;

use crate::clock::Clock;
use crate::control::{Answer, Command, MethodOutcome, Release};
use crate::delay::DelayQueue;
use crate::events::{EventKind, EventSink};
use crate::exposition::Instruments;
use crate::hooks::{Hooks, Replies, Reply, Telemetry};
use crate::metrics::HubMetrics;
use crate::store::StoreError;

/// How long a method that a hook called waits for the device to connect: not at all.
const NO_WAIT: Duration = Duration::ZERO;

/// Why the hub ends a connection without having been asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The same device connected again.
    TakenOver,
    /// The device was disabled or deleted, or broke a limit.
    Refused,
    /// The hub's limit of new connections is used up.
    Throttled,
}

/// How a shard reaches its devices.
pub(crate) trait Outlet {
    /// The connection is accepted.
    fn accepted(&mut self, device: DeviceIx, session: u32, session_present: bool);
    /// The connection is refused: the device is disabled or unknown.
    fn refused(&mut self, session: u32);
    /// A connection is to end.
    fn close(&mut self, device: DeviceIx, session: u32, why: Ending);
    /// The device's connection, if it has one.
    fn session(&self, device: DeviceIx) -> Option<u32>;
    /// Sends a message. One with a delivery number is to be acknowledged.
    fn down(&mut self, device: DeviceIx, id: &str, message: &Down<'_>, delivery: Option<u32>);
    /// Sends a change of desired properties, which many devices may get.
    fn desired(&mut self, device: DeviceIx, id: &str, version: u64, patch: &DesiredPatch);
}

/// What an authenticated client says when it connects.
pub(crate) struct Hello<'a> {
    pub(crate) device: DeviceIx,
    pub(crate) session: u32,
    pub(crate) clean: bool,
    /// The model that it implements.
    pub(crate) model: Option<Cow<'a, str>>,
}

impl Hello<'_> {
    fn input(&self) -> Input<'_> {
        Input::Connect {
            device: self.device,
            session: self.session,
            clean: self.clean,
            model: self.model.as_deref(),
        }
    }

    fn into_owned(self) -> Hello<'static> {
        let model = self.model.map(|model| Cow::Owned(model.into_owned()));
        Hello { device: self.device, session: self.session, clean: self.clean, model }
    }
}

/// Something that was put off.
enum Delayed {
    Connect(Hello<'static>),
    TwinGet { device: DeviceIx, session: u32, rid: Box<str> },
    Report { device: DeviceIx, session: u32, rid: Box<str>, base: Option<u64>, patch: Box<[u8]> },
    Telemetry { device: DeviceIx, session: u32, properties: Box<str>, body: Box<[u8]> },
    Reply { device: DeviceIx, reply: Reply, admitted: bool },
    Command(Command),
}

/// Who waits for a method's outcome.
enum Caller {
    Operator(Answer<MethodOutcome>),
    Hook(DeviceIx),
    Job(Box<dyn FnOnce(MethodOutcome) + Send>),
}

/// Makes durable what a shard did in a turn, before anybody hears of it.
pub(crate) trait Journal: Send {
    /// Writes what has changed since the last call, and returns once it is durable.
    ///
    /// # Errors
    /// If that cannot be done any more: nobody may hear of the changes.
    fn commit(&mut self, hub: &mut Hub) -> Result<(), StoreError>;
}

/// What an input was about, for the outputs that answer it.
enum Context<'a> {
    Nothing,
    Request {
        rid: &'a str,
    },
    Report {
        rid: &'a str,
        patch: &'a [u8],
    },
    Telemetry {
        properties: &'a str,
        body: &'a [u8],
    },
    /// A message of a device that need not be connected.
    Post {
        properties: &'a str,
        body: &'a [u8],
        done: &'a mut Option<Result<Done, Box<HubError>>>,
    },
    /// What the back end asked for.
    Service(&'a mut Option<Result<Done, Box<HubError>>>),
}

/// One shard of the hub, and what drives it.
pub(crate) struct Engine {
    hub: Hub,
    clock: Clock,
    hooks: Box<dyn Hooks>,
    throttles: Option<Arc<Mutex<Throttles>>>,
    outputs: Vec<Output>,
    replies: Replies,
    calls: FxHashMap<u64, Caller>,
    next_tag: u64,
    delayed: DelayQueue<Delayed>,
    body: Vec<u8>,
    /// Who follows what happens.
    sinks: Arc<[Arc<dyn EventSink>]>,
    journal: Option<Box<dyn Journal>>,
    /// Answers that go out once the turn is durable.
    held: Vec<Release>,
    /// Numbers the connection events.
    connection_events: u64,
    pub(crate) metrics: HubMetrics,
    instruments: Instruments,
}

/// What an engine is made of.
pub(crate) struct EngineParts {
    pub(crate) hub: Hub,
    pub(crate) clock: Clock,
    pub(crate) hooks: Box<dyn Hooks>,
    pub(crate) throttles: Option<Arc<Mutex<Throttles>>>,
    pub(crate) sinks: Arc<[Arc<dyn EventSink>]>,
    pub(crate) journal: Option<Box<dyn Journal>>,
    pub(crate) instruments: Instruments,
}

impl Engine {
    pub(crate) fn new(parts: EngineParts) -> Self {
        let EngineParts { hub, clock, hooks, throttles, sinks, journal, instruments } = parts;
        Self {
            hub,
            clock,
            hooks,
            throttles,
            sinks,
            journal,
            held: Vec::new(),
            connection_events: 0,
            outputs: Vec::new(),
            replies: Replies::default(),
            calls: FxHashMap::default(),
            next_tag: 0,
            delayed: DelayQueue::default(),
            body: Vec::new(),
            metrics: HubMetrics::default(),
            instruments,
        }
    }

    /// What is measured beside the counters.
    pub(crate) fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// The counters, and what waits for the hub's limits.
    pub(crate) fn counted(&self) -> HubMetrics {
        HubMetrics {
            devices: self.hub.len() as u64,
            modules: self.hub.modules_len() as u64,
            c2d_waiting: self.hub.c2d_len() as u64,
            waiting: self.delayed.len() as u64,
            ..self.metrics
        }
    }

    pub(crate) fn now(&self) -> Now {
        self.clock.now()
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Whether what is sent has to wait for [`Engine::commit`].
    pub(crate) fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// Ends a turn: makes it durable, then lets its answers go.
    ///
    /// # Errors
    /// If it cannot be made durable: nothing of the turn may leave the shard.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        if let Some(journal) = &mut self.journal {
            journal.commit(&mut self.hub)?;
        }
        for release in self.held.drain(..) {
            release();
        }
        Ok(())
    }

    /// Tells those who follow what happens of what ended while the hub was down.
    pub(crate) fn tell_restored(&self, outputs: Vec<Output>) {
        let now = self.now();
        for output in outputs {
            // Nobody is connected; there is nothing else to tell.
            if let Output::Feedback { device, message, status, at } = output {
                self.publish(now, device, EventKind::Feedback { message: &message, status, at });
            }
        }
    }

    fn hold(&mut self, release: Release) {
        if self.journal.is_some() {
            self.held.push(release);
        } else {
            release();
        }
    }

    fn answer<T: Send + 'static>(&mut self, answer: Answer<T>, value: T) {
        self.hold(Box::new(move || answer.send(value)));
    }

    /// Runs a job's answer through the turn's end.
    pub(crate) fn release(&mut self, release: Release) {
        self.hold(release);
    }

    pub(crate) fn find(&self, id: &str) -> Option<DeviceIx> {
        self.hub.find(id)
    }

    pub(crate) fn id(&self, device: DeviceIx) -> &str {
        self.hub.id(device)
    }

    /// When [`Engine::tick`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [self.hub.next_deadline(), self.delayed.next()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, outlet: &mut (impl Outlet + ?Sized)) {
        let now = self.now().at;
        while let Some(delayed) = self.delayed.pop(now) {
            self.resume(delayed, outlet);
        }
        if self.hub.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.run(Input::Timer, Context::Nothing, outlet);
        }
    }

    /// Forgets what a restart loses: requests that were put off. Operators' requests are tried again.
    pub(crate) fn forget_requests(&mut self) {
        self.delayed.retain(|delayed| matches!(delayed, Delayed::Command(_)));
    }

    fn resume(&mut self, delayed: Delayed, outlet: &mut (impl Outlet + ?Sized)) {
        match delayed {
            Delayed::Connect(hello) => self.run(hello.input(), Context::Nothing, outlet),
            Delayed::TwinGet { device, session, rid } if outlet.session(device) == Some(session) => {
                self.run(Input::TwinGet { device }, Context::Request { rid: &rid }, outlet);
            }
            Delayed::Report { device, session, rid, base, patch }
                if outlet.session(device) == Some(session) =>
            {
                self.report(device, &rid, base, &patch, outlet);
            }
            Delayed::Telemetry { device, session, properties, body }
                if outlet.session(device) == Some(session) =>
            {
                self.telemetry(device, &properties, &body, outlet);
            }
            // The connection ended while its request waited.
            Delayed::TwinGet { .. } | Delayed::Report { .. } | Delayed::Telemetry { .. } => {}
            Delayed::Reply { device, reply, admitted } => self.reply(device, reply, admitted, outlet),
            Delayed::Command(command) => {
                // Only commands about a device are put off, and those are all done here.
                let _ = self.perform(command, outlet);
            }
        }
    }

    fn admit(&mut self, operation: Operation, cost: u32) -> Admission {
        let Some(throttles) = &self.throttles else {
            return Admission::Now;
        };
        let at = self.clock.now().at;
        let admission = throttles.lock().expect("nothing panics under this lock").admit(operation, cost, at);
        match admission {
            Admission::Now => {}
            Admission::At(_) => self.metrics.delayed += 1,
            Admission::Reject { .. } => self.metrics.throttled += 1,
        }
        self.instruments.admission(operation, admission);
        admission
    }

    fn run(&mut self, input: Input<'_>, mut context: Context<'_>, outlet: &mut (impl Outlet + ?Sized)) {
        let now = self.clock.now();
        let mut outputs = std::mem::take(&mut self.outputs);
        self.hub.handle(now, input, &mut outputs);
        for output in outputs.drain(..) {
            self.emit(now, output, &mut context, outlet);
        }
        self.outputs = outputs;
    }

    fn emit(
        &mut self,
        now: Now,
        output: Output,
        context: &mut Context<'_>,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        match output {
            Output::Accepted { device, session, session_present } => {
                outlet.accepted(device, session, session_present);
                if !self.sinks.is_empty() {
                    self.connection_event(device, true);
                }
            }
            Output::Refused { session, .. } => outlet.refused(session),
            Output::Close { device, session, reason } => {
                let why = match reason {
                    fleetwave_hub_core::CloseReason::TakenOver => Ending::TakenOver,
                    _ => Ending::Refused,
                };
                outlet.close(device, session, why);
            }
            Output::TwinAnswer { device, status, deliver: true } => {
                if let Context::Request { rid } = *context {
                    self.metrics.twin_reads += 1;
                    self.body.clear();
                    self.hub.write_device_twin(device, &mut self.body);
                    let answer = Down::TwinAnswer { rid, status, version: None, body: &self.body };
                    outlet.down(device, self.hub.id(device), &answer, None);
                }
            }
            Output::ReportAnswer { device, status, version, error, deliver } => {
                if let Context::Report { rid, patch } = *context {
                    self.body.clear();
                    let mut accepted = Some(version);
                    match error {
                        Some(error) => {
                            self.metrics.reports_refused += 1;
                            accepted = None;
                            error.write_device_body(rid, now.wall, &mut self.body);
                        }
                        None => {
                            self.metrics.reports += 1;
                            self.hooks.reported(now, self.hub.id(device), version, patch);
                            self.publish(now, device, EventKind::Reported { version, patch });
                        }
                    }
                    if deliver {
                        let answer = Down::TwinAnswer { rid, status, version: accepted, body: &self.body };
                        outlet.down(device, self.hub.id(device), &answer, None);
                    }
                }
            }
            Output::Desired { device, version, patch } => {
                self.metrics.desired += 1;
                outlet.desired(device, self.hub.id(device), version, &patch);
                // What the back end itself writes is told where it is written.
                if let (false, Context::Nothing | Context::Report { .. }) = (self.sinks.is_empty(), &*context)
                {
                    let desired = Some(patch.text().as_bytes());
                    let kind = EventKind::TwinWritten { tags: None, desired, version, replaced: false };
                    self.publish(now, device, kind);
                }
            }
            Output::Method { device, call, name, payload } => {
                self.metrics.methods += 1;
                let rid = call.to_string();
                let message = Down::Method { name: Cow::Borrowed(&name), rid: &rid, body: &payload };
                outlet.down(device, self.hub.id(device), &message, None);
            }
            Output::C2d { device, delivery, message } => {
                self.metrics.c2d += 1;
                let message = Down::CloudToDevice { properties: &message.properties, body: &message.body };
                outlet.down(device, self.hub.id(device), &message, Some(delivery));
            }
            Output::MethodResult { tag, result } => self.method_result(now, tag, result),
            Output::Telemetry { device } => {
                self.metrics.telemetry += 1;
                if let Context::Telemetry { properties, body } | Context::Post { properties, body, .. } =
                    *context
                {
                    let message = Telemetry { device: self.hub.id(device), properties, body };
                    self.hooks.telemetry(now, message, &mut self.replies);
                    self.publish(now, device, EventKind::Telemetry { properties, body });
                }
            }
            Output::Service(result) => {
                if let Context::Service(done) | Context::Post { done, .. } = context {
                    **done = Some(result);
                }
            }
            Output::Feedback { device, message, status, at } => {
                self.metrics.feedback += 1;
                self.publish(now, device, EventKind::Feedback { message: &message, status, at });
            }
            Output::TwinAnswer { deliver: false, .. } => {}
        }
    }

    fn method_result(&mut self, now: Now, tag: u64, result: Result<MethodAnswer, Box<HubError>>) {
        match result {
            Ok(_) => self.metrics.methods_answered += 1,
            Err(_) => self.metrics.methods_failed += 1,
        }
        match self.calls.remove(&tag) {
            Some(Caller::Operator(answer)) => self.answer(answer, result),
            Some(Caller::Job(outcome)) => self.hold(Box::new(move || outcome(result))),
            Some(Caller::Hook(device)) => {
                self.hooks.method_result(now, self.hub.id(device), &result);
            }
            None => {}
        }
    }
}

pub(crate) fn throttled(retry_after: Duration) -> HubError {
    let message = format!("the hub's limit is used up; try again in {:.1} s", retry_after.as_secs_f64());
    HubError { code: ErrorCode::ThrottlingException, message: Cow::Owned(message) }
}

fn bytes(payload: &[u8]) -> u32 {
    u32::try_from(payload.len()).unwrap_or(u32::MAX)
}
