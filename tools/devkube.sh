#!/usr/bin/env bash
# Builds the Kubernetes cluster that the agent's tests run against (tests/devkube), once for each version of its sources,
# and prints the binary's path:
#
#   FLEETWAVE_DEVKUBE=$(tools/devkube.sh) cargo test -p fleetwave-agent kubernetes
#
# The binary goes to ${FLEETWAVE_KUBE_CACHE:-~/.cache/fleetwave-kube}. It takes Go 1.26 and the Go module proxy. The first
# build compiles Kubernetes: six to twelve minutes on two cores, 2.5 GB of memory, 2.8 GB of Go's build cache. With that
# cache a change of our own files is built in 20 s.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
sources=$here/tests/devkube
cache=${FLEETWAVE_KUBE_CACHE:-$HOME/.cache/fleetwave-kube}

# The API server says its version, and clients look at it.
version=$(sed -n 's|^\tk8s.io/kubernetes \(v[0-9.]*\)$|\1|p' "$sources/go.mod")
IFS=. read -r major minor _ <<<"${version#v}"

sum=$(cat "$sources"/go.mod "$sources"/go.sum "$sources"/*.go "$0" | sha256sum | cut -c1-16)
binary=$cache/devkube-$sum
if [ ! -x "$binary" ]; then
    command -v go >/dev/null || {
        echo 'tools/devkube.sh: there is no Go: install version 1.26 or newer' >&2
        exit 1
    }
    mkdir -p "$cache"
    at=k8s.io/component-base/version
    (
        cd "$sources"
        CGO_ENABLED=0 nice -n 10 go build -p 2 -trimpath -mod=readonly -o "$binary.new" -ldflags \
            "-s -w -X $at.gitVersion=$version -X $at.gitMajor=$major -X $at.gitMinor=$minor" . >&2
    )
    mv "$binary.new" "$binary"
    # Older ones are of no use any more.
    find "$cache" -maxdepth 1 -name 'devkube-*' ! -name "devkube-$sum" -mmin +60 -delete
fi
echo "$binary"
