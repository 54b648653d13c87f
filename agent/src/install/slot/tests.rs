//! Whole updates of slots by hand, with real file systems on real block devices where there are loop devices, and a
//! machine that boots as GRUB does.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command as Process;

use fleetwave_agent_core::{Releases, TrustRoot};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::crash::testing::cut_at;
use crate::install::Options as _;
use crate::loader::{self, Machine as _};
use crate::real::{have, have_loop_devices};
use crate::target::Target;

/// A file as a block device.
struct Loop {
    device: PathBuf,
    image: PathBuf,
}

impl Loop {
    fn new(image: &Path, size: u64) -> Self {
        fs::File::create(image).and_then(|file| file.set_len(size)).expect("an image");
        let output =
            Process::new("losetup").args(["--find", "--show"]).arg(image).output().expect("losetup runs");
        assert!(output.status.success(), "{output:?}");
        let device = String::from_utf8(output.stdout).expect("a path");
        Self { device: device.trim().into(), image: image.to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Process::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// A machine with two slots, GRUB, and a directory for the agent.
struct World {
    dir: tempfile::TempDir,
    machine: loader::Grub,
    slots: [PathBuf; 2],
    more: &'static str,
    _loops: Vec<Loop>,
}

const SIZE: u64 = 8 << 20;

impl World {
    fn new(loops: bool, more: &'static str) -> Option<Self> {
        if !have("grub-editenv") || loops && !(have("mkfs.ext4") && have_loop_devices()) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let machine = loader::Grub::new(&dir.path().join("grubenv"));
        machine.set("saved_entry=slot-a");
        let images = ["a.img", "b.img"].map(|name| dir.path().join(name));
        let loops: Vec<Loop> = images.iter().filter(|_| loops).map(|image| Loop::new(image, SIZE)).collect();
        let slots = match &loops[..] {
            [a, b] => [a.device.clone(), b.device.clone()],
            _ => {
                images.iter().for_each(|image| fs::write(image, b"").expect("writes"));
                images
            }
        };
        let world = Self { dir, machine, slots, more, _loops: loops };
        world.power_on();
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Switches the machine off and on.
    fn power_on(&self) {
        fs::write(self.path("cmdline"), format!("quiet fleetwave.slot={}", self.machine.power_on(true)))
            .expect("writes");
    }

    fn toml(&self) -> String {
        let [a, b] = &self.slots;
        format!(
            "slots = {{ a = {a:?}, b = {b:?} }}\nrunning = {{ cmdline = {:?} }}\n\
             reboot = ['touch', {:?}]\n{}\n[boot]\nloader = 'grub'\nenvironment = {:?}\n",
            self.path("cmdline"),
            self.path("rebooted"),
            self.more,
            self.path("grubenv")
        )
    }

    /// The installer as an agent that has just started has it.
    fn installer(&self) -> Rc<dyn Installer> {
        let options: Options = toml::from_str(&self.toml()).expect("well-formed");
        let installed = json!({"id": "fw-1", "seq": 1}).as_object().cloned().unwrap_or_default();
        let dir = self.path("state/firmware");
        options.installer(Site { target: Target::firmware(), dir, installed })
    }

    /// What runs, and what is committed.
    async fn standing(&self) -> (Rc<dyn Installer>, [String; 2]) {
        let installer = self.installer();
        let standing = Rc::clone(&installer).standing().await.expect("it is known");
        let id = |reference: &Reference| reference["id"].as_str().expect("text").to_owned();
        (installer, [id(&standing.running), id(&standing.committed)])
    }

    /// A file system with a file in it that says which release it is.
    fn payload(&self, id: &str) -> Vec<u8> {
        let (tree, image) = (self.path("tree"), self.path("payload"));
        fs::create_dir_all(&tree).expect("a directory");
        fs::write(tree.join("release"), id).expect("writes");
        fs::write(&image, vec![0; 4 << 20]).expect("writes");
        if self.slots[0].starts_with("/dev") {
            let made = Process::new("mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&image).status();
            assert!(made.expect("mkfs.ext4 runs").success());
        } else {
            fs::write(&image, id.repeat(1000)).expect("writes");
        }
        fs::read(image).expect("reads")
    }

    /// Writes a payload to its place, as a download does.
    fn write(&self, installer: &dyn Installer, release: &Release, payload: &[u8]) {
        let place = installer.place(release).expect("there is a place");
        let file = fs::File::options().write(true).open(&place.path).expect("opens");
        file.write_all_at(payload, 0).expect("writes");
    }
}

type Reference = super::super::Reference;

fn release(id: &str, sequence: u64, payload: &[u8]) -> Release {
    let digest: [u8; 32] = Sha256::digest(payload).into();
    let mut releases = Releases::new(TrustRoot::default());
    let reference = fleetwave_agent_core::sign(id, sequence, payload.len() as u64, &digest, false, &[]);
    let release = releases.intern(&reference);
    releases[release].clone()
}

/// From a download to a trial that has booted.
async fn install(world: &World, id: &str, sequence: u64) {
    let payload = world.payload(id);
    let release = release(id, sequence, &payload);
    let (installer, _) = world.standing().await;
    world.write(&*installer, &release, &payload);
    Rc::clone(&installer).stage(release).await.expect("stages");
    assert_eq!(installer.activate().await.expect("reboots"), Activated::GoingDown);
    assert!(world.path("rebooted").exists());
    world.power_on();
}

async fn a_trial_that_ends_well_and_one_that_the_power_ends(world: &World) {
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
    install(world, "fw-2", 2).await;
    assert_eq!(world.standing().await.1, ["fw-2", "fw-1"]);
    world.power_on();
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-1", "fw-1"], "the power was cut on trial");
    // What was staged is still there.
    installer.activate().await.expect("reboots");
    world.power_on();
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-1"]);
    Rc::clone(&installer).healthy().await.expect("healthy");
    installer.commit().await.expect("commits");
    for _ in 0..2 {
        assert_eq!(world.standing().await.1, ["fw-2", "fw-2"]);
        world.power_on();
    }
    install(world, "fw-3", 3).await;
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-3", "fw-2"]);
    installer.go_back().await.expect("reboots");
    world.power_on();
    assert_eq!(world.standing().await.1, ["fw-2", "fw-2"]);
}

#[tokio::test]
async fn image_files_are_tried_and_committed() {
    let Some(world) = World::new(false, "") else { return };
    a_trial_that_ends_well_and_one_that_the_power_ends(&world).await;
}

#[tokio::test]
async fn file_systems_on_block_devices_are_tried_and_committed() {
    let Some(world) = World::new(true, "check_slots = true") else { return };
    a_trial_that_ends_well_and_one_that_the_power_ends(&world).await;
    // fw-2 runs from slot b, fw-3 lies in slot a: both are what they should be, and sound.
    for (slot, id) in world.slots.iter().zip(["fw-3", "fw-2"]) {
        let check = Process::new("e2fsck").args(["-f", "-n"]).arg(slot).output().expect("e2fsck runs");
        assert!(check.status.success(), "{check:?}");
        let cat =
            Process::new("debugfs").args(["-R", "cat release"]).arg(slot).output().expect("debugfs runs");
        assert_eq!(String::from_utf8_lossy(&cat.stdout), id);
    }
}

#[tokio::test]
async fn a_slot_that_is_being_overwritten_holds_nothing_and_cannot_be_made_to_boot() {
    let Some(world) = World::new(false, "") else { return };
    install(&world, "fw-2", 2).await;
    world.standing().await.0.commit().await.expect("commits");
    let payload = world.payload("fw-3");
    let next = release("fw-3", 3, &payload);
    let (installer, _) = world.standing().await;
    world.write(&*installer, &next, &payload[..100]);
    // The agent dies here.
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-2"]);
    let error = installer.activate().await.expect_err("half a slot").to_string();
    assert_eq!(error, "slot a holds nothing that was verified");
    // Someone boots it all the same.
    world.machine.set("next_entry=slot-a");
    world.power_on();
    assert_eq!(world.standing().await.1, ["unknown-a", "fw-2"]);
}

#[tokio::test]
async fn a_slot_whose_record_is_lost_is_unknown_and_counts_as_the_highest_release_that_was_committed() {
    let Some(world) = World::new(false, "") else { return };
    install(&world, "fw-7", 7).await;
    world.standing().await.0.commit().await.expect("commits");
    fs::write(world.path("state/firmware/slot-b.json"), b"{").expect("writes");
    let standing = world.installer().standing().await.expect("it is known which slot runs");
    assert_eq!(json!(standing.running), json!({"id": "unknown-b", "seq": 7}));
}

#[tokio::test]
async fn a_slot_on_trial_is_not_left_without_the_one_to_go_back_to() {
    let Some(world) = World::new(false, "") else { return };
    install(&world, "fw-2", 2).await;
    let (installer, _) = world.standing().await;
    let error = installer.place(&release("fw-3", 3, b"x")).expect_err("both slots are needed").to_string();
    assert_eq!(error, "slot b is on trial: slot a is what to go back to, and is not overwritten");
    assert!(installer.discard().is_err());
    installer.go_back().await.expect("reboots");
    world.power_on();
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
}

#[tokio::test]
async fn a_mounted_slot_is_not_written_to() {
    let Some(world) = World::new(true, "") else { return };
    let (installer, _) = world.standing().await;
    let payload = world.payload("fw-2");
    let release = release("fw-2", 2, &payload);
    world.write(&*installer, &release, &payload);
    let place = world.path("mounted");
    fs::create_dir(&place).expect("a directory");
    let mounted = Process::new("mount").arg(&world.slots[1]).arg(&place).status().expect("mount runs");
    assert!(mounted.success());
    let refused = installer.place(&release).map(|_| ()).map_err(|error| error.to_string());
    let staged = Rc::clone(&installer).stage(release.clone()).await;
    let unmounted = Process::new("umount").arg(&place).status().expect("umount runs");
    assert!(unmounted.success());
    let expected = format!(
        "the slot {} is mounted at {}: it is not written to",
        world.slots[1].display(),
        place.display()
    );
    assert_eq!(refused, Err(expected.clone()));
    assert_eq!(staged.expect_err("mounted").to_string(), expected);
    assert!(installer.place(&release).is_ok());
}

#[tokio::test]
async fn a_payload_that_is_larger_than_the_partition_is_refused_before_a_byte_is_written() {
    let Some(world) = World::new(true, "") else { return };
    let (installer, _) = world.standing().await;
    let mut large = release("fw-2", 2, b"");
    large.size = SIZE + 1;
    assert_eq!(installer.place(&large).expect_err("too large").kind(), io::ErrorKind::StorageFull);
    large.size = SIZE;
    assert_eq!(installer.place(&large).expect("it fits").capacity, Some(SIZE));
}

#[tokio::test]
async fn a_medium_that_does_not_keep_what_was_written_is_found_out_behind_the_page_cache() {
    let Some(world) = World::new(true, "") else { return };
    let (installer, _) = world.standing().await;
    let payload = world.payload("fw-2");
    let release = release("fw-2", 2, &payload);
    world.write(&*installer, &release, &payload);
    let device = fs::File::options().write(true).open(&world.slots[1]).expect("opens");
    device.sync_all().expect("syncs");
    // A bit flips on the medium; the memory of the system still has the right one.
    let image = fs::File::options().write(true).open(&world._loops[1].image).expect("opens");
    image.write_all_at(&[!payload[2_000_000]], 2_000_000).expect("writes");
    let error = Rc::clone(&installer).stage(release).await.expect_err("another byte").to_string();
    assert!(error.ends_with("the medium does not hold what was written to it"), "{error}");
    assert!(installer.activate().await.is_err());
}

#[tokio::test]
async fn the_operators_command_gets_the_slot_and_the_release_and_its_failure_stops_the_update() {
    let more = "after_write = ['sh', '-c', 'echo $FLEETWAVE_SLOT $FLEETWAVE_RELEASE $FLEETWAVE_PHASE > $FLEETWAVE_SLOT_DEVICE.seen; test $FLEETWAVE_RELEASE = fw-2']";
    let Some(world) = World::new(false, more) else { return };
    install(&world, "fw-2", 2).await;
    let seen = fs::read_to_string(world.path("b.img.seen")).expect("it ran");
    assert_eq!(seen, "b fw-2 after_write\n");
    world.standing().await.0.commit().await.expect("commits");
    let payload = world.payload("fw-3");
    let release = release("fw-3", 3, &payload);
    let (installer, _) = world.standing().await;
    world.write(&*installer, &release, &payload);
    let error = Rc::clone(&installer).stage(release).await.expect_err("it fails").to_string();
    assert_eq!(error, "sh failed with exit status: 1");
    assert!(installer.activate().await.is_err());
}

#[tokio::test]
async fn slots_that_are_the_same_or_are_not_there_are_refused() {
    let Some(mut world) = World::new(false, "") else { return };
    let link = world.path("link");
    std::os::unix::fs::symlink(&world.slots[0], &link).expect("a link");
    world.slots[1] = link;
    let error = world.installer().standing().await.expect_err("the same").to_string();
    assert!(error.ends_with("are the same: there would be nothing to go back to"), "{error}");
    world.slots[1] = world.path("nowhere");
    let error = world.installer().standing().await.expect_err("not there").to_string();
    assert!(error.contains("/nowhere: No such file"), "{error}");
    let same = "slots = { a = '/dev/x', b = '/dev/x' }\nboot = { loader = 'grub' }";
    assert!(
        toml::from_str::<Options>(same).expect_err("the same").message().contains("a and b are the same")
    );
}

#[tokio::test]
async fn a_slot_that_was_written_to_by_others_is_unknown_where_slots_are_checked() {
    let Some(world) = World::new(false, "check_slots = true") else { return };
    install(&world, "fw-2", 2).await;
    world.standing().await.0.commit().await.expect("commits");
    assert_eq!(world.standing().await.1, ["fw-2", "fw-2"]);
    fs::write(&world.slots[1], b"flashed by hand").expect("writes");
    assert_eq!(world.standing().await.1, ["unknown-b", "unknown-b"]);
}

/// A whole update, from a download to the commit.
async fn update(world: &World) {
    install(world, "fw-2", 2).await;
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-1"]);
    installer.commit().await.expect("commits");
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

#[test]
fn wherever_the_power_goes_a_slot_that_was_committed_boots_and_holds_what_it_should() {
    let mut points = Vec::new();
    loop {
        let Some(world) = World::new(false, "check_slots = true") else { return };
        run(async { assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]) });
        let number = u32::try_from(points.len()).expect("few") + 1;
        let cut = cut_at(number, || run(update(&world)));
        run(async {
            world.power_on();
            let (installer, [running, committed]) = world.standing().await;
            let known = ["fw-1", "fw-2"];
            assert!(known.contains(&&*running) && known.contains(&&*committed), "{running}, cut at {cut:?}");
            if running != committed {
                assert_eq!(committed, "fw-1", "cut at {cut:?}");
                world.power_on();
                assert_eq!(world.standing().await.1, ["fw-1", "fw-1"], "cut at {cut:?}");
            } else if committed == "fw-2" {
                let payload = world.payload("fw-2");
                assert!(fs::read(&world.slots[1]).expect("reads") == payload, "cut at {cut:?}");
            }
            drop(installer);
            if committed == "fw-1" {
                update(&world).await;
            }
            world.power_on();
            assert_eq!(world.standing().await.1, ["fw-2", "fw-2"], "cut at {cut:?}");
        });
        match cut {
            Some(point) => points.push(point),
            None => break,
        }
    }
    assert!(points.len() >= 15 && points.contains(&"slot: committed"), "{points:?}");
}
