//! The hardware watchdog: it resets the machine unless it is written to in time. The agent's main loop writes, between
//! two of its turns, and nothing else does: a loop that no longer turns is what the watchdog is for.
//!
//! How long the watchdog waits is set by `wdctl` (util-linux), because the driver takes that by `ioctl` alone and this
//! crate has no unsafe code. What it really waits is then read from sysfs, and that counts.

use std::fs::{self, File};
use std::future::pending;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{OFlags, major, minor};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};

use crate::command::Program;

/// `[watchdog]`: the hardware watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WatchdogConfig {
    /// The device. If systemd holds it (`RuntimeWatchdogSec=`), leave it to systemd, and have that watch the agent.
    #[serde(default = "device")]
    device: PathBuf,
    /// How long the machine may hang before it is reset.
    #[serde(default = "timeout")]
    timeout_seconds: u64,
    /// When it watches.
    #[serde(default)]
    watches: Watches,
}

impl WatchdogConfig {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        let when = match self.watches {
            Watches::Always => "always",
            Watches::Trials => "while firmware is on trial",
        };
        format!("{}, after {} s, {when}", self.device.display(), self.timeout_seconds)
    }
}

/// When the watchdog watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Watches {
    /// From the agent's start to its end.
    #[default]
    Always,
    /// While firmware is on trial.
    Trials,
}

fn device() -> PathBuf {
    "/dev/watchdog".into()
}

const fn timeout() -> u64 {
    30
}

/// Why there is no watchdog.
#[derive(Debug, thiserror::Error)]
enum WatchdogError {
    #[error("the watchdog {} cannot be opened: {source}{}", path.display(), hint(source))]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the watchdog {} waits {real} s and would not take {wanted} s: set timeout_seconds = {real}, or the driver's \
         module parameter", path.display()
    )]
    Timeout { path: PathBuf, real: u64, wanted: u64 },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ResourceBusy => " (systemd holds it if RuntimeWatchdogSec= is set)",
        io::ErrorKind::NotFound => " (is the driver loaded?)",
        _ => "",
    }
}

/// After a watchdog could not be opened.
const AGAIN: Duration = Duration::from_secs(60);

/// Has the watchdog watch when it should.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    config: Option<&'a WatchdogConfig>,
    watchdog: Option<Watchdog>,
    /// When to try to open it again.
    again: Instant,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(config: Option<&'a WatchdogConfig>) -> Self {
        Self { config, watchdog: None, again: Instant::now() }
    }

    /// Opens or closes the watchdog, as the operator wants it at this time.
    pub(crate) async fn attend(&mut self, on_trial: bool) {
        let Some(config) = self.config else { return };
        match &self.watchdog {
            None if (on_trial || config.watches == Watches::Always) && Instant::now() >= self.again => {
                match Watchdog::open(config).await {
                    Ok(watchdog) => self.watchdog = Some(watchdog),
                    Err(error) => {
                        tracing::error!(%error, "nothing resets the machine if it hangs");
                        self.again = Instant::now() + AGAIN;
                    }
                }
            }
            Some(_) if !on_trial && config.watches == Watches::Trials => self.close(),
            _ => {}
        }
    }

    /// When [`Self::keep_alive`] has to be called again.
    pub(crate) async fn due(&self) {
        match &self.watchdog {
            Some(watchdog) => watchdog.due().await,
            None => pending().await,
        }
    }

    /// Says that the main loop still turns.
    pub(crate) fn keep_alive(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.keep_alive();
        }
    }

    /// Ends the watch: the agent ends because it was told to.
    pub(crate) fn close(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.close();
        }
    }
}

/// The watchdog, watching.
#[derive(Debug)]
struct Watchdog {
    file: File,
    path: PathBuf,
    pause: Duration,
    next: Instant,
    /// It was written to without success.
    failing: bool,
}

impl Watchdog {
    /// Opens the watchdog: from here on it must be kept alive.
    async fn open(config: &WatchdogConfig) -> Result<Self, WatchdogError> {
        let path = config.device.clone();
        let wanted = config.timeout_seconds;
        let sysfs = sysfs(&path);
        let read = || sysfs.as_ref().and_then(|dir| number(&dir.join("timeout")));
        if read().is_some_and(|now| now != wanted) {
            let set = Program::new("wdctl").arg("--settimeout").arg(wanted.to_string()).arg(&path);
            if let Err(error) = set.within(Duration::from_secs(10)).succeed().await {
                tracing::warn!(%error, "the watchdog's time cannot be set");
            }
        }
        if let Some(real) = read().filter(|real| *real != wanted) {
            return Err(WatchdogError::Timeout { path, real, wanted });
        }
        let file = File::options()
            .write(true)
            .custom_flags((OFlags::CLOEXEC | OFlags::NONBLOCK).bits().cast_signed())
            .open(&path)
            .map_err(|source| WatchdogError::Open { path: path.clone(), source })?;
        tracing::info!(path = %path.display(), seconds = wanted, "the watchdog watches");
        // Three writes in its time: one may come late.
        let pause = Duration::from_secs(wanted) / 3;
        let mut watchdog = Self { file, path, pause, next: Instant::now(), failing: false };
        watchdog.keep_alive();
        Ok(watchdog)
    }

    /// When it is to be written to again.
    async fn due(&self) {
        sleep_until(self.next).await;
    }

    /// Says that the main loop still turns.
    fn keep_alive(&mut self) {
        // Any byte but `V`.
        match self.file.write(b".") {
            Ok(_) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::error!(%error, path = %self.path.display(), "the watchdog cannot be kept alive");
                self.failing = true;
            }
            Err(_) => {}
        }
        self.next = Instant::now() + self.pause;
    }

    /// Ends the watch: the agent ends because it was told to. A driver that is set never to stop goes on.
    fn close(mut self) {
        // A close without this letter means that the agent died, and the machine is reset.
        if let Err(error) = self.file.write_all(b"V") {
            tracing::error!(%error, path = %self.path.display(), "the watchdog cannot be stopped: it will reset the machine");
        }
    }
}

/// Where the kernel tells of the watchdog, if this is one.
fn sysfs(path: &Path) -> Option<PathBuf> {
    let device = fs::metadata(path).ok()?;
    if !device.file_type().is_char_device() {
        return None;
    }
    let (major, minor) = (major(device.rdev()), minor(device.rdev()));
    // The old name of the first watchdog is a device of its own.
    if major == 10 && minor == 130 {
        return Some("/sys/class/watchdog/watchdog0".into());
    }
    Some(format!("/sys/dev/char/{major}:{minor}").into())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn config(device: &Path) -> WatchdogConfig {
        let text = format!("device = {:?}\ntimeout_seconds = 30", device.display().to_string());
        toml::from_str(&text).expect("well-formed")
    }

    /// A pipe in the place of the device, and its other end.
    fn pipe(dir: &Path) -> (PathBuf, File) {
        let path = dir.join("watchdog");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        let end = File::options()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .expect("the reading end");
        (path, end)
    }

    fn written(end: &mut File) -> String {
        let mut bytes = [0; 64];
        match end.read(&mut bytes) {
            Ok(length) => String::from_utf8_lossy(&bytes[..length]).into_owned(),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                String::new()
            }
        }
    }

    #[tokio::test]
    async fn it_is_written_to_three_times_in_its_time_and_only_when_the_loop_turns() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut end) = pipe(dir.path());
        let before = Instant::now();
        let mut watchdog = Watchdog::open(&config(&path)).await.expect("opens");
        assert_eq!(written(&mut end), ".");
        let due = watchdog.next;
        assert!(due >= before + Duration::from_secs(10) && due <= Instant::now() + Duration::from_secs(10));
        watchdog.next = Instant::now();
        watchdog.due().await;
        assert_eq!(written(&mut end), "", "nobody writes in the loop's place");
        watchdog.keep_alive();
        assert!(watchdog.next > due);
        assert_eq!(written(&mut end), ".");
        watchdog.close();
        assert_eq!(written(&mut end), "V", "a clean end");
    }

    #[tokio::test]
    async fn one_for_trials_watches_them_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut end) = pipe(dir.path());
        let config = WatchdogConfig { watches: Watches::Trials, ..config(&path) };
        let mut guard = Guard::new(Some(&config));
        guard.attend(false).await;
        assert_eq!(written(&mut end), "");
        guard.attend(true).await;
        guard.attend(true).await;
        assert_eq!(written(&mut end), ".");
        guard.attend(false).await;
        assert_eq!(written(&mut end), "V");
    }

    #[tokio::test]
    async fn an_agent_that_dies_does_not_stop_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, mut end) = pipe(dir.path());
        drop(Watchdog::open(&config(&path)).await.expect("opens"));
        assert_eq!(written(&mut end), ".");
    }

    #[tokio::test]
    async fn a_watchdog_that_is_not_there_is_refused_with_what_to_look_at() {
        let error =
            Watchdog::open(&config(Path::new("/nowhere/watchdog"))).await.expect_err("none").to_string();
        assert!(error.contains("/nowhere/watchdog") && error.ends_with("(is the driver loaded?)"), "{error}");
    }
}
