//! What the units say in one turn, on its way to the hub: one request for the twin and one report, whoever asked.

use std::collections::BTreeMap;

use fleetwave_protocol::Up;
use serde_json::{Map, Value};

use crate::link::Link;
use crate::metrics::Counters;

/// Who asked something of the hub, and by which id of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) who: Who,
    pub(super) rid: u32,
}

/// One of the machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The one that leads the connection.
    Lead,
    /// A unit's, in one of its lives.
    Unit { index: usize, life: u32 },
    /// No machine: what is wrong with a unit, whatever its life.
    Problem { index: usize },
}

/// What the hub was asked, and by whom.
#[derive(Debug)]
pub(super) enum Question {
    Twin(Vec<Asked>),
    Report(Vec<Asked>),
}

enum Out {
    Subscribe,
    Twin(Vec<Asked>),
    Report(Vec<Asked>, Map<String, Value>),
    Telemetry(&'static str, Vec<u8>),
    Answer { rid: String, status: i32, body: Vec<u8> },
}

#[derive(Default)]
pub(super) struct Outbox {
    /// In the order in which the first part of each was said.
    out: Vec<Out>,
    questions: BTreeMap<u32, Question>,
    last_rid: u32,
}

impl Outbox {
    pub(super) fn subscribe(&mut self) {
        self.out.push(Out::Subscribe);
    }

    pub(super) fn get_twin(&mut self, asked: Asked) {
        for out in &mut self.out {
            if let Out::Twin(all) = out {
                all.push(asked);
                return;
            }
        }
        self.out.push(Out::Twin(vec![asked]));
    }

    /// `report`: a merge patch of one target's section alone.
    pub(super) fn report(&mut self, asked: Asked, report: Map<String, Value>) {
        for out in &mut self.out {
            if let Out::Report(all, patch) = out {
                all.push(asked);
                put(patch, report);
                return;
            }
        }
        self.out.push(Out::Report(vec![asked], report));
    }

    pub(super) fn telemetry(&mut self, properties: &'static str, body: Vec<u8>) {
        self.out.push(Out::Telemetry(properties, body));
    }

    pub(super) fn answer(&mut self, rid: String, status: i32, body: Vec<u8>) {
        self.out.push(Out::Answer { rid, status, body });
    }

    /// Sends all that was said.
    pub(super) fn flush(&mut self, link: &mut Link, counters: &Counters) {
        for out in self.out.drain(..) {
            match out {
                Out::Subscribe => link.subscribe(),
                Out::Twin(all) => {
                    self.last_rid = self.last_rid.wrapping_add(1);
                    self.questions.insert(self.last_rid, Question::Twin(all));
                    link.send(&Up::TwinGet { rid: &self.last_rid.to_string() });
                }
                Out::Report(all, patch) => {
                    self.last_rid = self.last_rid.wrapping_add(1);
                    self.questions.insert(self.last_rid, Question::Report(all));
                    let patch = Value::Object(patch).to_string();
                    let rid = self.last_rid.to_string();
                    counters.reported();
                    link.send(&Up::Report { rid: &rid, base: None, patch: patch.as_bytes() });
                }
                Out::Telemetry(properties, body) => link.send(&Up::Telemetry { properties, body: &body }),
                Out::Answer { rid, status, body } => {
                    link.send(&Up::MethodResponse { rid: &rid, status, body: &body });
                }
            }
        }
    }

    /// Drops what was said while there was no connection.
    pub(super) fn clear(&mut self) {
        self.out.clear();
    }

    /// Forgets what was asked: it will not be answered on another connection.
    pub(super) fn forget(&mut self) {
        self.clear();
        self.questions.clear();
    }

    /// What this answer is to.
    pub(super) fn answered(&mut self, rid: u32) -> Option<Question> {
        self.questions.remove(&rid)
    }
}

/// Adds one patch to another: what the second says stands.
fn put(into: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (member, value) in patch {
        match (into.get_mut(&member), value) {
            (Some(Value::Object(there)), Value::Object(more)) => put(there, more),
            (_, value) => {
                into.insert(member, value);
            }
        }
    }
}
