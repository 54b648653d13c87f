#!/usr/bin/env bash
# Runs the commands that the documentation shows, so that they are true.
#
#   tools/doc-commands.sh [--list] [--except COMMAND] [--live-args ARGS] FILE.md...
#
# Every block that is marked `sh` is run from the top of the repository, as one script that ends at its first error:
#
#   ```sh                   must exit with 0
#   ```sh exits 99          must exit with 99
#   ```sh ignore: REASON    is listed as skipped, with the reason
#
# --list        shows what would be run, and runs nothing
# --except      leaves out the block that is just this command, because the caller runs it anyway
# --live-args   arguments that every `--engine live` gets on top
#
# `fleetwave` has to be in PATH.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

list=0 except='' live_args=''
while [[ ${1-} == --* ]]; do
    case $1 in
    --list) list=1 ;;
    --except) except=${2:?} && shift ;;
    --live-args) live_args=${2:?} && shift ;;
    *)
        printf 'unknown option %s\n' "$1" >&2
        exit 2
        ;;
    esac
    shift
done
if (($# == 0)); then
    printf 'usage: %s [--list] [--except COMMAND] [--live-args ARGS] FILE.md...\n' "$0" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One file a block: its place, how it is marked, its text.
awk -v work="$work" '
    /^ *```/ {
        if (open) { if (file) close(file); open = 0; file = ""; next }
        open = 1
        mark = $0
        sub(/^ *```/, "", mark)
        if (mark ~ /^(bash|shell|console|zsh)/) {
            printf "%s:%d: mark it `sh`, so that it is run\n", FILENAME, FNR > "/dev/stderr"
            wrong = 1
        }
        if (mark !~ /^sh( |$)/) next
        file = sprintf("%s/%04d", work, ++count)
        printf "%s:%d\n%s\n", FILENAME, FNR, substr(mark, 4) > file
        next
    }
    file { print > file }
    END { exit wrong }' "$@"

passed=0 failed=0 skipped=0
for block in "$work"/[0-9]*; do
    [[ -e $block ]] || break
    place=$(sed -n 1p "$block")
    mark=$(sed -n 2p "$block")
    script=$(sed 1,2d "$block")
    if [[ -n $live_args ]]; then
        script=${script//--engine live/--engine live $live_args}
    fi
    want=0
    case $mark in
    '') ;;
    'ignore: '?*)
        printf 'skipped  %s (%s)\n' "$place" "${mark#ignore: }"
        skipped=$((skipped + 1))
        continue
        ;;
    'exits '[0-9]*) want=${mark#exits } ;;
    *)
        printf '%s: expected "exits N" or "ignore: REASON" behind "sh", found "%s"\n' "$place" "$mark" >&2
        exit 2
        ;;
    esac
    if [[ -n $except && $script == "$except" ]]; then
        printf 'skipped  %s (run by the caller: %s)\n' "$place" "$except"
        skipped=$((skipped + 1))
        continue
    fi
    printf 'run      %s\n             %s\n' "$place" "${script//$'\n'/$'\n             '}"
    if ((list)); then continue; fi
    started=$SECONDS got=0
    timeout 900 bash -euo pipefail -c "$script" >"$work/output" 2>&1 </dev/null || got=$?
    if ((got == want)); then
        printf 'ok       %s, %d s\n' "$place" $((SECONDS - started))
        passed=$((passed + 1))
    else
        printf 'FAILED   %s: exit code %d, not %d. The end of what it printed:\n' "$place" "$got" "$want"
        tail -n 40 "$work/output" | sed 's/^/             /'
        failed=$((failed + 1))
    fi
done

if ((list)); then exit; fi
printf '%d commands of the documentation ran as it says, %d did not, %d were skipped\n' "$passed" "$failed" "$skipped"
((failed == 0 && passed > 0))
