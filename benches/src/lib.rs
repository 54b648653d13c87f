//! Benches of the hot paths, and of whole runs: the targets in `benches/`, and the programs in `src/bin/`.
