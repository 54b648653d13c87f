//! What engines measure with, and how the measures become the figures of a run record.
//!
//! An engine gives each of its threads a [`Meter`], merges them at the end, and hands the result over in an
//! [`EngineOutcome`]. Nothing here reads a clock: instants are the engine's own.

mod distribution;
mod figures;
mod memory;
mod meter;
mod outcome;
mod series;

pub use distribution::Distribution;
pub use memory::{MemoryProbe, MemoryUse};
pub use meter::{Change, ChangeId, Connection, Meter};
pub use outcome::EngineOutcome;
pub use series::Series;
