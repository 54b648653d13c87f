//! `fleetwave-agent install`: a release from a folder, with an agent that runs and without one, with a hub and without.

#[path = "common/real.rs"]
mod real;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use fleetwave_hub::blob::Content;
use serde_json::{Value, json};

use support::{Process, World, eventually, program, runs};

const SIZE: usize = 600_000;

/// What a command came to: its code of exit, and all that it said.
#[derive(Debug)]
struct Said {
    exit: i32,
    text: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { exit: output.status.code().expect("it ends"), text: String::from_utf8(text).expect("text") }
    }
}

fn bytes(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// A release in a directory of its own, and what stands in twins for it.
fn stick(world: &World, target: Option<&str>, id: &str, seq: u64) -> (PathBuf, Value) {
    let dir = world.dir.path().join(format!("stick-{id}"));
    let payload = bytes(seq as u8);
    let content = Content::Bytes(payload.clone().into());
    let reference = world.sign(target, id, seq, &content, content.clone());
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("release.json"), reference.to_string()).expect("written");
    fs::write(dir.join("payload"), payload).expect("written");
    (dir, reference)
}

fn start(world: &World, options: &[&str], release: &Path) -> Child {
    let mut command = program();
    command.arg("install").arg("--config").arg(world.config()).args(options).arg(release);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn install(world: &World, options: &[&str], release: &Path) -> Said {
    start(world, options, release).wait_with_output().expect("a child of ours").into()
}

fn must(said: &Said, exit: i32, says: &str) {
    assert!(said.exit == exit && said.text.contains(says), "{exit}, {says}: {said:?}");
}

/// A device with `sections` in its configuration whose hub cannot be reached.
fn far_from_any_hub(health: &[&str], sections: &str) -> World {
    let world = World::with(None, health, sections);
    let text = fs::read_to_string(world.config()).expect("a configuration");
    let address = world.hub.address().expect("it listens").to_string();
    fs::write(world.config(), text.replace(&address, "127.0.0.1:1")).expect("written");
    world
}

fn agent_that_runs(world: &World) -> Process {
    let agent = world.start();
    eventually("the agent takes releases", || world.state().join("install.sock").exists());
    agent
}

#[test]
fn without_agent_and_hub_a_release_is_installed_and_the_hub_hears_of_it_when_it_is_reached() {
    let world = World::new(None, &[]);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    let said = install(&world, &[], &dir.join("release.json"));
    must(&said, 0, "firmware: fw-2 runs, and is committed");
    assert!(said.text.contains("firmware: runs it on trial"), "{said:?}");
    must(&install(&world, &[], &dir), 0, "fw-2 runs already");
    assert!(world.next_report().is_none(), "no hub was needed");
    assert!(world.status().contains("committed  fw-2 (seq 2)"), "{}", world.status());
    assert!(!world.status().contains("downloads"), "it cost nothing: {}", world.status());

    assert_eq!(world.run_once().code(), Some(0));
    assert_eq!(world.reports_until(runs("fw-2")), ["fw-2 idle ok"]);
    assert_eq!(world.blobs.control().counters().bytes, 0);
}

#[test]
fn an_agent_that_runs_takes_a_release_over_and_reports_it() {
    let world = World::new(None, &[]);
    let _agent = agent_that_runs(&world);
    world.reports_until(runs("fw-1"));
    let (dir, _) = stick(&world, None, "fw-2", 2);
    let said = install(&world, &[], &dir);
    must(&said, 0, "firmware: fw-2 runs, and is committed");
    assert!(said.text.contains("the agent that runs takes it over"), "{said:?}");
    assert_eq!(world.reports_until(runs("fw-2")).last().expect("a report"), "fw-2 idle ok");
    assert_eq!(world.blobs.control().counters().bytes, 0);
}

#[test]
fn an_agent_that_cannot_reach_its_hub_takes_a_release_over_too() {
    let world = far_from_any_hub(&[], "[component.app]\ninstaller = \"directory\"\n");
    let _agent = agent_that_runs(&world);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    must(&install(&world, &[], &dir), 0, "firmware: fw-2 runs, and is committed");
    let (dir, _) = stick(&world, Some("components.app"), "app-1", 1);
    must(&install(&world, &[], &dir), 0, "components.app: app-1 runs, and is committed");
}

#[test]
fn what_the_hub_asks_for_counts_again_afterwards_unless_it_is_older() {
    let world = World::new(None, &[]);
    let (_, second) = stick(&world, None, "fw-2", 2);
    world.desire(&json!({ "firmware": second }));
    let _agent = agent_that_runs(&world);
    world.reports_until(runs("fw-2"));
    let (dir, _) = stick(&world, None, "fw-3", 3);
    must(&install(&world, &[], &dir), 0, "firmware: fw-3 runs, and is committed");
    // It is told that what the twin asks for is no way back.
    let reports = world.reports_until(|report| report["code"] == "downgrade");
    assert_eq!(reports.last().expect("a report"), "fw-3 failed downgrade");
    let (_, fourth) = stick(&world, None, "fw-4", 4);
    world.desire(&json!({ "firmware": fourth }));
    world.reports_until(runs("fw-4"));
}

#[test]
fn a_download_under_way_takes_its_rest_from_a_stick_and_another_one_gives_way_to_it() {
    let world = World::with(Some(50_000), &[], "[component.app]\ninstaller = \"directory\"\n");
    let (dir, second) = stick(&world, None, "fw-2", 2);
    world.desire(&json!({ "firmware": second }));
    let _agent = agent_that_runs(&world);
    // What was recorded as durable by then is not copied again.
    eventually("a part of it has come", || {
        world.download() > 0 && !world.status().contains("started once, 0 of")
    });
    must(&install(&world, &[], &dir), 0, "firmware: fw-2 runs, and is committed");
    let log = world.log();
    let offset = log.split("copies target=firmware").nth(1).and_then(|copied| copied.split("offset=").nth(1));
    assert!(offset.is_some_and(|offset| !offset.starts_with("0 ")), "{log}");
    let served = world.blobs.control().counters().bytes;
    assert!(served < SIZE as u64, "{served}");

    let (_, first) = stick(&world, Some("components.app"), "app-1", 1);
    world.desire(&json!({ "components": { "app": first } }));
    eventually("it is fetched", || world.log().contains("fetches target=components.app"));
    let (dir, _) = stick(&world, Some("components.app"), "app-2", 2);
    must(&install(&world, &[], &dir), 0, "components.app: app-2 runs, and is committed");
}

#[test]
fn what_must_not_be_installed_is_refused_before_anything_is_begun() {
    let world = World::new(None, &[]);
    let (dir, reference) = stick(&world, None, "fw-2", 2);
    let with = |name: &str, reference: &Value| {
        let other = world.dir.path().join(name);
        fs::create_dir_all(&other).expect("a directory");
        fs::write(other.join("release.json"), reference.to_string()).expect("written");
        fs::copy(dir.join("payload"), other.join("payload")).expect("copied");
        other
    };
    let mut forged = reference.clone();
    forged["seq"] = 3.into();
    let mut unsigned = reference.clone();
    unsigned["sigs"] = json!({});
    let mut broken = reference.clone();
    broken["size"] = "much".into();
    let truncated = with("truncated", &reference);
    fs::write(truncated.join("payload"), &bytes(2)[..SIZE / 2]).expect("written");
    let older = stick(&world, None, "fw-0", 0).0;
    let elsewhere = stick(&world, Some("components.app"), "app-2", 2).0;
    let refusals: &[(&Path, &str)] = &[
        (&with("forged", &forged), "signature_invalid: it is not what was signed"),
        (&with("unsigned", &unsigned), "fleetwave release sign DIR --key NAME=FILE"),
        (&with("broken", &broken), "reference_malformed: a member of release.json"),
        (
            &with("typed", &world.sign_for(&["pi-5"], &reference)),
            "incompatible: it is signed for other types",
        ),
        (&truncated, "size_mismatch: the payload has 300000 bytes, and 600000 were signed"),
        (&older, "downgrade: its sequence is below that of fw-1 (seq 1)"),
        (&elsewhere, "wrong_target: the release is for components.app, and this device has firmware"),
    ];
    let all_refused = || {
        for (dir, says) in refusals {
            must(&install(&world, &[], dir), 3, says);
        }
        assert!(world.status().contains("last       no update yet"), "{}", world.status());
    };
    all_refused();
    let _agent = agent_that_runs(&world);
    all_refused();
    assert_eq!(world.reports_until(runs("fw-1")), ["fw-1 idle -"]);
    assert!(world.next_report().is_none(), "a stick that is wrong is no failure of the device's");
}

#[test]
fn what_is_no_release_is_told_with_how_to_make_one() {
    let world = World::new(None, &[]);
    let said = install(&world, &[], world.dir.path());
    must(&said, 2, "is no release: it has no release.json");
    assert!(said.text.contains("fleetwave release create PAYLOAD --out DIR"), "{said:?}");
    must(&install(&world, &[], &world.config()), 2, "it does not hold the reference of one");
    must(&install(&world, &[], Path::new("/nowhere")), 1, "/nowhere: No such file");
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let world = World::new(None, &[]);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    fs::write(world.state(), "a file in its place").expect("written");
    must(&install(&world, &[], &dir), 1, "cannot be written by this user");
}

#[test]
fn an_agent_of_another_user_takes_what_it_has_no_right_to_read_and_root_leaves_nothing_in_its_state() {
    const NOBODY: u32 = 65_534;
    let world = far_from_any_hub(&[], "");
    if fs::metadata(world.dir.path()).expect("a directory").uid() != 0 || !real::have("setpriv") {
        eprintln!("skipped: it takes root to be two users");
        return;
    }
    let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("allowed");
    let (dir, _) = stick(&world, None, "fw-2", 2);
    allow(&dir, 0o700);
    allow(world.dir.path(), 0o755);
    allow(&world.config(), 0o644);
    fs::create_dir(world.state()).expect("a directory");
    chown(world.state(), Some(NOBODY), Some(NOBODY)).expect("given away");
    must(&install(&world, &[], &dir), 1, "belongs to another user (uid 65534), and no agent runs on it");
    assert_eq!(
        fs::read_dir(world.state()).expect("a directory").count(),
        0,
        "nothing of root's is left there"
    );

    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_fleetwave-agent"));
    command.arg("run").arg("--config").arg(world.config()).stderr(Stdio::null());
    let _agent = Process(command.spawn().expect("it starts"));
    eventually("the agent takes releases", || world.state().join("install.sock").exists());
    must(&install(&world, &[], &dir), 0, "firmware: fw-2 runs, and is committed");
}

#[test]
fn a_target_of_which_it_cannot_be_told_what_runs_takes_nothing_and_says_why() {
    let world = World::new(None, &[]);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    fs::create_dir_all(world.firmware()).expect("a directory");
    // Boots by default what is not there.
    fs::write(world.firmware().join("boot.json"), r#"{"default": "b", "once": null}"#).expect("written");
    must(&install(&world, &[], &dir), 1, "firmware: it cannot be told what runs");
    let _agent = agent_that_runs(&world);
    must(&install(&world, &[], &dir), 1, "firmware: it cannot be told what runs");
}

#[test]
fn a_payload_that_is_not_what_was_signed_is_not_installed_and_a_good_one_is_then() {
    let world = World::new(None, &[]);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    let mut changed = bytes(2);
    changed[SIZE / 2] ^= 1;
    fs::write(dir.join("payload"), changed).expect("written");
    must(&install(&world, &[], &dir), 3, "firmware: fw-2 was given up: digest_mismatch; fw-1 runs");
    fs::write(dir.join("payload"), bytes(2)).expect("written");
    must(&install(&world, &[], &dir), 0, "firmware: fw-2 runs, and is committed");
}

#[test]
fn a_release_that_is_unhealthy_is_given_up_and_tried_again_only_if_it_is_asked_for_again() {
    let flag = tempfile::NamedTempFile::new().expect("a file");
    let world = far_from_any_hub(&["test", "!", "-e", flag.path().to_str().expect("text")], "");
    let (dir, _) = stick(&world, None, "fw-2", 2);
    must(&install(&world, &[], &dir), 3, "firmware: fw-2 was given up: unhealthy; fw-1 runs");
    let agent = agent_that_runs(&world);
    must(&install(&world, &[], &dir), 3, "firmware: fw-2 was given up: unhealthy; fw-1 runs");
    drop(flag);
    must(&install(&world, &[], &dir), 0, "firmware: fw-2 runs, and is committed");
    drop(agent);
}

#[test]
fn a_stick_that_is_pulled_out_breaks_nothing_and_the_next_one_goes_on_from_what_is_durable() {
    let parts = "[component.app]\ninstaller = \"directory\"\n[component.slow]\ninstaller = \"directory\"\n";
    let world = World::with(Some(20_000), &[], parts);
    let (_, slow) = stick(&world, Some("components.slow"), "slow-1", 1);
    world.desire(&json!({ "components": { "slow": slow } }));
    let _agent = agent_that_runs(&world);
    eventually("the other target downloads", || world.log().contains("fetches"));
    // One payload at a time: this one waits, and is cut in half meanwhile.
    let (dir, _) = stick(&world, Some("components.app"), "app-1", 1);
    let waiting = start(&world, &[], &dir);
    eventually("it is asked for", || world.log().contains("a release is asked for here"));
    fs::write(dir.join("payload"), &bytes(1)[..SIZE / 2]).expect("written");
    world.desire(&json!({ "components": { "slow": null } }));
    let said = Said::from(waiting.wait_with_output().expect("a child of ours"));
    must(&said, 1, "it ends after 300000 of 600000 bytes (300000 of 600000 bytes are durable)");
    assert!(said.text.contains("give this command again"), "{said:?}");
    assert!(world.status().contains("300000 of 600000 bytes"), "{}", world.status());

    fs::write(dir.join("payload"), bytes(1)).expect("written");
    must(&install(&world, &[], &dir), 0, "components.app: app-1 runs, and is committed");
    assert!(world.log().contains("offset=300000"), "{}", world.log());
}

#[test]
fn windows_and_caps_do_not_keep_off_whoever_says_now_but_locks_do() {
    let lock = tempfile::NamedTempFile::new().expect("a file");
    let name = lock.path().to_str().expect("text").to_owned();
    // One minute of the day, far from now.
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let hour = (seconds / 3600 + 12) % 24;
    let window = format!("{{ from = \"{hour:02}:00\", to = \"{hour:02}:01\" }}");
    let sections = format!(
        "[windows]\ndownload = {window}\ninstall = {window}\n\
         [ledger]\nper_update = \"1 KiB\"\n[locks]\nfiles = [{name:?}]\nretry_seconds = 1\n"
    );
    let mut world = far_from_any_hub(&[], &sections);
    world.environment = vec![("TZ", "UTC".to_owned())];
    let _agent = agent_that_runs(&world);
    let (dir, _) = stick(&world, None, "fw-2", 2);
    let mut waits = start(&world, &[], &dir);
    eventually("it is copied", || world.status().contains("staged, booted 0 times"));
    waits.kill().expect("it waits");
    waits.wait().expect("a child of ours");

    let asked = world.status();
    assert!(asked.contains("asked here ") && asked.contains("stick-fw-2/payload"), "{asked}");
    must(&install(&world, &["--cancel"], &dir), 0, "firmware: fw-2 was given up: aborted; fw-1 runs");
    must(&install(&world, &["--cancel"], &dir), 1, "nothing of this release was asked for here");

    let said = start(&world, &["--now"], &dir);
    eventually("a lock is held", || world.log().contains("waits: a lock is held"));
    assert!(world.status().contains("staged, booted 0 times"), "{}", world.status());
    drop(lock);
    let said = Said::from(said.wait_with_output().expect("a child of ours"));
    must(&said, 0, "firmware: fw-2 runs, and is committed");
    assert!(said.text.contains("waits for a lock"), "{said:?}");
}
