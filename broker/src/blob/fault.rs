//! Faults that the endpoint plays on purpose.

use fleetwave_protocol::CounterRng;

/// A fault, and how often it strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// The share of the requests that it happens to, 0 to 1.
    pub share: f64,
}

/// What a struck request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// This status instead of the blob, e.g. 403, 404, 429 or 503.
    Status {
        /// The HTTP status.
        code: u16,
        /// The `Retry-After` header, in seconds.
        retry_after: Option<u32>,
    },
    /// The blob, no faster than this.
    Slow {
        /// The rate of this response.
        bytes_per_second: u64,
    },
    /// Half of what was announced; then the connection ends.
    Truncated,
    /// All bytes of the response but the first, which is inverted.
    Corrupted,
}

/// The fault that strikes request number `request`: a function of seed and number, so that a run with the
/// same order of requests meets the same faults.
pub(super) fn strike(faults: &[Fault], seed: u64, request: u64) -> Option<FaultKind> {
    if faults.is_empty() {
        return None;
    }
    let mut rng = CounterRng::of(seed, request);
    faults.iter().find(|fault| rng.chance(fault.share)).map(|fault| fault.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_share_of_the_requests() {
        let faults = [Fault { kind: FaultKind::Truncated, share: 0.2 }];
        let struck = (0..10_000).filter(|request| strike(&faults, 1, *request).is_some()).count();
        assert!((1_800..2_200).contains(&struck), "{struck}");
        assert_eq!(strike(&[Fault { share: 0.0, ..faults[0] }], 1, 1), None);
        assert_eq!(strike(&[Fault { share: 1.0, ..faults[0] }], 1, 1), Some(FaultKind::Truncated));
    }
}
