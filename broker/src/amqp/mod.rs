//! The hub's AMQP 1.0 surface: what service SDKs send C2D messages with, and read feedback and events from.
//!
//! In layers: `value`, `performative`, `frame` and `message` are bytes; `connection` and `endpoint` are the service's side of
//! AMQP as a state machine without IO; `desk` puts IoT Hub's nodes behind it; `service` is tokio around it all.

mod access;
mod address;
mod connection;
mod desk;
mod devicebound;
mod endpoint;
mod event_message;
mod frame;
mod link;
mod management;
mod message;
mod performative;
mod readers;
mod sasl;
mod selector;
mod service;
mod session;
mod source;
mod value;
mod websocket;

#[cfg(test)]
mod desk_tests;
#[cfg(fuzzing)]
mod fuzz;

pub(crate) use desk::Shared;
#[cfg(fuzzing)]
pub use fuzz::amqp as fuzz_amqp;
pub(crate) use readers::Readers;
pub(crate) use service::AmqpService;
