//! Which fault met the agent in which state.

use fleetwave_agent_core::State;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Start,
    Cut,
    Supersede,
    Cancel,
    Abort,
    Disconnect,
}

impl Cause {
    /// Those that the table has a column for.
    pub(crate) const FAULTS: [Self; 5] =
        [Self::Cut, Self::Supersede, Self::Cancel, Self::Abort, Self::Disconnect];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Cut => "cut",
            Self::Supersede => "supersede",
            Self::Cancel => "cancel",
            Self::Abort => "abort",
            Self::Disconnect => "disconnect",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage([[u32; 6]; State::ALL.len()]);

impl Coverage {
    pub(crate) fn count(&mut self, state: State, cause: Cause) {
        self.0[state as usize][cause as usize] += 1;
    }

    pub(crate) fn of(&self, state: State, cause: Cause) -> u32 {
        self.0[state as usize][cause as usize]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (row, more) in self.0.iter_mut().zip(&other.0) {
            for (count, more) in row.iter_mut().zip(more) {
                *count += more;
            }
        }
    }
}
