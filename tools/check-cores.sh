#!/usr/bin/env bash
# Holds the cores to what they are: state machines without a runtime, clock, thread, file, socket or random source.
#
#   tools/check-cores.sh               checks protocol/, agent/core/ and broker/core/
#   tools/check-cores.sh --self-test   plants what must not be there, in a copy, and fails unless each is found
#
# Two checks, both by lists of what is allowed, so that what nobody thought of is found too: the crates that a core is
# built from, and the parts of the standard library that its source names. Comments and `tests/` are not looked at.
# shellcheck disable=SC2016 # `$0` is awk's
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

readonly CORES=(protocol agent/core broker/core)
readonly PACKAGES=(fleetwave-protocol fleetwave-agent-core fleetwave-hub-core)

# Arithmetic, text and tables. None of these waits, reads a clock, or draws a random number.
readonly ALLOWED_CRATES=(
    fleetwave-protocol fleetwave-agent-core fleetwave-hub-core
    # Errors, and the macros that they and serde are made with.
    thiserror thiserror-impl proc-macro2 quote syn unicode-ident curve25519-dalek-derive serde_derive
    # JSON, base64, and the parser of queries.
    serde serde_core serde_json itoa memchr zmij base64 winnow
    # Hash tables. `foldhash` is hashbrown's own, with seeds that vary: its maps are refused below, by name.
    hashbrown foldhash allocator-api2 equivalent rustc-hash
    # Digests and signatures: verifying needs no randomness. `cpufeatures` asks the processor what it can do.
    sha2 hmac digest block-buffer crypto-common hybrid-array typenum cfg-if cpufeatures cmov ctutils subtle
    ed25519 ed25519-dalek curve25519-dalek signature
)

# What may follow `std::`.
readonly ALLOWED_STD='borrow|cmp|collections::(BTreeMap|BTreeSet|BinaryHeap|VecDeque|btree_map)|error|fmt|hash|io::Write|iter|mem|num|ops|ptr|slice|str|string|sync::Arc|vec'

# Reads "name version ..." lines as `cargo tree` prints them; prints the names that are not allowed.
unexpected_crates() {
    awk -v allowed="${ALLOWED_CRATES[*]}" '
        BEGIN { count = split(allowed, names, " "); for (i = 1; i <= count; i++) known[names[i]] = 1 }
        NF && !($1 in known) && !seen[$1]++ { print $1, $2 }'
}

# Prints "file:line: text" of everything in the sources below the given folders that is not allowed.
unexpected_source() {
    find "$@" -name '*.rs' -print0 | sort -z | xargs -0 awk -v std="^($ALLOWED_STD)([^A-Za-z0-9_]|\$)" '
        function report() { printf "%s:%d: %s\n", FILENAME, FNR, $0 }
        { code = $0; sub(/^[ \t]*\/\/.*/, "", code); sub(/[ \t]\/\/ .*/, "", code) }
        # Printing, other crates that were not declared, state that outlives a call.
        code ~ /(^|[^A-Za-z0-9_])(println|eprintln|print|eprint|dbg|thread_local)!/ { report(); next }
        code ~ /(^|[^A-Za-z0-9_])(rand|getrandom|tokio|mio|chrono|libc)::/ { report(); next }
        code ~ /(^|[^A-Za-z0-9_])(static mut |extern crate |extern "C")/ { report(); next }
        # Names that give a clock away however they were imported; and tables whose order differs from run to run,
        # of which `FxHashMap` is none.
        code ~ /(^|[^A-Za-z0-9_])(SystemTime|Instant::now|RandomState|HashMap|HashSet)([^A-Za-z0-9_]|$)/ { report(); next }
        {
            rest = code
            while (match(rest, /(^|[^A-Za-z0-9_])std::/)) {
                rest = substr(rest, RSTART + RLENGTH)
                if (rest !~ std) { report(); break }
            }
        }'
}

check() {
    local found bad=0 index
    for index in "${!CORES[@]}"; do
        found=$(cargo tree --edges normal --prefix none --package "${PACKAGES[index]}" | unexpected_crates)
        if [[ -n $found ]]; then
            printf '%s is built from crates that a core may not depend on:\n%s\n' "${PACKAGES[index]}" "$found" >&2
            bad=1
        fi
    done
    found=$(unexpected_source "${CORES[@]/%//src}")
    if [[ -n $found ]]; then
        printf 'a core names what only a driver may use:\n%s\n' "$found" >&2
        bad=1
    fi
    if ((bad)); then
        printf 'If it decides and does not wait, read a clock, draw a number or touch a file, allow it in %s.\n' "$0" >&2
        return 1
    fi
    printf 'the cores are built from %d allowed crates, and name nothing else of the system\n' "${#ALLOWED_CRATES[@]}"
}

self_test() {
    local copy planted line missed=0
    copy=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder's name as it is now
    trap "rm -rf '$copy'" EXIT
    cp -r agent/core/src "$copy/src"
    planted="$copy/src/planted.rs"
    local -a forbidden=(
        'use std::time::Instant;'
        'let now = std::time::SystemTime::now();'
        'let at = Instant::now();'
        'std::thread::sleep(pause);'
        'use std::{fs, sync::Arc};'
        'let text = std::fs::read_to_string(path)?;'
        'use std::net::TcpStream;'
        'let home = std::env::var("HOME");'
        'std::process::exit(1);'
        'use std::io::stdin;'
        'use std::collections::HashMap;'
        'use hashbrown::HashMap;'
        'use std::sync::Mutex;'
        'let n: u32 = rand::random();'
        'println!("{n}");'
        'fine(std::mem::take(&mut a), std::env::args());'
        'let x = 1; eprintln!("{x}"); // a remark'
    )
    local -a harmless=(
        '// std::time::Instant is for drivers'
        '    /// See `std::fs`.'
        'use core::time::Duration;'
        'let taken = std::mem::take(&mut text);'
        'let table: FxHashMap<u32, u32> = FxHashMap::default();'
    )
    for line in "${forbidden[@]}"; do
        printf '%s\n' "$line" >"$planted"
        if [[ -z $(unexpected_source "$copy/src") ]]; then
            printf 'not found: %s\n' "$line" >&2
            missed=1
        fi
    done
    for line in "${harmless[@]}"; do
        printf '%s\n' "$line" >"$planted"
        if [[ -n $(unexpected_source "$copy/src") ]]; then
            printf 'found although it is allowed: %s\n' "$line" >&2
            missed=1
        fi
    done
    for line in 'tokio v1.45.0' 'mio v1.0.4' 'rand v0.9.1' 'getrandom v0.3.3' 'time v0.3.41' 'socket2 v0.6.0'; do
        if [[ $(printf 'serde v1.0.0\n%s (*)\n' "$line" | unexpected_crates) != "$line" ]]; then
            printf 'not found: %s\n' "$line" >&2
            missed=1
        fi
    done
    if ((missed)); then return 1; fi
    printf 'everything that was planted was found\n'
}

case ${1-} in
'') check ;;
--self-test) self_test ;;
*)
    printf 'usage: %s [--self-test]\n' "$0" >&2
    exit 2
    ;;
esac
