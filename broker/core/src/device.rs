//! What the hub keeps of each device, and the registry that finds them.

use fleetwave_protocol::WallTime;
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::hash::Hasher as _;

use crate::configuration::Kind;
use crate::io::{DeviceIx, Topics};
use crate::store::{DocId, LayerId, PatternId};

/// A device. What twins share stands in the [`Store`](crate::store::Store), what few devices have in tables by index.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) tags: DocId,
    pub(crate) layer: LayerId,
    pub(crate) desired: Section,
    pub(crate) reported: Section,
    /// Counts what the back end and configurations wrote; the etag is made of it.
    pub(crate) twin_version: u32,
    /// Zero: never.
    last_activity: WallTime,
    /// The driver's number for the newest connection.
    pub(crate) session: u32,
    id_start: u32,
    id_len: u16,
    pub(crate) topics: Topics,
    pub(crate) enabled: bool,
    pub(crate) connected: bool,
    /// Subscriptions outlive the connection (CleanSession 0).
    pub(crate) persistent: bool,
    pub(crate) deleted: bool,
    /// A module: its id is `device/module`.
    pub(crate) module: bool,
    /// Its identity stands in the hub's table.
    pub(crate) kept: bool,
    pub(crate) edge: bool,
}

/// A section of properties. Versions are 32 bits wide here: at the hub's limit for one twin that is years of changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) pattern: PatternId,
    /// Where its stamps stand.
    pub(crate) stamps: u32,
    pub(crate) version: u32,
}

impl Device {
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// When it did something last, if it did.
    pub(crate) fn last_activity(&self) -> Option<WallTime> {
        Some(self.last_activity).filter(|at| at.as_unix_millis() > 0)
    }

    pub(crate) const fn active(&mut self, at: WallTime) {
        self.last_activity = at;
    }

    /// What outlives the connection: whether its session does, and with it what it is subscribed to.
    pub(crate) const fn lasting(&self) -> (bool, Topics) {
        (self.persistent, if self.persistent { self.topics } else { Topics::NONE })
    }

    /// Whether the device is connected and subscribed.
    pub(crate) const fn hears(&self, topics: Topics) -> bool {
        self.connected && self.topics.contains(topics)
    }
}

/// The twin of a device that is being made.
pub(crate) struct NewTwin {
    pub(crate) tags: DocId,
    pub(crate) layer: LayerId,
    pub(crate) desired: Section,
    pub(crate) reported: Section,
    pub(crate) enabled: bool,
    pub(crate) kind: Kind,
}

/// The devices of a shard, with all their ids in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    devices: Vec<Device>,
    ids: Vec<u8>,
    by_id: HashTable<u32>,
    /// How many devices there are, without modules.
    live: usize,
    live_modules: usize,
}

fn hash(id: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(id);
    hasher.finish()
}

fn id_bytes<'a>(devices: &[Device], ids: &'a [u8], index: u32) -> &'a [u8] {
    let device = &devices[index as usize];
    &ids[device.id_start as usize..][..usize::from(device.id_len)]
}

impl Registry {
    /// How many devices there are, without modules.
    pub(crate) const fn len(&self) -> usize {
        self.live
    }

    /// How many modules there are.
    pub(crate) const fn modules(&self) -> usize {
        self.live_modules
    }

    pub(crate) fn find(&self, id: &str) -> Option<DeviceIx> {
        let same = |&index: &u32| id_bytes(&self.devices, &self.ids, index) == id.as_bytes();
        self.by_id.find(hash(id.as_bytes()), same).copied().map(DeviceIx)
    }

    pub(crate) fn id(&self, ix: DeviceIx) -> &str {
        std::str::from_utf8(id_bytes(&self.devices, &self.ids, ix.0)).expect("ids were text")
    }

    /// The device, unless there is none or it was deleted.
    pub(crate) fn get(&self, ix: DeviceIx) -> Option<&Device> {
        self.devices.get(ix.index()).filter(|device| !device.deleted)
    }

    pub(crate) fn get_mut(&mut self, ix: DeviceIx) -> Option<&mut Device> {
        self.devices.get_mut(ix.index()).filter(|device| !device.deleted)
    }

    /// Every device and module that exists, in the order of their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DeviceIx, &Device)> {
        self.iter_from(DeviceIx(0))
    }

    /// Every device and module that exists from an index on.
    pub(crate) fn iter_from(&self, first: DeviceIx) -> impl Iterator<Item = (DeviceIx, &Device)> {
        let devices = self.devices.get(first.index()..).unwrap_or_default();
        (first.0..).map(DeviceIx).zip(devices).filter(|(_, device)| !device.deleted)
    }

    /// What a device is to configurations.
    pub(crate) fn kind(&self, ix: DeviceIx) -> Kind {
        match self.devices.get(ix.index()) {
            Some(device) if device.module => Kind::Module,
            Some(device) if device.edge => Kind::EdgeDevice,
            _ => Kind::Device,
        }
    }

    /// Whether an index was ever given to a module.
    pub(crate) fn was_module(&self, ix: DeviceIx) -> bool {
        self.devices.get(ix.index()).is_some_and(|device| device.module)
    }

    /// One more than the highest index.
    pub(crate) fn bound(&self) -> u32 {
        u32::try_from(self.devices.len()).expect("fewer than 2³² devices in a shard")
    }

    /// Adds a device whose id is checked and new.
    pub(crate) fn add(&mut self, id: &str, twin: NewTwin) -> DeviceIx {
        let index = self.bound();
        let id_start = u32::try_from(self.ids.len()).expect("fewer than 4 GiB of ids in a shard");
        self.ids.extend_from_slice(id.as_bytes());
        let NewTwin { tags, layer, desired, reported, enabled, kind } = twin;
        let (module, edge) = (kind == Kind::Module, kind == Kind::EdgeDevice);
        self.devices.push(Device {
            tags,
            layer,
            desired,
            reported,
            twin_version: 1,
            last_activity: WallTime::from_unix_millis(0),
            session: 0,
            id_start,
            id_len: u16::try_from(id.len()).expect("ids have at most 257 bytes"),
            topics: Topics::NONE,
            enabled,
            connected: false,
            persistent: false,
            deleted: false,
            module,
            kept: false,
            edge,
        });
        let (devices, ids) = (&self.devices, &self.ids);
        self.by_id.insert_unique(hash(id.as_bytes()), index, |&index| hash(id_bytes(devices, ids, index)));
        *self.count_of(module) += 1;
        DeviceIx(index)
    }

    /// Forgets a device. Its index and its id's bytes are not used again.
    pub(crate) fn remove(&mut self, ix: DeviceIx) {
        let hash = hash(id_bytes(&self.devices, &self.ids, ix.0));
        if let Ok(entry) = self.by_id.find_entry(hash, |&index| index == ix.0) {
            entry.remove();
        }
        if let Some(device) = self.get_mut(ix) {
            device.deleted = true;
            device.connected = false;
            let module = device.module;
            *self.count_of(module) -= 1;
        }
    }

    const fn count_of(&mut self, module: bool) -> &mut usize {
        if module { &mut self.live_modules } else { &mut self.live }
    }

    /// Bytes on the heap.
    pub(crate) fn heap(&self) -> usize {
        self.devices.capacity() * size_of::<Device>() + self.ids.capacity() + self.by_id.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_one_cache_line_and_a_little() {
        assert!(size_of::<Device>() <= 64, "{}", size_of::<Device>());
    }
}
