//! The identities that the registry keeps, and what changes them.

mod record;

use std::hash::Hasher as _;
use std::sync::Arc;

use fleetwave_protocol::{Now, WallTime};
use rustc_hash::FxHasher;

use crate::error::HubError;
use crate::hub::Hub;
use crate::identity::{
    Authentication, DeviceEtag, Identity, IdentityChange, IdentityView, Statistics, is_forced, split,
};
use crate::io::{CloseReason, DeviceIx, Done, Output};
use crate::limits;

/// An identity as the registry keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) identity: Identity,
    writes: u32,
    status_updated: Option<WallTime>,
    pub(crate) connection_updated: Option<WallTime>,
}

impl Kept {
    pub(crate) fn new(identity: Identity) -> Box<Self> {
        Box::new(Self { identity, writes: 0, status_updated: None, connection_updated: None })
    }
}

/// The generation id of a derived identity.
fn derived_generation(id: &str) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(id.as_bytes());
    // Eighteen digits, as IoT Hub's are these years.
    600_000_000_000_000_000 + hasher.finish() % 100_000_000_000_000_000
}

/// The modules that each edge device has.
pub(crate) const EDGE_MODULES: [&str; 2] = ["$edgeAgent", "$edgeHub"];

/// The scope of an edge device.
fn edge_scope(device_id: &str, generation_id: u64) -> String {
    format!("ms-azure-iot-edge://{device_id}-{generation_id}")
}

/// Fills in what a service may leave to the registry.
fn complete_scopes(identity: &mut Identity, device_id: &str) {
    if identity.edge {
        if identity.device_scope.is_none() {
            identity.device_scope = Some(edge_scope(device_id, identity.generation_id));
        }
    } else if identity.parent_scopes.is_empty()
        && let Some(scope) = &identity.device_scope
    {
        identity.parent_scopes = vec![scope.clone()];
    }
}

impl Hub {
    /// The identity of a device or module.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn identity(&self, device: DeviceIx) -> IdentityView<'_> {
        let entry = self.device(device).expect("a device of this hub");
        let id = self.registry.id(device);
        let (device_id, module_id) = split(id);
        let kept = self.kept(device);
        let identity = kept.map(|kept| &kept.identity);
        let generation_id = identity.map_or_else(|| derived_generation(id), |kept| kept.generation_id);
        IdentityView {
            device_id,
            module_id,
            authentication: identity.map_or(&Authentication::Derived, |kept| &kept.authentication),
            generation_id,
            etag: DeviceEtag::of(generation_id, kept.map_or(0, |kept| kept.writes)),
            enabled: entry.enabled,
            status_reason: identity.and_then(|kept| kept.status_reason.as_deref()),
            status_updated: kept.and_then(|kept| kept.status_updated),
            connected: entry.connected,
            connection_updated: kept.and_then(|kept| kept.connection_updated),
            last_activity: entry.last_activity(),
            c2d_waiting: self.c2d.get(&device).map_or(0, crate::c2d::Queue::len),
            edge: identity.is_some_and(|kept| kept.edge),
            device_scope: identity.and_then(|kept| kept.device_scope.as_deref()),
            parent_scopes: identity.map_or(&[], |kept| &kept.parent_scopes),
            managed_by: identity.and_then(|kept| kept.managed_by.as_deref()),
            model_id: self.models.get(&device).map(|model| &**model),
        }
    }

    /// What tells a device or module apart from others that had its id before. Of one that was deleted it is known only
    /// if its identity was derived.
    ///
    /// # Panics
    /// If this hub never had the device.
    #[must_use]
    pub fn generation_id(&self, device: DeviceIx) -> u64 {
        match self.kept(device) {
            Some(kept) => kept.identity.generation_id,
            None => derived_generation(self.registry.id(device)),
        }
    }

    /// The number of each kind of devices, counted now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        for (_, device) in self.registry.iter().filter(|(_, device)| !device.module) {
            statistics.total += 1;
            statistics.enabled += u64::from(device.enabled);
            statistics.disabled += u64::from(!device.enabled);
            statistics.connected += u64::from(device.connected);
        }
        statistics
    }

    /// What is kept of an identity; nothing of a derived one.
    fn kept(&self, ix: DeviceIx) -> Option<&Kept> {
        let kept = self.device(ix)?.kept;
        if kept { self.identities.get(&ix).map(|kept| &**kept) } else { None }
    }

    /// Keeps the identity of a device that has just been made. Its scopes are filled in.
    pub(crate) fn keep_new(&mut self, ix: DeviceIx, mut identity: Identity) {
        complete_scopes(&mut identity, self.registry.id(ix));
        self.keep(ix, Kept::new(identity));
    }

    fn keep(&mut self, ix: DeviceIx, kept: Box<Kept>) {
        if let Some(device) = self.registry.get_mut(ix) {
            device.kept = true;
            self.identities.insert(ix, kept);
            self.changes.device(ix);
        }
    }

    /// Notes when a connection began or ended, of identities that are kept.
    pub(crate) fn connection_changed(&mut self, now: Now, ix: DeviceIx) {
        if self.device(ix).is_some_and(|device| device.kept)
            && let Some(kept) = self.identities.get_mut(&ix)
        {
            kept.connection_updated = Some(now.wall);
        }
    }

    /// Notes the model that a device named when it connected. Says whether it is another one.
    pub(crate) fn set_model(&mut self, ix: DeviceIx, model: Option<&str>) -> bool {
        match model {
            // Fleets have few models: devices share the text.
            Some(model) if self.models.get(&ix).is_none_or(|known| **known != *model) => {
                let shared = match &self.last_model {
                    Some(last) if **last == *model => Arc::clone(last),
                    _ => Arc::from(model),
                };
                self.last_model = Some(Arc::clone(&shared));
                self.models.insert(ix, shared);
                true
            }
            Some(_) => false,
            None if self.models.is_empty() => false,
            None => self.models.remove(&ix).is_some(),
        }
    }

    pub(crate) fn put_identity(
        &mut self,
        now: Now,
        ix: DeviceIx,
        change: &IdentityChange,
        if_match: Option<&str>,
        out: &mut Vec<Output>,
    ) {
        let edge = match self.check_identity(ix, change, if_match) {
            Ok(edge) => edge,
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        let enabled = self.device(ix).is_some_and(|device| device.enabled);
        let mut kept = self.take_kept(ix);
        kept.apply(now, change, enabled);
        let device_id = split(self.registry.id(ix)).0;
        complete_scopes(&mut kept.identity, device_id);
        let etag = DeviceEtag::of(kept.identity.generation_id, kept.writes);
        self.keep(ix, kept);
        out.push(Output::Service(Ok(Done::IdentityPut { etag })));
        if let Some(enabled) = change.enabled {
            self.enable(now, ix, enabled, out);
        }
        if edge {
            self.add_edge_modules(now, ix);
        }
        let is_edge = self.identity(ix).edge;
        if let Some(device) = self.registry.get_mut(ix)
            && device.edge != is_edge
        {
            device.edge = is_edge;
            if self.evaluates_now(now) {
                self.retarget(now, ix, out);
            }
        }
    }

    /// Checks all of a change before any of it is done. Says whether the device becomes an edge device.
    fn check_identity(
        &self,
        ix: DeviceIx,
        change: &IdentityChange,
        if_match: Option<&str>,
    ) -> Result<bool, HubError> {
        let device = self.existing(ix)?;
        let identity = self.identity(ix);
        identity.etag.check(if_match)?;
        if device.module && change.edge == Some(true) {
            return Err(limits::invalid("a module can't be an edge device"));
        }
        if device.module && change.enabled == Some(false) {
            return Err(limits::invalid("a module has no status of its own: disable its device"));
        }
        if let Some(reason) = &change.status_reason {
            limits::check_status_reason(reason)?;
        }
        Ok(change.edge == Some(true) && !identity.edge)
    }

    /// The identity of an existing device, to be changed and given back.
    fn take_kept(&mut self, ix: DeviceIx) -> Box<Kept> {
        self.identities.remove(&ix).unwrap_or_else(|| {
            let generation_id = derived_generation(self.registry.id(ix));
            Kept::new(Identity { generation_id, ..Identity::default() })
        })
    }

    pub(crate) fn set_status(&mut self, now: Now, ix: DeviceIx, enabled: bool, out: &mut Vec<Output>) {
        let change = IdentityChange { enabled: Some(enabled), ..IdentityChange::default() };
        let first = out.len();
        self.put_identity(now, ix, &change, None, out);
        if let Some(Output::Service(Ok(done))) = out.get_mut(first) {
            *done = Done::StatusSet;
        }
    }

    /// Lets a device connect or not; its modules follow it.
    fn enable(&mut self, now: Now, ix: DeviceIx, enabled: bool, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix) else { return };
        device.enabled = enabled;
        self.changes.device(ix);
        if !enabled {
            self.end_session(now, ix, CloseReason::Disabled, out);
            for module in self.modules_of(ix).to_vec() {
                self.end_session(now, module, CloseReason::Disabled, out);
            }
        }
    }

    /// Refuses an identity etag that is not the current one.
    pub(crate) fn check_device_etag(&self, ix: DeviceIx, if_match: Option<&str>) -> Result<(), HubError> {
        if is_forced(if_match) { Ok(()) } else { self.identity(ix).etag.check(if_match) }
    }
}

impl Kept {
    fn apply(&mut self, now: Now, change: &IdentityChange, enabled: bool) {
        fn set(place: &mut Option<String>, text: Option<&String>) {
            if let Some(text) = text {
                *place = Some(text.clone()).filter(|text| !text.is_empty());
            }
        }
        let identity = &mut self.identity;
        if change.enabled.is_some_and(|new| new != enabled) {
            self.status_updated = Some(now.wall);
        }
        set(&mut identity.status_reason, change.status_reason.as_ref());
        set(&mut identity.device_scope, change.device_scope.as_ref());
        set(&mut identity.managed_by, change.managed_by.as_ref());
        if let Some(authentication) = &change.authentication {
            identity.authentication = authentication.clone();
        }
        if let Some(edge) = change.edge {
            identity.edge = edge;
        }
        if let Some(scopes) = &change.parent_scopes {
            identity.parent_scopes.clone_from(scopes);
        }
        self.writes = self.writes.wrapping_add(1);
    }
}
