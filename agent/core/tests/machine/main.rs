//! The agent in a small world of its own: what goes well, and everything that may go wrong.

mod changes;
mod codes;
mod costs;
mod coverage;
mod cuts;
mod download;
mod happy;
mod hub;
mod link;
mod luck;
mod page;
mod random;
mod waits;
mod world;

#[test]
fn a_device_fits_in_176_bytes() {
    assert!(size_of::<fleetwave_agent_core::Agent>() <= 176, "{}", size_of::<fleetwave_agent_core::Agent>());
}
