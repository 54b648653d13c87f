//! Benches of the hot paths, and of whole runs: nothing but the targets in `benches/`.
