//! Boot loaders: which of two slots boots, which one boots once, on trial, and which one is committed.
//!
//! An adapter speaks to a boot loader through what the loader itself reads: a file on the boot partition, an
//! environment. Nothing else is remembered, so what the agent believes is what the next power cut brings.

mod grub;
mod running;
#[cfg(test)]
mod tests;
mod tryboot;
mod uboot;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::install::InstallError;

pub(crate) use running::{Running, running, same};

/// A short step that borrows what it works on.
pub(crate) type Soon<'a, T> = Pin<Box<dyn Future<Output = Result<T, InstallError>> + 'a>>;

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Slot {
    A,
    B,
}

impl Slot {
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|slot| name.eq_ignore_ascii_case(slot.name()))
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something for each slot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pair<T> {
    a: T,
    b: T,
}

impl<T> Pair<T> {
    pub(crate) const fn of(&self, slot: Slot) -> &T {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

impl<T: PartialEq> Pair<T> {
    fn slot(&self, of: &T) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|slot| self.of(*slot) == of)
    }

    pub(crate) fn differ(&self) -> bool {
        self.a != self.b
    }
}

/// A boot loader that can try a slot once.
pub(crate) trait Boot: fmt::Debug {
    /// The slot that runs, if the boot loader tells; otherwise the kernel's command line has to.
    fn running(&self) -> Result<Option<Slot>, InstallError> {
        Ok(None)
    }

    /// The slot that boots after the next power cut if nothing else is said, now that `running` has come up. What is
    /// armed for one trial is not said.
    fn committed(&self, running: Slot) -> Soon<'_, Slot>;

    /// Has `committed` boot from now on, and no trial is armed: after a start into it, and before a trial is left.
    fn settle(&self, committed: Slot) -> Soon<'_, ()>;

    /// Arms `slot` for the next boot, and for that one alone; `slot.other()` stays committed.
    fn try_once(&self, slot: Slot) -> Soon<'_, ()>;

    /// Makes `slot` the one that boots from now on.
    fn commit(&self, slot: Slot) -> Soon<'_, ()>;

    /// `slot` is about to be overwritten: it must not boot, whatever becomes of the other one.
    ///
    /// # Errors
    /// If the boot loader's variables cannot be written.
    fn forbid(&self, slot: Slot) -> Result<(), InstallError> {
        let _ = slot;
        Ok(())
    }

    /// How the machine is made to go down for a trial, if another command is needed for that than for any reboot.
    fn trial_reboot(&self) -> Option<&Command> {
        None
    }
}

/// `[firmware.boot]`: the boot loader, and where its variables are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "loader", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum BootConfig {
    /// The Raspberry Pi's own firmware, with `autoboot.txt`.
    Tryboot {
        /// The file, on the mounted first partition.
        autoboot: PathBuf,
        /// The number of each slot's boot partition.
        partitions: Pair<u32>,
        /// What reboots into the trial.
        #[serde(default = "tryboot::reboot")]
        reboot_trial: Command,
        /// Where the firmware tells the kernel what it booted.
        #[serde(default = "tryboot::device_tree")]
        device_tree: PathBuf,
    },
    /// U-Boot, with the variables `BOOT_ORDER`, `BOOT_A_LEFT` and `BOOT_B_LEFT`.
    Uboot {
        /// The configuration of `fw_printenv` and `fw_setenv`.
        #[serde(default = "uboot::config")]
        config: PathBuf,
        /// How often the committed slot may fail to start the agent before the other one boots.
        #[serde(default = "uboot::attempts")]
        attempts: u8,
    },
    /// GRUB, with the variables `saved_entry` and `next_entry`.
    Grub {
        /// The environment.
        #[serde(default = "grub::environment")]
        environment: PathBuf,
        /// The id of each slot's menu entry.
        #[serde(default = "grub::entries")]
        entries: Pair<String>,
    },
}

impl BootConfig {
    /// As the configuration calls it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Tryboot { .. } => "tryboot",
            Self::Uboot { .. } => "uboot",
            Self::Grub { .. } => "grub",
        }
    }

    /// Whether the values go together.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Tryboot { partitions, .. } if !partitions.differ() => {
                Err("partitions: both slots boot from the same partition")
            }
            // The script counts them with `setexpr`, for which 10 is sixteen and the one below it `f`.
            Self::Uboot { attempts: 0 | 10.., .. } => Err(
                "attempts must be 1 to 9: with none the committed slot would never boot, and U-Boot counts in hexadecimal",
            ),
            Self::Grub { entries, .. } => grub::check(entries),
            Self::Tryboot { .. } | Self::Uboot { .. } => Ok(()),
        }
    }

    /// The adapter.
    pub(crate) fn adapter(&self) -> Box<dyn Boot> {
        match self.clone() {
            Self::Tryboot { autoboot, partitions, reboot_trial, device_tree } => {
                Box::new(tryboot::Tryboot { autoboot, partitions, reboot: reboot_trial, device_tree })
            }
            Self::Uboot { config, attempts } => Box::new(uboot::Uboot { config, attempts }),
            Self::Grub { environment, entries } => Box::new(grub::Grub { environment, entries }),
        }
    }
}
