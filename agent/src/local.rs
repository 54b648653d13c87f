//! `fleetwave-agent install`: a release from a stick or a folder, with or without a hub.
//!
//! A state directory has one owner. If that is an agent that runs, the command hands the release over to it through a
//! socket ([`desk`]), the opened payload included, so that the agent needs no right to read the stick. If there is none
//! the command is the agent itself for this one update, without a hub. Either way a [`Wish`] stands in the state
//! directory until the update has ended: in its place the machine of the target is told that the twin asks for this
//! release, and to the very end it is the machine of any other update.

mod command;
mod desk;
mod stick;
mod wish;

pub(crate) use command::install;
pub use desk::How;
pub(crate) use desk::{Asked, Desk, Verdict};
pub(crate) use stick::Stick;
pub(crate) use wish::Wish;

/// How `fleetwave-agent install` ends, as its code of exit.
pub(crate) mod exit {
    /// The release runs; or the machine goes down to try it.
    pub(crate) const DONE: u8 = 0;
    /// Nothing was decided: what could not be read or reached may be there at the next try.
    pub(crate) const FAILED: u8 = 1;
    /// What was named is no release.
    pub(crate) const USAGE: u8 = 2;
    /// The release was refused, or given up.
    pub(crate) const GIVEN_UP: u8 = 3;
}
