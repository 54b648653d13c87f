//! Reading a scenario file: TOML with overrides in, a checked scenario or a list of everything that is wrong out.

mod decode;
mod diagnostic;
mod keys;
mod load;
mod path;
mod sets;
mod source;

pub use diagnostic::{Diagnostic, Diagnostics};
pub use load::{Loaded, load, load_text};

pub(super) use path::Path;
pub(super) use source::Source;
