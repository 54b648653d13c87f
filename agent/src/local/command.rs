//! The command itself: hands the release over to the agent that runs, or is the agent for this one update.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

use super::desk::{self, Verdict};
use super::{Desk, How, Stick, exit};
use crate::config::Config;
use crate::device::{self, Host};
use crate::link::TlsPool;
use crate::{RunError, StateError, access, told_to_end};

/// Installs the release at `path`, and tells how it goes on standard output.
pub(crate) fn install(config: &Config, path: &Path, how: How) -> Verdict {
    let stick = match Stick::find(path) {
        Ok(stick) => stick,
        Err(error @ super::stick::StickError::Read { .. }) => {
            return Verdict::new(exit::FAILED, error.to_string());
        }
        Err(error) => return Verdict::new(exit::USAGE, error.to_string()),
    };
    // Not even the lock may be made by somebody else than the agent.
    let stranger = stranger(&config.state);
    if stranger.is_some() && device::is_locked(&config.state) {
        return hand_over(&config.state, &stick, how);
    }
    if let Some(verdict) = stranger {
        return verdict;
    }
    let verdict = match device::lock(&config.state) {
        Err(StateError::InUse(_)) => Ok(hand_over(&config.state, &stick, how)),
        Err(error) => Err(error.into()),
        Ok(None) => Ok(unwritable(&config.state)),
        Ok(Some(lock)) => update(config, stick, how, lock),
    };
    verdict.unwrap_or_else(|error: RunError| Verdict::new(exit::FAILED, error.to_string()))
}

fn unwritable(state: &Path) -> Verdict {
    let text = format!(
        "the state directory {} cannot be written by this user: use the agent's, or root",
        state.display()
    );
    Verdict::new(exit::FAILED, text)
}

/// What root would write here could not be written by the agent any more, if that is somebody else.
fn stranger(state: &Path) -> Option<Verdict> {
    let owner = std::fs::metadata(state).ok()?.uid();
    if !rustix::process::geteuid().is_root() || owner == 0 {
        return None;
    }
    let text = format!(
        "the state directory {} belongs to another user (uid {owner}), and no agent runs on it\n  = help: start the \
         agent (`systemctl start fleetwave-agent`), and this command hands the release over to it",
        state.display()
    );
    Some(Verdict::new(exit::FAILED, text))
}

/// Without an agent: this process is it, until the update has ended.
fn update(config: &Config, stick: Stick, how: How, lock: File) -> Result<Verdict, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = told_to_end()?;
        let access = access(config, &TlsPool::default())?;
        let mut desk = Desk::alone(stick, how);
        device::live_locked(config, access, false, &mut Host::default(), &mut desk, stop, Some(lock)).await;
        Ok(desk.verdict().cloned().unwrap_or_else(|| {
            let text =
                "stopped: the next start of the agent goes on, and so does this command if it is given again";
            Verdict::new(exit::FAILED, text)
        }))
    })
}

/// With one that runs.
fn hand_over(state: &Path, stick: &Stick, how: How) -> Verdict {
    let socket = desk::socket(state);
    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::PermissionDenied => "use root, or the agent's user",
                _ => "an agent that is just starting, or another `install`: try again",
            };
            let text =
                format!("{} is in use, and {}: {error}\n  = help: {why}", state.display(), socket.display());
            return Verdict::new(exit::FAILED, text);
        }
    };
    println!("the agent that runs takes it over (Ctrl-C leaves it to the agent, which goes on)");
    let ended = send(&stream, stick, how).and_then(|()| listen(stream));
    match ended {
        Ok(Some(verdict)) => verdict,
        Ok(None) => Verdict::new(
            exit::FAILED,
            "the agent has ended before the update: it goes on at its next start (`fleetwave-agent status` tells)",
        ),
        Err(error) => Verdict::new(exit::FAILED, format!("{}: {error}", socket.display())),
    }
}

fn send(mut stream: &UnixStream, stick: &Stick, how: How) -> io::Result<()> {
    let request = desk::request(stick, how);
    let files = [stick.file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(&files));
    let first = sendmsg(stream, &[IoSlice::new(request.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
    stream.write_all(&request.as_bytes()[first..])
}

/// Passes on what the agent says; `None` if it ends in the middle.
fn listen(stream: UnixStream) -> io::Result<Option<Verdict>> {
    for line in BufReader::new(stream).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let text = line["say"].as_str().unwrap_or_default();
        match line["exit"].as_u64() {
            Some(exit) => return Ok(Some(Verdict::new(u8::try_from(exit).unwrap_or(exit::FAILED), text))),
            None => println!("{text}"),
        }
    }
    Ok(None)
}
