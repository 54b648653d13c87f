//! What devices do on their connections: the hub's limits first, then the core, then what hooks answer.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub_core::throttle::{Admission, Operation};
use fleetwave_hub_core::{C2dMessage, DeviceIx, Done, HubError, Input, Patch, Topics};
use fleetwave_protocol::{Down, Up};

use super::{Caller, Context, Delayed, Ending, Engine, Hello, NO_WAIT, Outlet, bytes, throttled};
use crate::control::MethodCall;
use crate::events::EventKind;
use crate::hooks::Reply;

impl Engine {
    /// An authenticated client wants to connect.
    pub(crate) fn connect(&mut self, hello: Hello<'_>, outlet: &mut (impl Outlet + ?Sized)) {
        match self.admit(Operation::Connect, 1) {
            Admission::Now => self.run(hello.input(), Context::Nothing, outlet),
            Admission::At(at) => self.delayed.push(at, Delayed::Connect(hello.into_owned())),
            Admission::Reject { .. } => outlet.close(hello.device, hello.session, Ending::Throttled),
        }
    }

    /// A device is there whether the hub wants it or not: somebody else let it in.
    pub(crate) fn attach(&mut self, device: DeviceIx, session: u32, outlet: &mut (impl Outlet + ?Sized)) {
        self.run(Input::Connect { device, session, clean: false, model: None }, Context::Nothing, outlet);
    }

    pub(crate) fn disconnect(&mut self, device: DeviceIx, session: u32, outlet: &mut (impl Outlet + ?Sized)) {
        let was_connected =
            !self.sinks.is_empty() && self.hub.exists(device) && self.hub.twin(device).connected;
        self.run(Input::Disconnect { device, session }, Context::Nothing, outlet);
        if was_connected && !self.hub.twin(device).connected {
            self.connection_event(device, false);
        }
    }

    pub(super) fn connection_event(&mut self, device: DeviceIx, connected: bool) {
        self.connection_events += 1;
        let sequence = self.connection_events;
        let kind =
            if connected { EventKind::Connected { sequence } } else { EventKind::Disconnected { sequence } };
        self.publish(self.now(), device, kind);
    }

    pub(crate) fn subscribe(
        &mut self,
        device: DeviceIx,
        topics: Topics,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        self.run(Input::Subscribe { device, topics }, Context::Nothing, outlet);
    }

    pub(crate) fn unsubscribe(
        &mut self,
        device: DeviceIx,
        topics: Topics,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        self.run(Input::Unsubscribe { device, topics }, Context::Nothing, outlet);
    }

    pub(crate) fn acknowledge(
        &mut self,
        device: DeviceIx,
        delivery: u32,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        self.run(Input::C2dAck { device, delivery }, Context::Nothing, outlet);
    }

    /// A device's message arrived on its connection `session`.
    pub(crate) fn up(
        &mut self,
        device: DeviceIx,
        session: u32,
        message: Up<'_>,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
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

    pub(super) fn report(
        &mut self,
        device: DeviceIx,
        rid: &str,
        base: Option<u64>,
        patch: &[u8],
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        let input = Input::Report { device, base, patch: Patch::Json(patch) };
        self.run(input, Context::Report { rid, patch }, outlet);
    }

    pub(super) fn telemetry(
        &mut self,
        device: DeviceIx,
        properties: &str,
        body: &[u8],
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        let input = Input::Telemetry { device, properties, body };
        self.run(input, Context::Telemetry { properties, body }, outlet);
        self.send_replies(device, outlet);
    }

    /// A device that need not be connected sends a message.
    pub(crate) fn post(
        &mut self,
        device: DeviceIx,
        properties: &str,
        body: &[u8],
        outlet: &mut (impl Outlet + ?Sized),
    ) -> Result<Done, Box<HubError>> {
        let mut done = None;
        let input = Input::Post { device, properties, body };
        self.run(input, Context::Post { properties, body, done: &mut done }, outlet);
        self.send_replies(device, outlet);
        done.unwrap_or(Ok(Done::Posted))
    }

    /// Sends what hooks answered to a message, or puts it off.
    pub(super) fn send_replies(&mut self, device: DeviceIx, outlet: &mut (impl Outlet + ?Sized)) {
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
    pub(super) fn refuse(
        &mut self,
        device: DeviceIx,
        rid: &str,
        retry_after: Duration,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        let error = throttled(retry_after);
        self.body.clear();
        error.write_device_body(rid, self.clock.now().wall, &mut self.body);
        let answer = Down::TwinAnswer { rid, status: error.status(), version: None, body: &self.body };
        outlet.down(device, self.hub.id(device), &answer, None);
    }

    /// Sends what a hook wants to send.
    pub(super) fn reply(
        &mut self,
        device: DeviceIx,
        reply: Reply,
        admitted: bool,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
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
                if let (_, Err(error)) = self.apply(Input::SendC2d { device, message }, outlet) {
                    tracing::debug!(%error, "the hub refused what a hook sent");
                }
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
}
