#!/usr/bin/env bash
# Builds `fleetwave-agent` as it is packaged, small and stripped, and prints the path of the binary:
#
#     tools/agent-cross.sh [aarch64|armv7|x86_64]
#
# The Rust part comes from rustup, the C part from Debian's cross compilers. The binary is linked to glibc, not static:
# PKCS#11 modules are shared libraries, and a static program can load none.
set -euo pipefail
cd "$(dirname "$0")/.."

architecture=${1-aarch64}
case $architecture in
aarch64) target=aarch64-unknown-linux-gnu compiler=aarch64-linux-gnu-gcc packages='gcc-aarch64-linux-gnu libc6-dev-arm64-cross' ;;
armv7) target=armv7-unknown-linux-gnueabihf compiler=arm-linux-gnueabihf-gcc packages='gcc-arm-linux-gnueabihf libc6-dev-armhf-cross' ;;
x86_64) target=x86_64-unknown-linux-gnu compiler=gcc packages='gcc libc6-dev' ;;
*)
    printf '%s: %s is not known: aarch64, armv7 and x86_64 are\n' "$0" "$architecture" >&2
    exit 2
    ;;
esac

missing() {
    printf '%s: no %s. %s\n' "$0" "$1" "$2" >&2
    exit 1
}
command -v "$compiler" >/dev/null || missing "$compiler" "On Debian: apt-get install $packages"
command -v rustup >/dev/null || missing rustup 'It brings the standard library of other machines: https://rustup.rs'
if ! rustup target list --installed | grep -qx "$target"; then
    rustup target add "$target" >&2 || missing "standard library for $target" "\`rustup target add $target\` failed"
fi

# A place of its own: this build goes on for minutes, and others need not wait for its lock.
directory=${CARGO_TARGET_DIR:-$PWD/target}/agent
underscored=${target//-/_}
export "CARGO_TARGET_${underscored^^}_LINKER=$compiler" "CC_$underscored=$compiler"

# The linker that comes with Rust: it packs relocations for all three (Debian 12's does so for x86 alone; the loader of
# glibc knows them from 2.36 on), it can leave out the tables that nobody reads, and keep one
# of several functions that have the same code.
lld=$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/gcc-ld
[[ -x $lld/ld.lld ]] || missing ld.lld "It comes with Rust from rustup, in $lld"
small=(-Clink-arg="-B$lld" -Clink-arg=-fuse-ld=lld -Clink-arg=-Wl,-z,pack-relative-relocs
    -Clink-arg=-Wl,--icf=all -Clink-arg=-Wl,--no-eh-frame-hdr -Clink-arg="-Wl,-T,$PWD/tools/agent-small.ld")
CARGO_TARGET_DIR=$directory cargo rustc --profile device --locked --package fleetwave-agent --bin fleetwave-agent \
    --target "$target" -- "${small[@]}" >&2

printf '%s\n' "$directory/$target/device/fleetwave-agent"
