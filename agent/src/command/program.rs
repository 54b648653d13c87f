//! A program that runs. One that is given up (its time is over, or nobody waits for it any more) goes with everything
//! that it started. One that ends may leave something running behind it, which then has to see to its own output.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::{About, LIMIT};
use crate::install::InstallError;

/// How much of its standard output is kept: what is read by the agent, not by people.
const OUTPUT: usize = 256 * 1024;
/// How much is kept of the end of its standard error.
const TAIL: usize = 4 * 1024;
/// How long a program whose time is over has to clean up.
const GRACE: Duration = Duration::from_secs(2);
/// How long output is waited for that something may still hold open after the program has ended.
const LEFTOVERS: Duration = Duration::from_millis(100);

/// What belongs to the agent alone: with these a program could speak to systemd in its place.
const PRIVATE: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    command: tokio::process::Command,
    limit: Duration,
    output: Kept,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Its standard output, as much as is kept.
    pub(crate) output: Vec<u8>,
    /// The end of its standard error.
    pub(crate) complaint: String,
}

/// Why a program did not do what it should. No arguments are repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{program} cannot be run: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} was ended because it took longer than {limit:?}")]
    Timeout { program: String, limit: Duration },
    #[error("{program} failed with {status}{}", said(complaint))]
    Failed { program: String, status: ExitStatus, complaint: String },
}

fn said(complaint: &str) -> String {
    match complaint.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!(": {}", line.trim()),
        None => String::new(),
    }
}

impl From<CommandError> for InstallError {
    fn from(error: CommandError) -> Self {
        Self::Command(error.to_string())
    }
}

impl Program {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = tokio::process::Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for name in PRIVATE {
            command.env_remove(name);
        }
        Self {
            name: program.to_string_lossy().into_owned(),
            command,
            limit: LIMIT,
            output: Kept::head(OUTPUT),
        }
    }

    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    pub(crate) fn args(mut self, words: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.command.args(words);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// Tells it what it is run for, and in which phase of the update.
    pub(crate) fn about(mut self, about: &About, phase: &str) -> Self {
        self.command.env("FLEETWAVE_TARGET", &about.target).env("FLEETWAVE_PHASE", phase);
        if let Some((id, sequence)) = &about.release {
            self.command.env("FLEETWAVE_RELEASE", id).env("FLEETWAVE_SEQ", sequence.to_string());
        }
        self
    }

    /// Keeps the end of its standard output, and so many bytes of it, in place of the beginning.
    pub(crate) fn keeping_end(mut self, bytes: usize) -> Self {
        self.output = Kept::tail(bytes);
        self
    }

    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it; an exit code other than zero is a failure.
    pub(crate) async fn succeed(self) -> Result<Vec<u8>, CommandError> {
        let program = self.name.clone();
        let Ended { status, output, complaint } = self.run().await?;
        if status.success() {
            return Ok(output);
        }
        // Some complain on their standard output.
        let complaint = if complaint.trim().is_empty() {
            String::from_utf8_lossy(&output[output.len().saturating_sub(TAIL)..]).into_owned()
        } else {
            complaint
        };
        Err(CommandError::Failed { program, status, complaint })
    }

    /// Runs it to its end, whatever its exit code is.
    pub(crate) async fn run(mut self) -> Result<Ended, CommandError> {
        let program = self.name;
        let child = self.command.spawn();
        let child = child.map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let mut group = Group(child);
        let (mut output, mut complaint) = (self.output, Kept::tail(TAIL));
        let (out, err) = (group.0.stdout.take(), group.0.stderr.take());
        let ended = {
            let mut reading = std::pin::pin!(async {
                tokio::join!(output.read(out), complaint.read(err));
            });
            let mut read = false;
            let waiting = async {
                let status = loop {
                    tokio::select! {
                        status = group.0.wait() => break status,
                        () = &mut reading, if !read => read = true,
                    }
                };
                if !read {
                    let _ = timeout(LEFTOVERS, &mut reading).await;
                }
                status
            };
            timeout(self.limit, waiting).await
        };
        let complaint = String::from_utf8_lossy(&complaint.bytes).into_owned();
        for line in complaint.lines() {
            tracing::info!(program, "says: {line}");
        }
        match ended {
            Ok(Ok(status)) => {
                tracing::debug!(program, %status, output = output.bytes.len(), "ended");
                Ok(Ended { status, output: output.bytes, complaint })
            }
            Ok(Err(source)) => Err(CommandError::Start { program, source }),
            Err(_) => {
                group.end().await;
                Err(CommandError::Timeout { program, limit: self.limit })
            }
        }
    }
}

/// A program and everything that it started.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        // Once it has been waited for, the number may be another's.
        let group = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // Nothing can be done about one that is gone already.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Asks it to end, and ends it.
    async fn end(&self) {
        self.signal(Signal::TERM);
        sleep(GRACE).await;
        // The rest is done when it is dropped: the first process stays unreaped until then, and its number reserved.
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A bounded part of what a program says; the rest is read and dropped, so that it is never held up.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    tail: bool,
}

impl Kept {
    fn head(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, tail: false }
    }

    fn tail(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, tail: true }
    }

    async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut piece = [0; 2048];
        // A pipe that cannot be read has nothing more to say.
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            self.take(&piece[..length]);
        }
    }

    fn take(&mut self, piece: &[u8]) {
        if self.tail {
            self.bytes.extend_from_slice(piece);
            let excess = self.bytes.len().saturating_sub(self.limit);
            self.bytes.drain(..excess);
        } else {
            let space = self.limit - self.bytes.len();
            self.bytes.extend_from_slice(&piece[..piece.len().min(space)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn a_program_is_told_of_the_update_and_what_it_says_comes_back() {
        let about = About { target: "components.app".into(), release: Some(("app-2".into(), 2)) };
        let script = "echo $FLEETWAVE_TARGET $FLEETWAVE_RELEASE $FLEETWAVE_SEQ $FLEETWAVE_PHASE";
        let output = shell(script).about(&about, "health").succeed().await.expect("it runs");
        assert_eq!(output, b"components.app app-2 2 health\n");
    }

    #[tokio::test]
    async fn a_failure_says_which_program_how_and_its_last_words_but_not_its_arguments() {
        let error =
            shell("echo one >&2; echo two >&2; exit 3 # secret").succeed().await.expect_err("it fails");
        assert_eq!(error.to_string(), "sh failed with exit status: 3: two");
        let error = shell("echo no sensor; exit 3").succeed().await.expect_err("it fails");
        assert_eq!(error.to_string(), "sh failed with exit status: 3: no sensor", "where it says it there");
        let error = Program::new("/nowhere/at-all").succeed().await.expect_err("there is none");
        assert!(error.to_string().starts_with("/nowhere/at-all cannot be run: No such file"), "{error}");
    }

    #[tokio::test]
    async fn what_it_says_is_bounded_and_does_not_hold_it_up() {
        let script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo end >&2";
        let ended = shell(script).run().await.expect("it runs");
        assert_eq!(ended.output.len(), OUTPUT);
        assert!(ended.complaint.len() <= TAIL && ended.complaint.ends_with("end\n"));
    }

    async fn gone(mark: &Path) {
        let pid = std::fs::read_to_string(mark).expect("the grandchild left its number");
        let cmdline = format!("/proc/{}/cmdline", pid.trim());
        // A zombie that nobody waits for has no command line.
        while std::fs::read(&cmdline).is_ok_and(|line| !line.is_empty()) {
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn one_that_takes_too_long_goes_with_everything_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("pid");
        let script =
            format!("sh -c 'trap \"\" TERM; echo $$ >{}; sleep 1000; :'; sleep 1000", mark.display());
        let error = shell(&script).within(Duration::from_millis(500)).run().await.expect_err("too long");
        assert_eq!(error.to_string(), "sh was ended because it took longer than 500ms");
        gone(&mark).await;
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_any_more_goes_with_everything_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = dir.path().join("pid");
        let script = format!("sh -c 'echo $$ >{0}.new; mv {0}.new {0}; sleep 1000; :'; :", mark.display());
        let running = shell(&script).run();
        let started = async {
            while !mark.exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = started => {}
        }
        gone(&mark).await;
    }

    #[tokio::test]
    async fn what_it_leaves_behind_lives_on_and_is_not_waited_for() {
        let ended = shell("sleep 1000 & echo $!").run().await.expect("it ends");
        let pid = String::from_utf8(ended.output).expect("a number");
        let pid: i32 = pid.trim().parse().expect("a number");
        let left = Pid::from_raw(pid).expect("a process");
        assert!(rustix::process::test_kill_process(left).is_ok(), "it lives");
        rustix::process::kill_process(left, Signal::KILL).expect("it can be ended");
    }
}
