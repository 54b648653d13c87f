#!/usr/bin/env bash
# Runs the vendor's unmodified SDKs, and mosquitto's clients, against `fleetwave hub` as its own process.
#
#   tools/sdk-tests.sh [python|node|mosquitto|java|all] [arguments for pytest or node --test]
#   tools/sdk-tests.sh install      no more than what it needs of PyPI and npm; after that, both run without a network
#
# What it installs from PyPI, npm and Maven Central goes to ${FLEETWAVE_SDK_CACHE:-~/.cache/fleetwave-sdk}, in pinned
# versions. The device SDKs know no other ports than 8883 and 443, and 443 wants root (or CAP_NET_BIND_SERVICE, or
# `sysctl net.ipv4.ip_unprivileged_port_start=443`). Nothing leaves loopback.
#
#   FLEETWAVE            the binary (default: the newest in the target directory, then $PATH)
#   FLEETWAVE_AGENT      the agent, whose logs go to Azurite (default: the one beside that binary; skipped if there is none)
#   FLEETWAVE_KEEP=1     keep the run's folder: certificates, data, hub.log
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
suites=$here/tests/sdk
cache=${FLEETWAVE_SDK_CACHE:-$HOME/.cache/fleetwave-sdk}
which=${1:-all}
[ $# -gt 0 ] && shift
case $which in
python | node | mosquitto | java | all | install) ;;
*)
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac

say() { printf '\033[1m%s\033[0m\n' "$*"; }

# --- the binary
find_binary() {
    if [ -n "${FLEETWAVE:-}" ]; then
        echo "$FLEETWAVE"
        return
    fi
    local built
    built=$(ls -t "${CARGO_TARGET_DIR:-$here/target}"/{release,debug}/fleetwave 2>/dev/null | head -1 || true)
    [ -n "$built" ] && echo "$built" && return
    command -v fleetwave || {
        echo "no fleetwave binary: build one with \`cargo build -p fleetwave\`, or name it in FLEETWAVE" >&2
        exit 2
    }
}

# --- what the suites need, once
install_python() {
    local sum
    sum=$(sha256sum "$suites/python/requirements.txt" | cut -c1-16)
    venv=$cache/python-$sum
    if [ ! -f "$venv/complete" ]; then
        say "installing the Python SDKs into $venv"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$suites/python/requirements.txt"
        cp "$("$venv/bin/python" -m certifi)" "$venv/certifi.pem"
        touch "$venv/complete"
    fi
}

install_node() {
    local sum
    sum=$(sha256sum "$suites/node/package-lock.json" | cut -c1-16)
    modules=$cache/node-$sum
    if [ ! -f "$modules/complete" ]; then
        say "installing the Node SDKs into $modules"
        rm -rf "$modules"
        mkdir -p "$modules"
        cp "$suites/node/package.json" "$suites/node/package-lock.json" "$modules"
        (cd "$modules" && npm ci --silent --no-audit --no-fund)
        touch "$modules/complete"
    fi
}

if [ "$which" = install ]; then
    install_python
    install_node
    exit
fi
binary=$(find_binary)

# --- the run's folder
run=$(mktemp -d "${TMPDIR:-/tmp}/fleetwave-sdk.XXXXXX")
azurite=
finish() {
    local code=$?
    [ -x "$run/control" ] && "$run/control" stop >/dev/null 2>&1 || true
    [ -n "$azurite" ] && kill "$azurite" 2>/dev/null || true
    if [ "${FLEETWAVE_KEEP:-}" ]; then
        echo "kept: $run"
    else
        if [ "$code" -ne 0 ] && [ -s "$run/hub.log" ]; then
            say "the end of the hub's log"
            tail -n 20 "$run/hub.log"
        fi
        rm -rf "$run"
    fi
}
trap finish EXIT

# A certificate authority that the hub is to trust for devices: in the cloud one would upload it.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=Devices of the SDK tests" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout "$run/device-ca.key" -out "$run/device-ca.pem" 2>/dev/null

account=devstoreaccount1 account_key=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==
blob_port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
# In whole, before it is searched: a pipe that `grep -q` leaves early would make a known option an unknown one.
options=$("$binary" hub --help)
knows() { [[ $options == *"$1"* ]]; }
arguments=(--name localhost --name fleetwave.azure-devices.net --name 127.0.0.1 --name 127.0.0.2 --mqtt-port 8883 --https-port 443
    --amqps-port 5671 --cert-dir "$run/certs" --data "$run/data" --admin-port 8484 --tier none --json)
knows --events && arguments+=(--events telemetry,twin,lifecycle,connection)
knows --device-ca && arguments+=(--device-ca "$run/device-ca.pem")
if knows --storage && [ "$which" != mosquitto ]; then
    arguments+=(--storage "DefaultEndpointsProtocol=https;AccountName=$account;AccountKey=$account_key;BlobEndpoint=https://localhost:$blob_port/$account" --storage-container uploads)
fi

# start | stop | kill | restart: the suites use it too, to see what a hub remembers.
{
    echo '#!/usr/bin/env bash'
    echo 'set -eu'
    printf 'run=%q\nbinary=%q\n' "$run" "$binary"
    printf 'arguments=('
    printf '%q ' "${arguments[@]}"
    echo ')'
    cat <<'CONTROL'
start() {
    : >"$run/ready.new"
    RUST_LOG=${RUST_LOG:-info} setsid "$binary" hub "${arguments[@]}" >"$run/ready.new" 2>>"$run/hub.log" </dev/null &
    echo $! >"$run/pid"
    for _ in $(seq 300); do
        if grep -q '"event":"ready".*}$' "$run/ready.new" 2>/dev/null; then
            grep -m1 '"event":"ready"' "$run/ready.new" >"$run/ready.json"
            return
        fi
        kill -0 "$(cat "$run/pid")" 2>/dev/null || break
        sleep 0.1
    done
    echo "the hub did not become ready:" >&2
    tail -n 20 "$run/hub.log" "$run/ready.new" >&2
    exit 1
}
end() {
    local pid
    pid=$(cat "$run/pid" 2>/dev/null) || return 0
    kill "-$1" "$pid" 2>/dev/null || return 0
    for _ in $(seq 300); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    echo "the hub did not end on $1" >&2
    kill -KILL "$pid" 2>/dev/null || true
    exit 1
}
case $1 in
start) start ;;
stop) end TERM ;;
kill) end KILL ;;
restart) end TERM && start ;;
esac
CONTROL
} >"$run/control"
chmod +x "$run/control"

say "starting $binary hub"
"$run/control" start
cat "$run/ready.json"

export FLEETWAVE_READY=$run/ready.json FLEETWAVE_HUB_CONTROL=$run/control
export FLEETWAVE_CLOUD_NAME=fleetwave.azure-devices.net
export FLEETWAVE_BINARY=$binary
knows --device-ca && export FLEETWAVE_DEVICE_CA=$run/device-ca.pem FLEETWAVE_DEVICE_CA_KEY=$run/device-ca.key
ca=$run/certs/ca.pem

# A blob endpoint for uploads, behind the hub's own certificate.
if knows --storage && [ "$which" != mosquitto ]; then
    install_node
    # The storage SDK under the Node device SDK sends a header that Azurite takes in its loose mode only.
    "$modules/node_modules/.bin/azurite-blob" --silent --loose --skipApiVersionCheck --disableTelemetry --blobHost 127.0.0.1 --blobPort "$blob_port" \
        --location "$run/blobs" --cert "$run/certs/server.pem" --key "$run/certs/server.key" >"$run/azurite.log" 2>&1 &
    azurite=$!
    listens() { (exec 3<>"/dev/tcp/127.0.0.1/$blob_port") 2>/dev/null; }
    for _ in $(seq 600); do
        listens && break
        sleep 0.1
    done
    listens || {
        echo "Azurite did not open its port within a minute:" >&2
        tail -n 20 "$run/azurite.log" >&2
        exit 1
    }
    export FLEETWAVE_BLOB_ACCOUNT=$account FLEETWAVE_BLOB_KEY=$account_key FLEETWAVE_BLOB_ENDPOINT=https://localhost:$blob_port
    agent=${FLEETWAVE_AGENT:-$(dirname "$binary")/fleetwave-agent}
    [ -x "$agent" ] && export FLEETWAVE_AGENT=$agent
    python3 - "$ca" <<'CONTAINER'
import base64, datetime, hashlib, hmac, os, ssl, sys, urllib.request
account, key, endpoint = (os.environ[f"FLEETWAVE_BLOB_{name}"] for name in ("ACCOUNT", "KEY", "ENDPOINT"))
path = f"/{account}/uploads"
date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2020-10-02\n/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
request = urllib.request.Request(f"{endpoint}{path}?restype=container", method="PUT", data=b"", headers={
    "x-ms-date": date, "x-ms-version": "2020-10-02", "Content-Length": "0", "Content-Type": "",
    "Authorization": f"SharedKey {account}:{signature}"})
urllib.request.urlopen(request, context=ssl.create_default_context(cafile=sys.argv[1]))
CONTAINER
fi

failed=()
suite() {
    local name=$1
    shift
    say "$name"
    if "$@"; then results+=("$name: passed"); else
        results+=("$name: FAILED")
        failed+=("$name")
    fi
}
results=()

run_python() {
    # azure-iot-hub's AMQP reads no setting but certifi's file: the one of this venv gets the hub's CA appended.
    cat "$venv/certifi.pem" "$ca" >"$("$venv/bin/python" -m certifi)"
    (cd "$suites/python" && PYTHONDONTWRITEBYTECODE=1 REQUESTS_CA_BUNDLE=$ca "$venv/bin/python" -m pytest "$@")
}

run_node() {
    # Node looks for modules beside the tests: they are run from a copy next to what was installed.
    rm -rf "$modules/tests"
    mkdir -p "$modules/tests"
    cp "$suites"/node/*.js "$modules/tests"
    local files=("$@")
    [ $# -eq 0 ] && files=("$modules"/tests/*.test.js)
    (cd "$modules/tests" && NODE_EXTRA_CA_CERTS=$ca node --test --test-timeout=300000 --test-concurrency=1 --test-reporter=spec "${files[@]}")
}

run_mosquitto() {
    command -v mosquitto_pub >/dev/null || {
        echo "mosquitto_pub is missing: apt-get install mosquitto-clients" >&2
        return 1
    }
    bash "$suites/mosquitto/run.sh"
}

run_java() {
    keytool -importcert -noprompt -alias fleetwave -file "$ca" -keystore "$run/trust.p12" -storetype PKCS12 \
        -storepass changeit 2>/dev/null
    mvn --quiet --batch-mode -f "$suites/java/pom.xml" -Dmaven.repo.local="$cache/maven" -DbuildFolder="$cache/java" \
        -DtrustStore="$run/trust.p12" test "$@"
}

if [ "$which" = python ] || [ "$which" = all ]; then
    install_python
    if [ "$which" = all ]; then suite python run_python; else suite python run_python "$@"; fi
fi
if [ "$which" = node ] || [ "$which" = all ]; then
    install_node
    if [ "$which" = all ]; then suite node run_node; else suite node run_node "$@"; fi
fi
if [ "$which" = mosquitto ] || [ "$which" = all ]; then
    suite mosquitto run_mosquitto
fi
if [ "$which" = java ] || { [ "$which" = all ] && command -v mvn >/dev/null && [ -f "$suites/java/pom.xml" ]; }; then
    suite java run_java "$@"
fi

say "ending the hub"
"$run/control" stop || failed+=("the hub's end")
printf '%s\n' "${results[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    exit 1
fi
