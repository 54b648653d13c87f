//! The hub: what it owns, and which part takes which input.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::{Instant, Now};
use rustc_hash::FxHashMap;

use crate::c2d::Queue;
use crate::changes::Changes;
use crate::configuration::{Active, ConfigurationSet, Kind};
use crate::device::{Device, NewTwin, Registry, Section};
use crate::error::{ErrorCode, HubError};
use crate::identities::{EDGE_MODULES, Kept};
use crate::identity::{Authentication, Identity, split};
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
    /// Whether it may connect. A module has no status of its own: it follows its device.
    pub enabled: bool,
    /// How it shows who it is; none for an identity that is derived and takes no memory.
    pub identity: Option<&'a Identity>,
}

impl Default for DeviceSpec<'_> {
    fn default() -> Self {
        Self { tags: None, desired: None, reported: None, enabled: true, identity: None }
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
    /// Which configurations, of those for its kind that mention what changed, target a twin with these tags after it
    /// took a transition of its reported properties.
    pub(crate) targets_after: FxHashMap<(Active, DocId, TransitionId), Active>,
    /// A twin has changed since configurations were evaluated, and a timer is set for that.
    pub(crate) evaluation_due: bool,
    pub(crate) timers: Timers,
    /// The identities that are not derived.
    pub(crate) identities: FxHashMap<DeviceIx, Box<Kept>>,
    /// The modules of devices that have any, in the order in which they were made.
    pub(crate) modules: FxHashMap<DeviceIx, Vec<DeviceIx>>,
    /// The models that devices named.
    pub(crate) models: FxHashMap<DeviceIx, Arc<str>>,
    pub(crate) last_model: Option<Arc<str>>,
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
    pub(crate) changes: Changes,
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
            identities: FxHashMap::default(),
            modules: FxHashMap::default(),
            models: FxHashMap::default(),
            last_model: None,
            c2d: FxHashMap::default(),
            deliveries: 0,
            calls: FxHashMap::default(),
            waiting: FxHashMap::default(),
            calls_made: 0,
            method_names: Vec::new(),
            empty,
            changes: Changes::default(),
        }
    }

    /// Makes a device, or the module `device/module` of a device. Configurations that target it apply at once,
    /// unless [`Options::cycle`] says later. An edge device gets its modules `$edgeAgent` and `$edgeHub`.
    ///
    /// # Errors
    /// 409001 or, for a module, 409301 if there is one of this id; 404001 if a module's device does not exist, 413003
    /// if it has [as many](limits::MODULES) as it may; 400 and 413 for an id or JSON that is against the rules.
    pub fn create_device(&mut self, now: Now, id: &str, spec: DeviceSpec<'_>) -> Result<DeviceIx, HubError> {
        let made = self.create(now, id, spec);
        self.sweep_if_full();
        made
    }

    fn create(&mut self, now: Now, id: &str, spec: DeviceSpec<'_>) -> Result<DeviceIx, HubError> {
        let parent = self.check_new(id, &spec)?;
        let tags = self.document(spec.tags, limits::Section::Tags)?;
        let own = self.document(spec.desired, limits::Section::Desired)?;
        let reported = self.document(spec.reported, limits::Section::Reported)?;
        let kind = match parent {
            Some(_) => Kind::Module,
            None if spec.identity.is_some_and(|identity| identity.edge) => Kind::EdgeDevice,
            None => Kind::Device,
        };
        let module = split(id).1;
        let mut targeted =
            if self.evaluates_now(now) { self.targets(id, kind, tags, reported) } else { Active::NONE };
        if let (Some(parent), Some(module)) = (parent, module) {
            targeted = targeted.with(self.deployed_to(parent, module));
        }
        let part = self.configurations.part_of(targeted, module);
        let layer = self.store.layer_of(own, targeted, part, &self.configurations);
        self.store.layer_mut(layer).devices += 1;
        let desired = self.store.layer(layer).doc;
        let stamp = Stamp::new(now.wall, 1);
        let mut section = |doc| Section {
            pattern: self.store.fresh(doc),
            stamps: self.stamps.fresh(stamp),
            version: stamp.version(),
        };
        let (desired, reported) = (section(desired), section(reported));
        let twin = NewTwin { tags, layer, desired, reported, enabled: spec.enabled, kind };
        let ix = self.registry.add(id, twin);
        self.changes.device(ix);
        if let Some(parent) = parent {
            self.modules.entry(parent).or_default().push(ix);
        }
        if let Some(identity) = spec.identity {
            self.keep_new(ix, identity.clone());
            if identity.edge {
                self.add_edge_modules(now, ix);
                for name in self.configurations.deployed_names(targeted) {
                    self.add_module(now, ix, &name, None);
                }
            }
        }
        Ok(ix)
    }

    /// Checks what is new about a device or module. Answers a module's device.
    fn check_new(&self, id: &str, spec: &DeviceSpec<'_>) -> Result<Option<DeviceIx>, HubError> {
        let (device, module) = split(id);
        limits::check_id("device", device)?;
        if let Some(reason) = spec.identity.and_then(|identity| identity.status_reason.as_deref()) {
            limits::check_status_reason(reason)?;
        }
        let Some(module) = module else {
            if self.registry.find(id).is_some() {
                let message = format!("there is a device {id:?} already");
                return Err(HubError::new(ErrorCode::DeviceAlreadyExists, message));
            }
            return Ok(None);
        };
        if module.contains('/') {
            let message = format!("{id:?} would be a module below a module");
            return Err(HubError::new(ErrorCode::CannotRegisterModuleToModule, message));
        }
        limits::check_id("module", module)?;
        if !spec.enabled || spec.identity.is_some_and(|identity| identity.edge) {
            return Err(limits::invalid("a module is neither disabled nor an edge device: its device is"));
        }
        let Some(parent) = self.registry.find(device) else {
            return Err(HubError::new(ErrorCode::DeviceNotFound, format!("there is no device {device:?}")));
        };
        if self.registry.find(id).is_some() {
            let message = format!("the device {device:?} has a module {module:?} already");
            return Err(HubError::new(ErrorCode::ModuleAlreadyExistsOnDevice, message));
        }
        if self.modules_of(parent).len() >= limits::MODULES {
            let message = format!("a device has at most {} modules, as {device:?} does", limits::MODULES);
            return Err(HubError::new(ErrorCode::TooManyModulesOnDevice, message));
        }
        Ok(Some(parent))
    }

    /// Makes the modules that an edge device has, as far as they are missing and there is room for them.
    pub(crate) fn add_edge_modules(&mut self, now: Now, device: DeviceIx) {
        for name in EDGE_MODULES {
            self.add_module(now, device, name, Some("iotEdge".into()));
        }
    }

    /// Makes a module of an edge device, unless it is there. Nobody can connect as it before it has keys.
    pub(crate) fn add_module(&mut self, now: Now, device: DeviceIx, name: &str, managed_by: Option<String>) {
        let view = self.identity(device);
        let id = format!("{}/{name}", view.device_id);
        let made = u64::try_from(self.modules_of(device).len()).unwrap_or_default();
        let identity = Identity {
            authentication: Authentication::None,
            generation_id: view.generation_id.wrapping_add(made + 1),
            managed_by,
            ..Identity::default()
        };
        // One that is there already, or is one too many, changes nothing.
        let _ = self.create(now, &id, DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() });
    }

    fn document(&mut self, json: Option<&str>, section: limits::Section) -> Result<DocId, HubError> {
        let Some(json) = json else { return Ok(self.empty) };
        let patch = self.store.patch_of(json.as_bytes())?;
        let doc = self.store.merge(self.empty, patch);
        section.check_size(self.store.doc(doc).tree.size())?;
        Ok(doc)
    }

    /// The device of an id, or the module of `device/module`.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<DeviceIx> {
        self.registry.find(id)
    }

    /// The device of an id, or the module of `device/module`, for a service that names it.
    ///
    /// # Errors
    /// 404001 if there is no such device, 404010 if the device has no such module.
    pub fn locate(&self, id: &str) -> Result<DeviceIx, HubError> {
        self.find(id).ok_or_else(|| match split(id) {
            (device, Some(module)) if self.find(device).is_some() => HubError::new(
                ErrorCode::ModuleNotFound,
                format!("the device {device:?} has no module {module:?}"),
            ),
            (device, _) => {
                HubError::new(ErrorCode::DeviceNotFound, format!("there is no device {device:?} in this hub"))
            }
        })
    }

    /// The index that the next device or module will have.
    #[must_use]
    pub fn next_index(&self) -> DeviceIx {
        DeviceIx(self.registry.bound())
    }

    /// Whether the device or module exists.
    #[must_use]
    pub fn exists(&self, device: DeviceIx) -> bool {
        self.registry.get(device).is_some()
    }

    /// The id of a device, or `device/module`; also of a deleted one.
    ///
    /// # Panics
    /// If this hub never had the device.
    #[must_use]
    pub fn id(&self, device: DeviceIx) -> &str {
        self.registry.id(device)
    }

    /// How many devices there are. Modules are not counted.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.registry.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many modules there are.
    #[must_use]
    pub const fn modules_len(&self) -> usize {
        self.registry.modules()
    }

    /// How many C2D messages wait for their devices.
    #[must_use]
    pub fn c2d_len(&self) -> usize {
        self.c2d.values().map(Queue::len).sum()
    }

    /// Every device, in the order in which they were made. Modules are not among them.
    pub fn devices(&self) -> impl Iterator<Item = DeviceIx> {
        self.devices_from(DeviceIx(0))
    }

    /// Every device from `first` on, in the order in which they were made: a page of devices begins behind the last
    /// one of the page before, at [`DeviceIx::next`].
    pub fn devices_from(&self, first: DeviceIx) -> impl Iterator<Item = DeviceIx> {
        self.registry.iter_from(first).filter(|(_, device)| !device.module).map(|(ix, _)| ix)
    }

    /// Every module, in the order in which they were made.
    pub fn modules(&self) -> impl Iterator<Item = DeviceIx> {
        self.modules_from(DeviceIx(0))
    }

    /// Every module from `first` on, in the order in which they were made.
    pub fn modules_from(&self, first: DeviceIx) -> impl Iterator<Item = DeviceIx> {
        self.registry.iter_from(first).filter(|(_, device)| device.module).map(|(ix, _)| ix)
    }

    /// The modules of a device, in the order in which they were made.
    #[must_use]
    pub fn modules_of(&self, device: DeviceIx) -> &[DeviceIx] {
        self.modules.get(&device).map_or(&[], |modules| modules)
    }

    /// The device that a module is of; none for a device.
    #[must_use]
    pub fn parent_of(&self, module: DeviceIx) -> Option<DeviceIx> {
        if !self.registry.was_module(module) {
            return None;
        }
        self.registry.find(split(self.registry.id(module)).0)
    }

    /// Whether it is a module.
    #[must_use]
    pub fn is_module(&self, device: DeviceIx) -> bool {
        self.registry.was_module(device)
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
            Input::Connect { device, session, clean, model } => {
                self.connect(now, device, session, clean, model, out);
            }
            Input::Disconnect { device, session } => self.disconnect(now, device, session, out),
            Input::Subscribe { device, topics } => self.subscribe(now, device, topics, out),
            Input::Unsubscribe { device, topics } => self.unsubscribe(device, topics),
            Input::TwinGet { device } => self.read_twin(now, device, out),
            Input::Report { device, base, patch } => self.report(now, device, base, patch, out),
            Input::Telemetry { device, properties, body } => {
                self.telemetry(now, device, properties.len() + body.len(), out);
            }
            Input::Post { device, properties, body } => {
                self.post(now, device, properties.len() + body.len(), out);
            }
            Input::MethodResponse { device, call, status, body } => {
                self.answer(device, call, status, body, out);
            }
            Input::C2dAck { device, delivery } => self.complete_c2d(now, device, delivery, out),
            Input::ReceiveC2d { device, lock } => self.receive_c2d(now, device, lock, out),
            Input::SettleC2d { device, lock, outcome } => self.settle_c2d(now, device, lock, outcome, out),
            Input::PutConfiguration { configuration, if_match } => {
                self.put_configuration(now, configuration, if_match, out);
            }
            Input::DeleteConfiguration { id, if_match } => {
                self.delete_configuration(now, id, if_match, out);
            }
            Input::ApplyContent { device, content } => self.apply_content(now, device, content, out),
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
            Input::PutIdentity { device, identity, if_match } => {
                self.put_identity(now, device, identity, if_match, out);
            }
            Input::DeleteDevice { device, if_match } => self.delete_device(device, if_match, out),
            Input::Timer => {
                while let Some((ticket, due)) = self.timers.pop(now.at) {
                    match due {
                        Due::C2dExpiry(device) => self.expire_c2d(now, device, ticket, out),
                        Due::C2dLock(device) => self.unlock_c2d(now, device, ticket, out),
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
        self.registry.get(ix).ok_or_else(|| self.missing(ix))
    }

    fn missing(&self, ix: DeviceIx) -> HubError {
        if self.registry.was_module(ix) {
            HubError::new(ErrorCode::ModuleNotFound, "there is no such module")
        } else {
            HubError::new(ErrorCode::DeviceNotFound, "there is no such device")
        }
    }

    fn sweep_if_full(&mut self) {
        let memo = self.general_targets.len() + self.targets_after.len();
        if self.store.is_full(memo) {
            self.sweep();
        }
    }

    pub(crate) fn sweep(&mut self) {
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
