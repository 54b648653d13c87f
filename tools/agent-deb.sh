#!/usr/bin/env bash
# Builds the agent's Debian package and prints its path:
#
#     tools/agent-deb.sh [aarch64|armv7|x86_64]
#
# It takes what tools/agent-cross.sh takes, and cargo-deb, which it installs if it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

architecture=${1-x86_64}
readonly CARGO_DEB=3.8.0

binary=$(tools/agent-cross.sh "$architecture")
if ! cargo deb --version >/dev/null 2>&1; then
    printf 'installing cargo-deb %s\n' "$CARGO_DEB" >&2
    # Not among what is built here: its flags and locks are its own.
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    CARGO_TARGET_DIR=$scratch cargo install --quiet --locked cargo-deb --version "$CARGO_DEB" >&2
fi

# …/agent/TARGET/device/fleetwave-agent
target=$(basename "$(dirname "$(dirname "$binary")")")
packages=$(dirname "$binary")
# Not `--locked`: cargo-deb would look for more than is built.
CARGO_TARGET_DIR=$(dirname "$(dirname "$packages")") cargo deb --no-build --no-strip --package fleetwave-agent \
    --profile device --target "$target" --output "$packages/"
