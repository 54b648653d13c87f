#!/usr/bin/env bash
# mosquitto's own clients as devices: plain MQTT 3.1.1 over TLS, a shared access signature as the password.
# Run by tools/sdk-tests.sh, which says in FLEETWAVE_READY what the hub's ready line said.
set -euo pipefail

field() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$FLEETWAVE_READY" "$1"; }
ca=$(field ca)
service=$(field service_connection_string)
part() { tr ';' '\n' <<<"$2" | sed -n "s/^$1=//p"; }
host=$(part HostName "$service")

# sas RESOURCE KEY [POLICY]: a signature that is good for an hour
sas() {
    local resource expiry key signature
    resource=$(python3 -c 'import sys,urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' "$1")
    expiry=$(($(date +%s) + 3600))
    key=$(base64 -d <<<"$2" | od -An -tx1 -v | tr -d ' \n')
    signature=$(printf '%s\n%s' "$resource" "$expiry" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64 -w0)
    signature=$(python3 -c 'import sys,urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' "$signature")
    printf 'SharedAccessSignature sr=%s&sig=%s&se=%s%s' "$resource" "$signature" "$expiry" "${3:+&skn=$3}"
}

owner=$(sas "$host" "$(part SharedAccessKey "$service")" "$(part SharedAccessKeyName "$service")")
rest() {
    local method=$1 path=$2
    shift 2
    curl --silent --show-error --fail-with-body --cacert "$ca" -X "$method" -H "Authorization: $owner" \
        -H 'Content-Type: application/json' "https://$host$path?api-version=2021-04-12" "$@"
}

device=mosquitto-$RANDOM$RANDOM
made=$(rest PUT "/devices/$device" -d "{\"deviceId\":\"$device\",\"status\":\"enabled\"}")
trap 'rest DELETE "/devices/$device" -H "If-Match: *" >/dev/null' EXIT
key=$(python3 -c 'import json,sys; print(json.load(sys.stdin)["authentication"]["symmetricKey"]["primaryKey"])' <<<"$made")
# -V mqttv311 is what the clients speak by themselves; -c keeps the session, as the SDKs do.
as_device=(-h "$host" -p 8883 --cafile "$ca" -i "$device" -u "$host/$device/?api-version=2021-04-12" -P "$(sas "$host/devices/$device" "$key")" -V mqttv311)

count=0
passed() { count=$((count + 1)) && echo "ok $count - $1"; }
fail() {
    echo "not ok - $1" >&2
    exit 1
}
# within N until COMMAND: poll
until_true() {
    for _ in $(seq 300); do
        "$@" && return 0
        sleep 0.1
    done
    return 1
}

mosquitto_pub "${as_device[@]}" -q 1 -t "devices/$device/messages/events/%24.ct=application%2Fjson&%24.ce=utf-8&kind=test" -m '{"t":21.5}'
passed "telemetry at QoS 1 is acknowledged"

mosquitto_pub "${as_device[@]}" -q 0 -t "devices/$device/messages/events/" -n
passed "an empty message at QoS 0"

seq 1 50 | mosquitto_pub "${as_device[@]}" -q 1 -t "devices/$device/messages/events/" -l
passed "fifty messages over one connection"

mosquitto_sub "${as_device[@]}" -q 1 -W 60 -C 1 -t '$iothub/twin/PATCH/properties/desired/#' -F '%t %p' >"$FLEETWAVE_READY.patch" &
listener=$!
connected() { [[ $(rest GET "/devices/$device") == *'"connectionState":"Connected"'* ]]; }
until_true connected || fail "never connected"
# Connected is not subscribed yet: changes are sent until one is heard.
number=0
change() {
    number=$((number + 1))
    rest PATCH "/twins/$device" -d "{\"properties\":{\"desired\":{\"color\":\"c$number\"}}}" >/dev/null
    ! kill -0 $listener 2>/dev/null
}
until_true change || fail "no desired patch came"
wait $listener || fail "the listener ended without a patch"
grep -qE '^\$iothub/twin/PATCH/properties/desired/\?\$version=[0-9]+ \{"color":"c[0-9]+","\$version":[0-9]+\}$' "$FLEETWAVE_READY.patch" ||
    fail "the patch: $(cat "$FLEETWAVE_READY.patch")"
passed "a desired patch arrives"

# The session is kept (-c): the subscription to methods is there before the device is.
mosquitto_sub "${as_device[@]}" -c -q 1 -W 1 -t '$iothub/methods/POST/#' >/dev/null 2>&1 || true
rest POST "/twins/$device/methods" -d '{"methodName":"go","payload":{"a":1},"connectTimeoutInSeconds":60,"responseTimeoutInSeconds":60}' >"$FLEETWAVE_READY.method" &
caller=$!
request=$(mosquitto_sub "${as_device[@]}" -c -q 1 -W 60 -C 1 -t '$iothub/methods/POST/#' -F '%t %p')
[[ $request =~ ^\$iothub/methods/POST/go/\?\$rid=([^ ]+)\ \{\"a\":1\}$ ]] || fail "the method call: $request"
mosquitto_pub "${as_device[@]}" -c -q 1 -t "\$iothub/methods/res/202/?\$rid=${BASH_REMATCH[1]}" -m '{"done":true}' || true
if wait $caller; then
    grep -q '"status":202' "$FLEETWAVE_READY.method" || fail "the method's answer: $(cat "$FLEETWAVE_READY.method")"
    passed "a method is called and answered"
else
    # The call ends with the connection that took it: the answer came over another one.
    passed "a method is called (its caller was told that the device went away)"
fi

if mosquitto_pub "${as_device[@]/$(sas "$host/devices/$device" "$key")/nonsense}" -q 1 -t "devices/$device/messages/events/" -m x 2>/dev/null &&
    mosquitto_pub -h "$host" -p 8883 --cafile "$ca" -i "$device" -u "$host/$device/?api-version=2021-04-12" -P nonsense -q 1 -t x -m x 2>/dev/null; then
    fail "a wrong password was taken"
fi
passed "a wrong password is refused"

refused() {
    # The clients end with another code than 0 when the hub closes the connection on them.
    ! timeout 10 "$@" >/dev/null 2>&1
}
refused mosquitto_pub "${as_device[@]}" -q 2 -t "devices/$device/messages/events/" -m x || fail "QoS 2 was taken"
passed "QoS 2 ends the connection"
refused mosquitto_pub "${as_device[@]}" -q 1 -t "devices/another/messages/events/" -m x || fail "another device's topic was taken"
passed "another device's topic ends the connection"
refused mosquitto_pub "${as_device[@]}" -q 1 -t "anything/else" -m x || fail "a topic of nobody was taken"
passed "a topic outside the list ends the connection"
refused mosquitto_pub "${as_device[@]}" -V mqttv5 -q 1 -t "devices/$device/messages/events/" -m x || fail "MQTT 5 was taken"
passed "MQTT 5 is refused"
denied=$(timeout 5 mosquitto_sub "${as_device[@]}" -q 1 -W 2 -t "devices/another/messages/devicebound/#" 2>&1 || true)
[[ $denied == *denied* || $denied == *rejected* || $denied == *"not authorised"* || $denied == *"Connection"* || -z $denied ]] || fail "another device's messages: $denied"
passed "another device's messages are not to be had"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$device" \
    -keyout "$FLEETWAVE_READY.key" -out "$FLEETWAVE_READY.pem" 2>/dev/null
thumbprint=$(openssl x509 -in "$FLEETWAVE_READY.pem" -noout -fingerprint -sha1 | cut -d= -f2 | tr -d :)
rest PUT "/devices/$device" -H 'If-Match: *' -d "{\"deviceId\":\"$device\",\"status\":\"enabled\",\"authentication\":{\"type\":\"selfSigned\",\"x509Thumbprint\":{\"primaryThumbprint\":\"$thumbprint\"}}}" >/dev/null
mosquitto_pub -h "$host" -p 8883 --cafile "$ca" --cert "$FLEETWAVE_READY.pem" --key "$FLEETWAVE_READY.key" -i "$device" \
    -u "$host/$device/?api-version=2021-04-12" -q 1 -t "devices/$device/messages/events/" -m x
passed "a client certificate is as good as a password"

echo "1..$count"
