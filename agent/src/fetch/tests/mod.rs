//! Downloads from servers: nginx, tinyproxy, and a small one that says whatever a test wants.

mod bill;
#[cfg(feature = "delta")]
mod delta;
mod disk;
mod kit;
mod race;
mod real;
mod said;
