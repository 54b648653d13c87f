//! The Raspberry Pi's firmware. It reads `autoboot.txt` on the first partition: the section `[all]` says from which
//! partition to boot, the section `[tryboot]` from which one if the reboot asked for a trial. The request for a trial
//! is in a register that the firmware clears, so a power cut leads back by itself.
//!
//! The only thing ever written is this file, on FAT, which has no journal. So it keeps the length that it has, of at
//! most one sector, and is overwritten in place: one sector of data and, for the time of change, one of the directory,
//! neither of which says anything wrong without the other. Writing a new file and renaming it would change sectors of
//! the directory and of both allocation tables that make sense only together. That is done only with a file that is
//! too short for what it has to say or longer than what the firmware reads, once, when the first trial is armed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{Boot, Pair, Slot, Soon};
use crate::command::Command;
use crate::files;
use crate::install::InstallError;

/// The firmware reads no more.
const SECTOR: u64 = 512;

/// Of a file that has to be written anew.
const LENGTH: u64 = 256;

pub(super) fn device_tree() -> PathBuf {
    "/proc/device-tree/chosen/bootloader".into()
}

pub(super) fn reboot() -> Command {
    Command::new(["systemctl", "reboot", "--reboot-argument=0 tryboot"])
}

#[derive(Debug)]
pub(super) struct Tryboot {
    pub(super) autoboot: PathBuf,
    pub(super) partitions: Pair<u32>,
    pub(super) reboot: Command,
    pub(super) device_tree: PathBuf,
}

impl Tryboot {
    fn io(&self, what: &str) -> impl FnOnce(io::Error) -> InstallError + use<> {
        InstallError::io(format!("{what} {}", self.autoboot.display()))
    }

    fn read(&self) -> Result<Choice, InstallError> {
        let text = fs::read_to_string(&self.autoboot).map_err(self.io("reading"))?;
        Ok(Choice::parse(&text))
    }

    fn write(&self, default: Slot) -> Result<(), InstallError> {
        let [all, tryboot] = [default, default.other()].map(|slot| Some(*self.partitions.of(slot)));
        let text = Choice { all, tryboot }.text();
        write(&self.autoboot, &text).map_err(self.io("writing"))
    }
}

/// What `autoboot.txt` says.
#[derive(Debug)]
struct Choice {
    all: Option<u32>,
    tryboot: Option<u32>,
}

impl Choice {
    fn parse(text: &str) -> Self {
        let mut choice = Self { all: None, tryboot: None };
        let mut section = "all";
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            } else if let Some((name, value)) = line.split_once('=') {
                let partition = value.trim().parse().ok();
                match (section, name.trim()) {
                    ("all", "boot_partition") => choice.all = partition,
                    ("tryboot", "boot_partition") => choice.tryboot = partition,
                    _ => {}
                }
            }
        }
        choice
    }

    /// With `tryboot_a_b` both partitions are whole systems, each with a `config.txt` of its own.
    fn text(&self) -> String {
        let [all, tryboot] = [self.all, self.tryboot].map(Option::unwrap_or_default);
        format!("[all]\ntryboot_a_b=1\nboot_partition={all}\n[tryboot]\nboot_partition={tryboot}\n")
    }
}

/// What the rest of the file is for.
const BY: &str = "# Written by fleetwave-agent.\n";

/// The file with this text, all of it or what was there before.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let now = fs::metadata(path).map_or(0, |file| file.len());
    let in_place = (text.len() as u64..=SECTOR).contains(&now);
    let length = usize::try_from(if in_place { now } else { LENGTH }).unwrap_or_default();
    let mut content = text.to_owned();
    if content.len() + BY.len() <= length {
        content.push_str(BY);
    }
    content.extend(std::iter::repeat_n('\n', length.saturating_sub(content.len())));
    if fs::read(path).is_ok_and(|now| now == content.as_bytes()) {
        return Ok(());
    }
    if in_place {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(content.as_bytes(), 0)?;
        file.sync_all()
    } else {
        files::replace(path, content.as_bytes())?;
        // Linux writes to FAT where the file lies only now: until then the name leads to what was freed.
        File::open(path)?.sync_all()
    }
}

impl Boot for Tryboot {
    fn running(&self) -> Result<Option<Slot>, InstallError> {
        let path = self.device_tree.join("partition");
        let what = || format!("reading {}, where the firmware tells what it booted", path.display());
        let bytes = fs::read(&path).map_err(InstallError::io(what()))?;
        let partition = <[u8; 4]>::try_from(bytes).map(u32::from_be_bytes).map_err(|_| {
            InstallError::Refused(format!("{} is not a number of four bytes", path.display()))
        })?;
        match self.partitions.slot(&partition) {
            Some(slot) => Ok(Some(slot)),
            None => Err(InstallError::Refused(format!(
                "the firmware booted partition {partition}, which is no slot's: see `partitions`"
            ))),
        }
    }

    fn committed(&self, _running: Slot) -> Soon<'_, Slot> {
        Box::pin(async {
            let slot = self.read()?.all.and_then(|partition| self.partitions.slot(&partition));
            slot.ok_or_else(|| {
                InstallError::Refused(format!(
                    "{} boots no slot by default: its section [all] must say boot_partition={} or {}",
                    self.autoboot.display(),
                    self.partitions.a,
                    self.partitions.b
                ))
            })
        })
    }

    fn settle(&self, committed: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            // The request for a trial is not in the file, and so most often there is nothing to change.
            if self.read()?.all == Some(*self.partitions.of(committed)) {
                Ok(())
            } else {
                self.write(committed)
            }
        })
    }

    fn try_once(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move { self.write(slot.other()) })
    }

    fn commit(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move { self.write(slot) })
    }

    fn trial_reboot(&self) -> Option<&Command> {
        Some(&self.reboot)
    }
}
