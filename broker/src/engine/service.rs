//! What the back end does to a shard, and who hears of it.

use fleetwave_hub_core::throttle::{Admission, Operation};
use fleetwave_hub_core::{Authentication, DeviceIx, DeviceSpec, Done, HubError, Input};
use fleetwave_protocol::{Instant, Now};

use super::{Caller, Context, Delayed, Engine, Outlet, bytes, throttled};
use crate::control::{Command, MethodCall, MethodOutcome};
use crate::events::{EventKind, HubEvent};

impl Engine {
    pub(super) fn publish(&self, now: Now, device: DeviceIx, kind: EventKind<'_>) {
        if self.sinks.is_empty() {
            return;
        }
        self.publish_of(now, device, self.hub.generation_id(device), kind);
    }

    /// As [`Engine::publish`], of a device that may be gone.
    pub(super) fn publish_of(&self, now: Now, device: DeviceIx, generation: u64, kind: EventKind<'_>) {
        let generation = generation.to_string();
        let id = self.hub.id(device);
        let mut event = HubEvent { id, generation: &generation, authentication: "sas", model: None, kind };
        if self.hub.exists(device) {
            let identity = self.hub.identity(device);
            event.model = identity.model_id;
            if let Authentication::SelfSigned { .. } | Authentication::CertificateAuthority =
                identity.authentication
            {
                event.authentication = "x509Certificate";
            }
        }
        for sink in self.sinks.iter() {
            sink.event(now, &event);
        }
    }

    /// Tells of the modules that the hub itself has made, from an index on.
    pub(super) fn publish_modules(&mut self, now: Now, first: DeviceIx) {
        if self.sinks.is_empty() {
            return;
        }
        let mut twin = Vec::new();
        for module in self.hub.modules_from(first) {
            twin.clear();
            self.hub.write_service_twin(module, &mut twin);
            self.publish(now, module, EventKind::Created { twin: &twin });
        }
    }

    pub(crate) fn create(&mut self, id: &str, spec: DeviceSpec<'_>) -> Result<DeviceIx, Box<HubError>> {
        let now = self.now();
        let device = self.hub.create_device(now, id, spec)?;
        if !self.sinks.is_empty() {
            let mut twin = Vec::new();
            self.hub.write_service_twin(device, &mut twin);
            self.publish(now, device, EventKind::Created { twin: &twin });
        }
        self.publish_modules(now, device.next());
        Ok(device)
    }

    /// Does what the back end asks for, at once, and says when and how it ended.
    pub(crate) fn apply(
        &mut self,
        input: Input<'_>,
        outlet: &mut (impl Outlet + ?Sized),
    ) -> (Instant, Result<Done, Box<HubError>>) {
        let now = self.now();
        let deleted = match &input {
            Input::DeleteDevice { device, .. } if !self.sinks.is_empty() && self.hub.exists(*device) => {
                let mut twin = Vec::new();
                self.hub.write_service_twin(*device, &mut twin);
                Some((*device, self.hub.generation_id(*device), twin))
            }
            _ => None,
        };
        let first_new = self.hub.next_index();
        let written = match &input {
            Input::PatchTwin { device, tags, desired, .. } => Some((*device, *tags, *desired, false)),
            Input::ReplaceTwin { device, tags, desired, .. } => Some((*device, *tags, *desired, true)),
            _ => None,
        };
        let mut done = None;
        self.run(input, Context::Service(&mut done), outlet);
        let done = done.unwrap_or(Ok(Done::TwinWritten { hidden: false }));
        if done.is_ok() {
            self.metrics.c2d += u64::from(matches!(done, Ok(Done::Received(Some(_)))));
            if let Some((device, generation, twin)) = deleted {
                self.publish_of(now, device, generation, EventKind::Deleted { twin: &twin });
            }
            self.publish_modules(now, first_new);
            if let Some((device, tags, desired, replaced)) = written {
                self.metrics.twin_writes += 1;
                let version = self.hub.twin(device).desired_version;
                self.publish(now, device, EventKind::TwinWritten { tags, desired, version, replaced });
                if matches!(done, Ok(Done::TwinWritten { hidden: true })) {
                    tracing::info!(
                        device = self.hub.id(device),
                        "desired properties were written that a configuration owns: its values count while it \
                         applies, and the device hears nothing of these"
                    );
                }
            }
        }
        (now.at, done)
    }

    pub(crate) fn invoke_for(
        &mut self,
        device: DeviceIx,
        call: &MethodCall,
        outcome: Box<dyn FnOnce(MethodOutcome) + Send>,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
        self.invoke(device, call, Caller::Job(outcome), outlet);
    }

    pub(super) fn invoke(
        &mut self,
        device: DeviceIx,
        call: &MethodCall,
        caller: Caller,
        outlet: &mut (impl Outlet + ?Sized),
    ) {
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
    pub(crate) fn command(
        &mut self,
        command: Command,
        outlet: &mut (impl Outlet + ?Sized),
    ) -> Option<Command> {
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
                    Command::Invoke { answer, .. } => self.answer(answer, Err(error)),
                    Command::SendC2d { answer, .. } | Command::PatchTwin { answer, .. } => {
                        self.answer(answer, (at, Err(error)));
                    }
                    Command::ReadTwin { answer, .. } => self.answer(answer, Err(error)),
                    other => return Some(other),
                }
                None
            }
        }
    }

    pub(super) fn perform(
        &mut self,
        command: Command,
        outlet: &mut (impl Outlet + ?Sized),
    ) -> Option<Command> {
        let at = self.now().at;
        match command {
            Command::Create { devices, answer } => {
                let created =
                    devices.iter().try_for_each(|device| self.create(&device.id, device.spec()).map(drop));
                let created = created.map(|()| devices.len() as u64);
                self.answer(answer, created);
            }
            Command::Put { configuration, answer } => {
                let done = self.apply(Input::PutConfiguration { configuration, if_match: None }, outlet);
                self.answer(answer, done);
            }
            Command::Delete { configuration, answer } => {
                let done =
                    self.apply(Input::DeleteConfiguration { id: &configuration, if_match: None }, outlet);
                self.answer(answer, done);
            }
            Command::Counts { configuration, answer } => {
                let counts = self.hub.configuration_counts(&configuration);
                self.answer(answer, counts);
            }
            Command::CountWhere { query, answer } => {
                let count = self.hub.count_where(&query);
                self.answer(answer, count);
            }
            Command::Invoke { device, call, answer } => match self.lookup(&device) {
                Ok(device) => self.invoke(device, &call, Caller::Operator(answer), outlet),
                Err(error) => self.answer(answer, Err(error)),
            },
            Command::SendC2d { device, message, answer } => {
                let done = match self.lookup(&device) {
                    Ok(device) => self.apply(Input::SendC2d { device, message }, outlet),
                    Err(error) => (at, Err(error)),
                };
                self.answer(answer, done);
            }
            Command::PatchTwin { device, change, answer } => {
                let done = match self.lookup(&device) {
                    Ok(device) => {
                        let input = Input::PatchTwin {
                            device,
                            tags: change.tags.as_deref(),
                            desired: change.desired.as_deref(),
                            if_match: change.if_match.as_deref(),
                        };
                        self.apply(input, outlet)
                    }
                    Err(error) => (at, Err(error)),
                };
                self.answer(answer, done);
            }
            Command::ReadTwin { device, answer } => {
                let twin = self.lookup(&device).map(|device| {
                    let mut twin = Vec::new();
                    self.hub.write_service_twin(device, &mut twin);
                    twin
                });
                self.answer(answer, twin);
            }
            Command::Restart { .. } | Command::Metrics { .. } | Command::Run(_) | Command::Stop => {
                return Some(command);
            }
        }
        None
    }

    pub(super) fn lookup(&self, device: &str) -> Result<DeviceIx, Box<HubError>> {
        Ok(self.hub.locate(device)?)
    }
}
