//! Scenario files: what they can say, how they are read, and what they mean.

pub mod compare;
pub mod dist;
pub mod expect;
pub mod fault;
pub mod model;
mod near;
pub mod progress;
pub mod quantity;
pub mod step;
mod word;
