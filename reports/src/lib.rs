//! What a run leaves behind: the [run record](RunRecord), its schema, the metrics in it, and what is drawn
//! from it for people.
//!
//! This crate measures nothing. It holds the names that scenarios, engines and other programs agree on.

#[cfg(test)]
mod docs;
pub mod intervallog;
pub mod metric;
pub mod record;
#[cfg(test)]
mod sample;
mod summary;
pub mod text;

pub use record::{RunRecord, SCHEMA_VERSION, schema};
pub use summary::summary;
