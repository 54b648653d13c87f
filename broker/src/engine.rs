//! Drives one shard of the hub core: messages in, throttles, hooks, and messages out through an [`Outlet`].
//!
//! It knows no transport: the reactor and the link to a plain broker are its two drivers.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fleetwave_hub_core::throttle::{Admission, Operation, Throttles};
use fleetwave_hub_core::{
    C2dMessage, DesiredPatch, DeviceIx, ErrorCode, Hub, HubError, Input, MethodAnswer, Output, Patch, Topics,
};
use fleetwave_protocol::{Down, Instant, Now, Up};
use rustc_hash::FxHashMap;

use crate::clock::Clock;
use crate::control::{Answer, Applied, Command, MethodCall, MethodOutcome};
use crate::delay::DelayQueue;
use crate::hooks::{Hooks, Replies, Reply, Telemetry};
use crate::metrics::HubMetrics;

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

/// Something that was put off.
enum Delayed {
    Connect { device: DeviceIx, session: u32, clean: bool },
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
}

/// What an input was about, for the outputs that answer it.
enum Context<'a> {
    Nothing,
    Request { rid: &'a str },
    Report { rid: &'a str, patch: &'a [u8] },
    Telemetry { properties: &'a str, body: &'a [u8] },
    Service(Option<Answer<Applied>>),
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
    pub(crate) metrics: HubMetrics,
}

impl Engine {
    pub(crate) fn new(
        hub: Hub,
        clock: Clock,
        hooks: Box<dyn Hooks>,
        throttles: Option<Arc<Mutex<Throttles>>>,
    ) -> Self {
        Self {
            hub,
            clock,
            hooks,
            throttles,
            outputs: Vec::new(),
            replies: Replies::default(),
            calls: FxHashMap::default(),
            next_tag: 0,
            delayed: DelayQueue::default(),
            body: Vec::new(),
            metrics: HubMetrics::default(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        self.clock.now()
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
    pub(crate) fn tick(&mut self, outlet: &mut impl Outlet) {
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

    fn resume(&mut self, delayed: Delayed, outlet: &mut impl Outlet) {
        match delayed {
            Delayed::Connect { device, session, clean } => {
                self.run(Input::Connect { device, session, clean }, Context::Nothing, outlet);
            }
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
        admission
    }

    /// An authenticated client wants to connect.
    pub(crate) fn connect(&mut self, device: DeviceIx, session: u32, clean: bool, outlet: &mut impl Outlet) {
        match self.admit(Operation::Connect, 1) {
            Admission::Now => {
                self.run(Input::Connect { device, session, clean }, Context::Nothing, outlet);
            }
            Admission::At(at) => self.delayed.push(at, Delayed::Connect { device, session, clean }),
            Admission::Reject { .. } => outlet.close(device, session, Ending::Throttled),
        }
    }

    /// A device is there whether the hub wants it or not: somebody else let it in.
    pub(crate) fn attach(&mut self, device: DeviceIx, session: u32, outlet: &mut impl Outlet) {
        self.run(Input::Connect { device, session, clean: false }, Context::Nothing, outlet);
    }

    pub(crate) fn disconnect(&mut self, device: DeviceIx, session: u32, outlet: &mut impl Outlet) {
        self.run(Input::Disconnect { device, session }, Context::Nothing, outlet);
    }

    pub(crate) fn subscribe(&mut self, device: DeviceIx, topics: Topics, outlet: &mut impl Outlet) {
        self.run(Input::Subscribe { device, topics }, Context::Nothing, outlet);
    }

    pub(crate) fn unsubscribe(&mut self, device: DeviceIx, topics: Topics, outlet: &mut impl Outlet) {
        self.run(Input::Unsubscribe { device, topics }, Context::Nothing, outlet);
    }

    pub(crate) fn acknowledge(&mut self, device: DeviceIx, delivery: u32, outlet: &mut impl Outlet) {
        self.run(Input::C2dAck { device, delivery }, Context::Nothing, outlet);
    }

    /// A device's message arrived on its connection `session`.
    pub(crate) fn up(&mut self, device: DeviceIx, session: u32, message: Up<'_>, outlet: &mut impl Outlet) {
        match message {
            Up::TwinGet { rid } => match self.admit(Operation::TwinRead, 1) {
                Admission::Now => self.run(Input::TwinGet { device }, Context::Request { rid }, outlet),
                Admission::At(at) => {
                    self.delayed.push(at, Delayed::TwinGet { device, session, rid: rid.into() });
                }
                Admission::Reject { retry_after } => self.refuse(device, rid, retry_after, outlet),
            },
            Up::Report { rid, base, patch } => match self.admit(Operation::TwinUpdate, 1) {
                Admission::Now => self.report(device, rid, base, patch, outlet),
                Admission::At(at) => {
                    let (rid, patch) = (rid.into(), patch.into());
                    self.delayed.push(at, Delayed::Report { device, session, rid, base, patch });
                }
                Admission::Reject { retry_after } => self.refuse(device, rid, retry_after, outlet),
            },
            Up::Telemetry { properties, body } => match self.admit(Operation::DeviceToCloud, 1) {
                Admission::Now => self.telemetry(device, properties, body, outlet),
                Admission::At(at) => {
                    let (properties, body) = (properties.into(), body.into());
                    self.delayed.push(at, Delayed::Telemetry { device, session, properties, body });
                }
                // MQTT has no answer that would say so; the metrics do.
                Admission::Reject { .. } => {}
            },
            Up::MethodResponse { rid, status, body } => {
                // Another number than one of ours is an answer to nothing.
                if let Ok(call) = rid.parse() {
                    self.run(Input::MethodResponse { device, call, status, body }, Context::Nothing, outlet);
                }
            }
        }
    }

    fn report(
        &mut self,
        device: DeviceIx,
        rid: &str,
        base: Option<u64>,
        patch: &[u8],
        outlet: &mut impl Outlet,
    ) {
        let input = Input::Report { device, base, patch: Patch::Json(patch) };
        self.run(input, Context::Report { rid, patch }, outlet);
    }

    fn telemetry(&mut self, device: DeviceIx, properties: &str, body: &[u8], outlet: &mut impl Outlet) {
        let input = Input::Telemetry { device, properties, body };
        self.run(input, Context::Telemetry { properties, body }, outlet);
        let at = self.now().at;
        let mut queue = std::mem::take(&mut self.replies.queue);
        for (delay, reply) in queue.drain(..) {
            if delay.is_zero() {
                self.reply(device, reply, false, outlet);
            } else {
                self.delayed.push(at + delay, Delayed::Reply { device, reply, admitted: false });
            }
        }
        self.replies.queue = queue;
    }

    /// Answers a twin operation with 429.
    fn refuse(&mut self, device: DeviceIx, rid: &str, retry_after: Duration, outlet: &mut impl Outlet) {
        let error = throttled(retry_after);
        self.body.clear();
        error.write_device_body(rid, self.clock.now().wall, &mut self.body);
        let answer = Down::TwinAnswer { rid, status: error.status(), version: None, body: &self.body };
        outlet.down(device, self.hub.id(device), &answer, None);
    }

    /// Sends what a hook wants to send.
    fn reply(&mut self, device: DeviceIx, reply: Reply, admitted: bool, outlet: &mut impl Outlet) {
        let (operation, cost) = match &reply {
            Reply::Method { payload, .. } => (Operation::Method, bytes(payload)),
            Reply::CloudToDevice { .. } => (Operation::CloudToDevice, 1),
        };
        let admission = if admitted { Admission::Now } else { self.admit(operation, cost) };
        match (admission, reply) {
            (Admission::At(at), reply) => {
                self.delayed.push(at, Delayed::Reply { device, reply, admitted: true });
            }
            (Admission::Now, Reply::Method { name, payload, timeout }) => {
                let call = MethodCall { name, payload, connect_timeout: NO_WAIT, response_timeout: timeout };
                self.invoke(device, &call, Caller::Hook(device), outlet);
            }
            (Admission::Now, Reply::CloudToDevice { properties, body }) => {
                let message = C2dMessage {
                    properties: properties.into(),
                    body: body[..].into(),
                    ..C2dMessage::default()
                };
                let message = Arc::new(message);
                self.run(Input::SendC2d { device, message }, Context::Service(None), outlet);
            }
            (Admission::Reject { retry_after }, Reply::Method { .. }) => {
                let outcome = Err(Box::new(throttled(retry_after)));
                self.hooks.method_result(self.clock.now(), self.hub.id(device), &outcome);
            }
            (Admission::Reject { .. }, Reply::CloudToDevice { .. }) => {
                tracing::debug!(device = self.hub.id(device), "a C2D message was throttled");
            }
        }
    }

    fn invoke(&mut self, device: DeviceIx, call: &MethodCall, caller: Caller, outlet: &mut impl Outlet) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.calls.insert(tag, caller);
        let input = Input::InvokeMethod {
            device,
            name: &call.name,
            payload: &call.payload,
            connect_timeout: call.connect_timeout,
            response_timeout: call.response_timeout,
            tag,
        };
        self.run(input, Context::Nothing, outlet);
    }

    /// Does what an operator asks for, or puts it off. Commands that are the driver's come back.
    pub(crate) fn command(&mut self, command: Command, outlet: &mut impl Outlet) -> Option<Command> {
        let (operation, cost) = match &command {
            Command::Invoke { call, .. } => (Operation::Method, bytes(&call.payload)),
            Command::SendC2d { .. } => (Operation::CloudToDevice, 1),
            Command::PatchTwin { .. } => (Operation::TwinUpdate, 1),
            Command::ReadTwin { .. } => (Operation::TwinRead, 1),
            // Making a fleet is the harness's doing; configurations are limited for the hub as a whole, before
            // they get here.
            _ => return self.perform(command, outlet),
        };
        match self.admit(operation, cost) {
            Admission::Now => self.perform(command, outlet),
            Admission::At(at) => {
                self.delayed.push(at, Delayed::Command(command));
                None
            }
            Admission::Reject { retry_after } => {
                let (at, error) = (self.now().at, Box::new(throttled(retry_after)));
                match command {
                    Command::Invoke { answer, .. } => answer.send(Err(error)),
                    Command::SendC2d { answer, .. } | Command::PatchTwin { answer, .. } => {
                        answer.send((at, Err(error)));
                    }
                    Command::ReadTwin { answer, .. } => answer.send(Err(error)),
                    other => return Some(other),
                }
                None
            }
        }
    }

    fn perform(&mut self, command: Command, outlet: &mut impl Outlet) -> Option<Command> {
        let at = self.now().at;
        match command {
            Command::Create { devices, answer } => {
                let now = self.now();
                let before = self.metrics.devices;
                let created = devices.iter().try_for_each(|device| {
                    self.hub.create_device(now, &device.id, device.spec())?;
                    self.metrics.devices += 1;
                    Ok(())
                });
                let created = created.map(|()| self.metrics.devices - before);
                answer.send(created);
            }
            Command::Put { configuration, answer } => {
                self.run(Input::PutConfiguration(configuration), Context::Service(Some(answer)), outlet);
            }
            Command::Delete { configuration, answer } => {
                let input = Input::DeleteConfiguration { id: &configuration };
                self.run(input, Context::Service(Some(answer)), outlet);
            }
            Command::Counts { configuration, answer } => {
                answer.send(self.hub.configuration_counts(&configuration));
            }
            Command::CountWhere { query, answer } => answer.send(self.hub.count_where(&query)),
            Command::Invoke { device, call, answer } => match self.lookup(&device) {
                Ok(device) => self.invoke(device, &call, Caller::Operator(answer), outlet),
                Err(error) => answer.send(Err(error)),
            },
            Command::SendC2d { device, message, answer } => match self.lookup(&device) {
                Ok(device) => {
                    let input = Input::SendC2d { device, message };
                    self.run(input, Context::Service(Some(answer)), outlet);
                }
                Err(error) => answer.send((at, Err(error))),
            },
            Command::PatchTwin { device, change, answer } => match self.lookup(&device) {
                Ok(device) => {
                    let input = Input::PatchTwin {
                        device,
                        tags: change.tags.as_deref(),
                        desired: change.desired.as_deref(),
                        if_match: change.if_match.as_deref(),
                    };
                    self.run(input, Context::Service(Some(answer)), outlet);
                }
                Err(error) => answer.send((at, Err(error))),
            },
            Command::ReadTwin { device, answer } => answer.send(self.lookup(&device).map(|device| {
                let mut twin = Vec::new();
                self.hub.write_service_twin(device, &mut twin);
                twin
            })),
            Command::Restart { .. } | Command::Metrics { .. } | Command::Stop => return Some(command),
        }
        None
    }

    fn lookup(&self, device: &str) -> Result<DeviceIx, Box<HubError>> {
        self.hub.find(device).ok_or_else(|| {
            let message = Cow::Owned(format!("no device {device:?} in this hub"));
            Box::new(HubError { code: ErrorCode::DeviceNotFound, message })
        })
    }

    fn run(&mut self, input: Input<'_>, mut context: Context<'_>, outlet: &mut impl Outlet) {
        let now = self.clock.now();
        let mut outputs = std::mem::take(&mut self.outputs);
        self.hub.handle(now, input, &mut outputs);
        for output in outputs.drain(..) {
            self.emit(now, output, &mut context, outlet);
        }
        self.outputs = outputs;
    }

    fn emit(&mut self, now: Now, output: Output, context: &mut Context<'_>, outlet: &mut impl Outlet) {
        match output {
            Output::Accepted { device, session, session_present } => {
                outlet.accepted(device, session, session_present);
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
                            accepted = None;
                            error.write_device_body(rid, now.wall, &mut self.body);
                        }
                        None => self.hooks.reported(now, self.hub.id(device), version, patch),
                    }
                    if deliver {
                        let answer = Down::TwinAnswer { rid, status, version: accepted, body: &self.body };
                        outlet.down(device, self.hub.id(device), &answer, None);
                    }
                }
            }
            Output::Desired { device, version, patch } => {
                outlet.desired(device, self.hub.id(device), version, &patch);
            }
            Output::Method { device, call, name, payload } => {
                let rid = call.to_string();
                let message = Down::Method { name: Cow::Borrowed(&name), rid: &rid, body: &payload };
                outlet.down(device, self.hub.id(device), &message, None);
            }
            Output::C2d { device, delivery, message } => {
                let message = Down::CloudToDevice { properties: &message.properties, body: &message.body };
                outlet.down(device, self.hub.id(device), &message, Some(delivery));
            }
            Output::MethodResult { tag, result } => self.method_result(now, tag, result),
            Output::Telemetry { device } => {
                if let Context::Telemetry { properties, body } = *context {
                    let message = Telemetry { device: self.hub.id(device), properties, body };
                    self.hooks.telemetry(now, message, &mut self.replies);
                }
            }
            Output::Service(result) => match context {
                Context::Service(Some(_)) => {
                    if let Context::Service(Some(answer)) = std::mem::replace(context, Context::Nothing) {
                        answer.send((now.at, result));
                    }
                }
                _ => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "the hub refused what a hook sent");
                    }
                }
            },
            Output::TwinAnswer { deliver: false, .. } | Output::Feedback { .. } => {}
        }
    }

    fn method_result(&mut self, now: Now, tag: u64, result: Result<MethodAnswer, Box<HubError>>) {
        match self.calls.remove(&tag) {
            Some(Caller::Operator(answer)) => answer.send(result),
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
