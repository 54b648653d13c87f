//! Points at which a test can take the power away. Without the feature `fault-injection` they are nothing.

/// Passes a point. Named before and after each durable step and each effect on the system.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub(crate) const fn point(_name: &'static str) {}

/// Passes a point: the process kills itself if this is the one that `FLEETWAVE_CRASH_AT` counts to (from 1), and
/// writes the name of each to the end of the file `FLEETWAVE_CRASH_LOG`.
#[cfg(feature = "fault-injection")]
pub(crate) fn point(name: &'static str) {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    static PASSED: AtomicU64 = AtomicU64::new(0);
    let number = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(path) = std::env::var_os("FLEETWAVE_CRASH_LOG") {
        let log = std::fs::File::options().create(true).append(true).open(path);
        // One write: the file is read when this process is gone.
        let written = log.and_then(|mut log| log.write_all(format!("{number} {name}\n").as_bytes()));
        if let Err(error) = written {
            tracing::error!(%error, "FLEETWAVE_CRASH_LOG cannot be written");
        }
    }
    let at = std::env::var("FLEETWAVE_CRASH_AT").ok().and_then(|text| text.parse().ok());
    if at == Some(number) {
        // Nothing of this process may run on, and SIGKILL to oneself is delivered before the call returns.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
