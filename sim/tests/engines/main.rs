//! Whole runs of both engines on small fleets.

mod conformance;
mod deltas;
mod live_engine;
mod support;
mod virtual_engine;
