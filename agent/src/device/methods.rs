//! Direct methods, other than the one that brings a grant. Each answers at once, or as soon as the machine has.

use std::time::Duration;

use fleetwave_agent_core::{Event, grant};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Device;
use crate::command::{Command, Program};
use crate::fetch::unix_now;
use crate::install::Later;
use crate::unit::Unit;
use crate::upload;

/// All that there are.
const METHODS: [&str; 5] = ["cancel", "collect-logs", grant::METHOD, "reboot", "status"];
/// An answer may have 128 KiB; quoting can double what is in it.
const LOG: usize = 60 * 1024;
/// Lines of the log if the caller names no number.
const LINES: usize = 200;
/// And in a file.
const MANY_LINES: usize = 50_000;
/// So many logs are collected at a time: each takes memory, and a program.
const COLLECTIONS: usize = 2;

/// `[reboot]`: what the direct method `reboot` runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reboot {
    /// The program that makes the machine go down.
    pub command: Command,
}

impl Default for Reboot {
    fn default() -> Self {
        Self { command: Command::new(["systemctl", "reboot"]) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    target: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RebootNow {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CollectLogs {
    lines: Option<usize>,
    /// Of this unit of systemd, from the journal, in place of the agent's own.
    unit: Option<String>,
    /// To the storage account of the hub, and no more of it in the answer than where it is.
    #[serde(default)]
    upload: bool,
}

/// An answer: a status and JSON.
type Answer = (i32, Value);

fn refused(status: i32, message: impl Into<String>) -> Answer {
    (status, json!({"message": message.into()}))
}

/// A method's parameters; `null` and nothing at all are none.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    let body = if matches!(body.trim_ascii(), b"" | b"null") { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| refused(400, format!("the parameters: {error}")))
}

impl Device<'_> {
    pub(super) fn method(&mut self, name: &str, rid: &str, body: &[u8]) {
        tracing::info!(method = name, "called");
        let answer = match name {
            "status" => Ok((200, self.status())),
            "cancel" => match self.cancel(rid, body) {
                // The machine answers.
                Ok(()) => return,
                Err(answer) => Err(answer),
            },
            "reboot" => self.reboot(body),
            "collect-logs" => match self.collect_logs(rid, body) {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => return,
                Err(answer) => Err(answer),
            },
            _ => Err(refused(404, format!("there is no method {name:?}: {}", METHODS.join(", ")))),
        };
        let (status, body) = answer.unwrap_or_else(|refusal| refusal);
        self.outbox.answer(rid.to_owned(), status, body.to_string().into_bytes());
    }

    fn status(&self) -> Value {
        let targets = self.units.iter().map(|unit| (unit.target.to_string(), unit.status())).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.origin.elapsed().as_secs(),
            "targets": Value::Object(targets),
            "downloads": self.fetcher.ledger().told(unix_now()),
        })
    }

    fn cancel(&mut self, rid: &str, body: &[u8]) -> Result<(), Answer> {
        let Cancel { target } = read(body)?;
        let unit = match &target {
            Some(name) => {
                let known = self.units.iter().map(|unit| unit.target.as_str()).collect::<Vec<_>>().join(", ");
                let named = self.units.iter_mut().find(|unit| unit.target.as_str() == name);
                named.ok_or_else(|| refused(404, format!("there is no target {name:?}: {known}")))?
            }
            None => {
                let mut busy = self.units.iter_mut().filter(|unit| unit.is_updating());
                let first = busy.next().ok_or_else(|| refused(409, "no update is under way"))?;
                if busy.next().is_some() {
                    return Err(refused(409, "several updates are under way: name the target of one"));
                }
                first
            }
        };
        if unit.agent().is_none() {
            return Err(refused(409, format!("it is not known yet what {} runs", unit.target)));
        }
        unit.cancelling.push(rid.to_owned());
        unit.hear(Event::Abort);
        Ok(())
    }

    /// The machine has taken [`Event::Abort`], or not.
    pub(super) fn cancelled(&mut self, index: usize, taken: bool) {
        let unit = &mut self.units[index];
        if unit.cancelling.is_empty() {
            return;
        }
        let rid = unit.cancelling.remove(0);
        let (status, body) = if taken {
            (200, json!({"target": unit.target.as_str()}))
        } else {
            let state = unit.state().map_or("starting", |state| state.name());
            refused(409, format!("{} has no update that can still be called off: it is {state}", unit.target))
        };
        self.outbox.answer(rid, status, body.to_string().into_bytes());
    }

    fn reboot(&mut self, body: &[u8]) -> Result<Answer, Answer> {
        let RebootNow { force } = read(body)?;
        if !force && let Some(unit) = self.units.iter().find(|unit| unit.on_trial()) {
            let message = format!(
                "{} runs what is not committed yet: it would be taken for a failure. {{\"force\": true}} does it",
                unit.target
            );
            return Err(refused(409, message));
        }
        self.reboot = true;
        Ok((200, json!({"message": "going down"})))
    }

    /// `None` if the answer comes later.
    fn collect_logs(&mut self, rid: &str, body: &[u8]) -> Result<Option<Answer>, Answer> {
        let CollectLogs { lines, unit, upload } = read(body)?;
        let most = if upload { upload::MOST } else { LOG };
        let lines = lines.unwrap_or(if upload { MANY_LINES } else { LINES });
        let collecting: Later<Result<String, Answer>> = match &unit {
            // It becomes a part of the file's name, too.
            Some(unit) if unit.starts_with('-') || unit.contains('/') => {
                return Err(refused(400, "the name of a unit does not begin with -, and has no /"));
            }
            Some(unit) => {
                let program = Program::new("journalctl")
                    .args(["--no-pager", "--quiet", "--output=short-iso", "--lines", &lines.to_string()])
                    .args(["--unit", unit])
                    // The first line of it may be cut: it is more than is told.
                    .keeping_end(2 * most)
                    .within(Duration::from_secs(20));
                Box::pin(async move {
                    let output = program.succeed().await.map_err(|error| refused(500, error.to_string()))?;
                    Ok(String::from_utf8_lossy(&output).into_owned())
                })
            }
            None => {
                let Some(recent) = &self.host.recent else {
                    return Err(refused(409, "this agent keeps no log: it shares its process with others"));
                };
                let tail = recent.tail(most);
                if !upload {
                    return Ok(Some((200, json!({"log": last(&tail, lines, most)}))));
                }
                Box::pin(async move { Ok(tail) })
            }
        };
        if self.chores.len() >= COLLECTIONS {
            return Err(refused(429, "logs are being collected already: call again when that is answered"));
        }
        let (rid, access, fetcher) = (rid.to_owned(), self.access.clone(), self.fetcher.clone());
        self.chores.push(Box::pin(async move {
            let (status, body) = match collecting.await {
                Err(answer) => answer,
                Ok(text) if !upload => (200, json!({"log": last(&text, lines, most)})),
                Ok(text) => {
                    let text = last(&text, lines, most);
                    let name = format!("logs/{}-{}.log", unix_now(), unit.as_deref().unwrap_or("agent"));
                    match upload::upload(access, fetcher, name, text.to_owned()).await {
                        Ok(place) => (200, place),
                        Err(error) => {
                            tracing::warn!(%error, "the log could not be uploaded");
                            let why = json!({"code": error.code(), "message": error.to_string()});
                            (200, json!({"log": last(text, LINES, LOG), "upload": why}))
                        }
                    }
                }
            };
            Reply { rid, status, body }
        }));
        Ok(None)
    }
}

/// An answer to a method that took its time.
pub(super) struct Reply {
    pub(super) rid: String,
    pub(super) status: i32,
    pub(super) body: Value,
}

/// The last lines, whole ones, and no more than so many bytes.
fn last(text: &str, lines: usize, most: usize) -> &str {
    let mut start = text.len();
    for line in text.split_inclusive('\n').rev().take(lines) {
        if text.len() - start + line.len() > most {
            break;
        }
        start -= line.len();
    }
    &text[start..]
}

impl Unit {
    /// Whether an update is under way, or waits for its turn.
    fn is_updating(&self) -> bool {
        self.agent().is_some_and(|agent| agent.in_flight().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_go_into_an_answer_and_only_whole_ones() {
        assert_eq!(last("one\ntwo\nthree\n", 2, LOG), "two\nthree\n");
        assert_eq!(last("one\n", 9, LOG), "one\n");
        assert_eq!(last("", 9, LOG), "");
        let long = format!("{}\nend\n", "x".repeat(LOG));
        assert_eq!(last(&long, 9, LOG), "end\n");
    }

    #[test]
    fn parameters_may_be_missing_and_must_be_known() {
        for body in [&b""[..], b"null", b"{}"] {
            assert!(read::<Cancel>(body).is_ok_and(|cancel| cancel.target.is_none()));
        }
        assert!(read::<Cancel>(br#"{"targets": []}"#).is_err_and(|(status, _)| status == 400));
    }
}
