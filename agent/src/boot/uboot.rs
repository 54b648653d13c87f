//! U-Boot. Its boot script takes the first slot of `BOOT_ORDER` that has tries left in `BOOT_A_LEFT` or `BOOT_B_LEFT`,
//! and takes one of them away before it boots: the scheme of RAUC's documentation, so that scripts written for that do.
//!
//! A slot on trial has one try. The committed slot has a few, given back each time that the agent starts in it; if none
//! is left, because the slot does not come up any more, the other one boots. If that has none either, because it holds
//! nothing that may boot, the script gives the committed slot its tries back: it is the first of the order, or the
//! second one while `fleetwave_try` names the first as armed for a trial.
//!
//! Variables are changed by one `fw_setenv --script`, which writes the block once. With a redundant environment (two
//! blocks in `fw_env.config`) a power cut in the middle leaves the one before.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Boot, Slot, Soon};
use crate::command::Program;
use crate::install::InstallError;

/// How long a change may take where nothing else can be done meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn config() -> PathBuf {
    "/etc/fw_env.config".into()
}

pub(super) const fn attempts() -> u8 {
    3
}

#[derive(Debug)]
pub(super) struct Uboot {
    pub(super) config: PathBuf,
    pub(super) attempts: u8,
}

const ORDER: &str = "BOOT_ORDER";
const TRY: &str = "fleetwave_try";

const fn left(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "BOOT_A_LEFT",
        Slot::B => "BOOT_B_LEFT",
    }
}

fn order(first: Slot) -> String {
    let name = |slot: Slot| slot.name().to_ascii_uppercase();
    format!("{ORDER}={} {}\n", name(first), name(first.other()))
}

/// The variables that matter.
#[derive(Debug)]
struct Environment {
    order: Vec<Slot>,
    left: HashMap<&'static str, u32>,
    armed: Option<Slot>,
}

impl Environment {
    fn parse(text: &str) -> Self {
        let values: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let number = |name| values.get(name).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self {
            order: values
                .get(ORDER)
                .map(|text| text.split_whitespace().filter_map(Slot::from_name).collect())
                .unwrap_or_default(),
            left: Slot::BOTH.map(left).into_iter().map(|name| (name, number(name))).collect(),
            armed: values.get(TRY).and_then(|name| Slot::from_name(name)),
        }
    }

    fn left(&self, slot: Slot) -> u32 {
        self.left.get(left(slot)).copied().unwrap_or(0)
    }

    /// What the script takes when nothing is armed, and what has come up has its tries again: it may be on its last one.
    fn committed(&self, running: Slot) -> Option<Slot> {
        let first = *self.order.first()?;
        if let Some(armed) = self.armed {
            return Some(armed.other());
        }
        let boots = |slot: &Slot| self.left(*slot) > 0 || *slot == running && running == first;
        Some(self.order.iter().copied().find(boots).unwrap_or(running))
    }
}

impl Uboot {
    async fn read(&self) -> Result<Environment, InstallError> {
        let text = Program::new("fw_printenv").arg("-c").arg(&self.config).succeed().await?;
        Ok(Environment::parse(&String::from_utf8_lossy(&text)))
    }

    async fn change(&self, script: String) -> Result<(), InstallError> {
        let config = self.config.clone();
        let changed = tokio::task::spawn_blocking(move || change(&config, &script)).await;
        changed.unwrap_or_else(|error| Err(InstallError::Command(format!("fw_setenv: {error}"))))
    }

    /// `slot` first, with all its tries, and the other one with `others`.
    fn committing(&self, slot: Slot, others: u8) -> String {
        let (own, other) = (left(slot), left(slot.other()));
        format!("{}{own}={}\n{other}={others}\n{TRY}=\n", order(slot), self.attempts)
    }
}

/// Changes variables, all of them or none.
fn change(config: &Path, script: &str) -> Result<(), InstallError> {
    let io = || InstallError::io("fw_setenv (Debian: libubootenv-tool)");
    let mut setenv = Command::new("fw_setenv");
    setenv.arg("-c").arg(config).args(["-s", "-"]).stdin(Stdio::piped());
    let mut setenv = setenv.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(io())?;
    // A few lines, which the pipe takes at once. They are complete only when it is closed.
    let written = setenv.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(script.as_bytes()));
    let give_up = Instant::now() + PATIENCE;
    let status = loop {
        match setenv.try_wait().map_err(io())? {
            Some(status) => break status,
            None if Instant::now() < give_up => thread::sleep(Duration::from_millis(2)),
            None => {
                let _ = setenv.kill();
                let _ = setenv.wait();
                return Err(InstallError::Command(format!("fw_setenv was ended after {PATIENCE:?}")));
            }
        }
    };
    written.map_err(io())?;
    if status.success() {
        Ok(())
    } else {
        let config = config.display();
        Err(InstallError::Command(format!("fw_setenv -c {config} failed with {status}: does that file fit?")))
    }
}

impl Boot for Uboot {
    fn committed(&self, running: Slot) -> Soon<'_, Slot> {
        Box::pin(async move {
            self.read().await?.committed(running).ok_or_else(|| {
                InstallError::Refused(format!(
                    "U-Boot's variables name no slot that boots: fw_setenv -c {} {ORDER} 'A B', and BOOT_A_LEFT {}",
                    self.config.display(),
                    self.attempts
                ))
            })
        })
    }

    fn settle(&self, committed: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            let now = self.read().await?;
            let whole = now.left(committed) == u32::from(self.attempts);
            if whole && now.armed.is_none() && now.order.first() == Some(&committed) {
                return Ok(());
            }
            // The other slot keeps its tries, unless it was on trial or could not boot.
            let others =
                if now.armed.is_none() && now.left(committed.other()) > 0 { self.attempts } else { 0 };
            self.change(self.committing(committed, others)).await
        })
    }

    fn try_once(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            let (own, other, attempts) = (left(slot), left(slot.other()), self.attempts);
            let order = order(slot);
            self.change(format!("{order}{own}=1\n{other}={attempts}\n{TRY}={slot}\n")).await
        })
    }

    fn commit(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move { self.change(self.committing(slot, self.attempts)).await })
    }

    fn forbid(&self, slot: Slot) -> Result<(), InstallError> {
        change(&self.config, &format!("{}=0\n{TRY}=\n", left(slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_slot_is_the_first_with_tries_that_is_not_on_trial() {
        let committed = |text: &str, running| Environment::parse(text).committed(running);
        let both = "BOOT_ORDER=A B\nBOOT_A_LEFT=3\nBOOT_B_LEFT=3\n";
        assert_eq!(committed(both, Slot::A), Some(Slot::A));
        assert_eq!(committed(both, Slot::B), Some(Slot::A), "chosen by hand");
        for left in [0, 1] {
            let armed = format!("BOOT_ORDER=B A\nBOOT_A_LEFT=3\nBOOT_B_LEFT={left}\nfleetwave_try=b\n");
            assert_eq!(committed(&armed, Slot::B), Some(Slot::A));
            assert_eq!(committed(&armed, Slot::A), Some(Slot::A));
        }
        let failed = "BOOT_ORDER=B A\nBOOT_A_LEFT=2\nBOOT_B_LEFT=0\n";
        assert_eq!(committed(failed, Slot::A), Some(Slot::A));
        assert_eq!(committed("", Slot::A), None);
    }

    #[test]
    fn the_committed_slot_is_still_it_when_it_has_come_up_on_its_last_try() {
        let committed = |text: &str| Environment::parse(text).committed(Slot::A);
        for other in [0, 3] {
            let last = format!("BOOT_ORDER=A B\nBOOT_A_LEFT=0\nBOOT_B_LEFT={other}\n");
            assert_eq!(committed(&last), Some(Slot::A));
        }
        let after_a_trial = "BOOT_ORDER=B A\nBOOT_A_LEFT=0\nBOOT_B_LEFT=0\nfleetwave_try=b\n";
        assert_eq!(committed(after_a_trial), Some(Slot::A));
    }
}
