//! A table with stable 32-bit indices that are used again.

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// One more than the highest index ever used.
    pub(crate) fn bound(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.entries[id as usize].is_some()
    }

    /// The entry of an index that is in use.
    pub(crate) fn get(&self, id: u32) -> &T {
        self.entries[id as usize].as_ref().expect("an index in use")
    }

    /// The entry of an index that is in use.
    pub(crate) fn get_mut(&mut self, id: u32) -> &mut T {
        self.entries[id as usize].as_mut().expect("an index in use")
    }

    pub(crate) fn insert(&mut self, entry: T) -> u32 {
        match self.free.pop() {
            Some(id) => {
                self.entries[id as usize] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                u32::try_from(self.entries.len() - 1).expect("fewer than 2³² entries")
            }
        }
    }

    /// The entries in the order of their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.entries).filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }

    /// Drops the entries that `keep` refuses, in the order of their indices.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(u32, &T) -> bool) {
        for (id, entry) in (0..).zip(&mut self.entries) {
            if entry.as_ref().is_some_and(|entry| !keep(id, entry)) {
                *entry = None;
                self.free.push(id);
            }
        }
    }
}
