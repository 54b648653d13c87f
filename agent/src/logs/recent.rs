use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What is kept of the log.
const CAPACITY: usize = 64 * 1024;

/// The last lines of the log. Clones are the same log.
#[derive(Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<u8>>>);

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recent")
    }
}

impl Recent {
    /// Adds a line with its end, in place of as many of the oldest ones as it takes.
    pub(super) fn push(&self, line: &str) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend(line.as_bytes());
        if let Some(excess) = bytes.len().checked_sub(CAPACITY) {
            let whole = bytes.iter().skip(excess).position(|byte| *byte == b'\n');
            let gone = whole.map_or(bytes.len(), |end| excess + end + 1);
            bytes.drain(..gone);
        }
    }

    /// The last whole lines, at most so many bytes of them.
    #[must_use]
    pub fn tail(&self, most: usize) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = bytes.len().saturating_sub(most);
        let mut tail = bytes.iter().copied().skip(skipped);
        // If the cut is not between two lines, the first one is not whole.
        if skipped > 0 && bytes.get(skipped - 1) != Some(&b'\n') {
            tail.by_ref().find(|byte| *byte == b'\n');
        }
        String::from_utf8_lossy(&tail.collect::<Vec<_>>()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_first_and_only_whole_ones_are_kept() {
        let recent = Recent::default();
        for line in 0..10_000 {
            recent.push(&format!("line {line}: größer\n"));
        }
        let all = recent.tail(usize::MAX);
        assert!(all.len() <= CAPACITY && all.len() > CAPACITY - 40, "{}", all.len());
        assert!(all.starts_with("line "), "{}", &all[..20]);
        assert!(all.ends_with("line 9999: größer\n"));
        assert_eq!(recent.tail(50), "line 9998: größer\nline 9999: größer\n");
        assert_eq!(recent.tail(20), "line 9999: größer\n");
        assert_eq!(recent.tail(19), "");
    }

    #[test]
    fn a_line_longer_than_everything_leaves_nothing_of_itself() {
        let recent = Recent::default();
        recent.push("before\n");
        recent.push(&("x".repeat(CAPACITY + 1) + "\n"));
        assert_eq!(recent.tail(usize::MAX), "");
    }
}
