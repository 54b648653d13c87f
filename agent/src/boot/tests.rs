//! Adapters against a simulated machine that reads the real artefacts: a FAT image by mtools, U-Boot's environment by
//! fw_printenv, GRUB's by grub-editenv. It reads what is on the disk, not what a file system may still hold back.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::board::Board;
use crate::loader::{self, Machine};
use crate::real::{have, have_loop_devices};

fn pair<T>(a: T, b: T) -> Pair<T> {
    Pair { a, b }
}

/// The whole life of a slot that is good, and of one that is not.
async fn trials(boot: &dyn Boot, machine: &dyn Machine) {
    let committed = async |running| boot.committed(running).await.expect("a slot");
    assert_eq!(machine.power_on(false), "a");
    assert_eq!(committed(Slot::A).await, Slot::A);
    boot.settle(Slot::A).await.expect("settles");

    boot.forbid(Slot::B).expect("forbids");
    assert_eq!(machine.power_on(false), "a", "half a slot");
    boot.settle(Slot::A).await.expect("settles");
    boot.try_once(Slot::B).await.expect("arms");
    assert_eq!(committed(Slot::A).await, Slot::A, "armed is not committed");
    assert_eq!(machine.power_on(true), "b", "the trial");
    assert_eq!(committed(Slot::B).await, Slot::A, "on trial");
    assert_eq!(machine.power_on(false), "a", "a power cut on trial");
    assert_eq!(committed(Slot::A).await, Slot::A);
    boot.settle(Slot::A).await.expect("settles");
    assert_eq!(machine.power_on(false), "a", "and not once more");

    boot.try_once(Slot::B).await.expect("arms");
    boot.settle(Slot::A).await.expect("settles");
    assert_eq!(machine.power_on(false), "a", "disarmed");
    boot.try_once(Slot::B).await.expect("arms");
    assert_eq!(machine.power_on(true), "b");
    boot.settle(Slot::A).await.expect("gives the trial up");
    assert_eq!(machine.power_on(false), "a");
    boot.try_once(Slot::B).await.expect("arms");
    assert_eq!(machine.power_on(true), "b");
    boot.commit(Slot::B).await.expect("commits");
    assert_eq!(committed(Slot::B).await, Slot::B);
    for _ in 0..4 {
        assert_eq!(machine.power_on(false), "b", "committed");
        boot.settle(Slot::B).await.expect("settles");
    }
    boot.try_once(Slot::A).await.expect("arms");
    assert_eq!(machine.power_on(true), "a", "and back the same way");
    assert_eq!(committed(Slot::A).await, Slot::B);
}

#[tokio::test]
async fn grub_tries_a_slot_once_and_boots_it_for_good_when_it_is_committed() {
    if !have("grub-editenv") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let machine = loader::Grub::new(&dir.path().join("grubenv"));
    machine.set("saved_entry=slot-a");
    machine.set("timeout=5");
    let boot = BootConfig::Grub { environment: machine.environment.clone(), entries: grub::entries() };
    trials(&*boot.adapter(), &machine).await;
    assert!(machine.list().contains("timeout=5"), "what is not ours stays: {}", machine.list());
}

#[tokio::test]
async fn what_is_committed_is_what_grub_reads_although_the_file_system_has_not_caught_up() {
    let tools = ["grub-editenv", "grub-fstest", "mkfs.ext4"];
    if !tools.into_iter().all(have) || !have_loop_devices() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = loader::Disk::new(dir.path());
    let machine = loader::Grub::new(&disk.mount.join("grubenv"));
    machine.set("saved_entry=slot-a");
    disk.remount();
    let boot =
        BootConfig::Grub { environment: machine.environment.clone(), entries: grub::entries() }.adapter();
    boot.try_once(Slot::B).await.expect("arms");
    assert!(disk.grub_reads("grubenv").contains("\nnext_entry=slot-b\n"), "the trial");
    boot.commit(Slot::B).await.expect("commits");
    assert!(disk.grub_reads("grubenv").contains("\nsaved_entry=slot-b\n"), "what is committed");
}

#[tokio::test]
async fn grub_without_a_saved_entry_is_refused_with_the_command_that_sets_it() {
    if !have("grub-editenv") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let machine = loader::Grub::new(&dir.path().join("grubenv"));
    let boot =
        BootConfig::Grub { environment: machine.environment.clone(), entries: grub::entries() }.adapter();
    let error = boot.committed(Slot::A).await.expect_err("nothing is committed").to_string();
    assert!(error.ends_with("grubenv set saved_entry=slot-a"), "{error}");
}

fn uboot(dir: &Path) -> (loader::Uboot, Box<dyn Boot>) {
    let machine = loader::Uboot::new(dir);
    let boot = BootConfig::Uboot { config: machine.config.clone(), attempts: 3 };
    (machine, boot.adapter())
}

#[tokio::test]
async fn uboot_tries_a_slot_once_and_boots_it_for_good_when_it_is_committed() {
    if !have("fw_setenv") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (machine, boot) = uboot(dir.path());
    trials(&*boot, &machine).await;
    assert_eq!(machine.get("bootdelay").as_deref(), Some("2"), "what is not ours stays");
}

/// Slots that do not come up, or whose agent never starts.
async fn exhausted(boot: &dyn Boot, machine: &dyn Machine) {
    let boots = |times| (0..times).map(|_| machine.power_on(false)).collect::<Vec<_>>();
    boot.commit(Slot::B).await.expect("commits");
    // No agent starts, so nobody gives the tries back.
    assert_eq!(boots(4), ["b", "b", "b", "a"]);
    assert_eq!(boot.committed(Slot::A).await.expect("a slot"), Slot::A, "what the next power cut brings");
    boot.settle(Slot::A).await.expect("settles");
    assert_eq!(boots(1), ["a"]);
    // But never one that is being overwritten, and never none at all.
    boot.commit(Slot::B).await.expect("commits");
    boot.forbid(Slot::A).expect("forbids");
    boot.settle(Slot::B).await.expect("settles");
    assert_eq!(boots(5), ["b"; 5]);
    // The power was cut twice before an agent was up: it is the last try.
    boot.commit(Slot::B).await.expect("commits");
    assert_eq!(boots(3), ["b"; 3]);
    assert_eq!(boot.committed(Slot::B).await.expect("a slot"), Slot::B, "that has come up");
    boot.settle(Slot::B).await.expect("settles");
    // And the one that is armed is no way out either, once it was tried.
    boot.try_once(Slot::A).await.expect("arms");
    assert_eq!(boots(5), ["a", "b", "b", "b", "b"]);
    assert_eq!(boot.committed(Slot::B).await.expect("a slot"), Slot::B);
}

#[tokio::test]
async fn uboot_boots_the_other_slot_when_the_committed_one_does_not_come_up_any_more() {
    if !have("fw_setenv") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (machine, boot) = uboot(dir.path());
    exhausted(&*boot, &machine).await;
}

fn board(dir: &Path) -> (Board, Box<dyn Boot>) {
    let machine = Board::new(dir);
    let boot = BootConfig::Uboot { config: machine.config.clone(), attempts: 3 };
    (machine, boot.adapter())
}

#[tokio::test]
async fn a_real_uboot_tries_a_slot_once_and_boots_it_for_good_when_it_is_committed() {
    if !Board::can_be() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (machine, boot) = board(dir.path());
    trials(&*boot, &machine).await;
    assert_eq!(machine.get("bootdelay").as_deref(), Some("0"), "what is not ours stays");
}

#[tokio::test]
async fn a_real_uboot_leaves_a_slot_that_does_not_come_up_or_has_no_kernel() {
    if !Board::can_be() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (machine, boot) = board(dir.path());
    exhausted(&*boot, &machine).await;
    boot.settle(Slot::B).await.expect("settles");
    machine.holds("a", false);
    boot.try_once(Slot::A).await.expect("arms");
    assert_eq!(machine.power_on(true), "b", "the trial has no kernel");
    boot.settle(Slot::B).await.expect("settles");
    boot.commit(Slot::A).await.expect("commits");
    assert_eq!(machine.power_on(false), "b", "what was committed has none any more");
}

#[tokio::test]
async fn a_torn_write_of_a_redundant_uboot_environment_leaves_the_one_before() {
    if !have("fw_setenv") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (machine, boot) = uboot(dir.path());
    boot.try_once(Slot::B).await.expect("arms");
    let before = machine.copies();
    boot.commit(Slot::B).await.expect("commits");
    let after = machine.copies();
    assert_eq!((0..2).filter(|copy| before[*copy] != after[*copy]).count(), 1, "one of the two is written");
    for cut in (0..=before[0].len()).step_by(512) {
        // The write goes from the front, and the power ends it at a sector.
        let torn = [0, 1].map(|copy| [&after[copy][..cut], &before[copy][cut..]].concat());
        machine.restore(&torn);
        let whole = torn == after;
        let committed = boot.committed(Slot::B).await.expect("a slot");
        assert_eq!(committed, if whole { Slot::B } else { Slot::A }, "cut at {cut}");
    }
}

/// A Pi's first partition on a loop device, mounted.
struct Pi {
    machine: loader::Tryboot,
    boot: Box<dyn Boot>,
}

fn pi(dir: &Path) -> Option<Pi> {
    if !have("mkfs.vfat") || !have("mtype") || loader::kernel_has_fat() && !have_loop_devices() {
        return None;
    }
    let machine = loader::Tryboot::new(dir);
    let boot = BootConfig::Tryboot {
        autoboot: machine.autoboot(),
        partitions: pair(2, 3),
        reboot_trial: tryboot::reboot(),
        device_tree: machine.device_tree.clone(),
    };
    Some(Pi { machine, boot: boot.adapter() })
}

#[tokio::test]
async fn a_pi_tries_a_slot_once_and_boots_it_for_good_when_it_is_committed() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(Pi { machine, boot }) = pi(dir.path()) else { return };
    trials(&*boot, &machine).await;
    assert_eq!(boot.running().expect("the firmware tells"), Some(Slot::A));
}

#[tokio::test]
async fn whichever_sectors_of_a_change_reach_the_card_of_a_pi_it_boots_the_old_slot_or_the_new_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(Pi { machine, boot }) = pi(dir.path()) else { return };
    if !loader::kernel_has_fat() {
        eprintln!("skipped: this kernel cannot mount FAT");
        return;
    }
    // The first change is that of a file which whoever made the card has written.
    let mut seen = Vec::new();
    for (step, slot) in [("try", Slot::B), ("commit", Slot::B), ("try", Slot::A), ("commit", Slot::A)] {
        let before = machine.image();
        if step == "try" { boot.try_once(slot).await } else { boot.commit(slot).await }.expect("changes");
        let after = machine.image();
        let changed: Vec<usize> = (0..before.len())
            .step_by(512)
            .filter(|at| before[*at..at + 512] != after[*at..at + 512])
            .collect();
        assert!(changed.len() <= 3, "a few sectors: {changed:?}");
        for subset in 0..1u32 << changed.len() {
            let mut image = before.clone();
            for (_, at) in changed.iter().enumerate().filter(|(bit, _)| subset & (1 << bit) != 0) {
                image[*at..at + 512].copy_from_slice(&after[*at..at + 512]);
            }
            let path = dir.path().join("cut.img");
            fs::write(&path, image).expect("writes");
            for trial in [false, true] {
                let boots = loader::autoboot(&path, trial);
                assert!(matches!(boots, Some(2 | 3)), "{step}, {subset:b} of {changed:?}: boots {boots:?}");
                seen.push((step, slot, trial, boots));
            }
        }
    }
    for partition in [2, 3] {
        assert!(seen.contains(&("commit", Slot::B, false, Some(partition))), "{seen:?}");
    }
    // Arming a trial never changes what boots without one.
    let default =
        |slot| seen.iter().filter(move |cut| (cut.0, cut.1, cut.2) == ("try", slot, false)).map(|cut| cut.3);
    assert!(default(Slot::B).all(|boots| boots == Some(2)) && default(Slot::A).all(|boots| boots == Some(3)));
}

#[tokio::test]
async fn a_change_on_a_pi_is_less_than_a_sector_of_a_file_that_stays_where_it_is() {
    use std::os::unix::fs::MetadataExt as _;

    let dir = tempfile::tempdir().expect("a directory");
    let Some(Pi { machine, boot }) = pi(dir.path()) else { return };
    let file = || fs::metadata(machine.autoboot()).map(|file| (file.ino(), file.len())).expect("it is there");
    let before = file();
    assert!(before.1 <= 512);
    boot.try_once(Slot::B).await.expect("arms");
    assert_eq!(file(), before);
    for slot in [Slot::B, Slot::A, Slot::B] {
        boot.commit(slot).await.expect("commits");
        assert_eq!(file(), before);
        assert_eq!(boot.committed(slot).await.expect("a slot"), slot);
    }
}

#[tokio::test]
async fn a_file_that_is_too_short_or_too_long_for_a_pi_is_replaced_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(Pi { machine, boot }) = pi(dir.path()) else { return };
    for made in ["boot_partition=2\n".to_owned(), format!("boot_partition=2\n{}", "#\n".repeat(400))] {
        fs::write(machine.autoboot(), made).expect("writes");
        boot.try_once(Slot::B).await.expect("arms");
        let length = || fs::metadata(machine.autoboot()).map(|file| file.len()).expect("it is there");
        assert_eq!(length(), 256);
        assert_eq!((machine.power_on(true), machine.power_on(false)), ("b", "a"));
        boot.commit(Slot::B).await.expect("commits");
        assert_eq!((length(), machine.power_on(false)), (256, "b"));
        boot.commit(Slot::A).await.expect("commits");
    }
}

#[test]
fn a_boot_section_says_which_loader_and_a_slot_must_not_be_both() {
    let read = |text: &str| {
        toml::from_str::<BootConfig>(text)
            .map_err(|error| error.message().to_owned())
            .and_then(|boot| boot.check().map(|()| boot).map_err(str::to_owned))
    };
    let grub = read("loader = 'grub'").expect("the defaults");
    let environment = PathBuf::from("/boot/grub/grubenv");
    assert_eq!(grub, BootConfig::Grub { environment, entries: pair("slot-a".into(), "slot-b".into()) });
    assert!(read("loader = 'uboot'\nconfig = '/etc/fw_env.config'").is_ok());
    assert!(read("loader = 'tryboot'\nautoboot = '/x'\npartitions = { a = 2, b = 3 }").is_ok());
    for (text, why) in [
        ("loader = 'lilo'", "unknown variant `lilo`"),
        ("loader = 'tryboot'", "missing field `autoboot`"),
        ("loader = 'tryboot'\nautoboot = '/x'\npartitions = { a = 2, b = 2 }", "the same partition"),
        ("loader = 'uboot'\nattempts = 0", "would never boot"),
        ("loader = 'uboot'\nattempts = 10", "must be 1 to 9"),
        ("loader = 'grub'\nentries = { a = 'x', b = 'y z' }", "letters, digits"),
        ("loader = 'grub'\nentires = 1", "unknown field `entires`"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}
