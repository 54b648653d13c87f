//! Disks that are full, and disks that can only be read, for real: the state directory is on an ext4 file system of its
//! own. Whatever the agent cannot write, it lives on, says so with a code, and the update goes on or is given up.

#[path = "common/real.rs"]
mod real;
mod support;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use fleetwave_hub::blob::Content;
use real::{have, have_loop_devices};
use serde_json::{Value, json};
use support::{Process, World, eventually};

/// What is offered where it matters that it takes a while.
const LARGE: u64 = 3_000_000;

/// Offers the release `fw-SEQ`.
fn offer(world: &World, seq: u64, size: u64) {
    let content = || Content::Generated { seed: seq, size };
    world.release(&format!("fw-{seq}"), seq, &content(), content());
}

/// Whether file systems can be made and mounted.
fn have_mounts() -> bool {
    have("mkfs.ext4") && have("mount") && have_loop_devices()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// A disk of 8 MiB on which the state directory is.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    fn under(world: &World) -> Self {
        let (image, at) = (world.dir.path().join("disk.img"), world.state());
        File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("an image");
        run("mkfs.ext4", &["-q", "-m", "0", text(&image)]);
        fs::create_dir(&at).expect("a directory");
        let disk = Self { image, at };
        disk.mount("errors=remount-ro");
        disk
    }

    fn mount(&self, options: &str) {
        run("mount", &["-o", &format!("loop,{options}"), text(&self.image), text(&self.at)]);
    }

    fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), text(&self.at)]);
    }

    fn unmount(&self) {
        run("umount", &[text(&self.at)]);
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// Somebody else writes until nothing more fits.
    fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("a file");
        for block in [1 << 20, 4096, 1] {
            let bytes = vec![1; block];
            while file.write_all(&bytes).is_ok() {}
        }
        // What was not written yet takes its place now.
        let _ = file.sync_all();
        while file.write_all(&[1; 4096]).is_ok() && file.sync_all().is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("it was there");
    }

    /// What the kernel does with a file system that it finds broken: from now on it is read-only.
    fn fails(&self) {
        self.remount("abort");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", text(&self.at)]).output();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// A shell command that does the same as [`Disk::fill`].
fn filling(disk: &Disk) -> String {
    format!(
        "for n in 1048576 4096 1; do dd if=/dev/zero bs=$n >> {} 2>&- ; done; sync; true",
        text(&disk.ballast())
    )
}

/// A device with such a disk, to which something happens `before` its agent starts. None if disks cannot be made here.
fn device(bandwidth: Option<u64>, before: impl FnOnce(&Disk)) -> Option<(World, Disk, Process)> {
    if !have_mounts() {
        return None;
    }
    let world = World::new(bandwidth, &[]);
    let disk = Disk::under(&world);
    before(&disk);
    let agent = world.start();
    world.reports_until(|report| report["state"] == "idle");
    Some((world, disk, agent))
}

/// A device whose agent has begun with a download that takes a while.
fn downloading() -> Option<(World, Disk, Process)> {
    let (world, disk, agent) = device(Some(700_000), |_| {})?;
    offer(&world, 2, LARGE);
    eventually("some has come", || world.download() > 300_000);
    Some((world, disk, agent))
}

fn problem(report: &Value) -> Option<&str> {
    report["problem"]["code"].as_str()
}

#[test]
fn an_update_that_finds_a_full_disk_says_so_and_begins_when_there_is_room() {
    let Some((world, disk, agent)) = device(None, |_| {}) else { return };
    disk.fill();
    offer(&world, 2, 400_000);
    let (mut code, mut told) = (Value::Null, Value::Null);
    world.reports_until(|report| {
        if report["state"] == "failed" {
            code = report["code"].clone();
        }
        if problem(report).is_some() {
            told = report["problem"].clone();
        }
        code.is_string() && told.is_object()
    });
    assert_eq!((&code, &told["code"]), (&json!("no_space"), &json!("no_space")));
    let detail = told["detail"].as_str().expect("what somebody can do");
    assert!(detail.contains("journal") && detail.contains("make room"), "{detail}");
    assert!(world.log().contains("make room there"), "{}", world.log());
    assert_eq!(world.blobs.control().counters().requests, 0, "nothing is fetched that cannot be recorded");
    disk.make_room();
    let mut mended = false;
    let reports = world.reports_until(|report| {
        mended |= report.get("problem").is_some_and(Value::is_null);
        mended && report["state"] == "idle" && report["code"] == "ok"
    });
    assert_eq!(reports.last().map(String::as_str), Some("fw-2 idle ok"));
    assert!(agent.terminate().success());
}

#[test]
fn a_disk_that_is_full_when_the_agent_starts_keeps_it_from_updates_alone() {
    let Some((world, disk, agent)) = device(None, Disk::fill) else { return };
    offer(&world, 2, 400_000);
    world.reports_until(|report| report["code"] == "no_space");
    disk.make_room();
    world.reports_until(|report| report["code"] == "ok");
    assert!(agent.terminate().success());
    assert!(world.status().contains("committed  fw-2"), "{}", world.status());
}

#[test]
fn a_download_that_finds_no_room_waits_for_it_and_fetches_no_byte_twice() {
    let Some((world, disk, agent)) = downloading() else { return };
    disk.fill();
    world.reports_until(|report| problem(report) == Some("no_space"));
    disk.make_room();
    let mut mended = false;
    world.reports_until(|report| {
        mended |= report.get("problem").is_some_and(Value::is_null);
        report["code"] == "ok"
    });
    assert!(mended, "the problem is taken back");
    assert!(agent.terminate().success());
    let fetched = world.blobs.control().counters().bytes;
    // What was on its way when the disk was full is lost.
    assert!(fetched < LARGE + 1_500_000, "{fetched}");
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_an_update_ends_it_with_a_code_and_the_next_one_is_good() {
    if !have_mounts() {
        return;
    }
    for (step, code) in
        [("before_install", "no_space"), ("after_install", "no_space"), ("health", "commit_failed")]
    {
        let mut world = World::new(None, &[]);
        let disk = Disk::under(&world);
        let fill = ["sh", "-c", &format!("test -e {0} || {{ {1}; }}", text(&disk.ballast()), filling(&disk))]
            .map(str::to_owned);
        let firmware = match step {
            "health" => format!("installer = \"directory\"\nhealth = {fill:?}\n"),
            step => format!("installer = \"directory\"\n[firmware.hooks]\n{step} = {fill:?}\n"),
        };
        world.install_by(&firmware);
        // A journal that is to be made shorter has no room for that either.
        world.environment.push(("FLEETWAVE_JOURNAL_BOUND", "1".to_owned()));
        let agent = world.start();
        offer(&world, 2, 400_000);
        let reports = world.reports_until(|report| report["state"] == "failed");
        assert_eq!(reports.last(), Some(&format!("fw-1 failed {code}")), "{step}");
        disk.make_room();
        // And something that stands where the ballast was: it is filled once.
        fs::write(disk.ballast(), b"").expect("writes");
        offer(&world, 3, 400_000);
        world.reports_until(|report| report["running"]["id"] == "fw-3");
        assert!(agent.terminate().success(), "{step}");
        let status = world.status();
        assert!(status.contains("last       fw-3 (seq 3): ok"), "{step}: {status}");
    }
}

#[test]
fn a_disk_that_can_only_be_read_is_told_and_the_update_is_taken_when_it_can_be_written() {
    let Some((world, disk, agent)) = device(None, |disk| disk.remount("ro")) else { return };
    offer(&world, 2, 400_000);
    let (mut failed, mut told) = (false, false);
    world.reports_until(|report| {
        failed |= report["code"] == "read_only";
        told |= problem(report) == Some("read_only");
        failed && told
    });
    assert!(world.log().contains("mount it read-write"), "{}", world.log());
    disk.remount("rw");
    world.reports_until(|report| report["code"] == "ok");
    assert!(agent.terminate().success());
}

#[test]
fn a_disk_that_fails_in_mid_download_ends_the_update_and_a_start_on_a_sound_one_takes_it_up_again() {
    let Some((world, disk, agent)) = downloading() else { return };
    disk.fails();
    world.reports_until(|report| report["code"] == "read_only");
    let (status, answer) = world.call("status", &Value::Null);
    assert_eq!(status, 200, "it lives: {answer}");
    assert_eq!(answer["targets"]["firmware"]["problem"]["code"], "read_only", "{answer}");
    assert!(agent.terminate().success());
    disk.unmount();
    disk.mount("errors=remount-ro");
    assert!(world.run_once().success(), "{}", world.log());
    let mut image = Vec::new();
    let file = File::open(world.firmware().join("slot-b/image"));
    file.and_then(|mut file| file.read_to_end(&mut image)).expect("reads");
    assert_eq!(image.len() as u64, LARGE);
}
