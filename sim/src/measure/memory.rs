//! What the kernel says that this process holds in memory.

use std::fs;

/// Watches the resident memory from before the fleet is made to the end of the run.
#[derive(Clone, Copy, Debug)]
pub struct MemoryProbe {
    baseline: u64,
}

/// Resident memory before the fleet was made and at its highest since, in bytes; 0 where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Before the fleet was made.
    pub baseline: u64,
    /// The highest since then.
    pub peak: u64,
}

impl MemoryProbe {
    /// Takes the baseline. Call it right before the fleet is made, when floors are measured and files are read.
    ///
    /// The kernel's high-water mark is reset, so that what the process held before does not count as the
    /// fleet's; where that is not allowed the mark of the whole process has to do.
    #[must_use]
    pub fn start() -> Self {
        // Documented in proc_pid_clear_refs(5): "5" resets the peak to the current resident size.
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self { baseline: status_bytes("VmRSS:") }
    }

    /// What was used since [`start`](Self::start).
    #[must_use]
    pub fn finish(self) -> MemoryUse {
        MemoryUse { baseline: self.baseline, peak: status_bytes("VmHWM:") }
    }
}

impl MemoryUse {
    /// The growth over the baseline, per device.
    #[must_use]
    pub fn per_device(self, devices: u64) -> f64 {
        if devices == 0 { 0.0 } else { self.peak.saturating_sub(self.baseline) as f64 / devices as f64 }
    }
}

fn status_bytes(field: &str) -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| kibibytes(&status, field)).unwrap_or(0)
        * 1024
}

fn kibibytes(status: &str, field: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_kernels_status_is_read_in_kibibytes() {
        let status = "Name:\tx\nVmHWM:\t   12345 kB\nVmRSS:\t    678 kB\n";
        assert_eq!(kibibytes(status, "VmHWM:"), Some(12345));
        assert_eq!(kibibytes(status, "VmRSS:"), Some(678));
        assert_eq!(kibibytes(status, "VmSwap:"), None);
    }

    #[test]
    fn memory_that_was_touched_shows_in_the_peak_even_after_it_was_freed() {
        let probe = MemoryProbe::start();
        if probe.baseline == 0 {
            return; // No /proc here: the figures are 0, and there is nothing to see.
        }
        let mut block = vec![0_u8; 64 << 20];
        for page in block.chunks_mut(4096) {
            page[0] = 1;
        }
        drop(std::hint::black_box(block));
        let used = probe.finish();
        assert!(used.peak - used.baseline > 48 << 20, "{used:?}");
        assert!(used.per_device(1 << 20) > 48.0);
    }
}
