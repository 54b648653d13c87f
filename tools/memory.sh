# shellcheck shell=bash
# The memory of processes, for scripts that measure it: source it.

# tree PID: the process and all that it has started.
tree() {
    local pid
    printf '%s\n' "$1"
    for pid in $(cat "/proc/$1/task/"*/children 2>/dev/null); do tree "$pid"; done
}

# pss PID: the proportional set size of the tree, in kB; nothing if it is gone.
pss() {
    local pid sum=0 kb
    for pid in $(tree "$1"); do
        kb=$(awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup" 2>/dev/null) || continue
        sum=$((sum + ${kb:-0}))
    done
    ((sum > 0)) && printf '%s\n' "$sum"
}

# own PID: what the process has for itself alone, in kB; nothing if it is gone.
own() { awk '/^RssAnon/ { print $2 }' "/proc/$1/status" 2>/dev/null; }

# samples SECONDS MEASURE PID: what `pss` or `own` says of the process, once in so many seconds, for as long as it runs.
samples() {
    local kb
    while kb=$("$2" "$3") && [[ -n $kb ]]; do
        printf '%s\n' "$kb"
        sleep "$1"
    done
}

# median, most: of the numbers in a file.
median() { sort -n "$1" | awk '{ a[NR] = $1 } END { print (NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2) }'; }
most() { sort -n "$1" | tail -n 1; }
