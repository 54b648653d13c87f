//! Scenario files: what they can say, how they are read, and what they mean.
//!
//! [`load`] turns a file or the name of a shipped scenario into a checked [`model::Scenario`], or into a list of
//! everything that is wrong with it; [`explain`] says in words what a run of it will do; [`fleet::Fleet`] is the
//! fleet that it describes.

pub(crate) mod audience;
mod check;
pub mod compare;
pub mod dist;
pub mod expect;
mod explain;
pub mod fault;
pub mod fleet;
pub mod model;
mod near;
mod permute;
pub mod progress;
pub mod quantity;
mod read;
mod shipped;
pub mod step;
mod word;

#[cfg(test)]
mod tests;

pub use explain::explain;
pub use read::{Diagnostic, Diagnostics, Loaded, load, load_text};
pub use shipped::{Shipped, shipped};

/// The JSON Schema of a scenario.
///
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(model::Scenario);
    schema.insert("title".to_owned(), "Fleetwave scenario".into());
    schema.to_value()
}
