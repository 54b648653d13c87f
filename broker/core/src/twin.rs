//! Twins as they are read.

use std::fmt;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_protocol::WallTime;

use crate::c2d::Queue;
use crate::device::{Device, Section};
use crate::hub::Hub;
use crate::identity::IdentityView;
use crate::io::{DeviceIx, Topics};
use crate::stamps::Stamp;
use crate::store::{Doc, versioned_len, write_open, write_versioned};
use crate::time_text::{Iso8601, Since};
use crate::tree::{ROOT, Tree};

/// The etag of a twin, without quotes: it changes with tags and desired properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Etag(u32);

impl Etag {
    pub(crate) const fn of(twin_version: u32) -> Self {
        Self(twin_version)
    }

    /// Whether a given etag, in quotes or bare, is this one.
    #[must_use]
    pub fn is(self, given: &str) -> bool {
        given.trim_matches('"') == self.to_string()
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(u64::from(self.0).to_be_bytes()))
    }
}

/// A device's twin, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct TwinView<'a> {
    /// The back end's notes.
    pub tags: &'a Doc,
    /// What the device should be.
    pub desired: &'a Doc,
    /// The version of `desired`.
    pub desired_version: u64,
    /// What the device says that it is.
    pub reported: &'a Doc,
    /// The version of `reported`.
    pub reported_version: u64,
    /// Changes with tags and desired properties.
    pub etag: Etag,
    /// Whether it is connected.
    pub connected: bool,
    /// The driver's number for its newest connection.
    pub session: u32,
    /// What it is subscribed to; away, what its next connection will be.
    pub topics: Topics,
    /// Whether it may connect.
    pub enabled: bool,
    /// When it connected, read, reported or sent last, if it did.
    pub last_activity: Option<WallTime>,
    /// How many C2D messages wait for it.
    pub c2d_waiting: usize,
}

/// What a twin section begins and ends with around the desired and the reported properties.
const DESIRED: &str = "{\"desired\":";
const REPORTED: &str = ",\"reported\":";
const END: &str = "}";

impl Hub {
    /// A device's twin.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn twin(&self, device: DeviceIx) -> TwinView<'_> {
        let entry = self.entry(device);
        TwinView {
            tags: self.store.doc(entry.tags),
            desired: self.store.doc(self.store.pattern_doc(entry.desired.pattern)),
            desired_version: u64::from(entry.desired.version),
            reported: self.store.doc(self.store.pattern_doc(entry.reported.pattern)),
            reported_version: u64::from(entry.reported.version),
            etag: Etag::of(entry.twin_version),
            connected: entry.connected,
            session: entry.session,
            topics: entry.topics,
            enabled: entry.enabled,
            last_activity: entry.last_activity(),
            c2d_waiting: self.c2d.get(&device).map_or(0, Queue::len),
        }
    }

    fn entry(&self, ix: DeviceIx) -> &Device {
        self.device(ix).expect("a device of this hub")
    }

    /// Appends the twin as a device reads it.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn write_device_twin(&self, device: DeviceIx, out: &mut Vec<u8>) {
        let twin = self.twin(device);
        out.extend_from_slice(DESIRED.as_bytes());
        write_versioned(&twin.desired.tree, twin.desired_version, out);
        out.extend_from_slice(REPORTED.as_bytes());
        write_versioned(&twin.reported.tree, twin.reported_version, out);
        out.extend_from_slice(END.as_bytes());
    }

    /// How many bytes [`Hub::write_device_twin`] appends.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn device_twin_len(&self, device: DeviceIx) -> usize {
        let twin = self.twin(device);
        let sections = versioned_len(&twin.desired.tree, twin.desired_version)
            + versioned_len(&twin.reported.tree, twin.reported_version);
        DESIRED.len() + REPORTED.len() + END.len() + sections
    }

    /// Appends the twin as the back end reads it: with tags, metadata and identity.
    ///
    /// `version` counts every change, from either side.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn write_service_twin(&self, device: DeviceIx, out: &mut Vec<u8>) {
        const WRITTEN: &str = "a vector takes all that is written to it";
        let entry = self.entry(device);
        let twin = self.twin(device);
        let layer = self.store.layer(entry.layer);
        write_identity(&self.identity(device), twin.etag, out);
        write!(
            out,
            ",\"version\":{},\"tags\":{},\"properties\":{{\"desired\":",
            u64::from(entry.twin_version) + u64::from(entry.reported.version) - 1,
            twin.tags.text(),
        )
        .expect(WRITTEN);
        self.write_with_metadata(twin.desired, entry.desired, out);
        out.extend_from_slice(b",\"reported\":");
        self.write_with_metadata(twin.reported, entry.reported, out);
        out.push(b'}');
        if !entry.module {
            write_capabilities(&self.identity(device), out);
        }
        // Edge deployments stand in the twins of devices, not of modules.
        let shown = match layer.part.is_none() {
            true => layer.targeted,
            false => layer.targeted.without(self.configurations.edge()),
        };
        if !shown.is_empty() {
            out.extend_from_slice(b",\"configurations\":{");
            for (place, (slot, configuration)) in self.configurations.iter(shown).enumerate() {
                let comma = if place == 0 { "" } else { "," };
                let id = serde_json::Value::from(configuration.id());
                let status = if layer.applied.and(slot).is_empty() { TARGETED } else { APPLIED };
                write!(out, "{comma}{id}:{{\"status\":\"{status}\"}}").expect(WRITTEN);
            }
            out.push(b'}');
        }
        out.push(b'}');
    }

    fn write_with_metadata(&self, doc: &Doc, section: Section, out: &mut Vec<u8>) {
        let slots = self.store.node_slots(section.pattern);
        let stamps = self.stamps.run(section.stamps, self.store.slots(section.pattern));
        write_open(&doc.tree, out);
        out.extend_from_slice(b"\"$metadata\":");
        write_metadata(&doc.tree, ROOT, &|node| stamps[slots[node] as usize], out);
        write!(out, ",\"$version\":{}}}", section.version).expect("a vector takes all that is written to it");
    }
}

/// The first members of a twin: who it is of.
fn write_identity(identity: &IdentityView<'_>, etag: Etag, out: &mut Vec<u8>) {
    const WRITTEN: &str = "a vector takes all that is written to it";
    let json = |text: &str| serde_json::Value::from(text);
    write!(out, "{{\"deviceId\":{}", json(identity.device_id)).expect(WRITTEN);
    if let Some(module) = identity.module_id {
        write!(out, ",\"moduleId\":{}", json(module)).expect(WRITTEN);
    }
    let status = if identity.enabled { "enabled" } else { "disabled" };
    write!(out, ",\"etag\":\"{etag}\",\"deviceEtag\":\"{}\",\"status\":\"{status}\"", identity.etag)
        .expect(WRITTEN);
    if let Some(reason) = identity.status_reason {
        write!(out, ",\"statusReason\":{}", json(reason)).expect(WRITTEN);
    }
    let [primary, secondary] = identity
        .authentication
        .thumbprints()
        .map(|thumbprint| thumbprint.map_or(serde_json::Value::Null, |digits| json(digits.as_str())));
    write!(
        out,
        ",\"statusUpdateTime\":\"{}\",\"connectionState\":\"{}\",\"lastActivityTime\":\"{}\",\
         \"cloudToDeviceMessageCount\":{},\"authenticationType\":\"{}\",\
         \"x509Thumbprint\":{{\"primaryThumbprint\":{primary},\"secondaryThumbprint\":{secondary}}},\
         \"modelId\":{}",
        Since(identity.status_updated),
        if identity.connected { "Connected" } else { "Disconnected" },
        Since(identity.last_activity),
        identity.c2d_waiting,
        identity.authentication.name(),
        json(identity.model_id.unwrap_or_default()),
    )
    .expect(WRITTEN);
}

/// What a device can be, and where it belongs.
fn write_capabilities(identity: &IdentityView<'_>, out: &mut Vec<u8>) {
    const WRITTEN: &str = "a vector takes all that is written to it";
    write!(out, ",\"capabilities\":{{\"iotEdge\":{}}}", identity.edge).expect(WRITTEN);
    if let Some(scope) = identity.device_scope {
        write!(out, ",\"deviceScope\":{}", serde_json::Value::from(scope)).expect(WRITTEN);
    }
    if !identity.parent_scopes.is_empty() {
        let scopes = serde_json::Value::from(identity.parent_scopes);
        write!(out, ",\"parentScopes\":{scopes}").expect(WRITTEN);
    }
}

fn write_metadata(tree: &Tree, node: usize, stamp: &impl Fn(usize) -> Stamp, out: &mut Vec<u8>) {
    const WRITTEN: &str = "a vector takes all that is written to it";
    let own = stamp(node);
    let at = Iso8601(own.at());
    write!(out, "{{\"$lastUpdated\":\"{at}\",\"$lastUpdatedVersion\":{}", own.version()).expect(WRITTEN);
    for member in tree.members(node) {
        write!(out, ",\"{}\":", tree.key(member)).expect(WRITTEN);
        write_metadata(tree, member, stamp, out);
    }
    out.push(b'}');
}

/// A configuration's status in a twin that it targets, when something of it stands there.
pub(crate) const APPLIED: &str = "Applied";
/// The same, when all of it is taken by higher priorities.
pub(crate) const TARGETED: &str = "Targeted";
