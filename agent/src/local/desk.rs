//! Where releases are handed over to a device: a socket in the state directory of an agent that runs.
//!
//! A command sends one line of JSON, with the opened payload beside it, and gets lines of JSON until the update has
//! ended: `{"say": …}`, and last `{"say": …, "exit": …}`. It may leave at any time; the update goes on.

use std::fs::{File, Permissions};
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fleetwave_agent_core::State;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

use super::{Stick, exit};
use crate::install::{Later, Reference};

/// The socket, in the state directory.
const SOCKET: &str = "install.sock";
/// The longest request.
const LONGEST: usize = 128 * 1024;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often whoever waits hears of progress.
const PACE: Duration = Duration::from_secs(2);

/// The path of the socket of an agent.
pub(super) fn socket(state: &Path) -> PathBuf {
    state.join(SOCKET)
}

/// How it is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// At any time, whatever the windows are.
    pub now: bool,
    /// It is to be called off.
    pub cancel: bool,
}

/// What somebody asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) stick: Stick,
    pub(crate) how: How,
    from: Option<UnixStream>,
}

/// How something that was asked for has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// A code of exit.
    pub(crate) exit: u8,
    /// What people read.
    pub(crate) text: String,
}

impl Verdict {
    pub(crate) fn new(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }
}

/// Somebody who waits for the end of an update.
struct Visitor {
    target: String,
    /// The end of the update is what was asked for.
    cancels: bool,
    /// `None` for the one whose process this is.
    stream: Option<UnixStream>,
    /// What was said last, and of which state.
    said: String,
    of: Option<State>,
}

/// Takes what is asked for, and tells how it goes. The default one takes nothing.
#[derive(Default)]
pub(crate) struct Desk {
    listener: Option<UnixListener>,
    arriving: Vec<Later<Option<Asked>>>,
    /// What was asked for, and is not decided yet.
    pub(crate) asked: Vec<Asked>,
    visitors: Vec<Visitor>,
    pace: Option<Interval>,
    /// It is time to tell of progress.
    pub(crate) due: bool,
    /// The process is there for one update alone, and uses no hub.
    alone: bool,
    verdict: Option<Verdict>,
}

impl Desk {
    /// The desk of an agent that runs, whose state directory is locked. Without one it does all else that it should.
    pub(crate) fn open(state: &Path) -> Self {
        let path = socket(state);
        let listen = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            // The agent's user, and root.
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = listen().inspect_err(|error| {
            tracing::warn!(%error, path = %path.display(), "`install` cannot hand releases over to this agent");
        });
        Self { listener: listener.ok(), ..Self::default() }
    }

    /// The desk of a process that is there for one update alone.
    pub(crate) fn alone(stick: Stick, how: How) -> Self {
        Self { alone: true, asked: vec![Asked { stick, how, from: None }], ..Self::default() }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// How the one update has ended that the process is there for.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Until something was asked for, or it is time to tell of progress.
    pub(crate) async fn next(&mut self) {
        let Self { listener, arriving, asked, visitors, pace, due, .. } = self;
        let accept = async {
            match listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let arrive = poll_fn(|cx| {
            for at in 0..arriving.len() {
                if let Poll::Ready(asked) = arriving[at].as_mut().poll(cx) {
                    drop(arriving.swap_remove(at));
                    return Poll::Ready(asked);
                }
            }
            Poll::Pending
        });
        let tick = async {
            match pace {
                Some(pace) if !visitors.is_empty() => pace.tick().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accept => match accepted {
                Ok((stream, _)) => self.arriving.push(Box::pin(receive(stream))),
                Err(error) => {
                    tracing::warn!(%error, "the socket of `install` fails");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            arrived = arrive => asked.extend(arrived),
            _ = tick => *due = true,
        }
    }

    /// Somebody waits for what becomes of a target.
    pub(crate) fn wait(&mut self, asked: Asked, target: &str) {
        self.pace.get_or_insert_with(|| {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        let visitor = Visitor {
            target: target.to_owned(),
            cancels: asked.how.cancel,
            stream: asked.from,
            said: String::new(),
            of: None,
        };
        self.visitors.push(visitor);
    }

    /// Whether anybody does.
    pub(crate) fn is_watched(&self, target: &str) -> bool {
        self.visitors.iter().any(|visitor| visitor.target == target)
    }

    /// Tells those who wait for a target how it goes: at once if it does something else than before, and otherwise when
    /// that is due.
    pub(crate) fn say(&mut self, target: &str, state: State, text: &str) {
        let due = self.due;
        self.visitors.retain_mut(|visitor| {
            let news = visitor.of != Some(state) || (due && visitor.said != text);
            if visitor.target != target || !news {
                return true;
            }
            text.clone_into(&mut visitor.said);
            visitor.of = Some(state);
            match &visitor.stream {
                Some(stream) => tell(stream, &json!({"say": text})).is_ok(),
                None => {
                    println!("{text}");
                    true
                }
            }
        });
    }

    /// It has ended for those who wait for a target.
    pub(crate) fn end(&mut self, target: &str, verdict: &Verdict) {
        let ends = |visitor: &mut Visitor| visitor.target == target;
        for visitor in self.visitors.extract_if(.., ends).collect::<Vec<_>>() {
            let called_off = visitor.cancels && verdict.exit == exit::GIVEN_UP;
            let exit = if called_off { exit::DONE } else { verdict.exit };
            self.answer(visitor.stream, &Verdict { exit, text: verdict.text.clone() });
        }
    }

    /// It has ended before it began.
    pub(crate) fn refuse(&mut self, asked: Asked, verdict: &Verdict) {
        self.answer(asked.from, verdict);
    }

    fn answer(&mut self, stream: Option<UnixStream>, verdict: &Verdict) {
        match stream {
            // Whoever has left does not hear it.
            Some(stream) => drop(tell(&stream, &json!({"say": verdict.text, "exit": verdict.exit}))),
            None => self.verdict = Some(verdict.clone()),
        }
    }
}

/// Sends a line, all of it or nothing: a visitor who does not read is one who has left.
fn tell(stream: &UnixStream, line: &Value) -> io::Result<()> {
    let line = format!("{line}\n");
    let sent = stream.try_write(line.as_bytes())?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Reads a request; `None` for one that is none.
async fn receive(stream: UnixStream) -> Option<Asked> {
    let (mut line, mut file) = (Vec::new(), None);
    let read = async {
        while !line.ends_with(b"\n") && line.len() < LONGEST {
            let (piece, with) = stream.async_io(Interest::READABLE, || receive_piece(&stream)).await?;
            if piece.is_empty() {
                break;
            }
            line.extend_from_slice(&piece);
            file = with.or(file.take());
        }
        io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, read).await.ok()?;
    let mut request: Value = serde_json::from_slice(&line).ok()?;
    let reference: Reference = match request["reference"].take() {
        Value::Object(reference) => reference,
        _ => return None,
    };
    let source = PathBuf::from(request["source"].as_str()?);
    let stick = Stick { reference, source, file: Arc::new(file?) };
    let how = How { now: request["now"] == true, cancel: request["cancel"] == true };
    Some(Asked { stick, how, from: Some(stream) })
}

fn receive_piece(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<File>)> {
    let mut piece = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut piece)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    piece.truncate(received.bytes);
    let mut file = None;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.map(File::from).last().or(file);
        }
    }
    Ok((piece, file))
}

/// The request of a command.
pub(super) fn request(stick: &Stick, how: How) -> String {
    let (source, How { now, cancel }) = (stick.source.to_string_lossy(), how);
    format!("{}\n", json!({"reference": stick.reference, "source": source, "now": now, "cancel": cancel}))
}
