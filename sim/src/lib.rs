//! The harness: it makes a fleet of virtual devices, runs a scenario on it, and measures what comes out.
//!
//! An engine (virtual or live) runs the scenario's [`timeline`] and feeds a [`measure::Meter`];
//! [`run`] judges the outcome and writes the run record.

pub mod cli;
pub mod device;
pub mod live;
pub mod measure;
pub mod progress;
mod release;
pub mod remote;
pub mod rollout;
pub mod run;
pub mod scenario;
pub mod timeline;
pub mod virtual_engine;
