#!/usr/bin/env bash
# Feeds everything that reads bytes from outside with inputs that a fuzzer makes.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]   runs each target of fuzz/ that long, a minute by default
#
# It takes a nightly compiler (`rustup toolchain install nightly --profile minimal`) and cargo-fuzz (`cargo install
# cargo-fuzz`). FUZZ_TOOLCHAIN names another toolchain, FUZZ_SANITIZER another sanitizer than none: the code is safe
# Rust, and finds more in the same time without. What is found stands in fuzz/artifacts, what leads further in
# fuzz/corpus.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../fuzz"

readonly TARGETS=(query rest_json sas topic mqtt_packet amqp)
readonly TOOLCHAIN=${FUZZ_TOOLCHAIN-nightly}
readonly SANITIZER=${FUZZ_SANITIZER-none}
seconds=${1-60}
if [[ ! $seconds =~ ^[1-9][0-9]*$ ]]; then
    printf 'usage: %s [SECONDS [TARGET...]]\n' "$0" >&2
    exit 2
fi
shift || true
if (($#)); then targets=("$@"); else targets=("${TARGETS[@]}"); fi

failed=0
for target in "${targets[@]}"; do
    options=(--sanitizer "$SANITIZER")
    if [[ $target == mqtt_packet || $target == amqp ]]; then options+=(--features runtime); fi
    mkdir -p "corpus/$target" "seeds/$target"
    arguments=("-max_total_time=$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1)
    if [[ -e dictionaries/$target.txt ]]; then arguments+=("-dict=dictionaries/$target.txt"); fi
    printf '%s, %s s\n' "$target" "$seconds"
    if log=$(RUSTUP_TOOLCHAIN=$TOOLCHAIN cargo fuzz run "${options[@]}" "$target" "corpus/$target" "seeds/$target" \
        -- "${arguments[@]}" 2>&1); then
        grep -E '^stat::number_of_executed_units|^#[0-9]+.*DONE' <<<"$log" || true
    else
        printf '%s\n' "$log" | tail -n 60
        failed=1
    fi
done
exit "$failed"
