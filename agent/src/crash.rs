//! Points at which a test can take the power away. Without the feature `fault-injection` they are nothing.

/// Passes a point. Named before and after each durable step and each effect on the system.
#[cfg(not(any(test, feature = "fault-injection")))]
#[inline]
pub(crate) const fn point(_name: &'static str) {}

/// In a test of this crate: unwinds if this is the point that [`testing::cut_at`] counts to.
#[cfg(test)]
pub(crate) fn point(name: &'static str) {
    testing::pass(name);
}

/// Passes a point within a write: what of `bytes` is written.
#[cfg(not(all(not(test), feature = "fault-injection")))]
#[inline]
pub(crate) const fn torn<'a>(_name: &'static str, bytes: &'a [u8]) -> &'a [u8] {
    bytes
}

/// How long a journal may become.
#[cfg(not(all(not(test), feature = "fault-injection")))]
#[inline]
pub(crate) const fn journal_bound(bound: u64) -> u64 {
    bound
}

#[cfg(all(not(test), feature = "fault-injection"))]
pub(crate) use deadly::{journal_bound, point, torn};

#[cfg(all(not(test), feature = "fault-injection"))]
mod deadly {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static PASSED: AtomicU64 = AtomicU64::new(0);
    static TORN: AtomicBool = AtomicBool::new(false);

    /// Passes a point: the process kills itself if this is the one that `FLEETWAVE_CRASH_AT` counts to (from 1), or one
    /// of the name `FLEETWAVE_CRASH_ON`, and writes the name of each to the end of the file `FLEETWAVE_CRASH_LOG`.
    pub(crate) fn point(name: &'static str) {
        if reached(name) || TORN.load(Ordering::Relaxed) {
            // Nothing of this process may run on, and SIGKILL to oneself is delivered before the call returns.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// Passes a point within a write: if this is the one, half of `bytes` is written, and the next point is the end.
    pub(crate) fn torn<'a>(name: &'static str, bytes: &'a [u8]) -> &'a [u8] {
        if !reached(name) {
            return bytes;
        }
        TORN.store(true, Ordering::Relaxed);
        &bytes[..bytes.len() / 2]
    }

    /// How long a journal may become: `FLEETWAVE_JOURNAL_BOUND` in place of the real bound.
    pub(crate) fn journal_bound(bound: u64) -> u64 {
        std::env::var("FLEETWAVE_JOURNAL_BOUND").ok().and_then(|text| text.parse().ok()).unwrap_or(bound)
    }

    /// Counts a point, and says whether it is the one.
    fn reached(name: &'static str) -> bool {
        let number = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(path) = std::env::var_os("FLEETWAVE_CRASH_LOG") {
            let log = std::fs::File::options().create(true).append(true).open(path);
            // One write: the file is read when this process is gone.
            let written = log.and_then(|mut log| log.write_all(format!("{number} {name}\n").as_bytes()));
            if let Err(error) = written {
                tracing::error!(%error, "FLEETWAVE_CRASH_LOG cannot be written");
            }
        }
        std::env::var("FLEETWAVE_CRASH_AT").ok().and_then(|text| text.parse().ok()) == Some(number)
            || std::env::var("FLEETWAVE_CRASH_ON").is_ok_and(|always| always == name)
    }
}

/// A power cut for a part of the agent in a test's own thread: everything that it had in memory is dropped.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    struct Cut(&'static str);

    thread_local! {
        /// Points to pass before the cut; zero for none.
        static LEFT: Cell<u32> = const { Cell::new(0) };
    }

    pub(super) fn pass(name: &'static str) {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        if left == 1 {
            // Without the message of a panic: it is what the test wants.
            resume_unwind(Box::new(Cut(name)));
        }
    }

    /// Does `work` until it passes its `number`-th point, from 1; gives that one's name, or `None` if there are fewer.
    pub(crate) fn cut_at(number: u32, work: impl FnOnce()) -> Option<&'static str> {
        LEFT.set(number);
        let ended = catch_unwind(AssertUnwindSafe(work));
        LEFT.set(0);
        let cause = ended.err()?;
        match cause.downcast::<Cut>() {
            Ok(cut) => Some(cut.0),
            Err(failure) => resume_unwind(failure),
        }
    }
}
