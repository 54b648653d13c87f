//! Things to be done later, in order of their time; equal times in order of arrival.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fleetwave_protocol::Instant;

/// A queue ordered by time.
pub(crate) struct DelayQueue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    pushed: u64,
}

struct Entry<T> {
    at: Instant,
    order: u64,
    what: T,
}

impl<T> Entry<T> {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.order)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Default for DelayQueue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0 }
    }
}

impl<T> DelayQueue<T> {
    pub(crate) fn push(&mut self, at: Instant, what: T) {
        self.heap.push(Reverse(Entry { at, order: self.pushed, what }));
        self.pushed += 1;
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// When the first is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// The first, if it is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.what)
    }

    /// Drops what `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.heap.retain(|Reverse(entry)| keep(&entry.what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_of_time_then_of_arrival() {
        let at = Instant::from_micros;
        let mut queue = DelayQueue::default();
        for (time, what) in [(30, 'c'), (10, 'a'), (10, 'b'), (50, 'd')] {
            queue.push(at(time), what);
        }
        assert_eq!(queue.next(), Some(at(10)));
        let mut due = String::new();
        while let Some(what) = queue.pop(at(30)) {
            due.push(what);
        }
        assert_eq!(due, "abc");
        assert_eq!(queue.pop(at(49)), None);
        queue.retain(|what| *what != 'd');
        assert_eq!(queue.next(), None);
    }
}
