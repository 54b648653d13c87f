//! The agent's log: lines on standard error, and the last of them in memory for whoever asks for them from afar.
//!
//! To a terminal or a file each line has its time. To journald, which has the time already, it has its priority, so that
//! `journalctl -p warning` finds what it should.

mod recent;

use std::borrow::Cow;
use std::io::{self, IsTerminal as _};

use serde::Deserialize;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::prelude::*;

pub use recent::Recent;

/// `[log]`: what is logged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The environment variable `RUST_LOG` stands above it.
    pub level: Filter,
}

impl Log {
    /// For a command: what goes wrong alone.
    #[must_use]
    pub fn warnings() -> Self {
        Self { level: Filter(Targets::new().with_default(Level::WARN)) }
    }
}

/// `error`, `warn`, `info`, `debug` or `trace`, or parts of the program with levels of their own:
/// `info,fleetwave_agent::device=debug`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Filter(Targets);

impl Default for Filter {
    fn default() -> Self {
        Self(Targets::new().with_default(Level::INFO))
    }
}

impl TryFrom<String> for Filter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A part alone would have everything of that part, and nothing of all others: hardly ever what is meant.
        let complete = text.split(',').all(|part| part.contains('=') || part.parse::<Level>().is_ok());
        match text.parse() {
            Ok(filter) if complete => Ok(Self(filter)),
            _ => Err(format!(
                "{text:?} is no log level: error, warn, info, debug or trace; or some of PART=LEVEL, with commas"
            )),
        }
    }
}

/// Begins to log, for the whole process. What is logged can be had from what this returns.
///
/// # Errors
/// If `RUST_LOG` is no filter, or something else logs already.
pub fn start(log: &Log) -> Result<Recent, String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            Filter::try_from(text).map_err(|error| format!("RUST_LOG: {error}"))?
        }
        _ => log.level.clone(),
    };
    let recent = Recent::default();
    let sink = Sink { journald: stderr_is_journald(), recent: recent.clone() };
    let lines = tracing_subscriber::fmt::layer()
        .without_time()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(sink);
    tracing_subscriber::registry()
        .with(filter.0)
        .with(lines)
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(recent)
}

/// Whether standard error is the stream that systemd connected with journald.
fn stderr_is_journald() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Where lines go.
#[derive(Debug)]
struct Sink {
    journald: bool,
    recent: Recent,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { sink: self, priority: priority(Level::INFO) }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line { sink: self, priority: priority(*metadata.level()) }
    }
}

/// As syslog counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// One event, which is written at once.
#[derive(Debug)]
struct Line<'a> {
    sink: &'a Sink,
    priority: u8,
}

impl io::Write for Line<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = without_secrets(&text);
        let mut dated = String::with_capacity(text.len() + 32);
        // The time is missing then, and the line is worth more than it.
        let _ = SystemTime.format_time(&mut Writer::new(&mut dated));
        dated.push(' ');
        dated.push_str(&text);
        let told =
            if self.sink.journald { Cow::Owned(prefixed(self.priority, &text)) } else { Cow::from(&dated) };
        // A log that nobody reads any more is no reason to stop.
        let _ = io::Write::write_all(&mut io::stderr().lock(), told.as_bytes());
        self.sink.recent.push(&plain(&dated));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// With the priority before each line: journald takes each for an entry of its own.
fn prefixed(priority: u8, text: &str) -> String {
    text.lines().map(|line| format!("<{priority}>{}\n", line.trim_start())).collect()
}

/// Without the colours of a terminal.
fn plain(line: &str) -> Cow<'_, str> {
    if !line.contains('\x1b') {
        return Cow::from(line);
    }
    let mut parts = line.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    Cow::Owned(rest.fold(first, |line, text| line + text))
}

/// What stands before a secret, and at which characters it ends beside blanks and quotes.
const SECRETS: [(&str, &[char]); 4] =
    [("SharedAccessKey=", &[';']), ("SharedAccessSignature ", &[]), ("sig=", &['&']), ("Bearer ", &[])];

/// The agent logs no secrets; this is for what libraries and servers say in their errors.
fn without_secrets(line: &str) -> Cow<'_, str> {
    let found = SECRETS.iter().filter_map(|(marker, ends)| Some((line.find(marker)? + marker.len(), *ends)));
    let Some((start, ends)) = found.min_by_key(|(start, _)| *start) else { return Cow::from(line) };
    let (before, after) = line.split_at(start);
    let end = after.find(|c: char| c.is_whitespace() || "\"'<>".contains(c) || ends.contains(&c));
    let after = &after[end.unwrap_or(after.len())..];
    Cow::Owned(format!("{before}…{}", without_secrets(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_something_is_not_logged() {
        for (said, logged) in [
            ("nothing of the kind\n", "nothing of the kind\n"),
            (
                "error for https://store/fw?se=1&sig=abc%2B&sp=r: 500\n",
                "error for https://store/fw?se=1&sig=…&sp=r: 500\n",
            ),
            (
                "HostName=h;SharedAccessKey=c2Vj;DeviceId=d and sig=\"\n",
                "HostName=h;SharedAccessKey=…;DeviceId=d and sig=…\"\n",
            ),
            (
                "password=SharedAccessSignature sr=h&sig=abc&se=1 refused\n",
                "password=SharedAccessSignature … refused\n",
            ),
            ("Authorization: Bearer abc.def\n", "Authorization: Bearer …\n"),
        ] {
            assert_eq!(without_secrets(said), logged);
        }
    }

    #[test]
    fn each_line_to_journald_has_its_priority() {
        assert_eq!(prefixed(4, " WARN one\ntwo\n"), "<4>WARN one\n<4>two\n");
    }

    #[test]
    fn colours_stay_on_the_terminal() {
        assert_eq!(plain("\x1b[32m INFO\x1b[0m said\n"), " INFO said\n");
    }

    #[test]
    fn a_level_that_is_none_is_refused_with_those_that_are() {
        let error = Filter::try_from("loud".to_owned()).expect_err("refused");
        assert!(error.contains("debug or trace"), "{error}");
        Filter::try_from("info,fleetwave_agent=debug".to_owned()).expect("levels");
    }
}
