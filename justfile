# The daily commands. `just` lists them.

_default:
    @just --list --unsorted

# Run a scenario: `just run quickstart --devices 100k`
run *ARGS:
    cargo run --release -p fleetwave -- run {{ARGS}}

# Everything that tests; `just test -p fleetwave-hub` for one crate
test *ARGS='--workspace':
    cargo test {{ARGS}}

# What a reviewer would say first: format, lints, docs, the cores' rule
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
    tools/check-cores.sh

# Format everything
fmt:
    cargo fmt --all

# Look at snapshots that changed, and take those that are right
review:
    cargo insta test --workspace --review

# Benches of the hot paths; `just bench agent` for one of them
bench *ARGS:
    cargo bench -p fleetwave-benches {{ if ARGS == "" { "" } else { "--bench " + ARGS } }}

# Fuzz what reads bytes from outside: `just fuzz 600 query`
fuzz *ARGS:
    tools/fuzz.sh {{ARGS}}

# All that CI checks; `just ci 'live'` for the steps that match
ci *PATTERN:
    bash .ci/run {{PATTERN}}
