//! The hub's HTTPS surface, by plain HTTP on loopback.

mod rest {
    mod client;
    mod jobs;
    mod provisioning;
    mod statistics;
}
