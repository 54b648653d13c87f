//! Who reads a partition for a consumer group: readers with an epoch push others out.
//!
//! Source: the Event Hubs guide "Event consumers": a reader with an epoch owns its partition within the group, until one
//! with the same or a higher epoch comes; without epochs there may be five.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How many readers without an epoch a partition may have in a consumer group.
const READERS: usize = 5;

type Key = (String, usize);

#[derive(Debug)]
struct Slot {
    epoch: Option<i64>,
    stolen: Arc<AtomicBool>,
}

/// The readers of all connections.
#[derive(Debug, Default)]
pub(crate) struct Readers(
    // Held for a few lines when a reader comes or goes.
    Mutex<HashMap<Key, Vec<Slot>>>,
);

/// A reader's place; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    readers: Arc<Readers>,
    key: Key,
    stolen: Arc<AtomicBool>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    #[error("a receiver with a higher epoch ({0}) is there")]
    HigherEpoch(i64),
    #[error("five receivers without an epoch are there, as many as a consumer group may have on a partition")]
    Full,
}

impl Readers {
    /// Takes a place. Readers that have to go are told by [`Place::is_stolen`].
    pub(crate) fn enter(
        self: &Arc<Self>,
        group: &str,
        partition: usize,
        epoch: Option<i64>,
    ) -> Result<Place, NoPlace> {
        let key = (group.to_owned(), partition);
        let mut all = self.lock();
        let slots = all.entry(key.clone()).or_default();
        let highest = slots.iter().filter_map(|slot| slot.epoch).max();
        match (highest, epoch) {
            (Some(highest), None) => return Err(NoPlace::HigherEpoch(highest)),
            (Some(highest), Some(epoch)) if epoch < highest => return Err(NoPlace::HigherEpoch(highest)),
            (_, Some(_)) => {
                for slot in slots.drain(..) {
                    slot.stolen.store(true, Ordering::Relaxed);
                }
            }
            (None, None) if slots.len() >= READERS => return Err(NoPlace::Full),
            (None, None) => {}
        }
        let stolen = Arc::new(AtomicBool::new(false));
        slots.push(Slot { epoch, stolen: stolen.clone() });
        drop(all);
        Ok(Place { readers: self.clone(), key, stolen })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Slot>>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl Place {
    /// Whether another reader has taken it.
    pub(crate) fn is_stolen(&self) -> bool {
        self.stolen.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.readers.lock();
        if let Some(slots) = all.get_mut(&self.key) {
            slots.retain(|slot| !Arc::ptr_eq(&slot.stolen, &self.stolen));
            if slots.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_with_an_epoch_pushes_others_out() {
        let readers = Arc::new(Readers::default());
        let plain = readers.enter("g", 0, None).unwrap();
        let elsewhere = readers.enter("g", 1, None).unwrap();
        let first = readers.enter("g", 0, Some(5)).unwrap();
        assert!(plain.is_stolen() && !elsewhere.is_stolen());
        assert_eq!(readers.enter("g", 0, Some(4)).unwrap_err(), NoPlace::HigherEpoch(5));
        assert_eq!(readers.enter("g", 0, None).unwrap_err(), NoPlace::HigherEpoch(5));
        let second = readers.enter("g", 0, Some(5)).unwrap();
        assert!(first.is_stolen());
        drop((plain, first));
        assert!(readers.enter("g", 0, None).is_err(), "the owner is still there");
        drop(second);
        assert!(readers.enter("g", 0, None).is_ok());
    }

    #[test]
    fn five_may_read_without_an_epoch() {
        let readers = Arc::new(Readers::default());
        let mut places: Vec<Place> = (0..5).map(|_| readers.enter("g", 0, None).unwrap()).collect();
        assert_eq!(readers.enter("g", 0, None).unwrap_err(), NoPlace::Full);
        places.pop();
        assert!(readers.enter("g", 0, None).is_ok());
    }
}
