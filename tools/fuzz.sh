#!/usr/bin/env bash
# Feeds everything that reads bytes from outside with inputs that a fuzzer makes.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]   runs each target of fuzz/ that long, a minute by default, two at a time
#
# It takes nothing but Rust and a C++ compiler: libFuzzer comes with a crate, and the compiler's coverage counters are
# switched on by flags of the stable toolchain. (The folder is laid out for cargo-fuzz, which works on it, too.) What is
# found stands in fuzz/artifacts, what leads further in fuzz/corpus.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../fuzz"

readonly TARGETS=(query rest_json sas topic mqtt_packet amqp archive_header)
readonly AT_ONCE=2
seconds=${1-60}
if [[ ! $seconds =~ ^[1-9][0-9]*$ ]]; then
    printf 'usage: %s [SECONDS [TARGET...]]\n' "$0" >&2
    exit 2
fi
shift || true
if (($#)); then targets=("$@"); else targets=("${TARGETS[@]}"); fi

host=$(rustc -vV | sed -n 's/^host: //p')
# A folder of its own: the flags differ from all other builds'.
build=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
flags=(
    --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks
)
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
# With `--target`, the flags are not for build scripts.
RUSTFLAGS=${flags[*]} CARGO_TARGET_DIR=$build cargo build --release --locked --features runtime --target "$host" \
    "${bins[@]}"

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# fuzz TARGET: says in the log how it went.
fuzz() {
    local target=$1
    local -a arguments=(
        "-max_total_time=$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1
        "-artifact_prefix=artifacts/$target/"
    )
    mkdir -p "corpus/$target" "seeds/$target" "artifacts/$target"
    if [[ -e dictionaries/$target.txt ]]; then arguments+=("-dict=dictionaries/$target.txt"); fi
    "$build/$host/release/$target" "${arguments[@]}" "corpus/$target" "seeds/$target" >"$logs/$target" 2>&1
}

failed=0
for ((first = 0; first < ${#targets[@]}; first += AT_ONCE)); do
    pids=()
    for target in "${targets[@]:first:AT_ONCE}"; do
        fuzz "$target" &
        pids+=("$!:$target")
    done
    for running in "${pids[@]}"; do
        target=${running#*:}
        if wait "${running%%:*}"; then
            units=$(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$target")
            printf '%s: %s s, %s inputs\n' "$target" "$seconds" "$units"
        else
            printf '%s: FAILED. The end of what it said:\n' "$target"
            tail -n 60 "$logs/$target"
            failed=1
        fi
    done
done
exit "$failed"
