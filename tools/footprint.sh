#!/usr/bin/env bash
# The memory of the agent at rest and in an update, beside that of other update agents in the same run.
#
#   tools/footprint.sh [--settle SECONDS] [--measure SECONDS] AGENT FLEETWAVE
#
# AGENT and FLEETWAVE are the two binaries. What is measured is the proportional set size (PSS) of a process and its
# children: median of samples every ten seconds, over ten minutes, after five minutes of running, unless told
# otherwise; in an update the largest of samples every fifth of a second. Debian's rauc, swupdate and mender-client
# are measured if they are installed: as idle daemons with the least configuration that they start with.
set -euo pipefail
source "$(dirname "$0")/memory.sh"

settle=300 measure=600
while [[ ${1-} == --* ]]; do
    case $1 in
    --settle) settle=$2 ;;
    --measure) measure=$2 ;;
    *)
        printf 'unknown option: %s\n' "$1" >&2
        exit 2
        ;;
    esac
    shift 2
done
agent=${1:?the agent binary} fleetwave=${2:?the fleetwave binary}

work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill -- "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

declare -A daemons=()
# run NAME COMMAND...: starts a daemon that is measured at rest.
run() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    pids+=($!)
    sleep 3
    if kill -0 $! 2>/dev/null; then
        daemons[$name]=$!
    else
        printf '%s did not stay up: %s\n' "$name" "$(tail -n 1 "$work/$name.log")" >&2
    fi
}

# --- The agent, at a hub that offers a release ------------------------------------------------------------------------

mkdir "$work/releases" "$work/state"
key=$("$fleetwave" release key "$work/release.pem")
head -c 268435456 /dev/urandom >"$work/payload"
release=$("$fleetwave" release create "$work/payload" --id fw-2 --seq 2 --key "k1=$work/release.pem" --out "$work/releases")
rm "$work/payload"
"$fleetwave" hub --mqtt-port 0 --https-port 0 --amqps-port 0 --admin-port 0 --releases-port 0 \
    --releases "$work/releases" --data "$work/hub" --json >"$work/ready" 2>"$work/hub.log" &
pids+=($!)
until [[ -s $work/ready ]]; do sleep 0.1; done
device=$("$fleetwave" hub device add footprint --data "$work/hub")
port=$(sed -E 's/.*"mqtt_port":([0-9]+).*/\1/' "$work/ready")
cat >"$work/agent.toml" <<END
state = "$work/state"
[hub]
connection_string = "${device/localhost/localhost:$port}"
ca = "$work/hub/certs/ca.pem"
[download]
ca = "$work/hub/certs/ca.pem"
[trust]
threshold = 1
keys = { k1 = "$key" }
[firmware]
installer = "directory"
installed = { id = "fw-1", seq = 1 }
[limits]
splay_seconds = 0
END
chmod 600 "$work/agent.toml"
run fleetwave-agent "$agent" run --config "$work/agent.toml"

# --- Others -------------------------------------------------------------------------------------------------------------

if command -v rauc >/dev/null; then
    cat >"$work/bus.conf" <<END
<busconfig><type>system</type><listen>unix:path=$work/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*"/><allow eavesdrop="true"/></policy></busconfig>
END
    dbus-daemon --config-file="$work/bus.conf" --nofork >"$work/dbus.log" 2>&1 &
    pids+=($!)
    truncate -s 1M "$work/a" "$work/b"
    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=rauc -keyout "$work/rauc.key" -out "$work/rauc.pem" 2>/dev/null
    cat >"$work/rauc.conf" <<END
[system]
compatible=footprint
bootloader=noop
[keyring]
path=$work/rauc.pem
[slot.rootfs.0]
device=$work/a
bootname=a
[slot.rootfs.1]
device=$work/b
bootname=b
END
    sleep 1
    run rauc env DBUS_SYSTEM_BUS_ADDRESS="unix:path=$work/bus" DBUS_STARTER_BUS_TYPE=system \
        rauc --conf="$work/rauc.conf" --override-boot-slot=a service
fi
if command -v swupdate >/dev/null; then
    mkdir "$work/www"
    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=swupdate -keyout "$work/swu.key" -out "$work/swu.pem" 2>/dev/null
    run swupdate env TMPDIR="$work" swupdate -k "$work/swu.pem" -w "-r $work/www -p 18081"
fi
if command -v mender >/dev/null; then
    mkdir -p "$work/mender/data"
    printf 'device_type=footprint\n' >"$work/mender/data/device_type"
    printf '{"ServerURL": "https://127.0.0.1:9", "UpdatePollIntervalSeconds": 1800, "RetryPollIntervalSeconds": 300}\n' \
        >"$work/mender/mender.conf"
    run mender mender --config "$work/mender/mender.conf" --data "$work/mender/data" --no-syslog daemon
fi

# --- At rest ----------------------------------------------------------------------------------------------------------

printf 'at rest: %d s to settle, then %d s of samples\n' "$settle" "$measure" >&2
sleep "$settle"
samplers=()
for name in "${!daemons[@]}"; do
    samples 10 pss "${daemons[$name]}" >"$work/$name.pss" &
    samplers+=($!)
done
sleep "$measure"
kill "${samplers[@]}" 2>/dev/null || true
wait "${samplers[@]}" 2>/dev/null || true

printf '%-18s %10s %8s\n' 'at rest' 'PSS, kB' samples
for name in "${!daemons[@]}"; do
    printf '%-18s %10s %8d\n' "$name" "$(median "$work/$name.pss")" "$(wc -l <"$work/$name.pss")"
done | sort -k 2 -n

# --- In an update -----------------------------------------------------------------------------------------------------

"$fleetwave" hub configure footprint --release "$release" --condition '*' --data "$work/hub" >/dev/null
samples 0.2 pss "${daemons[fleetwave-agent]}" >"$work/update.pss" &
pids+=($!)
try=0
until "$fleetwave" hub twin footprint --data "$work/hub" | grep -q '"state": "idle"' &&
    "$fleetwave" hub twin footprint --data "$work/hub" | grep -A 3 '"running"' | grep -q fw-2; do
    sleep 1
    try=$((try + 1))
    if ((try > 180)); then
        printf 'the update did not end\n' >&2
        tail "$work/fleetwave-agent.log" >&2
        exit 1
    fi
done
printf '%-18s %10s\n' 'in an update of 256 MiB, most' "$(most "$work/update.pss")"
printf '%-18s %10s\n' 'high-water mark of RSS' "$(awk '/^VmHWM/ { print $2 }' "/proc/${daemons[fleetwave-agent]}/status")"
