//! The machine around a real agent: two image files for its slots, and a boot loader that reads `autoboot.txt` as the
//! firmware of a Raspberry Pi does. It looks into the slots before it boots one, so it sees whether what would run is
//! what was signed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetwave_agent_core::ReleaseId;
use fleetwave_protocol::CounterRng;
use sha2::{Digest as _, Sha256};

use crate::device::{Invariant, Violations, Who, World};
use crate::scenario::fleet::Purpose;
use crate::scenario::step::Action;

/// What lies in the slot with which the device came.
const INSTALLED: &[u8] = b"what the device came with\n";
/// The partitions of both slots, and what a Pi has before the first update.
const PARTITIONS: [u32; 2] = [2, 3];
const AUTOBOOT: &str = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";

/// A slot, by its place in [`PARTITIONS`].
type Slot = usize;

/// One device's machine.
#[derive(Debug)]
pub(super) struct Machine {
    world: Arc<World>,
    who: Who,
    dir: PathBuf,
    /// Whatever may run, beside what the device came with: the signed releases of the run.
    signed: Vec<ReleaseId>,
    /// The sequence that was committed last.
    sequence: u64,
    /// Spans that were drawn.
    draws: u64,
}

impl Machine {
    /// A new one, whose files are in `dir`.
    ///
    /// # Errors
    /// If they cannot be made.
    pub(super) fn make(world: &Arc<World>, number: u64, dir: &Path) -> io::Result<Self> {
        let mut signed = Vec::new();
        for step in &world.scenario().steps {
            let Action::Configure(configure) = &step.action else { continue };
            let release = world.catalogue().given(configure);
            if world.releases()[release].trust.is_ok() && !signed.contains(&release) {
                signed.push(release);
            }
        }
        let machine = Self {
            who: world.who(number),
            dir: dir.to_owned(),
            signed,
            sequence: world.scenario().fleet.release.seq,
            draws: 0,
            world: world.clone(),
        };
        fs::create_dir_all(machine.device_tree())?;
        fs::write(machine.slot(0), INSTALLED)?;
        File::create(machine.slot(1))?;
        fs::write(machine.autoboot(), AUTOBOOT)?;
        Ok(machine)
    }

    fn slot(&self, slot: Slot) -> PathBuf {
        self.dir.join(if slot == 0 { "slot-a" } else { "slot-b" })
    }

    fn autoboot(&self) -> PathBuf {
        self.dir.join("autoboot.txt")
    }

    fn device_tree(&self) -> PathBuf {
        self.dir.join("device-tree")
    }

    /// There while a trial was asked for: what a register holds until the power goes.
    fn trial(&self) -> PathBuf {
        self.dir.join("trial")
    }

    /// `[firmware]` of the agent's configuration, up to the members of `[firmware.probation]`.
    pub(super) fn section(&self) -> String {
        let text = |path: PathBuf| format!("{:?}", path.display().to_string());
        format!(
            "installer = \"slot\"\nslots = {{ a = {a}, b = {b} }}\nreboot = [\"true\"]\n\
             [firmware.boot]\nloader = \"tryboot\"\nautoboot = {autoboot}\ndevice_tree = {device_tree}\n\
             partitions = {{ a = {}, b = {} }}\nreboot_trial = [\"touch\", {trial}]\n\
             [firmware.probation]\nretry_seconds = 1\ndeadline_seconds = 1\n",
            PARTITIONS[0],
            PARTITIONS[1],
            a = text(self.slot(0)),
            b = text(self.slot(1)),
            autoboot = text(self.autoboot()),
            device_tree = text(self.device_tree()),
            trial = text(self.trial()),
        )
    }

    /// The slots that boot: by default, and on trial.
    fn choice(&self) -> io::Result<(Option<Slot>, Option<Slot>)> {
        let text = fs::read_to_string(self.autoboot())?;
        let (mut default, mut trial) = (None, None);
        let mut place = &mut default;
        for line in text.lines() {
            match line.trim() {
                "[all]" => place = &mut default,
                "[tryboot]" => place = &mut trial,
                line => {
                    if let Some(number) = line.strip_prefix("boot_partition=") {
                        *place = PARTITIONS.iter().position(|known| number.parse() == Ok(*known));
                    }
                }
            }
        }
        Ok((default, trial))
    }

    /// The release in a slot: signed, whole and as it was signed, or the one that the device came with.
    fn holds(&self, slot: Slot) -> io::Result<Option<ReleaseId>> {
        let bytes = fs::read(self.slot(slot))?;
        let releases = self.world.releases();
        let is = |release: &&ReleaseId| {
            let release = &releases[**release];
            let payload = usize::try_from(release.size).ok().and_then(|size| bytes.get(..size));
            payload.is_some_and(|payload| Sha256::digest(payload)[..] == release.digest)
        };
        let found = self.signed.iter().find(is).copied();
        Ok(found.or_else(|| (bytes == INSTALLED).then(|| self.world.catalogue().initial)))
    }

    /// Whether a trial was asked for; it is not any more.
    ///
    /// # Errors
    /// If that cannot be told.
    pub(super) fn takes_trial(&self) -> io::Result<bool> {
        match fs::remove_file(self.trial()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How long a boot takes, whatever it boots.
    pub(super) fn boot_time(&mut self) -> Duration {
        self.draws += 1;
        let stream = self.world.fleet().rng(self.who.number, Purpose::Reboot).next_u64();
        self.world.group(self.who).reboot.sample(&mut CounterRng::of(stream, self.draws))
    }

    /// Boots: a trial if that is so, and the default slot otherwise. Gives what runs, if that is known, and whether the
    /// loader waited for the slot on trial in vain.
    ///
    /// # Errors
    /// If the files cannot be read or written.
    pub(super) fn boot(
        &mut self,
        trial: bool,
        violations: &mut Violations,
    ) -> io::Result<(Option<ReleaseId>, bool)> {
        let (default, candidate) = self.choice()?;
        let committed = default.map(|slot| self.holds(slot)).transpose()?.flatten();
        let releases = self.world.releases();
        match committed {
            None => violations.note(Invariant::AlwaysBootable, self.who.number),
            Some(release) => {
                let release = &releases[release];
                let named = |other: &&ReleaseId| releases.same(**other, committed.unwrap_or(**other));
                let downgrade = self.signed.iter().filter(named).any(|other| releases[*other].downgrade);
                if release.sequence < self.sequence && !downgrade {
                    violations.note(Invariant::NeverDown, self.who.number);
                }
                self.sequence = release.sequence;
            }
        }
        let mut running = (default, committed);
        let mut in_vain = false;
        if trial && let Some(slot) = candidate {
            let held = self.holds(slot)?;
            if held.is_none() {
                violations.note(Invariant::OnlyVerified, self.who.number);
            }
            let spec = held.and_then(|release| self.world.spec_of(release));
            let fails = |spec| self.world.fleet().boot_fails(self.who.number, self.who.group, spec);
            in_vain = spec.is_some_and(fails);
            if !in_vain {
                running = (Some(slot), held);
            }
        }
        let partition = PARTITIONS[running.0.unwrap_or(0)];
        fs::write(self.device_tree().join("partition"), partition.to_be_bytes())?;
        Ok((running.1, in_vain))
    }

    /// The agent begins to put a payload into the slot that does not boot: on some devices the medium does not keep it.
    ///
    /// # Errors
    /// If the slot cannot be read or written.
    pub(super) fn stages(&self) -> io::Result<()> {
        let (default, _) = self.choice()?;
        let Some(slot) = default.map(|slot| 1 - slot) else { return Ok(()) };
        let fleet = self.world.fleet();
        if self
            .world
            .scenario()
            .releases
            .iter()
            .all(|release| !fleet.install_fails(self.who.number, self.who.group, release))
        {
            return Ok(());
        }
        let spec = self.holds(slot)?.and_then(|release| self.world.spec_of(release));
        if spec.is_some_and(|spec| fleet.install_fails(self.who.number, self.who.group, spec)) {
            let mut bytes = fs::read(self.slot(slot))?;
            if let Some(first) = bytes.first_mut() {
                *first = !*first;
            }
            fs::write(self.slot(slot), bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::load_text;

    const GOOD: &[u8] = b"what was signed";

    /// A machine, and what it has seen broken.
    struct Bench {
        machine: Machine,
        violations: Violations,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let text = "schema = 1\nname = 'm'\n[fleet]\ndevices = 1\nrelease = { id = 'fw-1', seq = 5 }\n\
                 [[release]]\nid = 'fw-6'\nseq = 6\nsize = '15B'\n[[release]]\nid = 'fw-7'\nseq = 7\nsize = '15B'\n\
                 boot_failure = '100%'\n[[step]]\nconnect = { storm = true }\n\
                 [[step]]\nconfigure = { id = 'a', release = 'fw-6' }\n[[step]]\nconfigure = { id = 'b', release = 'fw-7' }\n";
            let scenario =
                load_text("m.toml", text, &[]).unwrap_or_else(|problems| panic!("{problems}")).scenario;
            let digest = |release: &crate::scenario::model::Release| {
                Sha256::digest(if release.id == "fw-6" { GOOD } else { &b"what never boots"[..] }).into()
            };
            let world = Arc::new(World::new(scenario, digest));
            let dir = tempfile::tempdir().expect("a directory");
            let machine = Machine::make(&world, 0, dir.path()).expect("files");
            Self { machine, violations: Violations::default(), _dir: dir }
        }

        /// The sequence of what runs after a boot.
        fn boot(&mut self, trial: bool) -> Option<u64> {
            let (running, _) = self.machine.boot(trial, &mut self.violations).expect("files");
            running.map(|release| self.machine.world.releases()[release].sequence)
        }

        fn commit(&self, partition: u32) {
            let other = 5 - partition;
            let text = format!("[all]\nboot_partition={partition}\n[tryboot]\nboot_partition={other}\n");
            fs::write(self.machine.autoboot(), text).expect("written");
        }

        fn broken(&self) -> String {
            self.violations.sentences(self.machine.world.fleet()).join("; ")
        }
    }

    #[test]
    fn a_trial_is_for_one_boot_and_a_commit_for_good() {
        let mut bench = Bench::new();
        assert_eq!(bench.boot(false), Some(5));
        fs::write(bench.machine.slot(1), GOOD).expect("written");
        assert_eq!(bench.boot(true), Some(6));
        assert_eq!(bench.boot(false), Some(5));
        bench.commit(PARTITIONS[1]);
        assert_eq!(bench.boot(false), Some(6));
        assert_eq!(bench.broken(), "");
    }

    #[test]
    fn what_nobody_signed_is_seen_when_it_boots_and_what_cannot_boot_in_any_case() {
        let mut bench = Bench::new();
        fs::write(bench.machine.slot(1), b"what was singed").expect("written");
        assert_eq!(bench.boot(true), None);
        assert!(bench.broken().contains("not verified"), "{}", bench.broken());

        let mut bench = Bench::new();
        bench.commit(PARTITIONS[1]);
        assert_eq!(bench.boot(false), None, "the slot is empty");
        assert!(bench.broken().contains("overwritten"), "{}", bench.broken());

        let mut bench = Bench::new();
        fs::write(bench.machine.slot(1), GOOD).expect("written");
        bench.commit(PARTITIONS[1]);
        bench.boot(false);
        bench.commit(PARTITIONS[0]);
        bench.boot(false);
        assert!(bench.broken().contains("lower sequence"), "{}", bench.broken());
    }
}
