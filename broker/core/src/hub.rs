//! The hub: what it owns, and which part takes which input.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::{Instant, Now};
use rustc_hash::FxHashMap;

use crate::c2d::Queue;
use crate::configuration::{Active, ConfigurationSet};
use crate::device::{Device, NewTwin, Registry, Section};
use crate::error::{ErrorCode, HubError};
use crate::io::{DeviceIx, Input, Output};
use crate::limits;
use crate::method::{Call, Invocation};
use crate::stamps::{Stamp, Stamps};
use crate::store::{DocId, Held, PatchId, Store, TransitionId};
use crate::timers::{Due, Timers};
use crate::tree::Tree;

/// When configurations are evaluated for twins that changed. A configuration that is created, changed or deleted
/// takes effect at once in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cycle {
    /// At once.
    #[default]
    Immediate,
    /// At whole multiples of a period, as the real hub does it every five minutes.
    Every(Duration),
}

/// What can be chosen about a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// When configurations are evaluated.
    pub cycle: Cycle,
    /// How long a C2D message lives that does not say it itself.
    pub c2d_ttl: Duration,
    /// How often a C2D message is delivered at most.
    pub c2d_max_deliveries: u32,
}

impl Default for Options {
    /// IoT Hub's defaults, but for the cycle, which is immediate.
    fn default() -> Self {
        Self { cycle: Cycle::Immediate, c2d_ttl: Duration::from_secs(3600), c2d_max_deliveries: 10 }
    }
}

/// A device to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec<'a> {
    /// The tags, a JSON object.
    pub tags: Option<&'a str>,
    /// The desired properties that the back end writes, a JSON object.
    pub desired: Option<&'a str>,
    /// The reported properties, a JSON object.
    pub reported: Option<&'a str>,
    /// Whether it may connect.
    pub enabled: bool,
}

impl Default for DeviceSpec<'_> {
    fn default() -> Self {
        Self { tags: None, desired: None, reported: None, enabled: true }
    }
}

/// One shard of a hub: it owns some of the devices, and shares nothing with other shards.
///
/// It never waits and knows no clock: [`Hub::handle`] takes an input and the time, and appends what is to be done.
/// The same inputs give the same outputs.
#[derive(Debug)]
pub struct Hub {
    pub(crate) options: Options,
    pub(crate) registry: Registry,
    pub(crate) store: Store,
    pub(crate) stamps: Stamps,
    pub(crate) configurations: ConfigurationSet,
    /// Which configurations without a mention of the device's id target twins with these tags and reported properties.
    pub(crate) general_targets: FxHashMap<(DocId, DocId), Active>,
    /// Which configurations target a twin with these tags after it took a transition of its reported properties,
    /// given those that did before.
    pub(crate) targets_after: FxHashMap<(Active, DocId, TransitionId), Active>,
    /// A twin has changed since configurations were evaluated, and a timer is set for that.
    pub(crate) evaluation_due: bool,
    pub(crate) timers: Timers,
    pub(crate) c2d: FxHashMap<DeviceIx, Queue>,
    /// The number of the newest C2D delivery.
    pub(crate) deliveries: u32,
    pub(crate) calls: FxHashMap<u32, Call>,
    /// The calls that wait for a device to connect.
    pub(crate) waiting: FxHashMap<DeviceIx, Vec<u32>>,
    /// The number of the newest method call.
    pub(crate) calls_made: u32,
    pub(crate) method_names: Vec<Arc<str>>,
    pub(crate) empty: DocId,
}

impl Hub {
    /// An empty shard.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let mut store = Store::new();
        let empty = store.intern(Tree::empty());
        Self {
            options,
            registry: Registry::default(),
            store,
            stamps: Stamps::default(),
            configurations: ConfigurationSet::default(),
            general_targets: FxHashMap::default(),
            targets_after: FxHashMap::default(),
            evaluation_due: false,
            timers: Timers::default(),
            c2d: FxHashMap::default(),
            deliveries: 0,
            calls: FxHashMap::default(),
            waiting: FxHashMap::default(),
            calls_made: 0,
            method_names: Vec::new(),
            empty,
        }
    }

    /// Makes a device. Configurations that target it apply at once, unless [`Options::cycle`] says later.
    ///
    /// # Errors
    /// 409001 if there is one of this id; 400 and 413 for an id or JSON that is against the rules.
    pub fn create_device(&mut self, now: Now, id: &str, spec: DeviceSpec<'_>) -> Result<DeviceIx, HubError> {
        limits::check_device_id(id)?;
        if self.registry.find(id).is_some() {
            return Err(HubError::new(ErrorCode::DeviceAlreadyExists, format!("there is a device {id:?}")));
        }
        let tags = self.document(spec.tags, limits::Section::Tags)?;
        let own = self.document(spec.desired, limits::Section::Desired)?;
        let reported = self.document(spec.reported, limits::Section::Reported)?;
        let targeted = if self.evaluates_now(now) { self.targets(id, tags, reported) } else { Active::NONE };
        let layer = self.store.layer_of(own, targeted, &self.configurations);
        self.store.layer_mut(layer).devices += 1;
        let desired = self.store.layer(layer).doc;
        let stamp = Stamp::new(now.wall, 1);
        let mut section = |doc| Section {
            pattern: self.store.fresh(doc),
            stamps: self.stamps.fresh(stamp),
            version: stamp.version(),
        };
        let (desired, reported) = (section(desired), section(reported));
        let twin = NewTwin { tags, layer, desired, reported, enabled: spec.enabled };
        let ix = self.registry.add(id, twin, now.wall);
        self.sweep_if_full();
        Ok(ix)
    }

    fn document(&mut self, json: Option<&str>, section: limits::Section) -> Result<DocId, HubError> {
        let Some(json) = json else { return Ok(self.empty) };
        let patch = self.store.patch_of(json.as_bytes())?;
        let doc = self.store.merge(self.empty, patch);
        section.check_size(self.store.doc(doc).tree.size())?;
        Ok(doc)
    }

    /// The device of an id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<DeviceIx> {
        self.registry.find(id)
    }

    /// Whether the device exists.
    #[must_use]
    pub fn exists(&self, device: DeviceIx) -> bool {
        self.registry.get(device).is_some()
    }

    /// The id of a device, also of a deleted one.
    ///
    /// # Panics
    /// If this hub never had the device.
    #[must_use]
    pub fn id(&self, device: DeviceIx) -> &str {
        self.registry.id(device)
    }

    /// How many devices there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.registry.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every device, in the order in which they were made.
    pub fn devices(&self) -> impl Iterator<Item = DeviceIx> {
        self.registry.iter().map(|(ix, _)| ix)
    }

    /// Bytes on the heap that grow with the number of devices, whatever their twins say.
    #[must_use]
    pub fn device_heap(&self) -> usize {
        self.registry.heap() + self.stamps.heap()
    }

    /// Interns a patch for [`Patch::Interned`](crate::Patch::Interned); it is kept as long as the hub.
    ///
    /// # Errors
    /// 400 if it is not an object or against the rules.
    pub fn intern_patch(&mut self, json: &[u8]) -> Result<PatchId, HubError> {
        let id = self.store.patch_of(json)?;
        self.store.pin(id);
        Ok(id)
    }

    /// When [`Input::Timer`] is to be given, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Takes an input. Effects are appended to `out`.
    pub fn handle(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Output>) {
        match input {
            Input::Connect { device, session, clean } => self.connect(now, device, session, clean, out),
            Input::Disconnect { device, session } => self.disconnect(now, device, session, out),
            Input::Subscribe { device, topics } => self.subscribe(now, device, topics, out),
            Input::Unsubscribe { device, topics } => self.unsubscribe(device, topics),
            Input::TwinGet { device } => self.read_twin(now, device, out),
            Input::Report { device, base, patch } => self.report(now, device, base, patch, out),
            Input::Telemetry { device, properties, body } => {
                self.telemetry(now, device, properties.len() + body.len(), out);
            }
            Input::MethodResponse { device, call, status, body } => {
                self.answer(device, call, status, body, out);
            }
            Input::C2dAck { device, delivery } => self.complete_c2d(now, device, delivery, out),
            Input::PutConfiguration(configuration) => self.put_configuration(now, configuration, out),
            Input::DeleteConfiguration { id } => self.delete_configuration(now, id, out),
            Input::PatchTwin { device, tags, desired, if_match } => {
                self.write_twin(now, device, tags, desired, if_match, Write::Merge, out);
            }
            Input::ReplaceTwin { device, tags, desired, if_match } => {
                self.write_twin(now, device, tags, desired, if_match, Write::Replace, out);
            }
            Input::SendC2d { device, message } => self.send_c2d(now, device, message, out),
            Input::PurgeC2d { device } => self.purge_c2d(now, device, out),
            Input::InvokeMethod { device, name, payload, connect_timeout, response_timeout, tag } => {
                let call = Invocation { name, payload, connect_timeout, response_timeout, tag };
                self.invoke(now, device, &call, out);
            }
            Input::SetStatus { device, enabled } => self.set_status(now, device, enabled, out),
            Input::DeleteDevice { device } => self.delete_device(device, out),
            Input::Timer => {
                while let Some((ticket, due)) = self.timers.pop(now.at) {
                    match due {
                        Due::C2dExpiry(device) => self.expire_c2d(now, device, ticket, out),
                        Due::Method(call) => self.time_out(call, out),
                        Due::Cycle => self.evaluate(now, out),
                    }
                }
            }
        }
        self.sweep_if_full();
    }

    pub(crate) fn device(&self, ix: DeviceIx) -> Option<&Device> {
        self.registry.get(ix)
    }

    /// The device, for a service that names one.
    pub(crate) fn existing(&self, ix: DeviceIx) -> Result<&Device, HubError> {
        self.registry
            .get(ix)
            .ok_or_else(|| HubError::new(ErrorCode::DeviceNotFound, "there is no such device"))
    }

    fn sweep_if_full(&mut self) {
        let memo = self.general_targets.len() + self.targets_after.len();
        if !self.store.is_full(memo) {
            return;
        }
        self.forget_targets();
        let held = self.registry.iter().map(|(_, device)| Held {
            tags: device.tags,
            reported: device.reported.pattern,
            desired: device.desired.pattern,
        });
        self.store.sweep(self.empty, held);
    }

    pub(crate) fn forget_targets(&mut self) {
        self.general_targets = FxHashMap::default();
        self.targets_after = FxHashMap::default();
    }
}

/// What a service does to a section that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Merge,
    Replace,
}
