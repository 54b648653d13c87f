use fleetwave_agent_core::{ResultCode, TrustRoot};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::crash::testing::cut_at;

/// A device's directory, and the releases that it knows.
struct Bench {
    dir: tempfile::TempDir,
    known: Releases,
}

impl Bench {
    fn new() -> Self {
        let mut known = Releases::new(TrustRoot::default());
        for number in 1..=4 {
            known.preinstalled(&format!("fw-{number}"), number);
        }
        Self { dir: tempfile::tempdir().expect("a directory"), known }
    }

    fn release(&self, number: u64) -> ReleaseId {
        self.known.find(&format!("fw-{number}"), number).expect("known")
    }

    /// One update that fails its trial, and one that is good.
    fn records(&self) -> Vec<Record> {
        let (first, second) = (self.release(2), self.release(3));
        vec![
            Record::Started(first),
            Record::Staged(first),
            Record::Booting(first),
            Record::Reverting(first, ResultCode::Unhealthy),
            Record::Ended(first, ResultCode::Unhealthy),
            Record::Started(second),
            Record::Ended(second, ResultCode::Ok),
        ]
    }

    fn open(&mut self) -> Journal {
        let Value::Object(committed) = json!({"id": "fw-1", "seq": 1}) else { unreachable!("an object") };
        Journal::open(self.dir.path(), &mut self.known, &committed)
    }

    /// The records that are there.
    fn read(&mut self) -> Vec<Record> {
        Replay::read(self.dir.path(), &mut self.known).expect("reads").records
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.dir.path().join(NAME)).expect("reads")
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.dir.path().join(NAME), bytes).expect("writes");
    }

    /// Appends them all; where the journal ended before and after each.
    fn append(&mut self, records: &[Record]) -> Vec<u64> {
        let mut journal = self.open();
        let mut ends = vec![journal.end.offset];
        for record in records {
            journal.append(*record, &self.known).expect("appends");
            ends.push(journal.end.offset);
        }
        ends
    }
}

#[test]
fn a_journal_cut_anywhere_gives_the_records_before_the_cut_and_takes_new_ones() {
    let mut bench = Bench::new();
    let written = bench.records();
    let ends = bench.append(&written);
    let whole = bench.bytes();
    for cut in 0..=whole.len() {
        // Nothing behind the cut, or what a file system leaves that has made a file longer and not written it.
        for rest in [0, 1, 600] {
            let mut torn = whole[..cut].to_vec();
            torn.resize(cut + rest, 0);
            let sound = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
            let replay = Replay::of(&torn, &mut bench.known);
            assert_eq!(replay.records, written[..sound], "cut at {cut}");
            assert!(!replay.damaged, "cut at {cut}");
        }
        if cut % 7 != 0 {
            continue;
        }
        bench.put(&whole[..cut]);
        let mut journal = bench.open();
        journal.append(written[0], &bench.known).expect("appends");
        let sound = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
        assert_eq!(bench.read().len(), sound + 1, "cut at {cut}");
        assert!(!journal.is_damaged(), "cut at {cut}");
    }
}

#[test]
fn a_bit_that_has_changed_ends_the_sound_part_and_is_told_from_a_write_that_was_cut_short() {
    let mut bench = Bench::new();
    let written = bench.records();
    let ends = bench.append(&written);
    let whole = bench.bytes();
    let last = ends[ends.len() - 2];
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            let replay = Replay::of(&changed, &mut bench.known);
            assert!(replay.torn > 0 && replay.end.offset <= at as u64, "byte {at}");
            assert_eq!(replay.records, written[..replay.records.len()], "byte {at}");
            // Of the last append nobody can say whether it was ever whole.
            assert_eq!(replay.damaged, (at as u64) < last, "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn sectors_that_were_not_written_of_the_last_append_are_no_damage() {
    let mut bench = Bench::new();
    let written = bench.records();
    let ends = bench.append(&written[..5]);
    let (before, second) = (ends[5], bench.release(3));
    bench.append(&[Record::Started(second)]);
    let whole = bench.bytes();
    for hole in before as usize..whole.len() {
        for length in [1, 8, 64] {
            let mut torn = whole.clone();
            let end = whole.len().min(hole + length);
            torn[hole..end].fill(0);
            let replay = Replay::of(&torn, &mut bench.known);
            assert!(!replay.damaged && replay.records == written[..5], "{hole}");
        }
    }
}

#[test]
fn a_damaged_journal_is_kept_and_told_of_until_an_update_ends_well() {
    let mut bench = Bench::new();
    let written = bench.records();
    bench.append(&written);
    let mut changed = bench.bytes();
    changed[100] ^= 4;
    bench.put(&changed);
    let mut journal = bench.open();
    assert!(journal.is_damaged());
    assert_eq!(bench.bytes(), changed, "nothing is touched before there is something to write");
    journal.append(written[0], &bench.known).expect("appends");
    assert_eq!(fs::read(bench.dir.path().join(DAMAGED)).expect("kept"), changed);
    let journal = bench.open();
    assert!(journal.is_damaged(), "also after another start");
    journal.forget_damage();
    assert!(!bench.open().is_damaged());
}

#[test]
fn a_cold_start_knows_the_releases_from_the_journal_alone() {
    let mut bench = Bench::new();
    let written = bench.records();
    bench.append(&[written[5]]);
    let mut fresh = Releases::new(TrustRoot::default());
    let replay = Replay::read(bench.dir.path(), &mut fresh).expect("reads");
    assert_eq!(replay.records, [Record::Started(fresh.find("fw-3", 3).expect("known"))]);
}

#[test]
fn a_journal_never_grows_far_beyond_its_bound() {
    let mut bench = Bench::new();
    let mut journal = bench.open();
    let longest = (0..300_u64).map(|turn| {
        let id = format!("a-release-with-a-longer-name-{turn}");
        let release = bench.known.preinstalled(&id, turn);
        for record in [Record::Started(release), Record::Ended(release, ResultCode::Ok)] {
            journal.append(record, &bench.known).expect("appends");
        }
        bench.dir.path().join(NAME).metadata().expect("a file").len()
    });
    let longest = longest.max().expect("some");
    assert!((BOUND - 1024..BOUND + 1024).contains(&longest), "{longest}");
    let written = journal.durable();
    assert_eq!(bench.open().durable().last, written.last);
}

#[test]
fn a_cut_anywhere_in_a_compaction_changes_nothing() {
    for number in 1.. {
        let mut bench = Bench::new();
        let written = bench.records();
        bench.append(&written[..4]);
        let mut journal = bench.open();
        let before = journal.durable();
        let cut = cut_at(number, || journal.compact(&bench.known).expect("compacts"));
        drop(journal);
        let mut after = bench.open();
        assert_eq!(after.durable(), before, "{cut:?}");
        assert!(!after.is_damaged() && !bench.dir.path().join("journal.new").exists(), "{cut:?}");
        after.append(written[4], &bench.known).expect("appends");
        let mut sum = before;
        sum.apply(written[4]);
        assert_eq!(bench.open().durable(), sum, "{cut:?}");
        if cut.is_none() {
            assert!(number > 5, "there are points in it");
            break;
        }
    }
}

#[test]
fn a_compaction_that_fails_costs_no_record() {
    let mut bench = Bench::new();
    let written = bench.records();
    bench.append(&written[..2]);
    // Nothing can be written beside the journal.
    fs::create_dir(bench.dir.path().join("journal.new")).expect("a directory");
    let mut journal = bench.open();
    journal.limit = 1;
    journal.append(written[2], &bench.known).expect("appends");
    assert_eq!(bench.read(), written[..3]);
    fs::remove_dir(bench.dir.path().join("journal.new")).expect("removed");
    let before = journal.durable();
    journal.append(written[3], &bench.known).expect("appends");
    let mut sum = before;
    sum.apply(written[3]);
    assert_eq!(bench.open().durable(), sum);
    assert_eq!(bench.read(), [written[2], written[3]], "and now it was made shorter");
}

fn record() -> impl Strategy<Value = (u8, u64, ResultCode)> {
    let codes = vec![ResultCode::Ok, ResultCode::NoSpace, ResultCode::Unhealthy];
    (0..5_u8, 1..=4_u64, prop::sample::select(codes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Assumes records in any order, each any number of times in a row. Appends them to one journal that is made
    /// shorter at random and opened anew at random, and to one that never is; then cuts both off behind the same
    /// record, or in the middle of the one after it, as far back as the last time that either was. Asserts that both
    /// say the same.
    #[test]
    fn a_journal_that_is_made_shorter_says_the_same_as_one_that_is_not(
        drawn in prop::collection::vec((record(), 1..300_usize, 0..4_u8), 1..12),
        cut in any::<prop::sample::Index>(),
        part in 0..20_u64,
    ) {
        let (mut short, mut long) = (Bench::new(), Bench::new());
        let (mut compacted, mut plain) = (short.open(), long.open());
        plain.limit = u64::MAX;
        let mut ends = vec![(0, 0)];
        for ((kind, number, code), times, then) in drawn {
            let release = short.release(number);
            let record = match kind {
                0 => Record::Started(release),
                1 => Record::Staged(release),
                2 => Record::Booting(release),
                3 => Record::Reverting(release, code),
                _ => Record::Ended(release, code),
            };
            // Counters have an end, and most sequences are short.
            for _ in 0..if times > 290 { times } else { times % 4 + 1 } {
                compacted.append(record, &short.known).expect("appends");
                plain.append(record, &long.known).expect("appends");
                ends.push((compacted.end.offset, plain.end.offset));
            }
            match then {
                0 => compacted.compact(&short.known).expect("compacts"),
                1 => compacted = short.open(),
                _ => {}
            }
            if then < 2 {
                ends = vec![(compacted.end.offset, plain.end.offset)];
            }
            let (now, same) = (compacted.durable(), plain.durable());
            prop_assert_eq!((now.pending, now.last, now.repeats), (same.pending, same.last, same.repeats));
        }
        let (few, all) = *cut.get(&ends);
        let upto = |bytes: &[u8], end: u64| bytes[..bytes.len().min((end + part) as usize)].to_vec();
        short.put(&upto(&short.bytes(), few));
        long.put(&upto(&long.bytes(), all));
        let (now, same) = (short.open().durable(), long.open().durable());
        prop_assert_eq!((now.pending, now.last, now.repeats), (same.pending, same.last, same.repeats));
    }
}
