//! Whole updates of firmware in slots: the real binary, the local hub, and machines that boot by the real artefacts of
//! their boot loaders. A reboot is what switches such a machine off and on; so is a power cut, at any time.

#[path = "common/loader.rs"]
mod loader;
#[path = "common/real.rs"]
mod real;
mod support;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use loader::Machine;
use real::{have, have_loop_devices};
use serde_json::Value;
use support::{Process, SIZE, World, bytes, content, eventually, runs};

/// A device on the bench.
struct Bench {
    world: World,
    machine: Box<dyn Machine>,
    slots: [PathBuf; 2],
    agent: Option<Process>,
    /// The slots that have booted.
    boots: Vec<&'static str>,
}

impl Bench {
    fn new(
        bandwidth: Option<u64>,
        boot: impl FnOnce(&Path) -> (Box<dyn Machine>, String),
        more: &str,
    ) -> Self {
        let world = World::new(bandwidth, &[]);
        let dir = world.dir.path();
        let (machine, boot) = boot(dir);
        let slots = ["a.img", "b.img"].map(|name| dir.join(name));
        slots.iter().for_each(|slot| fs::write(slot, b"").expect("writes"));
        let mut bench = Self { world, machine, slots, agent: None, boots: Vec::new() };
        bench.configure(&boot, more);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.dir.path().join(name)
    }

    fn configure(&mut self, boot: &str, more: &str) {
        let [a, b] = &self.slots;
        self.world.install_by(&format!(
            "installer = \"slot\"\nslots = {{ a = {a:?}, b = {b:?} }}\nrunning = {{ cmdline = {:?} }}\n\
             reboot = [\"touch\", {:?}]\n{more}\n[firmware.boot]\n{boot}\n",
            self.path("cmdline"),
            self.path("reboot"),
        ));
    }

    /// Takes the power away, if there is any, and gives it back.
    fn power_on(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
        let [reboot, trial] = ["reboot", "trial"].map(|name| fs::remove_file(self.path(name)).is_ok());
        // Where a trial is not a reboot of its own kind the loader knows by itself.
        let slot = self.machine.power_on(trial || reboot && !self.machine.asks_for_trials());
        fs::write(self.path("cmdline"), format!("quiet fleetwave.slot={slot}\n")).expect("writes");
        self.boots.push(slot);
        self.agent = Some(self.world.start());
    }

    fn goes_down(&self) -> bool {
        self.path("reboot").exists() || self.path("trial").exists()
    }

    /// Lets the device live, with all the reboots that it asks for, until a report is as wanted.
    fn reports_until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        let mut arrived = false;
        loop {
            eventually("a report, or a reboot", || {
                if let Some((told, report)) = self.world.next_report() {
                    arrived = wanted(&report);
                    seen.push(told);
                }
                arrived || self.goes_down()
            });
            if arrived {
                return seen;
            }
            self.power_on();
        }
    }

    fn image(&self, slot: usize) -> Vec<u8> {
        let mut image = fs::read(&self.slots[slot]).expect("an image");
        image.truncate(usize::try_from(SIZE).expect("small"));
        image
    }
}

fn grub(dir: &Path) -> (Box<dyn Machine>, String) {
    let machine = loader::Grub::new(&dir.join("grubenv"));
    machine.set("saved_entry=slot-a");
    let config = format!("loader = \"grub\"\nenvironment = {:?}", machine.environment);
    (Box::new(machine), config)
}

fn uboot(dir: &Path) -> (Box<dyn Machine>, String) {
    let machine = loader::Uboot::new(dir);
    let config = format!("loader = \"uboot\"\nconfig = {:?}", machine.config);
    (Box::new(machine), config)
}

fn tryboot(dir: &Path) -> (Box<dyn Machine>, String) {
    let machine = loader::Tryboot::new(dir);
    let config = format!(
        "loader = \"tryboot\"\nautoboot = {:?}\npartitions = {{ a = 2, b = 3 }}\nreboot_trial = [\"touch\", {:?}]\n\
         device_tree = {:?}",
        machine.autoboot(),
        dir.join("trial"),
        machine.device_tree
    );
    (Box::new(machine), config)
}

fn two_updates(mut bench: Bench) {
    bench.power_on();
    assert_eq!(bench.reports_until(runs("fw-1")), ["fw-1 idle -"]);
    bench.world.release("fw-2", 2, &content(2), content(2));
    assert_eq!(bench.reports_until(runs("fw-2")), ["fw-1 updating -", "fw-2 idle ok"]);
    bench.world.release("fw-3", 3, &content(3), content(3));
    assert_eq!(bench.reports_until(runs("fw-3")), ["fw-2 updating -", "fw-3 idle ok"]);
    assert!(bench.image(1) == bytes(&content(2)) && bench.image(0) == bytes(&content(3)));
    assert_eq!(bench.world.blobs.control().counters().bytes, 2 * SIZE, "each byte once");
    // And for good.
    bench.power_on();
    assert_eq!(bench.boots, ["a", "b", "a", "a"]);
}

#[test]
fn grub_boots_what_was_installed() {
    if have("grub-editenv") {
        two_updates(Bench::new(None, grub, ""));
    }
}

#[test]
fn uboot_boots_what_was_installed() {
    if have("fw_setenv") {
        two_updates(Bench::new(None, uboot, ""));
    }
}

#[test]
fn a_pi_boots_what_was_installed() {
    if have("mkfs.vfat") && have("mtype") && (!loader::kernel_has_fat() || have_loop_devices()) {
        two_updates(Bench::new(None, tryboot, ""));
    }
}

#[test]
fn the_power_may_go_in_every_state_and_the_device_comes_to_the_new_release_all_the_same() {
    if !have("fw_setenv") {
        return;
    }
    for state in ["granting", "downloading", "verifying", "staging", "rebooting", "probation", "committing"] {
        let mut bench = Bench::new(Some(2_000_000), uboot, "");
        bench.world.release("fw-2", 2, &content(2), content(2));
        bench.power_on();
        let mark = format!("state=\"{state}\"");
        eventually(&format!("it is {state}"), || {
            if bench.goes_down() {
                bench.power_on();
            }
            bench.world.log().contains(&mark)
        });
        bench.power_on();
        bench.reports_until(runs("fw-2"));
        assert!(bench.image(1) == bytes(&content(2)), "{state}");
        bench.power_on();
        assert_eq!(bench.boots.last(), Some(&"b"), "{state}");
    }
}

#[test]
fn a_release_that_does_not_prove_itself_is_left_and_reported() {
    if !have("grub-editenv") {
        return;
    }
    let more = "probation = { checks = [[\"sh\", \"-c\", \"test $FLEETWAVE_RELEASE != fw-2\"]], deadline_seconds = 1 }";
    let mut bench = Bench::new(None, grub, more);
    bench.world.release("fw-2", 2, &content(2), content(2));
    bench.power_on();
    let reports = bench.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed unhealthy"));
    assert_eq!(bench.boots, ["a", "b", "a"]);
    assert!(bench.world.log().contains("not healthy within 1 s: sh failed"), "{}", bench.world.log());
}

#[test]
fn systemd_is_waited_for_and_its_word_decides() {
    if !have("grub-editenv") {
        return;
    }
    for (word, outcome) in [("running", "ok"), ("degraded", "unhealthy")] {
        let more = "probation = { system = \"running\", retry_seconds = 1 }";
        let mut bench = Bench::new(None, grub, more);
        // It is still starting when it is asked for the first time.
        let script = format!(
            "#!/bin/sh\ncase $1 in\nlist-units) echo app.service loaded failed ;;\n\
             *) if mkdir {0}/asked 2>/dev/null; then echo starting; exit 1; else echo {word}; fi ;;\nesac\n",
            bench.world.dir.path().display()
        );
        let bin = bench.path("bin");
        fs::create_dir(&bin).expect("a directory");
        fs::write(bin.join("systemctl"), script).expect("writes");
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).expect("it may run");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a path"));
        bench.world.environment.push(("PATH", path));
        bench.world.release("fw-2", 2, &content(2), content(2));
        bench.power_on();
        let reports = bench.reports_until(|report| report["code"].is_string());
        assert!(reports.last().is_some_and(|last| last.ends_with(outcome)), "{reports:?}");
        let log = bench.world.log();
        assert!(log.contains("systemd says that the system is \\\"starting\\\""), "{log}");
        assert_eq!(log.contains("units failed: app.service"), outcome != "ok", "{log}");
    }
}

#[test]
fn the_watchdog_is_kept_alive_by_the_agent_and_stopped_only_when_that_is_told_to_end() {
    if !have("grub-editenv") {
        return;
    }
    let pipe = tempfile::tempdir().expect("a directory");
    let path = pipe.path().join("watchdog");
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    let mut end = fs::File::options().read(true).write(true).open(&path).expect("the other end");
    let mut next = || {
        let mut byte = [0];
        end.read_exact(&mut byte).expect("the agent writes");
        char::from(byte[0])
    };
    let more = format!("[watchdog]\ndevice = {path:?}\ntimeout_seconds = 1");
    let mut bench = Bench::new(None, grub, &more);
    bench.power_on();
    assert_eq!([next(), next(), next(), next()], ['.'; 4]);
    // An agent that dies leaves it running: the next letter is another agent's.
    bench.power_on();
    let letters = std::iter::repeat_with(&mut next).take(8).collect::<String>();
    assert_eq!(letters, "........");
    assert!(bench.agent.take().expect("it runs").terminate().success());
    let last = std::iter::repeat_with(next).find(|letter| *letter != '.');
    assert_eq!(last, Some('V'));
}
/// The two slots as block devices of their own.
struct Loops([PathBuf; 2]);

impl Loops {
    fn new(dir: &Path) -> Self {
        Self(["a.disk", "b.disk"].map(|name| {
            let image = dir.join(name);
            fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("an image");
            let output =
                Command::new("losetup").args(["--find", "--show"]).arg(image).output().expect("losetup runs");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("a path").trim().into()
        }))
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = Command::new("losetup").arg("--detach").arg(device).status();
        }
    }
}

#[test]
fn partitions_are_filled_as_they_are_and_a_download_goes_on_in_them_after_a_power_cut() {
    if !have("grub-editenv") || !have_loop_devices() {
        return;
    }
    let mut bench = Bench::new(Some(200_000), grub, "");
    let loops = Loops::new(bench.world.dir.path());
    bench.slots = loops.0.clone();
    let (machine, boot) = grub(bench.world.dir.path());
    bench.machine = machine;
    bench.configure(&boot, "");
    bench.world.release("fw-2", 2, &content(2), content(2));
    bench.power_on();
    let blobs = bench.world.blobs.control();
    eventually("a part of the payload is on its way", || blobs.counters().bytes >= SIZE / 2);
    bench.power_on();
    bench.reports_until(runs("fw-2"));
    assert!(bench.image(1) == bytes(&content(2)));
    assert_eq!(bench.boots, ["a", "a", "b"]);
}

/// Gives the device a release on a stick: the code of exit, and what was said.
fn install_by_hand(bench: &Bench, id: &str, seq: u64) -> (Option<i32>, String) {
    let stick = bench.path("stick");
    let reference = bench.world.sign(None, id, seq, &content(seq), content(seq));
    fs::create_dir_all(&stick).expect("a directory");
    fs::write(stick.join("release.json"), reference.to_string()).expect("writes");
    fs::write(stick.join("payload"), bytes(&content(seq))).expect("writes");
    let mut command = support::program();
    command.arg("install").arg("--config").arg(bench.world.config()).arg(stick);
    let output = command.output().expect("it runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("text"))
}

/// Takes the hub out of the device's reach; what this returns brings it back.
fn lose_hub(bench: &Bench) -> impl FnOnce() + use<> {
    let config = bench.world.config();
    let text = fs::read_to_string(&config).expect("a configuration");
    let address = bench.world.hub.address().expect("it listens").to_string();
    fs::write(&config, text.replace(&address, "127.0.0.1:1")).expect("writes");
    move || fs::write(config, text).expect("writes")
}

#[test]
fn firmware_from_a_stick_is_tried_by_a_reboot_and_committed_without_a_hub() {
    if !have("grub-editenv") {
        return;
    }
    let mut bench = Bench::new(None, grub, "");
    bench.power_on();
    bench.reports_until(runs("fw-1"));
    assert!(bench.agent.take().expect("it runs").terminate().success());
    let find_hub = lose_hub(&bench);
    let (exit, said) = install_by_hand(&bench, "fw-2", 2);
    assert!(
        exit == Some(0) && said.contains("firmware: the machine goes down now, to try the release"),
        "{said}"
    );
    assert!(bench.goes_down());
    bench.power_on();
    let status = |bench: &Bench| bench.world.status();
    eventually("it is committed", || status(&bench).contains("committed  fw-2 (seq 2)"));
    bench.power_on();
    assert_eq!(bench.boots, ["a", "b", "b"]);
    find_hub();
    bench.power_on();
    assert_eq!(bench.reports_until(runs("fw-2")), ["fw-2 idle ok"]);
    assert_eq!(bench.world.blobs.control().counters().bytes, 0);
}

#[test]
fn firmware_from_a_stick_has_to_reach_the_hub_if_what_ran_before_did() {
    if !have("grub-editenv") {
        return;
    }
    let mut bench = Bench::new(None, grub, "");
    bench.power_on();
    bench.reports_until(runs("fw-1"));
    let (exit, said) = install_by_hand(&bench, "fw-2", 2);
    assert!(exit == Some(0) && said.contains("the machine goes down now"), "{said}");
    let find_hub = lose_hub(&bench);
    bench.power_on();
    eventually("it looks for the hub in vain", || {
        let log = bench.world.log();
        log.rsplit("state=\"probation\"").next().is_some_and(|last| last.contains("not connected"))
            && log.contains("state=\"probation\"")
    });
    assert!(bench.world.status().contains("on trial   fw-2 (seq 2)"), "{}", bench.world.status());
    find_hub();
    // What is not committed does not survive a power cut, and is tried again.
    bench.power_on();
    let reports = bench.reports_until(runs("fw-2"));
    assert_eq!(reports.last().map(String::as_str), Some("fw-2 idle ok"));
    assert_eq!(bench.boots, ["a", "b", "a", "b"]);
}

#[test]
fn an_agent_that_ends_again_and_again_on_trial_does_not_begin_the_trial_anew() {
    if !have("grub-editenv") {
        return;
    }
    let more = "probation = { checks = [[\"sleep\", \"1000\"]], deadline_seconds = 1000 }";
    let mut bench = Bench::new(None, grub, more);
    let text = fs::read_to_string(bench.world.config()).expect("text");
    let text = text.replace("[limits]\n", "[limits]\nprobation_seconds = 5\n");
    fs::write(bench.world.config(), text).expect("written");
    bench.world.release("fw-2", 2, &content(2), content(2));
    bench.power_on();
    eventually("it boots the other slot", || bench.goes_down());
    bench.power_on();
    let trials =
        |bench: &Bench| bench.world.log().matches("entered target=firmware state=\"probation\"").count();
    let (mut seen, mut last) = (0, Instant::now());
    eventually("the trial ends", || {
        // Not in the very moment in which it starts a program, which would then hold its lock.
        if trials(&bench) > seen && last.elapsed() > Duration::from_secs(1) {
            // The agent alone: the machine goes on.
            (seen, last) = (trials(&bench), Instant::now());
            bench.agent.take().expect("it runs").kill();
            bench.agent = Some(bench.world.start());
        }
        bench.goes_down()
    });
    assert!(seen > 1, "it was started again in the trial");
    let reports = bench.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed probation_timeout"));
    assert_eq!(bench.boots, ["a", "b", "a"]);
}
