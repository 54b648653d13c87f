use std::sync::Arc;

use super::account::{FIRST, SLACK};
use super::*;
use crate::units::Span;

const DAY: u64 = 86_400;

fn ledger(dir: &Path, per_update: Option<u64>, per_window: Option<u64>) -> Arc<Ledger> {
    let limits = LedgerLimits {
        per_update: per_update.map(Bytes),
        per_window: per_window.map(Bytes),
        window: Span(DAY),
    };
    Arc::new(Ledger::open(dir.join("ledger"), limits))
}

impl Ledger {
    fn spent_on(&self, update: &str) -> u64 {
        self.inner().counts.spent(update).bytes
    }
}

fn account(ledger: &Arc<Ledger>, update: &str) -> Account {
    Account::of(ledger.clone(), update.to_owned())
}

#[test]
fn a_try_costs_what_it_used_and_a_crash_in_it_no_less() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = ledger(dir.path(), None, None);
    let try_one = account(&first, "a");
    try_one.reserve(0, 5 << 20, 1, DAY).expect("no limit");
    assert_eq!(ledger(dir.path(), None, None).counts(DAY).bytes, FIRST + SLACK, "counted before it came");
    assert!(!try_one.runs_low(FIRST / 4, 5 << 20) && try_one.runs_low(FIRST, 4 << 20));
    assert!(!try_one.runs_low(FIRST, 0), "nothing more is to come");
    try_one.reserve(FIRST, 4 << 20, 0, DAY).expect("no limit");
    assert_eq!(ledger(dir.path(), None, None).counts(DAY).bytes, 3 * FIRST + SLACK);
    try_one.settle(2_000_000, DAY);
    let after = ledger(dir.path(), None, None).counts(DAY);
    assert_eq!((after.bytes, after.requests, after.total_bytes), (2_000_000, 1, 2_000_000));
    assert_eq!(
        after.spent("a"),
        Spent { release: "a".into(), bytes: 2_000_000, requests: 1, tries: 1, since: DAY },
        "a try that needed three pieces is one"
    );
}

#[test]
fn a_window_begins_with_its_time_and_a_clock_that_was_set_back_begins_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = ledger(dir.path(), None, Some(1000));
    let first = account(&ledger, "a");
    first.reserve(0, 900, 1, 3 * DAY + 5).expect("within the limit");
    first.settle(900, 3 * DAY + 6);
    assert_eq!(ledger.allowance(4 * DAY - 1), 100);
    assert_eq!(ledger.allowance(0), 100, "1970");
    assert_eq!(ledger.allowance(4 * DAY), 1000);
    let counts = ledger.counts(4 * DAY);
    assert_eq!((counts.window, counts.bytes, counts.total_bytes), (4 * DAY, 0, 900));
}

#[test]
fn a_try_over_the_border_of_two_windows_counts_in_both_and_after_a_restart_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let limit = Some(3 * FIRST);
    let first = ledger(dir.path(), None, limit);
    let long = account(&first, "a");
    long.reserve(0, 2 * FIRST, 1, 2 * DAY - 1).expect("within the limit");
    // The first piece has come, and midnight: what comes from now on is the new day's.
    long.reserve(FIRST, FIRST, 0, 2 * DAY).expect("within the limit");
    long.settle(2 * FIRST, 2 * DAY);
    let after = ledger(dir.path(), None, limit);
    let counts = after.counts(2 * DAY);
    assert_eq!((counts.window, counts.total_bytes), (2 * DAY, 2 * FIRST));
    assert!((FIRST - SLACK..=FIRST).contains(&counts.bytes), "{}", counts.bytes);
    assert_eq!(after.spent_on("a"), 2 * FIRST, "an update's own cap knows no windows");
    // What is left of this window is refused beyond it, and let in with the next one.
    assert_eq!(
        account(&after, "b").reserve(0, 3 * FIRST - SLACK, 1, 2 * DAY),
        Err(FetchError::OverWindowCap)
    );
    account(&after, "b").reserve(0, 3 * FIRST - SLACK, 1, 3 * DAY).expect("another window");
}

#[test]
fn an_update_that_has_ended_is_forgotten_for_good_so_that_the_same_release_may_come_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = ledger(dir.path(), Some(1000), None);
    let update = account(&first, "a");
    update.reserve(0, 900, 1, DAY).expect("within the limit");
    update.settle(900, DAY);
    assert_eq!(first.forget("a").bytes, 900);
    // What its server had sent before it heard that nobody waits any more.
    update.settle(950, DAY);
    assert_eq!((first.spent_on("a"), first.counts(DAY).bytes), (0, 950));
    let after = ledger(dir.path(), Some(1000), None);
    account(&after, "a").reserve(0, 900, 1, DAY).expect("it is another update");
    assert!(after.counts(DAY).bytes >= 900 + 900, "the window remembers both");
}

#[test]
fn what_does_not_fit_below_a_cap_is_refused_before_it_comes_and_the_cap_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = ledger(dir.path(), Some(1000), Some(1500));
    let first = account(&ledger, "a");
    assert_eq!(first.reserve(0, 1001, 1, DAY), Err(FetchError::OverUpdateCap));
    assert_eq!(ledger.counts(DAY).requests, 0, "nothing was asked for");
    first.reserve(0, 800, 1, DAY).expect("within both");
    first.settle(800, DAY);
    // The second try of the same update has what the first one left.
    assert_eq!(account(&ledger, "a").reserve(0, 201, 1, DAY), Err(FetchError::OverUpdateCap));
    assert_eq!(account(&ledger, "b").reserve(0, 701, 1, DAY), Err(FetchError::OverWindowCap));
    let second = account(&ledger, "b");
    second.reserve(0, 700, 1, DAY).expect("within both");
    second.settle(700, DAY);
    let read = Read::new(&dir.path().join("ledger"), &ledger.limits, DAY).expect("reads");
    assert_eq!(read.to_string(), "1.5 KiB by 2 requests in this window of 1.5 KiB, 0 B left; 1.5 KiB in all");
    assert_eq!(read.told(), ledger.told(DAY), "with and without an agent");
    assert_eq!((&read.told()["window"]["limit"], &read.told()["window"]["left"]), (&json!(1500), &json!(0)));
}

#[test]
fn the_record_fits_its_place_with_the_largest_numbers() {
    let dir = tempfile::tempdir().expect("a directory");
    let ledger = ledger(dir.path(), None, None);
    for update in 0..20_u64 {
        let update = pair::hex(&update.to_be_bytes());
        ledger.reserve(&update, u64::MAX / 32, (u32::MAX, u32::MAX), u64::MAX / 2).expect("it fits");
    }
    assert_eq!(self::ledger(dir.path(), None, None).counts(0).updates.len(), UPDATES);
}
