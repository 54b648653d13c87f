//! Not now: what workloads say when an update would disturb them. Asked before something is made to run.
//!
//! A lock that cannot be asked counts as held: it may well be. One whose workload does not run at all is free.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::command::{About, Command};
use crate::config::{Rows, is_loopback, span};
use crate::install::Later;

/// How long an HTTP answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How much of a reason is read; no more than a line of it is told.
const REASON: usize = 4096;

/// Who may hold an update up, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Locks {
    /// Each holds updates up while it exists. It may say until when and why:
    /// `until = 1764252000` (seconds since 1970) and `reason = "the arm is moving"`.
    pub files: Vec<PathBuf>,
    /// Each holds updates up while a program has it locked by flock(2).
    pub flocks: Vec<PathBuf>,
    /// Exit code 0: nothing is in the way. Any other: held, for the reason on its standard error.
    pub command: Option<Command>,
    /// On this machine: 200 or 204 says that nothing is in the way, anything else that it is held, for the reason in
    /// the body.
    pub url: Option<LocalUrl>,
    /// The pause before a lock that is held is asked again.
    pub retry_seconds: u64,
    /// How long an update waits for locks.
    pub deadline_seconds: u64,
    /// What happens then.
    pub at_deadline: AtDeadline,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            flocks: Vec::new(),
            command: None,
            url: None,
            retry_seconds: 60,
            deadline_seconds: 24 * 60 * 60,
            at_deadline: AtDeadline::GiveUp,
        }
    }
}

/// What happens when a lock was held for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtDeadline {
    /// The update ends with `lock_timeout`.
    GiveUp,
    /// The update goes on.
    Proceed,
}

/// An `http://` URL that leads to this machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LocalUrl(Uri);

impl TryFrom<String> for LocalUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("{text:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") || !uri.host().is_some_and(is_loopback) {
            return Err(format!(
                "{text:?}: a lock is asked by http:// on this machine: 127.0.0.1, [::1] or localhost"
            ));
        }
        Ok(Self(uri))
    }
}

/// Why an update has to wait, in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason(String);

impl Reason {
    fn new(who: impl fmt::Display, why: &str) -> Self {
        let line = why.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("held");
        Self(format!("{who}: {}", line.chars().take(200).collect::<String>()))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Locks {
    /// How long the machine listens.
    pub(crate) fn policy(&self) -> fleetwave_agent_core::Locks {
        fleetwave_agent_core::Locks {
            retry: Duration::from_secs(self.retry_seconds),
            deadline: Duration::from_secs(self.deadline_seconds),
            at_deadline: match self.at_deadline {
                AtDeadline::GiveUp => fleetwave_agent_core::AtDeadline::GiveUp,
                AtDeadline::Proceed => fleetwave_agent_core::AtDeadline::Proceed,
            },
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> Rows {
        if !self.any() {
            return vec![("asked", "nobody: updates interrupt whatever runs".to_owned())];
        }
        let files = self.files.iter().map(|file| file.display().to_string());
        let flocks = self.flocks.iter().map(|file| format!("flock of {}", file.display()));
        let command = self.command.as_ref().map(|command| command.name().to_owned());
        let url = self.url.as_ref().map(|url| url.0.to_string());
        let asked: Vec<String> = files.chain(flocks).chain(command).chain(url).collect();
        let end = match self.at_deadline {
            AtDeadline::GiveUp => "the update is given up",
            AtDeadline::Proceed => "it goes on all the same",
        };
        vec![
            ("asked", asked.join(", ")),
            ("again after", span(Duration::from_secs(self.retry_seconds))),
            ("at most", format!("{}, then {end}", span(Duration::from_secs(self.deadline_seconds)))),
        ]
    }

    /// Whether there is anything to ask.
    pub(crate) fn any(&self) -> bool {
        !self.files.is_empty() || !self.flocks.is_empty() || self.command.is_some() || self.url.is_some()
    }

    /// Whether something is in the way of making the release of `about` run: the first one that is.
    pub(crate) fn held(&self, about: About) -> Later<Option<Reason>> {
        let locks = self.clone();
        Box::pin(async move {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut files = locks.files.iter().filter_map(|path| file(path, now));
            let mut flocks = locks.flocks.iter().filter_map(|path| flock(path));
            if let Some(reason) = files.next().or_else(|| flocks.next()) {
                return Some(reason);
            }
            if let Some(command) = &locks.command {
                let ended = command.program().about(&about, "lock").run().await;
                match ended {
                    Ok(ended) if ended.status.success() => {}
                    Ok(ended) => return Some(Reason::new(command.name(), &ended.complaint)),
                    Err(error) => return Some(Reason::new("cannot be asked", &error.to_string())),
                }
            }
            match &locks.url {
                Some(LocalUrl(uri)) => answer(uri, &about).await,
                None => None,
            }
        })
    }
}

/// What a lock file may say.
#[derive(Default, Deserialize)]
struct Content {
    until: Option<u64>,
    reason: Option<String>,
}

fn file(path: &Path, now: Duration) -> Option<Reason> {
    let mut text = String::new();
    let read = open(path).and_then(|file| file.take(REASON as u64).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Reason::new(path.display(), &format!("cannot be read: {error}"))),
        Ok(_) => {}
    }
    // Any other text is the reason.
    let Content { until, reason } =
        toml::from_str(&text).unwrap_or(Content { until: None, reason: Some(text) });
    if until.is_some_and(|until| until <= now.as_secs()) {
        return None;
    }
    Some(Reason::new(path.display(), &reason.unwrap_or_default()))
}

/// Not even a pipe, which anybody may put there, is waited for.
fn open(path: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).custom_flags(nonblocking).open(path)
}

fn flock(path: &Path) -> Option<Reason> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(Reason::new(path.display(), &format!("cannot be opened: {error}"))),
        Ok(file) => match file.try_lock_shared() {
            Ok(()) => None,
            Err(TryLockError::WouldBlock) => Some(Reason::new(path.display(), "locked by a program")),
            Err(TryLockError::Error(error)) => Some(Reason::new(path.display(), &error.to_string())),
        },
    }
}

async fn answer(uri: &Uri, about: &About) -> Option<Reason> {
    let who = uri.path_and_query().map_or("/", |path| path.as_str());
    match timeout(ANSWER, ask(uri, about)).await {
        Ok(Ok(None)) => None,
        Ok(Ok(Some(why))) => Some(Reason::new(who, &why)),
        // Nobody is there to be disturbed.
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        Ok(Err(error)) => Some(Reason::new(who, &format!("cannot be asked: {error}"))),
        Err(_) => Some(Reason::new(who, "cannot be asked: no answer")),
    }
}

/// Why it is held, if it is.
async fn ask(uri: &Uri, about: &About) -> io::Result<Option<String>> {
    let host = uri.host().unwrap_or_default();
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(&address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, &address)
        .header("fleetwave-target", &about.target);
    if let Some((id, sequence)) = &about.release {
        request = request.header("fleetwave-release", id).header("fleetwave-seq", *sequence);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    if matches!(status, StatusCode::OK | StatusCode::NO_CONTENT) {
        return Ok(None);
    }
    let body = Limited::new(response.into_body(), REASON).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let why = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(if why.trim().is_empty() { format!("answered {status}") } else { why }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn about() -> About {
        About { target: "components.app".into(), release: Some(("app-2".into(), 2)) }
    }

    async fn held(locks: &str) -> Option<String> {
        let locks: Locks = toml::from_str(locks).expect("well-formed");
        locks.held(about()).await.map(|reason| reason.to_string())
    }

    #[tokio::test]
    async fn a_file_holds_while_it_exists_and_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let (locks, name) = (format!("files = [{path:?}]"), path.display());
        assert_eq!(held(&locks).await, None);
        for (content, told) in [
            ("", Some("held")),
            ("the arm is moving\nsince noon\n", Some("the arm is moving")),
            ("reason = 'the arm is moving'", Some("the arm is moving")),
            ("until = 99999999999", Some("held")),
            ("until = 1000\nreason = 'long ago'", None),
        ] {
            fs::write(&path, content).expect("written");
            assert_eq!(held(&locks).await, told.map(|told| format!("{name}: {told}")), "{content}");
        }
        let locks = format!("files = [{:?}]", dir.path());
        assert!(held(&locks).await.expect("held").contains("cannot be read"), "what cannot be asked is held");
    }

    #[tokio::test]
    async fn a_file_lock_holds_while_a_program_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let locks = format!("flocks = [{path:?}]");
        assert_eq!(held(&locks).await, None);
        let file = File::create(&path).expect("created");
        assert_eq!(held(&locks).await, None, "nobody has it");
        file.lock().expect("locked");
        assert!(held(&locks).await.expect("held").ends_with("locked by a program"));
        drop(file);
        assert_eq!(held(&locks).await, None);
    }

    #[tokio::test]
    async fn a_pipe_in_the_place_of_a_file_holds_and_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        assert!(held(&format!("files = [{path:?}]")).await.expect("held").ends_with(": held"));
        assert_eq!(held(&format!("flocks = [{path:?}]")).await, None, "nobody has it locked");
    }

    #[tokio::test]
    async fn a_command_holds_by_its_exit_code() {
        assert_eq!(held("command = ['true']").await, None);
        let script = "echo $FLEETWAVE_TARGET is busy >&2; exit 1";
        let reason = held(&format!("command = ['sh', '-c', '{script}']")).await;
        assert_eq!(reason.as_deref(), Some("sh: components.app is busy"));
        let reason = held("command = ['/nowhere/at-all']").await.expect("what cannot be asked is held");
        assert!(reason.starts_with("cannot be asked: /nowhere"), "{reason}");
    }

    /// Answers one request, and gives back what it was asked.
    async fn serve(listener: TcpListener, answer: &str) -> String {
        let (mut stream, _) = listener.accept().await.expect("someone asks");
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.expect("a request");
        stream.write_all(answer.as_bytes()).await.expect("sent");
        String::from_utf8_lossy(&request[..length]).into_owned()
    }

    #[tokio::test]
    async fn a_workload_answers_by_http_on_this_machine() {
        for (answer, told) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", None),
            ("HTTP/1.1 423 Locked\r\ncontent-length: 8\r\n\r\ncharging", Some("/may-update: charging")),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                Some("/may-update: answered 404 Not Found"),
            ),
            ("SSH-2.0-hello\r\n\r\n", Some("/may-update: cannot be asked: ")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let locks = format!("url = 'http://{}/may-update'", listener.local_addr().expect("bound"));
            let (reason, request) = tokio::join!(held(&locks), serve(listener, answer));
            assert!(request.contains("fleetwave-target: components.app\r\n"), "{request}");
            match told {
                None => assert_eq!(reason, None),
                Some(told) => assert!(reason.as_deref().is_some_and(|r| r.starts_with(told)), "{reason:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_workload_that_does_not_run_holds_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        assert_eq!(held(&format!("url = 'http://{address}/'")).await, None);
    }

    #[test]
    fn a_lock_on_another_machine_is_refused() {
        for url in ["http://10.0.0.1/", "https://localhost/", "/may-update"] {
            let error = toml::from_str::<Locks>(&format!("url = '{url}'")).expect_err(url);
            assert!(error.message().contains("on this machine"), "{error}");
        }
    }
}
