//! x
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
