//! GRUB. Its environment block has the variables `saved_entry`, which boots by default, and `next_entry`, which boots
//! once: `grub.cfg` clears it before it boots, as the one that Debian writes with `GRUB_DEFAULT=saved` does.
//!
//! `grub-editenv` truncates the block and writes it anew; a power cut between the two would leave a device without any.
//! So it works on a copy, and what came out of that is written over the block where it lies, as GRUB itself does. A
//! rename would be durable for Linux alone: it lies in the journal of the file system at first, which GRUB does not read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{Boot, Pair, Slot, Soon};
use crate::command::Program;
use crate::crash;
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
        let content = fs::read(&copy).map_err(io("reading a copy of"))?;
        overwrite(&block, &content).map_err(io("writing"))?;
        // A copy that is left over does no harm.
        let _ = fs::remove_file(&copy);
        Ok(())
    }

    fn id(&self, slot: Slot) -> &str {
        self.entries.of(slot)
    }
}

/// What differs is a few bytes of the first sector, as long as nobody else keeps much in the block: it is the old one or
/// the new one after a power cut.
fn overwrite(block: &Path, content: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).open(block)?;
    if file.metadata()?.len() != content.len() as u64 {
        // Nothing that GRUB could use, or write to.
        return files::replace(block, content);
    }
    crash::point("grub: before the environment is written");
    file.write_all_at(content, 0)?;
    file.sync_all()?;
    crash::point("grub: the environment is written");
    Ok(())
}

impl Boot for Grub {
    fn committed(&self, _running: Slot) -> Soon<'_, Slot> {
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
