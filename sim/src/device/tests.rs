use fleetwave_agent_core::twin::{Progress, Status};
use fleetwave_agent_core::{Record, ResultCode, State};

use super::*;
use crate::scenario::load_text;

fn world(extra: &str) -> World {
    let text = format!(
        "schema = 1\nname = 'x'\n[fleet]\ndevices = 10\n[[release]]\nid = 'fw-2'\nseq = 2\nsize = '1KiB'\n{extra}\n\
         [[step]]\nconfigure = {{ id = 'c', release = 'fw-2' }}\n"
    );
    World::new(load_text("x.toml", &text, &[]).expect("a valid scenario").scenario, |_| [7; 32])
}

fn release(world: &World) -> ReleaseId {
    world.releases().by_name("fw-2").expect("a configuration gives it")
}

const WHO: Who = Who { number: 3, group: 0 };

/// Takes a device up to the boot of the candidate.
fn staged(world: &World, violations: &mut Violations) -> Device {
    let release = release(world);
    let mut device = Device::new(world.catalogue().initial);
    device.persist(Record::Started(release));
    device.fetch(WHO, 0, violations);
    device.keep(1024);
    device.verified(true);
    device.begin_stage(world, WHO, release, violations);
    device.end_stage(world, WHO, release).expect("this device can write");
    device.persist(Record::Staged(release));
    device.persist(Record::Booting(release));
    device.arm();
    device
}

#[test]
fn a_release_that_is_committed_boots_from_then_on() {
    let world = world("");
    let mut violations = Violations::default();
    let mut device = staged(&world, &mut violations);
    device.begin_boot(&world, WHO);
    assert_eq!(device.running(), release(&world));
    device.commit(WHO, world.releases(), &mut violations).expect("it is on trial");
    device.begin_boot(&world, WHO);
    assert_eq!(device.booted().running, release(&world));
    assert!(violations.is_empty());
}

#[test]
fn a_release_that_is_not_committed_is_booted_once_only() {
    let world = world("");
    let mut device = staged(&world, &mut Violations::default());
    device.begin_boot(&world, WHO);
    device.begin_boot(&world, WHO);
    assert_eq!(device.booted().running, world.catalogue().initial);
}

#[test]
fn a_candidate_that_does_not_boot_costs_a_second_boot_and_leaves_the_default_slot() {
    let world = world("boot_failure = '100%'");
    let mut device = staged(&world, &mut Violations::default());
    let shortest = world.group(WHO).reboot.min();
    assert!(device.begin_boot(&world, WHO) >= 2 * shortest);
    assert_eq!(device.booted().running, world.catalogue().initial);
}

#[test]
fn what_must_not_happen_is_noted_with_the_device() {
    let world = world("");
    let release = release(&world);
    let mut device = Device::new(world.catalogue().initial);
    let mut seen = Violations::default();
    device.begin_stage(&world, WHO, release, &mut seen);
    device.keep(512);
    device.fetch(WHO, 100, &mut seen);
    device.saw_version(WHO, 5, &mut seen);
    device.saw_version(WHO, 4, &mut seen);
    let lie = Status { running: release, progress: Progress::Idle(Some(ResultCode::Ok)) };
    device.reports(WHO, &lie, world.releases(), &mut seen);
    let sentences = seen.sentences(world.fleet());
    assert_eq!(sentences.len(), 4, "{sentences:?}");
    assert!(sentences.iter().all(|sentence| sentence.contains("dev-0000003")));
}

#[test]
fn a_payload_that_was_discarded_may_be_fetched_again() {
    let mut seen = Violations::default();
    let mut device = Device::new(world("").catalogue().initial);
    device.keep(512);
    device.discard();
    device.fetch(WHO, 0, &mut seen);
    assert!(seen.is_empty());
}

#[test]
fn histories_tell_sequences_of_states_apart() {
    let history = |states: &[State]| {
        let mut device = Device::new(world("").catalogue().initial);
        states.iter().for_each(|state| device.entered(*state));
        device.history()
    };
    assert_eq!(history(&[State::Idle, State::Deferred]), history(&[State::Idle, State::Deferred]));
    assert_ne!(history(&[State::Idle, State::Deferred]), history(&[State::Deferred, State::Idle]));
    assert_ne!(history(&[]), history(&[State::Idle]));
}

#[test]
fn a_device_stays_small() {
    assert!(size_of::<Device>() <= 72, "{}", size_of::<Device>());
}
