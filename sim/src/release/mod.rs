//! Releases as an operator handles them: keys, signed references, and directories in which they lie ready.
//!
//! A release is a directory of two files, `release.json` (the reference that goes into twins) and `payload`, or of three,
//! with the payload's chunked `archive`. A *shelf* is a directory of releases. The same directory on a USB stick is what `fleetwave-agent install` takes.

mod archive;
mod key;
mod shelf;

pub(crate) use key::{KeyError, SigningKeyFile, create as create_key};
pub(crate) use shelf::{Recipe, Shelf, ShelfError, endorse, read_reference, target_of};
