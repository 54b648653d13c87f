#!/usr/bin/env bash
# What deltas of real images cost: a row of Debian images, each made of the one before by package upgrades and
# installations, and each fetched by a real agent that runs the one before.
#
#   tools/delta-figures.sh AGENT FLEETWAVE WORK
#
# AGENT and FLEETWAVE are the two binaries, WORK a directory: images that are there already are used again. It takes root,
# debootstrap, mkfs.ext4 and zstd, a Debian mirror, 3 GB, and some 10 minutes of a processor for the compression.
#
# Prints a table: the image's content compressed as a whole by `zstd -19`; the archive; and what the device received and sent
# for the update by its own ledger, TLS and headers included, with its share of the compressed image; the most memory of its own
# (RssAnon) that the agent had in 20 samples a second.
set -euo pipefail
source "$(dirname "$0")/memory.sh"

agent=$(realpath "${1:?the agent binary}") fleetwave=$(realpath "${2:?the fleetwave binary}")
mkdir -p "${3:?a directory to work in}"
work=$(realpath "$3")
mirror=${MIRROR:-http://deb.debian.org/debian} security=${SECURITY:-http://deb.debian.org/debian-security}
export SOURCE_DATE_EPOCH=1750000000 E2FSPROGS_FAKE_TIME=1750000000 DEBIAN_FRONTEND=noninteractive LC_ALL=C
images=(1-bookworm 2-upgraded 3-python 4-configured 5-compiler)

root=$work/root
inside() { chroot "$root" "$@" >>"$work/log" 2>&1; }

# Makes the root of an image of the one before.
1-bookworm() {
    [[ -e $root/etc/debian_version ]] || debootstrap --variant=minbase bookworm "$root" "$mirror" >>"$work/log"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale info >"$root/etc/dpkg/dpkg.cfg.d/small"
    rm -rf "$root"/usr/share/{doc,man,locale,info}/*
    echo pi-image >"$root/etc/hostname"
}
2-upgraded() {
    printf 'deb %s %s main\n' "$mirror" bookworm "$mirror" bookworm-updates "$security" bookworm-security >"$root/etc/apt/sources.list"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    inside apt-get update
    inside apt-get -y full-upgrade
}
3-python() { inside apt-get update && inside apt-get -y --no-install-recommends install python3 ca-certificates curl; }
4-configured() {
    echo 'release 4' >"$root/etc/motd"
    sed -i 's/^#*DefaultTimeoutStopSec.*//' "$root/etc/login.defs"
    printf '%s\n' 'net.ipv4.tcp_keepalive_time = 300' >"$root/etc/sysctl.conf"
}
5-compiler() { inside apt-get update && inside apt-get -y --no-install-recommends install gcc libc6-dev make; }

image() {
    # What differs from build to build and from device to device is no part of a release.
    inside apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/var/cache/{apt,debconf,ldconfig}/* "$root"/tmp/*
    find "$root" -xdev -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    mkfs.ext4 -q -F -b 4096 -m 0 -O ^has_journal -U 6c1f4a8e-7a3b-4d0e-8f52-1b9c6d2e4f70 \
        -E hash_seed=6c1f4a8e-7a3b-4d0e-8f52-1b9c6d2e4f71,root_owner=0:0 -d "$root" "$1" 512M >>"$work/log"
}

for name in "${images[@]}"; do
    [[ -e $work/$name.ext4 ]] && continue
    "$name"
    image "$work/$name.part"
    mv "$work/$name.part" "$work/$name.ext4"
done
for name in "${images[@]}"; do
    [[ -e $work/$name.zst ]] || { zstd -q -19 -T0 "$work/$name.ext4" -o "$work/$name.part" && mv "$work/$name.part" "$work/$name.zst"; }
done

cd "$work"
[[ -e release.pem ]] || "$fleetwave" release key release.pem >release.pub
for seq in "${!images[@]}"; do
    [[ -d releases/fw-$((seq + 1))-$((seq + 1)) ]] ||
        "$fleetwave" release create "${images[seq]}.ext4" --id "fw-$((seq + 1))" --seq "$((seq + 1))" --delta --key k1=release.pem --out releases >/dev/null
done
rm -rf hub
"$fleetwave" hub --mqtt-port 0 --https-port 0 --amqps-port 0 --admin-port 0 --releases-port 0 --releases releases --data hub >table 2>hub.log &
hub=$!
trap 'kill $hub; wait $hub 2>/dev/null || true' EXIT
until [[ -e hub/running.json ]]; do
    kill -0 $hub 2>/dev/null || { cat hub.log >&2; exit 1; }
    sleep 0.2
done
port=$(sed -n 's/^ *MQTT *127.0.0.1:\([0-9]*\),.*/\1/p' table)

# update NAME SEED SEQ: a device whose slot holds SEED (nothing if it is empty) takes the release SEQ.
update() {
    local name=$1 seed=$2 seq=$3 dir=$work/device connection begun pid peak seconds
    rm -rf "$dir" && mkdir -p "$dir/state/firmware/slot-a"
    [[ -z $seed ]] || ln "$work/$seed.ext4" "$dir/state/firmware/slot-a/image"
    connection=$("$fleetwave" hub device add "$name" --tags "{\"seq\": $seq, \"name\": \"$name\"}" --data hub)
    cat >"$dir/config.toml" <<END
state = "$dir/state"
[hub]
connection_string = "$connection"
port = $port
ca = "$work/hub/certs/ca.pem"
[download]
ca = "$work/hub/certs/ca.pem"
[trust]
threshold = 1
keys = { k1 = "$(<release.pub)" }
[firmware]
installer = "directory"
installed = { id = "fw-0", seq = 0 }
[limits]
splay_seconds = 0
END
    chmod 600 "$dir/config.toml"
    "$fleetwave" hub configure "rollout-$name" --release "releases/fw-$seq-$seq" --condition "tags.name = '$name'" --data hub >/dev/null
    begun=$EPOCHREALTIME
    "$agent" run --config "$dir/config.toml" --once >/dev/null 2>"$dir/log" &
    pid=$!
    samples 0.05 own $pid >"$dir/memory"
    wait $pid
    peak=$(most "$dir/memory")
    seconds=$(awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.0f", b - a }')
    cmp -s "$dir/state/firmware/slot-b/image" "$work/${images[seq - 1]}.ext4" || { echo "$name: not the image"; exit 1; }
    "$agent" status --json --config "$dir/config.toml" >"$dir/status.json"
    local bytes requests method full archive
    bytes=$(sed -n 's/.*"total":{"bytes":\([0-9]*\).*/\1/p' "$dir/status.json")
    requests=$(sed -n 's/.*"total":{"bytes":[0-9]*,"requests":\([0-9]*\).*/\1/p' "$dir/status.json")
    full=$(stat -c %s "$work/${images[seq - 1]}.zst") archive=$(stat -c %s "releases/fw-$seq-$seq/archive")
    method=$(grep -o 'planned.*method=[^ ]*' "$dir/log" | tail -1 | sed 's/.*method=//; s/"//g')
    awk -v n="$seed -> ${images[seq - 1]}" -v f="$full" -v a="$archive" -v b="$bytes" -v r="$requests" -v m="$method" -v p="$peak" -v s="$seconds" \
        'BEGIN { printf "| %s | %.1f MB | %.1f MB | %.2f MB | %d | %.1f %% | %s | %.1f MB | %s s |\n", n, f/1e6, a/1e6, b/1e6, r, 100*b/f, m, p/1024, s }'
}

echo '| from, to | zstd -19 | archive | fetched | requests | of zstd -19 | method | memory | wall |'
echo '|---|---|---|---|---|---|---|---|---|'
update none '' 1
for seq in $(seq 2 ${#images[@]}); do
    update "to-$seq" "${images[seq - 2]}" "$seq"
done
update jump "${images[0]}" "${#images[@]}"
update back "${images[-1]}" 1
