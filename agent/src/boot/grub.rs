//! GRUB. Its environment block has the variables `saved_entry`, which boots by default, and `next_entry`, which boots
//! once: `grub.cfg` clears it before it boots, as the one that Debian writes with `GRUB_DEFAULT=saved` does.
//!
//! `grub-editenv` truncates the block and writes it anew; a power cut between the two would leave a device without any.
//! So it works on a copy, which is renamed over the block when it is on disk.

use std::fs::{self, File};
use std::path::PathBuf;

use super::{Boot, Pair, Slot, Soon};
use crate::command::Program;
use crate::files;
use crate::install::InstallError;

pub(super) fn environment() -> PathBuf {
    "/boot/grub/grubenv".into()
}

pub(super) fn entries() -> Pair<String> {
    Pair { a: "slot-a".into(), b: "slot-b".into() }
}

#[derive(Debug)]
pub(super) struct Grub {
    pub(super) environment: PathBuf,
    pub(super) entries: Pair<String>,
}

/// Whether these can be the ids of menu entries.
pub(super) fn check(entries: &Pair<String>) -> Result<(), &'static str> {
    let odd =
        |id: &str| id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if odd(&entries.a) || odd(&entries.b) {
        return Err("entries: an id has letters, digits, `-`, `_` and `.`");
    }
    if entries.differ() { Ok(()) } else { Err("entries: both slots have the same menu entry") }
}

impl Grub {
    async fn read(&self) -> Result<(Option<Slot>, Option<Slot>), InstallError> {
        let list = Program::new("grub-editenv").arg(&self.environment).arg("list").succeed().await?;
        let list = String::from_utf8_lossy(&list).into_owned();
        let slot = |name: &str| {
            let id = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            self.entries.slot(&id.to_owned())
        };
        Ok((slot("saved_entry"), slot("next_entry")))
    }

    /// Sets variables, all of them or none.
    async fn set(&self, assignments: [String; 2]) -> Result<(), InstallError> {
        let io = |what: &str| InstallError::io(format!("{what} {}", self.environment.display()));
        // A name in another directory would be replaced instead of what it leads to.
        let block = fs::canonicalize(&self.environment).map_err(io("finding"))?;
        let copy = block.with_extension("new");
        fs::copy(&block, &copy).map_err(io("copying"))?;
        Program::new("grub-editenv").arg(&copy).arg("set").args(assignments).succeed().await?;
        File::open(&copy).and_then(|file| file.sync_all()).map_err(io("writing a copy of"))?;
        fs::rename(&copy, &block).map_err(io("replacing"))?;
        match block.parent() {
            Some(dir) => files::sync_dir(dir).map_err(io("replacing")),
            None => Ok(()),
        }
    }

    fn id(&self, slot: Slot) -> &str {
        self.entries.of(slot)
    }
}

impl Boot for Grub {
    fn committed(&self) -> Soon<'_, Slot> {
        Box::pin(async {
            let (saved, _) = self.read().await?;
            saved.ok_or_else(|| {
                InstallError::Refused(format!(
                    "{0} has no slot's menu entry in saved_entry: grub-editenv {0} set saved_entry={1}",
                    self.environment.display(),
                    self.entries.a
                ))
            })
        })
    }

    fn settle(&self, committed: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            match self.read().await? {
                // A next entry that is not ours is somebody else's business.
                (saved, None) if saved == Some(committed) => Ok(()),
                _ => self.commit(committed).await,
            }
        })
    }

    fn try_once(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            let saved = format!("saved_entry={}", self.id(slot.other()));
            self.set([saved, format!("next_entry={}", self.id(slot))]).await
        })
    }

    fn commit(&self, slot: Slot) -> Soon<'_, ()> {
        Box::pin(async move {
            let saved = format!("saved_entry={}", self.id(slot));
            self.set([saved, "next_entry=".into()]).await
        })
    }
}
