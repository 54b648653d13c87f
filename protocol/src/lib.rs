//! What a device and a hub have to agree on, and nothing else.
//!
//! This crate holds the vocabulary that both sans-IO cores and all their drivers share: time that is
//! passed in, randomness that is counted, the messages between a device and a hub, and the *profiles*
//! that bind those messages to MQTT topics. It has no socket, clock, file, thread or random source.

pub mod bag;
pub mod message;
pub mod profile;
pub mod rng;
pub mod sas;
pub mod time;

pub use message::{Down, Up};
pub use profile::{Packet, Profile, QoS};
pub use rng::CounterRng;
pub use time::{Instant, Now, WallTime};
