#!/usr/bin/env bash
# Installs the agent's package, configures it, removes it again, and looks at what each step leaves:
#
#     tools/agent-deb-test.sh PACKAGE.deb
#
# All on a copy of this machine that is gone at the end (an overlay in memory), so it has to be a Debian, with systemd's
# tools; and root, for the mount.
set -euo pipefail

# The exposure that `systemd-analyze security` may find, of 10: 1.1 today.
readonly EXPOSURE=1.5

if [[ ${1-} != --inside ]]; then
    package=$(realpath "${1?the package}")
    root=$(mktemp -d)
    trap 'rmdir "$root"' EXIT
    unshare --mount -- bash -euc '
        mount -t tmpfs tmpfs "$1"
        mkdir "$1"/{upper,work,root}
        mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
        mount -t proc proc "$1/root/proc"
        mount --rbind /dev "$1/root/dev"
        cp "$2" "$1/root/package.deb"
        cp "$3" "$1/root/test.sh"
        exec chroot "$1/root" bash /test.sh --inside' - "$root" "$package" "$(realpath "$0")"
    exit
fi

# --- On the copy --------------------------------------------------------------------------------------------------------

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
# has FILE MODE OWNER:GROUP
has() {
    local found
    found=$(stat -c '%a %U:%G' "$1") || fail "$1 is not there"
    [[ $found == "$2 $3" ]] || fail "$1 is $found, not $2 $3"
}
export DEBIAN_FRONTEND=noninteractive
configuration=/etc/fleetwave-agent/config.toml
example=/usr/share/doc/fleetwave-agent/examples/config.toml
# Some machines leave documentation out. It is looked for here.
rm -f /etc/dpkg/dpkg.cfg.d/*

dpkg -i /package.deb >/tmp/output 2>&1 || fail "dpkg: $(cat /tmp/output)"
grep -q 'does nothing yet' /tmp/output || fail "it does not say what to do next: $(cat /tmp/output)"
has /etc/fleetwave-agent 750 root:fleetwave-agent
has /usr/bin/fleetwave-agent 755 root:root
[[ -e $configuration ]] && fail 'it has a configuration of its own'
[[ -L /etc/systemd/system/multi-user.target.wants/fleetwave-agent.service ]] || fail 'it is not enabled'
printf 'installed: %s, %s bytes with all its files\n' "$(fleetwave-agent version)" \
    "$(dpkg -L fleetwave-agent | while read -r file; do [[ -d $file ]] || stat -c %s "$file"; done | awk '{ sum += $1 } END { print sum }')"

# As the package says to.
install -m 640 -g fleetwave-agent "$example" "$configuration"
runuser -u fleetwave-agent -- fleetwave-agent check-config "$configuration"
runuser -u fleetwave-agent -- test ! -w "$configuration" || fail 'the agent may write its configuration'
runuser -u nobody -- test ! -r "$configuration" || fail 'everybody may read the key'

unit=/usr/lib/systemd/system/fleetwave-agent.service
drop_ins=/etc/systemd/system/fleetwave-agent.service.d
exposure() { systemd-analyze security --offline=true "$unit" | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p'; }
# It says what it does not understand, and ends with 0 all the same.
verify() {
    local said
    said=$(systemd-analyze verify --man=no "$unit" 2>&1) || fail "$1: $said"
    [[ -z $said ]] || fail "$1: $said"
}
verify 'as it is installed'
printf 'exposure: %s as it is installed' "$(exposure)"
awk "BEGIN { exit !($(exposure) <= $EXPOSURE) }" || fail "more than $EXPOSURE"
for drop_in in /usr/share/fleetwave-agent/drop-ins/*.conf; do
    name=$(basename "$drop_in")
    install -D -m 644 "$drop_in" "$drop_ins/$name"
    verify "with $name"
    printf ', %s with %s' "$(exposure)" "$name"
    rm "$drop_ins/$name"
done
printf '\n'

dpkg -i /package.deb >/tmp/output 2>&1 || fail "once more: $(cat /tmp/output)"
grep -q 'does nothing yet' /tmp/output && fail 'it asks for a configuration that is there'
install -d -o fleetwave-agent /var/lib/fleetwave-agent
touch /var/lib/fleetwave-agent/journal

dpkg --remove fleetwave-agent >/tmp/output 2>&1 || fail "removal: $(cat /tmp/output)"
[[ -e /var/lib/fleetwave-agent/journal ]] || fail 'removal took the state'
[[ ! -e /usr/bin/fleetwave-agent ]] || fail 'removal left the program'
dpkg --purge fleetwave-agent >/tmp/output 2>&1 || fail "purge: $(cat /tmp/output)"
[[ ! -e /var/lib/fleetwave-agent ]] || fail 'purge left the state'
[[ -e $configuration ]] || fail "purge took the operator's configuration"
printf 'removed and purged\n'
