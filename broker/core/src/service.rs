//! What the back end does to devices and twins.

use fleetwave_protocol::Now;
use serde_json::Value;

use crate::error::{ErrorCode, HubError};
use crate::hub::{Hub, Write};
use crate::identity::is_forced;
use crate::io::{CloseReason, DeviceIx, Done, Output};
use crate::limits::Section;
use crate::store::{DocId, PatchId};
use crate::tree::Tree;
use crate::twin::Etag;

impl Hub {
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one input")]
    pub(crate) fn write_twin(
        &mut self,
        now: Now,
        ix: DeviceIx,
        tags: Option<&[u8]>,
        desired: Option<&[u8]>,
        if_match: Option<&str>,
        write: Write,
        out: &mut Vec<Output>,
    ) {
        let planned = self.plan(ix, tags, desired, if_match, write);
        let Plan { tags, own, sent } = match planned {
            Ok(plan) => plan,
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        let Some(device) = self.registry.get_mut(ix) else { return };
        let (old_tags, before) = (device.tags, device.twin_version);
        let old_layer = device.layer;
        device.tags = tags;
        let reported = self.store.pattern_doc(device.reported.pattern);
        let targeted = if tags != old_tags && self.evaluates_now(now) {
            self.targets_of(ix, tags, reported)
        } else {
            self.store.layer(old_layer).targeted
        };
        let layer = self.layer_for(ix, own, targeted);
        let doc = self.store.layer(layer).doc;
        // The device hears of a replacement as of the difference that it makes.
        let heard = sent.filter(|&patch| {
            write == Write::Merge && !self.store.patch(patch).is_empty() && self.leads_to(ix, patch, doc)
        });
        let hidden = heard.is_none() && sent.is_some_and(|patch| self.hides(doc, patch));
        out.push(Output::Service(Ok(Done::TwinWritten { hidden })));
        self.move_to(now, ix, layer, heard, out);
        if let Some(device) = self.registry.get_mut(ix) {
            // A write is one change of the twin, whichever sections it touches.
            device.twin_version = before.saturating_add(1);
        }
    }

    /// Checks all of a write before any of it is done.
    fn plan(
        &mut self,
        ix: DeviceIx,
        tags: Option<&[u8]>,
        desired: Option<&[u8]>,
        if_match: Option<&str>,
        write: Write,
    ) -> Result<Plan, HubError> {
        let device = self.existing(ix)?;
        let etag = Etag::of(device.twin_version);
        if !is_forced(if_match) && !if_match.is_some_and(|given| etag.is(given)) {
            return Err(HubError::new(ErrorCode::PreconditionFailed, "the twin's etag is another one"));
        }
        let (old_tags, old_own) = (device.tags, self.store.layer(device.layer).own);
        let tags_patch = tags.map(|json| self.service_patch(json)).transpose()?;
        let sent = desired.map(|json| self.service_patch(json)).transpose()?;
        let tags = self.written(old_tags, tags_patch, write, Section::Tags)?;
        let own = self.written(old_own, sent, write, Section::Desired)?;
        Ok(Plan { tags, own, sent })
    }

    fn written(
        &mut self,
        old: DocId,
        patch: Option<PatchId>,
        write: Write,
        section: Section,
    ) -> Result<DocId, HubError> {
        let Some(patch) = patch else { return Ok(old) };
        let base = match write {
            Write::Merge => old,
            Write::Replace => self.empty,
        };
        let doc = self.store.merge(base, patch);
        section.check_size(self.store.doc(doc).tree.size())?;
        Ok(doc)
    }

    /// The patch of a service, without the read-only members that SDKs send back.
    fn service_patch(&mut self, json: &[u8]) -> Result<PatchId, HubError> {
        let mut value: Value = serde_json::from_slice(json)
            .map_err(|error| HubError::new(ErrorCode::IotHubFormatError, format!("not JSON: {error}")))?;
        if let Value::Object(members) = &mut value {
            members.retain(|key, _| key != "$version" && key != "$metadata");
        }
        Ok(self.store.intern_patch(Tree::from_value(&value)?))
    }

    /// Whether desired properties do not show all that a patch has put: configurations own some of its paths.
    fn hides(&self, doc: DocId, patch: PatchId) -> bool {
        let shown = &self.store.doc(doc).tree;
        shown.merge(&self.store.patch(patch).tree).0.text() != shown.text()
    }

    /// Whether a patch of a device's desired properties gives a document.
    fn leads_to(&mut self, ix: DeviceIx, patch: PatchId, doc: DocId) -> bool {
        let Some(device) = self.registry.get(ix) else { return false };
        let step = self.store.step(device.desired.pattern, patch, &self.configurations);
        self.store.pattern_doc(self.store.transition(step).to) == doc
    }

    pub(crate) fn delete_device(&mut self, ix: DeviceIx, if_match: Option<&str>, out: &mut Vec<Output>) {
        let checked = self.existing(ix).map(|_| ()).and_then(|()| self.check_device_etag(ix, if_match));
        if let Err(error) = checked {
            return out.push(Output::Service(Err(Box::new(error))));
        }
        out.push(Output::Service(Ok(Done::DeviceDeleted)));
        if let Some(modules) = self.parent_of(ix).and_then(|parent| self.modules.get_mut(&parent)) {
            modules.retain(|&module| module != ix);
        }
        self.remove(ix, out);
        for module in self.modules.remove(&ix).unwrap_or_default() {
            self.remove(module, out);
        }
    }

    fn remove(&mut self, ix: DeviceIx, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get(ix) else { return };
        if device.connected {
            out.push(Output::Close { device: ix, session: device.session, reason: CloseReason::Deleted });
        }
        self.store.layer_mut(device.layer).devices -= 1;
        for section in [device.desired, device.reported] {
            self.stamps.release(section.stamps, self.store.slots(section.pattern));
        }
        self.registry.remove(ix);
        self.changes.device_gone(ix);
        self.identities.remove(&ix);
        self.models.remove(&ix);
        self.forget_c2d(ix);
        self.forget_calls(ix, out);
    }
}

/// A checked write.
struct Plan {
    tags: DocId,
    own: DocId,
    sent: Option<PatchId>,
}
