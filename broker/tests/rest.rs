//! The hub's HTTPS surface, by plain HTTP on loopback.

mod support;

mod rest {
    mod bulk;
    mod client;
    mod devices;
    mod jobs;
    mod methods;
    mod modules;
    mod provisioning;
    mod statistics;
    mod twins;
}
