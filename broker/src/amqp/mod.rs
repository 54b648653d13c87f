//! The hub's AMQP 1.0 surface: what service SDKs send C2D messages with, and read feedback and events from.
//!
//! [`connection`] and [`endpoint`] are the service's side of AMQP as a state machine without IO; the modules below them
//! are its bytes.

#![allow(dead_code)]

mod connection;
mod endpoint;
mod frame;
mod link;
mod message;
mod performative;
mod sasl;
mod session;
mod value;
