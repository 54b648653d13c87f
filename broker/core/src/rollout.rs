//! Configurations and the twins that they target.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::{Instant, Now};
use rustc_hash::FxHashMap;

use crate::configuration::{Active, Configuration, ConfigurationView, Kind, Part, Targets};
use crate::hub::{Cycle, Hub};
use crate::identity::split;
use crate::io::{DeviceIx, Done, Output, Topics};
use crate::query::TwinScope;
use crate::stamps::Stamp;
use crate::store::{DocId, LayerId, PatchId};
use crate::timers::Due;

/// A configuration's system metrics in one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Twins that match the target condition.
    pub targeted: u64,
    /// Twins in which something of the configuration stands: at least one of its paths is not taken by a
    /// configuration of higher priority.
    pub applied: u64,
}

impl Hub {
    /// A configuration's system metrics in this shard; `None` if there is none of this id.
    #[must_use]
    pub fn configuration_counts(&self, id: &str) -> Option<Counts> {
        let slot = self.configurations.find(id)?;
        let mut counts = Counts::default();
        let edge = !slot.and(self.configurations.edge()).is_empty();
        // Edge deployments target devices: modules that get a part of one are not counted.
        for layer in self.store.layers().filter(|layer| !edge || layer.part.is_none()) {
            let devices = u64::from(layer.devices);
            counts.targeted += if layer.targeted.and(slot).is_empty() { 0 } else { devices };
            counts.applied += if layer.applied.and(slot).is_empty() { 0 } else { devices };
        }
        Some(counts)
    }

    /// The configurations, in the order of their creation.
    #[must_use]
    pub fn configurations(&self) -> Vec<ConfigurationView<'_>> {
        self.configurations.views()
    }

    /// The configuration of an id.
    #[must_use]
    pub fn configuration(&self, id: &str) -> Option<ConfigurationView<'_>> {
        self.configurations.view(id)
    }

    /// Which of `candidates` target a twin.
    pub(crate) fn matching(&self, id: &str, tags: DocId, reported: DocId, candidates: Active) -> Active {
        let scope = TwinScope::of_documents(id, &self.store.doc(tags).tree, &self.store.doc(reported).tree);
        self.configurations
            .iter(candidates)
            .filter(|(_, configuration)| configuration.condition().matches(&scope))
            .fold(Active::NONE, |hits, (slot, _)| hits.with(slot))
    }

    /// Which configurations target a twin.
    pub(crate) fn targets(&mut self, id: &str, kind: Kind, tags: DocId, reported: DocId) -> Active {
        let kind = self.configurations.of_kind(kind);
        let individual = self.configurations.individual();
        let general = match self.general_targets.get(&(tags, reported)) {
            Some(&known) => known,
            None => {
                let hits = self.matching(id, tags, reported, self.configurations.all().without(individual));
                self.general_targets.insert((tags, reported), hits);
                hits
            }
        };
        general.and(kind).with(self.matching(id, tags, reported, individual.and(kind)))
    }

    /// Makes `targeted` the configurations that target a device.
    pub(crate) fn target(&mut self, now: Now, ix: DeviceIx, targeted: Active, out: &mut Vec<Output>) {
        let Some(device) = self.device(ix) else { return };
        let layer = self.store.layer(device.layer);
        if layer.targeted != targeted {
            let layer = self.layer_for(ix, layer.own, targeted);
            self.move_to(now, ix, layer, None, out);
        }
    }

    /// The layer of `targeted` configurations over the back end's own properties of a device or module.
    pub(crate) fn layer_for(&mut self, ix: DeviceIx, own: DocId, targeted: Active) -> LayerId {
        let module = split(self.registry.id(ix)).1;
        let part = self.configurations.part_of(targeted, module);
        self.store.layer_of(own, targeted, part, &self.configurations)
    }

    /// The edge deployments that have something for a module.
    pub(crate) fn deployed_to(&self, device: DeviceIx, module: &str) -> Active {
        if self.configurations.edge().is_empty() {
            return Active::NONE;
        }
        let Some(device) = self.device(device) else { return Active::NONE };
        self.configurations.deployed(self.store.layer(device.layer).targeted, module)
    }

    /// Brings what edge deployments have for an edge device's modules into their twins, and makes modules that are
    /// missing.
    pub(crate) fn deploy(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        let Some(device) = self.device(ix) else { return };
        let targeted = self.store.layer(device.layer).targeted;
        for name in self.configurations.deployed_names(targeted) {
            self.add_module(now, ix, &name, None);
        }
        let edge = self.configurations.edge();
        for module in self.modules_of(ix).to_vec() {
            let Some(name) = split(self.registry.id(module)).1 else { continue };
            let deployed = self.configurations.deployed(targeted, name);
            let Some(before) = self.device(module).map(|module| self.store.layer(module.layer)) else {
                continue;
            };
            self.target(now, module, before.targeted.without(edge).with(deployed), out);
        }
    }

    /// Moves a device to a layer: writes what differs into its desired properties, once, and notifies it. `sent` is
    /// the patch as the back end wrote it, if it leads there. The modules of an edge device follow.
    pub(crate) fn move_to(
        &mut self,
        now: Now,
        ix: DeviceIx,
        layer: LayerId,
        sent: Option<PatchId>,
        out: &mut Vec<Output>,
    ) {
        let Some(device) = self.registry.get(ix) else { return };
        let edge = self.configurations.edge();
        let changes = !edge.is_empty() && !device.module && {
            let [from, to] = [device.layer, layer].map(|layer| self.store.layer(layer).targeted.and(edge));
            from != to
        };
        self.rewrite(now, ix, layer, sent, out);
        if changes {
            self.deploy(now, ix, out);
        }
    }

    fn rewrite(
        &mut self,
        now: Now,
        ix: DeviceIx,
        layer: LayerId,
        sent: Option<PatchId>,
        out: &mut Vec<Output>,
    ) {
        let Some(device) = self.registry.get_mut(ix) else { return };
        self.changes.device(ix);
        self.store.layer_mut(device.layer).devices -= 1;
        self.store.layer_mut(layer).devices += 1;
        device.layer = layer;
        let from = self.store.pattern_doc(device.desired.pattern);
        let to = self.store.layer(layer).doc;
        let patch = match sent {
            Some(patch) => patch,
            None if from == to => return,
            None => self.store.diff(from, to),
        };
        let section = &mut device.desired;
        let step = self.store.step(section.pattern, patch, &self.configurations);
        let transition = self.store.transition(step);
        debug_assert_eq!(self.store.pattern_doc(transition.to), to, "a patch leads to the layer's document");
        section.version = section.version.saturating_add(1);
        device.twin_version = device.twin_version.saturating_add(1);
        let stamp = Stamp::new(now.wall, section.version);
        let slots = self.store.slots(section.pattern);
        section.stamps = self.stamps.follow(section.stamps, slots, &transition.map, stamp);
        section.pattern = transition.to;
        let version = u64::from(section.version);
        if device.hears(Topics::DESIRED) {
            out.push(Output::Desired { device: ix, version, patch: Arc::clone(self.store.patch(patch)) });
        }
    }

    pub(crate) fn put_configuration(
        &mut self,
        now: Now,
        configuration: Arc<Configuration>,
        if_match: Option<&str>,
        out: &mut Vec<Output>,
    ) {
        let added = self.configurations.add(Arc::clone(&configuration), if_match);
        let (slot, replaced, etag) = match added {
            Ok((slot, replaced)) => (slot, replaced, self.configurations.etag(slot)),
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        out.push(Output::Service(Ok(Done::ConfigurationPut { etag })));
        self.changes.configuration(configuration.id());
        self.forget_targets();
        let condition = configuration.condition();
        let mut known: FxHashMap<(DocId, DocId), bool> = FxHashMap::default();
        let mut moves: FxHashMap<(LayerId, bool), LayerId> = FxHashMap::default();
        // Modules that an edge deployment makes on the way come at the end.
        let mut place = 0;
        while place < self.registry.bound() {
            let ix = DeviceIx(place);
            place += 1;
            let Some(device) = self.device(ix) else { continue };
            let (tags, reported) = (device.tags, self.store.pattern_doc(device.reported.pattern));
            let matches = || condition.matches(&self.scope(ix, device));
            let addressed = match configuration.targets() {
                Targets::Devices => !device.module,
                Targets::Modules => device.module,
                Targets::Edge => device.edge,
            };
            let hit = if !addressed {
                false
            } else if condition.is_individual() {
                matches()
            } else {
                *known.entry((tags, reported)).or_insert_with(matches)
            };
            let from = device.layer;
            let to = *moves.entry((from, hit)).or_insert_with(|| {
                let layer = self.store.layer(from);
                let added = if hit { slot } else { Active::NONE };
                let targeted = layer.targeted.without(replaced).with(added);
                // Modules have followed their devices already, which have the lower indices.
                let edge = targeted.and(self.configurations.edge());
                let part = if edge.is_empty() { Part::default() } else { layer.part };
                self.store.layer_of(layer.own, targeted, part, &self.configurations)
            });
            if from != to {
                self.move_to(now, ix, to, None, out);
            }
        }
        self.configurations.remove(replaced);
        self.store.configurations_changed();
        self.forget_targets();
    }

    pub(crate) fn delete_configuration(
        &mut self,
        now: Now,
        id: &str,
        if_match: Option<&str>,
        out: &mut Vec<Output>,
    ) {
        let slot = match self.configurations.find_matching(id, if_match) {
            Ok(slot) => slot,
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        out.push(Output::Service(Ok(Done::ConfigurationDeleted)));
        self.changes.configuration(id);
        for ix in (0..self.registry.bound()).map(DeviceIx) {
            let Some(device) = self.device(ix) else { continue };
            let targeted = self.store.layer(device.layer).targeted;
            self.target(now, ix, targeted.without(slot), out);
        }
        self.configurations.remove(slot);
        self.store.configurations_changed();
        self.forget_targets();
    }

    /// Sets a timer for the next evaluation, if none is set.
    pub(crate) fn evaluate_later(&mut self, now: Now, period: Duration) {
        if !self.evaluation_due {
            self.evaluation_due = true;
            let period = fleetwave_protocol::time::micros(period).max(1);
            let next = (now.at.as_micros() / period + 1).saturating_mul(period);
            self.timers.set(Instant::from_micros(next), Due::Cycle);
        }
    }

    /// Finds the configurations that target each device.
    pub(crate) fn evaluate(&mut self, now: Now, out: &mut Vec<Output>) {
        self.evaluation_due = false;
        for ix in (0..self.registry.bound()).map(DeviceIx) {
            self.retarget(now, ix, out);
        }
    }

    /// Finds the configurations that target a device.
    pub(crate) fn retarget(&mut self, now: Now, ix: DeviceIx, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get(ix) else { return };
        let (tags, reported) = (device.tags, self.store.pattern_doc(device.reported.pattern));
        let targeted = self.targets_of(ix, tags, reported);
        self.target(now, ix, targeted, out);
    }

    /// Which configurations target an existing device, were these its tags and reported properties.
    pub(crate) fn targets_of(&mut self, ix: DeviceIx, tags: DocId, reported: DocId) -> Active {
        let kind = self.registry.kind(ix);
        let deployed = self.deployed_here(ix);
        if self.configurations.individual().is_empty()
            && let Some(&known) = self.general_targets.get(&(tags, reported))
        {
            return known.and(self.configurations.of_kind(kind)).with(deployed);
        }
        let id = self.registry.id(ix).to_owned();
        self.targets(&id, kind, tags, reported).with(deployed)
    }

    /// The edge deployments that have something for a module; none for a device.
    fn deployed_here(&self, ix: DeviceIx) -> Active {
        if self.configurations.edge().is_empty() {
            return Active::NONE;
        }
        match (self.parent_of(ix), split(self.registry.id(ix)).1) {
            (Some(device), Some(module)) => self.deployed_to(device, module),
            _ => Active::NONE,
        }
    }

    /// Whether configurations are evaluated at once; if not, a timer is set.
    pub(crate) fn evaluates_now(&mut self, now: Now) -> bool {
        match self.options.cycle {
            Cycle::Immediate => true,
            Cycle::Every(period) => {
                self.evaluate_later(now, period);
                false
            }
        }
    }
}
