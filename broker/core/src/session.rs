//! Connections, and what devices do on them.
//!
//! MQTT queues nothing of twins and methods for a device that is away; what outlives a connection with CleanSession 0
//! are its subscriptions, all of them, because SDKs do not subscribe again.

use fleetwave_protocol::Now;

use crate::error::{ErrorCode, HubError};
use crate::hub::{Cycle, Hub};
use crate::io::{CloseReason, DeviceIx, Done, Output, Patch, Refusal, Topics};
use crate::limits;
use crate::stamps::Stamp;
use crate::store::TransitionId;

impl Hub {
    pub(crate) fn connect(
        &mut self,
        now: Now,
        ix: DeviceIx,
        session: u32,
        clean: bool,
        model: Option<&str>,
        out: &mut Vec<Output>,
    ) {
        let reason = match self.device(ix) {
            None => Some(Refusal::Unknown),
            Some(device) if !device.enabled => Some(Refusal::Disabled),
            // A module comes in only with its device.
            Some(device) if device.module && !self.parent_is_enabled(ix) => Some(Refusal::Disabled),
            Some(_) => None,
        };
        if let Some(reason) = reason {
            return out.push(Output::Refused { device: ix, session, reason });
        }
        self.end_session(now, ix, CloseReason::TakenOver, out);
        let Some(device) = self.registry.get_mut(ix) else { return };
        let lasting = device.lasting();
        let session_present = device.persistent && !clean;
        if !session_present {
            device.topics = Topics::NONE;
        }
        device.session = session;
        device.connected = true;
        device.persistent = !clean;
        device.active(now.wall);
        if device.lasting() != lasting {
            self.changes.device(ix);
        }
        self.connection_changed(now, ix);
        if self.set_model(ix, model) {
            self.changes.device(ix);
        }
        out.push(Output::Accepted { device: ix, session, session_present });
        self.deliver_c2d(ix, out);
        self.send_waiting(now, ix, out);
    }

    pub(crate) fn disconnect(&mut self, now: Now, ix: DeviceIx, session: u32, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix) else { return };
        if !device.connected || device.session != session {
            return;
        }
        device.connected = false;
        if !device.persistent {
            device.topics = Topics::NONE;
        }
        self.connection_changed(now, ix);
        self.return_c2d(now, ix, out);
    }

    fn parent_is_enabled(&self, module: DeviceIx) -> bool {
        self.parent_of(module).and_then(|ix| self.device(ix)).is_some_and(|device| device.enabled)
    }

    /// Ends the connection that a device has, if any, from the hub's side.
    pub(crate) fn end_session(&mut self, now: Now, ix: DeviceIx, reason: CloseReason, out: &mut Vec<Output>) {
        let Some(device) = self.device(ix) else { return };
        if device.connected {
            let session = device.session;
            out.push(Output::Close { device: ix, session, reason });
            self.disconnect(now, ix, session, out);
        }
    }

    pub(crate) fn subscribe(&mut self, now: Now, ix: DeviceIx, topics: Topics, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix).filter(|device| device.connected) else { return };
        let lasting = device.lasting();
        device.topics = device.topics.with(topics);
        if device.lasting() != lasting {
            self.changes.device(ix);
        }
        if topics.contains(Topics::C2D) {
            self.deliver_c2d(ix, out);
        }
        if topics.contains(Topics::METHODS) {
            self.send_waiting(now, ix, out);
        }
    }

    pub(crate) fn unsubscribe(&mut self, ix: DeviceIx, topics: Topics) {
        if let Some(device) = self.registry.get_mut(ix).filter(|device| device.connected) {
            let lasting = device.lasting();
            device.topics = device.topics.without(topics);
            if device.lasting() != lasting {
                self.changes.device(ix);
            }
        }
    }

    pub(crate) fn read_twin(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix).filter(|device| device.connected) else { return };
        device.active(now.wall);
        out.push(Output::TwinAnswer { device: ix, status: 200, deliver: device.hears(Topics::TWIN_ANSWERS) });
    }

    pub(crate) fn telemetry(&mut self, now: Now, ix: DeviceIx, size: usize, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix).filter(|device| device.connected) else { return };
        device.active(now.wall);
        if size > limits::D2C_SIZE {
            self.end_session(now, ix, CloseReason::MessageTooLarge, out);
        } else {
            out.push(Output::Telemetry { device: ix });
        }
    }

    /// A message of a device that need not be connected.
    pub(crate) fn post(&mut self, now: Now, ix: DeviceIx, size: usize, out: &mut Vec<Output>) {
        if let Err(error) = self.existing(ix).and_then(|_| limits::check_d2c_size(size)) {
            return out.push(Output::Service(Err(Box::new(error))));
        }
        if let Some(device) = self.registry.get_mut(ix) {
            device.active(now.wall);
        }
        out.push(Output::Service(Ok(Done::Posted)));
        out.push(Output::Telemetry { device: ix });
    }

    pub(crate) fn report(
        &mut self,
        now: Now,
        ix: DeviceIx,
        base: Option<u64>,
        patch: Patch<'_>,
        out: &mut Vec<Output>,
    ) {
        if !self.device(ix).is_some_and(|device| device.connected) {
            return;
        }
        let result = self.accept_report(now, ix, base, patch);
        let Some(device) = self.registry.get_mut(ix) else { return };
        device.active(now.wall);
        let deliver = device.hears(Topics::TWIN_ANSWERS);
        let version = u64::from(device.reported.version);
        let (status, error, step) = match result {
            Ok(step) => (204, None, Some(step)),
            Err(error) => (error.status(), Some(Box::new(error)), None),
        };
        out.push(Output::ReportAnswer { device: ix, status, version, error, deliver });
        if let Some(step) = step {
            self.retarget_after_report(now, ix, step, out);
        }
    }

    fn accept_report(
        &mut self,
        now: Now,
        ix: DeviceIx,
        base: Option<u64>,
        patch: Patch<'_>,
    ) -> Result<TransitionId, HubError> {
        let patch = match patch {
            Patch::Interned(id) => id,
            Patch::Json(json) => self.store.patch_of(json)?,
        };
        let Some(device) = self.registry.get_mut(ix) else {
            return Err(HubError::new(ErrorCode::DeviceNotFound, "there is no such device"));
        };
        let section = &mut device.reported;
        if let Some(base) = base.filter(|&base| base != u64::from(section.version)) {
            return Err(HubError::new(
                ErrorCode::PreconditionFailed,
                format!("the patch was made against version {base}, the current one is {}", section.version),
            ));
        }
        let step = self.store.step(section.pattern, patch, &self.configurations);
        let transition = self.store.transition(step);
        let to = transition.to;
        let size = self.store.doc(self.store.pattern_doc(to)).tree.size();
        limits::Section::Reported.check_size(size)?;
        section.version = section.version.saturating_add(1);
        let stamp = Stamp::new(now.wall, section.version);
        let slots = self.store.slots(section.pattern);
        section.stamps = self.stamps.follow(section.stamps, slots, &transition.map, stamp);
        section.pattern = to;
        self.changes.device(ix);
        Ok(step)
    }

    /// Finds the configurations that target a twin after a report. Only those are evaluated whose condition mentions
    /// what changed, and for equal twins only once.
    fn retarget_after_report(&mut self, now: Now, ix: DeviceIx, step: TransitionId, out: &mut Vec<Output>) {
        let transition = self.store.transition(step);
        let to = transition.to;
        if transition.affected.is_empty() {
            return;
        }
        let kind = self.configurations.of_kind(self.registry.kind(ix));
        let affected = transition.affected.and(kind);
        if affected.is_empty() {
            return;
        }
        if let Cycle::Every(period) = self.options.cycle {
            return self.evaluate_later(now, period);
        }
        let Some(device) = self.device(ix) else { return };
        let (tags, before) = (device.tags, self.store.layer(device.layer).targeted);
        let hits = self.targets_after.get(&(kind, tags, step)).copied().unwrap_or_else(|| {
            let hits = self.matching(self.registry.id(ix), tags, self.store.pattern_doc(to), affected);
            if affected.and(self.configurations.individual()).is_empty() {
                self.targets_after.insert((kind, tags, step), hits);
            }
            hits
        });
        self.target(now, ix, before.without(affected).with(hits), out);
    }
}
