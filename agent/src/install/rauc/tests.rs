//! The real RAUC, on a bus of its own, with image files for slots, GRUB's environment for what boots, and a bundle that
//! `rauc bundle` made.

use std::fs;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::Instant;

use fleetwave_agent_core::{Releases, TrustRoot};
use serde_json::json;

use super::*;
use crate::crash::testing::cut_at;
use crate::install::{Options as _, Reference};
use crate::real::have;
use crate::target::Target;

/// A process that ends with its test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Process::new(program).args(arguments).current_dir(dir).output().expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

struct World {
    dir: tempfile::TempDir,
    rauc: Option<Daemon>,
    _bus: Daemon,
}

const SIZE: usize = 300_000;

impl World {
    async fn new() -> Option<Self> {
        if ![have("rauc"), have("dbus-daemon"), have("openssl"), have("grub-editenv")]
            .into_iter()
            .all(|have| have)
        {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let at = dir.path().display();
        for (key, subject) in [("good", "/CN=ours"), ("bad", "/CN=somebody else")] {
            let arguments = [
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "3650",
                "-subj",
                subject,
            ];
            let files = ["-keyout", &format!("{key}.key"), "-out", &format!("{key}.crt")];
            run("openssl", &[&arguments[..], &files[..]].concat(), dir.path());
        }
        let system = format!(
            "[system]\ncompatible=fleetwave\nbootloader=grub\ngrubenv={at}/grubenv\nmountprefix={at}/mnt\n\
             statusfile={at}/status\nactivate-installed=false\n[keyring]\npath={at}/good.crt\n\
             [slot.rootfs.0]\ndevice={at}/a\ntype=raw\nbootname=A\n\
             [slot.rootfs.1]\ndevice={at}/b\ntype=raw\nbootname=B\n\
             [slot.rescue.0]\ndevice={at}/rescue\ntype=raw\nbootname=R\n"
        );
        fs::write(path("system.conf"), system).expect("writes");
        for slot in ["a", "b", "rescue"] {
            fs::write(path(slot), vec![0; 2 * SIZE]).expect("writes");
        }
        run("grub-editenv", &["grubenv", "create"], dir.path());
        let variables = ["ORDER=A B", "A_OK=1", "B_OK=1", "A_TRY=0", "B_TRY=0", "R_OK=0", "R_TRY=0"];
        run("grub-editenv", &[&["grubenv", "set"], &variables[..]].concat(), dir.path());
        let bus = format!(
            "<busconfig><type>session</type><listen>unix:path={at}/bus</listen><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
             </policy></busconfig>"
        );
        fs::write(path("bus.conf"), bus).expect("writes");
        let config = format!("--config-file={at}/bus.conf");
        let bus = Process::new("dbus-daemon")
            .args([&config, "--nofork", "--nopidfile"])
            .stderr(Stdio::null())
            .spawn();
        let mut world = Self { dir, rauc: None, _bus: Daemon(bus.expect("dbus-daemon starts")) };
        eventually("the bus listens", async || world.path("bus").exists()).await;
        world.power_on().await;
        Some(world)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    fn variable(&self, name: &str) -> String {
        let list = run("grub-editenv", &["grubenv", "list"], self.dir.path());
        let found = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    }

    /// Boots as the script in RAUC's documentation does, and starts RAUC in what booted.
    async fn power_on(&mut self) -> String {
        self.rauc = None;
        let order = self.variable("ORDER");
        let slot = order.split_whitespace().find(|slot| {
            self.variable(&format!("{slot}_OK")) == "1" && self.variable(&format!("{slot}_TRY")) == "0"
        });
        let slot = slot.expect("a slot boots").to_owned();
        run("grub-editenv", &["grubenv", "set", &format!("{slot}_TRY=1")], self.dir.path());
        let log = fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let rauc = Process::new("rauc")
            .args(["-c", "system.conf", "service", &format!("--override-boot-slot={slot}")])
            .current_dir(self.dir.path())
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.rauc = Some(Daemon(rauc.expect("rauc starts")));
        let address = self.address();
        eventually("RAUC answers", async || match Bus::connect(Some(&address)).await {
            Ok(bus) => bus.slots().await.is_ok(),
            Err(_) => false,
        })
        .await;
        slot
    }

    fn installer(&self) -> Rc<dyn Installer> {
        let reboot = self.path("rebooted");
        let text = format!("bus = {:?}\nreboot = ['touch', {reboot:?}]", self.address());
        let options: Options = toml::from_str(&text).expect("well-formed");
        let installed = json!({"id": "fw-1", "seq": 1}).as_object().cloned().unwrap_or_default();
        options.installer(Site { target: Target::firmware(), dir: self.path("state"), installed })
    }

    async fn standing(&self) -> (Rc<dyn Installer>, [String; 2]) {
        let installer = self.installer();
        let standing = Rc::clone(&installer).standing().await.expect("it is known");
        let id = |reference: &Reference| reference["id"].as_str().expect("text").to_owned();
        (installer, [id(&standing.running), id(&standing.committed)])
    }

    /// A bundle with this content, signed with this key.
    fn bundle(&self, content: &[u8], key: &str) -> PathBuf {
        let tree = self.path("tree");
        fs::create_dir_all(&tree).expect("a directory");
        fs::write(tree.join("root.img"), content).expect("writes");
        let manifest = "[update]\ncompatible=fleetwave\nversion=2\n[image.rootfs]\nfilename=root.img\n";
        fs::write(tree.join("manifest.raucm"), manifest).expect("writes");
        let bundle = self.path("made.raucb");
        let _ = fs::remove_file(&bundle);
        let (crt, key) = (format!("--cert={key}.crt"), format!("--key={key}.key"));
        run("rauc", &["bundle", &crt, &key, "tree", "made.raucb"], self.dir.path());
        bundle
    }

    /// From a download to RAUC's own verdict.
    async fn stage(&self, id: &str, sequence: u64, bundle: &Path) -> Result<Rc<dyn Installer>, InstallError> {
        let installer = self.standing().await.0;
        let release = release(id, sequence);
        let place = installer.place(&release).expect("there is a place");
        fs::copy(bundle, place.path).expect("copies");
        Rc::clone(&installer).stage(release).await.map(|()| installer)
    }
}

async fn eventually(what: &str, mut happened: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !happened().await {
        assert!(Instant::now() < give_up, "never: {what}");
        sleep_a_little().await;
    }
}

async fn sleep_a_little() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn release(id: &str, sequence: u64) -> Release {
    let mut releases = Releases::new(TrustRoot::default());
    let id = releases.preinstalled(id, sequence);
    releases[id].clone()
}

#[tokio::test]
async fn rauc_installs_a_bundle_which_is_tried_once_and_committed() {
    let Some(mut world) = World::new().await else { return };
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
    let content = vec![7; SIZE];
    let bundle = world.bundle(&content, "good");
    let installer = world.stage("fw-2", 2, &bundle).await.expect("RAUC takes it");
    assert!(fs::read(world.path("b")).expect("reads").starts_with(&content), "it lies in the other slot");
    assert_eq!(world.power_on().await, "A", "a power cut before the trial changes nothing");
    let again = world.standing().await;
    assert_eq!(again.1, ["fw-1", "fw-1"]);
    drop(installer);

    assert_eq!(again.0.activate().await.expect("reboots"), Activated::GoingDown);
    assert!(world.path("rebooted").exists());
    assert_eq!(world.power_on().await, "B");
    assert_eq!(world.standing().await.1, ["fw-2", "fw-1"], "on trial");
    assert_eq!(world.power_on().await, "A", "the power was cut on trial");
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-1", "fw-1"]);

    installer.activate().await.expect("what was staged is still there");
    assert_eq!(world.power_on().await, "B");
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-1"]);
    Rc::clone(&installer).healthy().await.expect("healthy");
    installer.commit().await.expect("commits");
    assert!(!world.path("state/bundle.raucb").exists(), "nobody needs it any more");
    for _ in 0..3 {
        assert_eq!(world.standing().await.1, ["fw-2", "fw-2"]);
        assert_eq!(world.power_on().await, "B");
    }
}

#[tokio::test]
async fn a_bundle_that_somebody_else_signed_is_refused_with_raucs_own_words() {
    let Some(world) = World::new().await else { return };
    let bundle = world.bundle(&[7; SIZE], "bad");
    let error = world.stage("fw-2", 2, &bundle).await.map(|_| ()).expect_err("not ours");
    assert!(matches!(error, InstallError::Payload(_)), "{error:?}");
    assert!(
        error.to_string().contains("RAUC did not install it") && error.to_string().contains("signature"),
        "{error}"
    );
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-1", "fw-1"]);
    let error = installer.activate().await.expect_err("nothing to try").to_string();
    assert_eq!(error, "slot B holds nothing that was verified");
}

#[tokio::test]
async fn a_release_that_is_given_up_on_trial_is_left_for_good() {
    let Some(mut world) = World::new().await else { return };
    let bundle = world.bundle(&[7; SIZE], "good");
    world.stage("fw-2", 2, &bundle).await.expect("RAUC takes it").activate().await.expect("reboots");
    assert_eq!(world.power_on().await, "B");
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-1"]);
    let error =
        Rc::clone(&installer).stage(release("fw-3", 3)).await.expect_err("both are needed").to_string();
    assert_eq!(error, "slot B is on trial: slot A is what to go back to, and is not overwritten");
    installer.go_back().await.expect("reboots");
    assert_eq!(world.power_on().await, "A");
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
    assert_eq!(world.variable("B_OK"), "0");
}

#[tokio::test]
async fn a_slot_that_rauc_wrote_without_the_agent_is_unknown() {
    let Some(mut world) = World::new().await else { return };
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
    let bundle = world.bundle(&[7; SIZE], "good");
    let bus = Bus::connect(Some(&world.address())).await.expect("connects");
    bus.install(&bundle, Duration::from_secs(60)).await.expect("installs");
    bus.mark("active", "other").await.expect("marks");
    assert_eq!(world.power_on().await, "B");
    bus.mark("good", "booted").await.expect("marks");
    assert_eq!(world.standing().await.1, ["unknown-B", "unknown-B"], "somebody has chosen it");
}

#[tokio::test]
async fn a_file_that_makes_no_sense_any_more_leaves_the_slots_unknown_and_the_agent_alive() {
    let Some(world) = World::new().await else { return };
    assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]);
    fs::write(world.path("state/rauc.json"), b"{").expect("writes");
    assert_eq!(world.standing().await.1, ["unknown-A", "unknown-A"]);
}

#[tokio::test]
async fn without_rauc_on_the_bus_it_is_said_what_is_missing() {
    let Some(mut world) = World::new().await else { return };
    world.rauc = None;
    let error = world.installer().standing().await.expect_err("nobody answers").to_string();
    assert!(error.contains("is RAUC installed, with its D-Bus service?"), "{error}");
}

fn alone<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

/// A whole update, from a download to the commit.
async fn update(world: &mut World, bundle: &Path) {
    let installer = world.stage("fw-2", 2, bundle).await.expect("RAUC takes it");
    installer.activate().await.expect("reboots");
    world.power_on().await;
    let (installer, standing) = world.standing().await;
    assert_eq!(standing, ["fw-2", "fw-1"]);
    installer.commit().await.expect("commits");
}

#[test]
fn wherever_the_power_goes_rauc_boots_a_slot_whose_release_is_known() {
    let mut points = Vec::new();
    loop {
        let Some(mut world) = alone(World::new()) else { return };
        alone(async { assert_eq!(world.standing().await.1, ["fw-1", "fw-1"]) });
        let bundle = world.bundle(&[7; SIZE], "good");
        let number = u32::try_from(points.len()).expect("few") + 1;
        let cut = cut_at(number, || alone(update(&mut world, &bundle)));
        alone(async {
            world.power_on().await;
            let [running, committed] = world.standing().await.1;
            assert!(["fw-1", "fw-2"].contains(&&*running), "{running} runs, cut at {cut:?}");
            if running != committed {
                assert_eq!(committed, "fw-1", "cut at {cut:?}");
                world.power_on().await;
                assert_eq!(world.standing().await.1, ["fw-1", "fw-1"], "cut at {cut:?}");
            }
            if world.standing().await.1[1] == "fw-1" {
                update(&mut world, &bundle).await;
            }
            world.power_on().await;
            assert_eq!(world.standing().await.1, ["fw-2", "fw-2"], "cut at {cut:?}");
        });
        match cut {
            Some(point) => points.push(point),
            None => break,
        }
    }
    assert!(points.len() >= 10 && points.contains(&"rauc: committed"), "{points:?}");
}
