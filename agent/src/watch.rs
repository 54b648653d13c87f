//! What an agent tells whoever runs many of them in one process, beside its log: enough to measure a fleet by.

use std::rc::Rc;
use std::time::Duration;

use fleetwave_agent_core::State;
use serde_json::{Map, Value};

/// Something that happened to an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen<'a> {
    /// It begins to connect.
    Connecting,
    /// The hub has accepted the connection.
    Connected,
    /// The connection is over, or did not come about.
    Lost,
    /// It knows that its firmware is to be this release.
    Wanted(&'a Map<String, Value>),
    /// The update of its firmware stands here now.
    Entered(State),
    /// The machine goes down, by the agent's wish, and has been asked to.
    GoingDown,
    /// It asks for a download; again, if that was not answered.
    Asked,
    /// It has the download's address, and takes it.
    Granted,
}

/// What surrounds an agent that shares its process with others.
#[derive(Clone, Default)]
pub struct Around {
    /// Is told how it goes.
    pub watch: Option<Watch>,
    /// The calendar that it goes by; the machine's if there is none.
    pub calendar: Option<Calendar>,
}

/// A calendar of an agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// What it is ahead of the machine's.
    pub ahead: Duration,
    /// What local time is ahead of UTC, in seconds.
    pub utc_offset: i32,
}

/// Is told, on the agent's thread.
pub type Watch = Rc<dyn Fn(Seen<'_>)>;
