//! Changes that belong together.

use std::ops::Range;

use fleetwave_hub_core::Change;

/// Changes that become durable together, in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    operations: Vec<Operation>,
}

/// One change; without a value, the key goes.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) key: Key,
    value: Option<Range<usize>>,
}

#[derive(Debug)]
pub(super) enum Key {
    Part(u64),
    Device(u64),
    Configuration(Box<str>),
    Row(&'static str, Box<str>),
}

impl Batch {
    pub(super) fn add(&mut self, key: Key, value: Option<&[u8]>) {
        let value = value.map(|value| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(value);
            start..self.bytes.len()
        });
        self.operations.push(Operation { key, value });
    }

    pub(super) fn change(&mut self, change: Change<'_>) {
        match change {
            Change::Part { number, record } => self.add(Key::Part(number), record),
            Change::Device { number, record } => self.add(Key::Device(number), record),
            Change::Configuration { id, record } => self.add(Key::Configuration(id.into()), record),
        }
    }

    /// How many bytes it holds.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.operations.len() * size_of::<Operation>()
    }

    /// The changes in the order in which they were added.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, Option<&[u8]>)> {
        let value = |range: &Range<usize>| &self.bytes[range.clone()];
        self.operations.iter().map(move |operation| (&operation.key, operation.value.as_ref().map(value)))
    }
}
