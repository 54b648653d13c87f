//! The hub's HTTPS surface, by plain HTTP on loopback.

#![allow(clippy::unwrap_used, reason = "what panics here fails a test")]

mod support;

mod rest {
    mod bulk;
    mod client;
    mod configurations;
    mod device;
    mod devices;
    mod digital_twins;
    mod files;
    mod isolation;
    mod jobs;
    mod messages;
    mod methods;
    mod modules;
    mod provisioning;
    mod query;
    mod statistics;
    mod twins;
}
