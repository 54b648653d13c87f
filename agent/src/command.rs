//! Programs of the system and of the operator: hooks, health checks, `systemctl`, `podman`. No shell is between, each
//! has a time limit and a process group of its own, and what it says goes into the log, bounded.
//!
//! A program that is given up (its time is over, or nobody waits for it any more) goes with everything that it
//! started. One that ends may leave something running behind it, which then has to see to its own output.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::{MapAccess, SeqAccess, Visitor, value};
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::install::{InstallError, Reference};

/// How long a program may take if nothing else is said.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
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

/// A program that the operator names: `["/usr/bin/check", "--fast"]`, or with a time limit of its own
/// `{ run = ["/usr/bin/check"], timeout_seconds = 10 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; never empty.
    words: Vec<String>,
    /// How long it may take.
    timeout: Duration,
}

impl Command {
    /// A program with its arguments, for a default.
    pub(crate) fn new<const N: usize>(words: [&str; N]) -> Self {
        const { assert!(N > 0, "a command is at least a program") };
        Self { words: words.map(str::to_owned).into(), timeout: LIMIT }
    }

    /// The program, to be run.
    pub(crate) fn program(&self) -> Program {
        let (first, rest) = self.words.split_first().expect("checked when it was read");
        Program::new(first).args(rest).within(self.timeout)
    }

    /// The program as the operator wrote it, without its arguments: those may hold a password.
    pub(crate) fn name(&self) -> &str {
        &self.words[0]
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CommandVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandTable {
    run: Vec<String>,
    timeout_seconds: Option<u64>,
}

struct CommandVisitor;

impl CommandVisitor {
    fn command<E: serde::de::Error>(words: Vec<String>, seconds: Option<u64>) -> Result<Command, E> {
        match words.first() {
            None => Err(E::custom("a command is a program and its arguments: at least the program")),
            Some(program) if program.is_empty() => Err(E::custom("the program of a command is empty")),
            Some(_) if seconds == Some(0) => Err(E::custom("timeout_seconds is 0: at least 1")),
            Some(_) => Ok(Command { words, timeout: seconds.map_or(LIMIT, Duration::from_secs) }),
        }
    }
}

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = Command;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of a program and its arguments, or { run = [...], timeout_seconds = ... }")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Command, E> {
        Err(E::custom("no shell runs it: a command is a list, [\"program\", \"argument\"]"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Command, A::Error> {
        Self::command(Vec::deserialize(value::SeqAccessDeserializer::new(seq))?, None)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Command, A::Error> {
        let table = CommandTable::deserialize(value::MapAccessDeserializer::new(map))?;
        Self::command(table.run, table.timeout_seconds)
    }
}

/// What a program is told in its environment of the update that it is run for.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// The target: `firmware`, `components.app`.
    pub(crate) target: String,
    /// The release's name and sequence, if it is known.
    pub(crate) release: Option<(String, u64)>,
}

impl About {
    /// Of the release of a reference.
    pub(crate) fn reference(target: &str, reference: &Reference) -> Self {
        let id = reference.get("id").and_then(serde_json::Value::as_str);
        let release = id.map(|id| {
            (id.to_owned(), reference.get("seq").and_then(serde_json::Value::as_u64).unwrap_or_default())
        });
        Self { target: target.to_owned(), release }
    }
}

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    command: tokio::process::Command,
    limit: Duration,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// The beginning of its standard output.
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
        Self { name: program.to_string_lossy().into_owned(), command, limit: LIMIT }
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

    pub(crate) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it; an exit code other than zero is a failure.
    pub(crate) async fn succeed(self) -> Result<Vec<u8>, CommandError> {
        let program = self.name.clone();
        let Ended { status, output, complaint } = self.run().await?;
        if status.success() { Ok(output) } else { Err(CommandError::Failed { program, status, complaint }) }
    }

    /// Runs it to its end, whatever its exit code is.
    pub(crate) async fn run(mut self) -> Result<Ended, CommandError> {
        let program = self.name;
        let child = self.command.spawn();
        let child = child.map_err(|source| CommandError::Start { program: program.clone(), source })?;
        let mut group = Group(child);
        let (mut output, mut complaint) = (Kept::head(OUTPUT), Kept::tail(TAIL));
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

    #[derive(Deserialize)]
    struct Section {
        command: Command,
    }

    fn read(text: &str) -> Result<Command, String> {
        toml::from_str::<Section>(text).map(|section| section.command).map_err(|e| e.message().to_owned())
    }

    fn shell(script: &str) -> Program {
        Program::new("sh").args(["-c", script])
    }

    #[test]
    fn a_command_is_a_list_or_a_table_with_a_time_limit() {
        let plain = read("command = ['check', '--fast']").expect("a list");
        assert_eq!((plain.name(), plain.timeout), ("check", LIMIT));
        let table = read("command = { run = ['check'], timeout_seconds = 5 }").expect("a table");
        assert_eq!((table.name(), table.timeout), ("check", Duration::from_secs(5)));
    }

    #[test]
    fn a_command_that_cannot_be_meant_is_refused_with_what_would_be_right() {
        for (text, why) in [
            ("command = 'check --fast'", "no shell runs it"),
            ("command = []", "at least the program"),
            ("command = ['']", "is empty"),
            ("command = { run = ['x'], timeout_seconds = 0 }", "at least 1"),
            ("command = { run = ['x'], limit = 3 }", "unknown field `limit`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
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
