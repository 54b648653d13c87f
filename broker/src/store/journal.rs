//! A shard's part of the store.

use fleetwave_hub_core::Hub;

use super::batch::Batch;
use super::{Store, StoreError};
use crate::engine::Journal;

/// Writes what a shard's turn has changed.
pub(crate) struct ShardJournal(Store);

impl Store {
    /// The journal of a shard; none if nothing is kept.
    pub(crate) fn journal(&self) -> Option<ShardJournal> {
        self.is_durable().then(|| ShardJournal(self.clone()))
    }
}

impl Journal for ShardJournal {
    fn commit(&mut self, hub: &mut Hub) -> Result<(), StoreError> {
        let Some(open) = &self.0.0 else { return Ok(()) };
        if !hub.has_changes() {
            return open.failure.check();
        }
        let mut batch = Batch::default();
        hub.take_changes(|change| batch.change(change));
        open.writer.write(batch, &open.failure).block()
    }
}
