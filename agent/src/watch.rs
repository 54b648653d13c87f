//! What an agent tells whoever runs many of them in one process, beside its log: enough to measure a fleet by.

use std::rc::Rc;

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

/// Is told, on the agent's thread.
pub type Watch = Rc<dyn Fn(Seen<'_>)>;
