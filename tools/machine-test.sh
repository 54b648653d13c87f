#!/usr/bin/env bash
# The agent's package on a machine of its own, a real Debian in QEMU, whose plug is pulled:
#
#     tools/machine-test.sh AGENT.deb [component] [slots]
#
# `component`: what docs/agent.md tells a new user to do, with power cuts at every stage of an update. `slots`: firmware in
# two slots that GRUB boots, with power cuts, kernels that panic, and the hardware watchdog. Pulling the plug is SIGKILL
# for QEMU: what the kernel had not written, and what QEMU kept like the cache of a disk that nobody has flushed, is gone.
#
# `component` ends with those of the agent's own tests that need a kernel with FAT, which not every host has. They are in
# the program that FLEETWAVE_AGENT_TESTS names: `cargo test -p fleetwave-agent --lib --no-run` says where it is.
#
# It takes root, qemu-system-x86, what tools/machine-image.sh takes, and `fleetwave` in PATH. With /dev/kvm it is a matter
# of minutes, without of a quarter of an hour. It all happens in a network of its own that has nothing but loopback.
set -euo pipefail
shopt -s inherit_errexit

if [[ ${1-} != --inside ]]; then
    package=$(realpath "${1?the package}")
    shift
    command -v qemu-system-x86_64 >/dev/null || {
        if [[ ${FLEETWAVE_TEST_REAL-} == 1 ]]; then
            printf '%s: qemu-system-x86 is not installed\n' "$0" >&2
            exit 1
        fi
        printf 'skipped: qemu-system-x86 is not installed\n' >&2
        exit
    }
    [[ ${FLEETWAVE_TEST_REAL-} != 1 || -n ${FLEETWAVE_AGENT_TESTS-} ]] || {
        printf '%s: FLEETWAVE_TEST_REAL=1, but FLEETWAVE_AGENT_TESTS names no tests\n' "$0" >&2
        exit 1
    }
    image=$("$(dirname "$0")/machine-image.sh")
    # The group ends as one: nothing of this outlives it.
    exec unshare --net --pid --fork --kill-child --mount-proc -- \
        sh -c 'ip link set lo up && exec "$@"' sh "$0" --inside "$package" "$image" "$@"
fi
package=$2 image=$3
shift 3
tests=${FLEETWAVE_AGENT_TESTS:+$(realpath "$FLEETWAVE_AGENT_TESTS")}
(($#)) || set -- component slots

docs=$(realpath "$(dirname "$0")/../docs/agent.md")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# It is the first process of its namespace, which no signal ends that it has not asked for.
trap 'exit 143' INT TERM
cd "$work"
PATH=$PATH:/usr/sbin:/sbin

# Without the processor's help there is a KVM here and there all the same, which comes no further than the firmware.
accelerator=tcg cpu=max patience=10
if grep -qwE 'vmx|svm' /proc/cpuinfo && qemu-system-x86_64 -machine none -accel kvm -display none -monitor stdio <<<quit >/dev/null 2>&1; then
    accelerator=kvm cpu=host patience=1
fi
printf 'by %s\n' "$accelerator"

# What the documentation's commands set.
device=''
# block LINE: the block of the documentation that has this line.
block() {
    awk -v line="$1" '/^```/ { if (found) exit; text = ""; next } { text = text $0 "\n" } $0 == line { found = 1 }
        END { if (!found) exit 1; printf "%s", text }' "$docs"
}
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() {
    say "FAILED: $*"
    printf -- '--- the end of its console\n'
    tail -n 40 "$work/console" | cat -v
    if kill -0 "$qemu" && (patience=1 && on true) >/dev/null; then
        printf -- '--- the end of its journal\n'
        on 'journalctl --no-pager -n 60 -u fleetwave-agent; fleetwave-agent status --config /etc/fleetwave-agent/config.toml' || true
    fi
    fleetwave hub twin pi-1 --data hub || true
    exit 1
} >&2

# --- The machine --------------------------------------------------------------------------------------------------------

# Sizes in MiB: /boot/grub, each slot, what both share. GRUB itself is before them.
readonly BOOT=32 SLOT=240 DATA=100
# What an image of a slot has of it.
readonly FILLED=180

# disk ROOT.img BOOT_DIRECTORY DATA_DIRECTORY: disk.qcow2, of which the partitions are as docs/agent.md has them.
disk() {
    local start=$((2 + BOOT))
    rm -f disk.raw disk.qcow2 "$work"/*.part
    truncate -s $((start + 2 * SLOT + DATA + 1))M disk.raw
    sfdisk --quiet disk.raw <<-END
		label: gpt
		5: start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=grub
		1: start=4096, size=$((BOOT * 2048)), name=boot
		2: start=$((start * 2048)), size=$((SLOT * 2048)), name=root-a
		3: start=$(((start + SLOT) * 2048)), size=$((SLOT * 2048)), name=root-b
		4: start=$(((start + 2 * SLOT) * 2048)), size=$((DATA * 2048)), name=data
	END
    filled "$2" boot.part $BOOT
    filled "$3" data.part $DATA
    put boot.part 2
    put "$1" "$start"
    put data.part $((start + 2 * SLOT))
    # GRUB's first sector says where the second one is, and that one where the rest is: eight bytes each.
    local sectors=$((($(stat -c %s "$image/core.img") + 511) / 512))
    cp "$image/boot.img" first.part
    cp "$image/core.img" core.part
    bytes 2048 8 | dd of=first.part bs=1 seek=$((0x5c)) conv=notrunc status=none
    { bytes 2049 8; bytes $((sectors - 1)) 2; bytes $((0x820)) 2; } |
        dd of=core.part bs=1 seek=$((0x1f4)) conv=notrunc status=none
    dd if=first.part of=disk.raw bs=440 count=1 conv=notrunc status=none
    put core.part 1
    # What goes into an overlay is kept by QEMU until the guest flushes it.
    qemu-img create -q -f qcow2 -b disk.raw -F raw disk.qcow2
}
# filled DIRECTORY FILE MIB: a file system of what is in a directory.
filled() {
    truncate -s "$3M" "$2"
    mke2fs -q -F -t ext4 -d "$1" "$2"
}
put() { dd if="$1" of=disk.raw bs=1M seek="$2" conv=notrunc,sparse status=none; }
# bytes NUMBER COUNT: little-endian.
bytes() {
    local i
    for ((i = 0; i < $2; i++)); do printf '%b' "\\x$(printf '%02x' $((($1 >> 8 * i) & 255)))"; done
}

# system DIRECTORY: a Debian, with the lines of standard input as its fstab.
system() {
    mkdir "$1"
    tar --extract --file "$image/root.tar" --directory "$1" --numeric-owner
    cat >"$1/etc/fstab"
    install -m 755 /dev/stdin "$1/usr/local/bin/hold" <<-'END'
		#!/bin/sh
		# hold NAME [COMMAND...]: as long as hold-NAME is there the agent comes no further. Then it is the command.
		here=/var/lib/fleetwave-agent/hold-$1
		if [ -e "$here" ]; then
		    touch "/run/fleetwave-agent/held-$1"
		    while [ -e "$here" ]; do sleep 0.1; done
		    rm -f "/run/fleetwave-agent/held-$1"
		fi
		shift
		[ $# -eq 0 ] || exec "$@"
	END
}

power_on() {
    rm -f shell.in shell.out
    mkfifo shell.in shell.out
    qemu-system-x86_64 -machine pc -accel "$accelerator" -cpu "$cpu" -smp 2 -m 512 -nodefaults -display none \
        -serial "file:$work/console" \
        -drive file=disk.qcow2,if=none,id=disk -device virtio-blk-pci,drive=disk \
        -netdev user,id=net -device virtio-net-pci,netdev=net -device virtio-rng-pci \
        -device virtio-serial-pci -chardev pipe,id=shell,path=shell -device virtserialport,chardev=shell,name=shell \
        -device i6300esb -action watchdog=reset </dev/null &
    qemu=$!
    exec 3<>shell.in 4<>shell.out
    up
}
plug() {
    kill -9 "$qemu"
    wait "$qemu" 2>/dev/null || true
    say 'the plug is pulled'
}
# up: waits until the machine has started, again if it ran.
up() {
    local line
    while IFS= read -r -t $((60 * patience)) -u 4 line; do
        [[ $line != *$'\001ready' ]] || return 0
    done
    fail 'it does not come up'
}
# on COMMAND: by root, on the machine; what it printed, and its exit code.
on() {
    local line call=$RANDOM$RANDOM
    local -a lines=()
    local mark=$'\001'$call
    printf '( %s\n) </dev/null 2>&1; printf "\\n\\001%s %%d\\n" $?\n' "$1" "$call" >&3
    while IFS= read -r -t $((60 * patience)) -u 4 line; do
        if [[ $line == "$mark "* ]]; then
            # A mark is at the start of a line, whatever was printed.
            [[ -n ${lines[-1]} ]] || unset 'lines[-1]'
            ((${#lines[@]} == 0)) || printf '%s\n' "${lines[@]}"
            return "${line#"$mark "}"
        fi
        lines+=("$line")
    done
    say "no answer to: $1"
    return 255
}
# within SECONDS MESSAGE COMMAND...: until the command succeeds.
within() {
    local end=$((SECONDS + $1 * patience)) message=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        kill -0 "$qemu" 2>/dev/null || fail "QEMU has ended; $message"
        ((SECONDS < end)) || fail "$message"
        sleep 1
    done
}

# --- The hub ------------------------------------------------------------------------------------------------------------

# twin TARGET ID: the device says of a target that it runs this release, and nothing is in flight.
twin() {
    fleetwave hub twin pi-1 --data hub |
        jq -e --arg id "$2" ".properties.reported.$1 | .running.id == \$id and .state != \"updating\""
}
settled() { within 120 "the twin does not say that $1 is $2" twin "$1" "$2"; }
# gave_up TARGET ID: the twin says that the update to a release failed.
gave_up() {
    fleetwave hub twin pi-1 --data hub |
        jq -e --arg id "$2" ".properties.reported.$1 | .target == \$id and .state == \"failed\""
}
# held NAME: the agent waits at a `hold`.
held() { within 120 "the agent does not come to $1" on "test -e /run/fleetwave-agent/held-$1"; }

# hold NAME...: from now on the agent waits there, also after a power cut.
hold() { on "mkdir -p /var/lib/fleetwave-agent && cd /var/lib/fleetwave-agent && touch $(printf 'hold-%s ' "$@") && sync ."; }
# go_on NAME...: no more. In a second, so that there is an answer if the machine goes down then.
go_on() { on "cd /var/lib/fleetwave-agent; (sleep 1; rm -f $(printf 'hold-%s ' "$@")) >/dev/null 2>&1 &"; }
# pass NAME: this once.
pass() {
    on "cd /var/lib/fleetwave-agent; (sleep 1; rm hold-$1; while [ -e /run/fleetwave-agent/held-$1 ]; do sleep 0.05; done
        touch hold-$1) >/dev/null 2>&1 &"
}

# --- Components -----------------------------------------------------------------------------------------------------------

# A release of the component: `app SEQUENCE [healthy]`.
app() {
    mkdir -p "app-$1"
    printf '#!/bin/sh\necho "this is %s"\nexec sleep infinity\n' "$1" >"app-$1/app"
    printf '#!/bin/sh\n%s\n' "${2-true}" >"app-$1/self-test"
    printf 'this is %s\n' "$1" >"app-$1/greeting"
    chmod 755 "app-$1"/{app,self-test}
    head -c 6000000 /dev/urandom >"app-$1/data"
    tar -C "app-$1" -czf "app-$1.tar.gz" .
    fleetwave release create "app-$1.tar.gz" --id "app-$1" --seq "$1" --target components.app --key k1=release.pem \
        --out releases >/dev/null
}
# wanted SEQUENCE: by all devices in Berlin.
wanted() {
    fleetwave hub configure "rollout-$1" --release "releases/components.app-app-$1-$1" \
        --condition "tags.site = 'berlin'" --priority "$1" --data hub >/dev/null
}
# runs SEQUENCE: the program itself, by what it has written since the machine came up, the links, and what is on disk.
runs() {
    settled components.app "app-$1"
    on "set -e; cd /opt/app
        [ \"\$(cat current/greeting)\" = 'this is $1' ]
        [ \"\$(readlink current)\" = \"\$(readlink committed)\" ]
        systemctl is-active --quiet app
        journalctl --boot --unit app --output cat | grep 'this is' | tail -n 1 | grep -qx 'this is $1'
        ! ls releases | grep -qvE '^app-[0-9]+-[0-9]+(\\.json)?\$'" ||
        fail "it does not run app-$1: $(on 'ls -lR /opt/app | head -n 30; systemctl status app')"
}

# The tests of a Raspberry Pi's first partition, on this machine's FAT.
fat() {
    if [[ -z $tests ]]; then
        say 'skipped: FLEETWAVE_AGENT_TESTS names no tests to run on FAT'
        return
    fi
    # The names on it are ASCII: this machine has tables for no other code page.
    on 'set -e; modprobe -a loop vfat; mount PARTLABEL=data /mnt
        echo default_codepage=367 >/run/mtoolsrc
        MTOOLSRC=/run/mtoolsrc TMPDIR=/dev/shm FLEETWAVE_TEST_REAL=1 /mnt/agent-tests --nocapture _pi_' >fat.log || fail "on FAT: $(cat fat.log)"
    if grep -q skipped fat.log || ! grep -qE '^test result: ok\. [4-9] passed' fat.log; then
        fail "not all ran on FAT: $(cat fat.log)"
    fi
    say "on FAT: $(grep '^test result' fat.log)"
}

component() {
    say 'a Debian with nothing of ours'
    system root <<<'PARTLABEL=root-a / ext4 defaults 0 1'
    # The documentation's commands, and what the walk needs beside them.
    eval "$(block '# On the machine with the hub.')" 2>hub.log
    hub=$!
    sed -i 's|^command = \[|&"hold", "health", |; s|^\[download\]|&\nrate = "2 MiB/s"|' config.toml
    cat >>config.toml <<-'END'
		deadline_seconds = 40
		[component.app.hooks]
		after_install = { run = ["hold", "after_install"], timeout_seconds = 3600 }
		after_commit = { run = ["hold", "after_commit"], timeout_seconds = 3600 }
		[limits]
		splay_seconds = 0
		retry_seconds = 1
		reconnect_seconds = 1
	END
    cp "$package" config.toml ca.pem root/root
    filled root root.img $SLOT
    rm -rf root
    mkdir boot data
    [[ -z $tests ]] || strip -o data/agent-tests "$tests"
    cat >boot/grub.cfg <<-'END'
		serial
		terminal_output serial
		linux (hd0,gpt2)/boot/vmlinuz root=PARTLABEL=root-a ro console=ttyS0 quiet mitigations=off no_timer_check
		initrd (hd0,gpt2)/boot/initrd.img
		boot
	END
    disk root.img boot data
    power_on
    say 'it is up'
    on "set -e; cd /root
$(block '# On the device, as root.')" >install.log || fail "installing: $(cat install.log)"
    app 1
    say "installed: $(on "fleetwave-agent version")"
    wanted 1
    runs 1
    say 'the component is there, and the twin says so'
    printf 'systemd-analyze security: %s\n' "$(on 'systemd-analyze security --no-pager fleetwave-agent | tail -n 1')"
    on '[ "$(stat -c %U /proc/$(systemctl show --property MainPID --value fleetwave-agent))" = fleetwave-agent ]' ||
        fail 'the agent does not run as its own user'

    # A release of its own for each moment at which the plug is pulled; there are no holds while something is fetched.
    app 2
    wanted 2
    # Looked for on the machine itself, for it is over in seconds.
    on "timeout $((60 * patience)) sh -c 'until find /var/lib/fleetwave-agent -type f -size +2M | grep -q .; do sleep 0.1; done'" ||
        fail 'nothing is fetched'
    plug
    power_on
    runs 2
    say 'right after a power cut in the middle of the download'
    local moment number=2
    for moment in after_install health after_commit; do
        number=$((number + 1))
        app "$number"
        hold "$moment"
        wanted "$number"
        held "$moment"
        plug
        power_on
        on 'systemctl is-active --quiet app' || fail 'the component does not run'
        go_on "$moment"
        runs "$number"
        say "right after a power cut at $moment"
    done

    app 6 false
    wanted 6
    within 120 'the failure is not reported' gave_up components.app app-6
    runs 5
    say 'a release that is not healthy is left, and what was there before runs'

    # systemd has the agent watched, and starts it again.
    on "mkdir -p /run/systemd/system/fleetwave-agent.service.d
        printf '[Service]\nWatchdogSec=5\n' >/run/systemd/system/fleetwave-agent.service.d/quick.conf
        systemctl daemon-reload && systemctl restart fleetwave-agent && kill -STOP \$(systemctl show --property MainPID --value fleetwave-agent)"
    within 60 'systemd does not start it again' on "journalctl --boot --unit fleetwave-agent | grep -q 'Watchdog timeout' &&
        systemctl is-active --quiet fleetwave-agent"
    say 'an agent that hangs is started again'
    fat
    plug
    kill "$hub"
}

# --- Firmware in slots ------------------------------------------------------------------------------------------------------

# firmware SEQUENCE [COMMAND...]: an image that differs from the first one by what the command does to a directory of its.
firmware() {
    local image=fw-$1.img
    cp fw-1.img "$image"
    printf 'this is %s\n' "$1" >greeting
    { printf 'rm /etc/firmware\nwrite greeting /etc/firmware\n'; printf '%s\n' "${@:2}"; } | debugfs -w -f - "$image" >/dev/null 2>&1
    fleetwave release create "$image" --id "fw-$1" --seq "$1" --key k1=release.pem --out releases >/dev/null
    rm "$image"
}
flash() {
    fleetwave hub configure "rollout-$1" --release "releases/fw-$1-$1" --condition "tags.site = 'berlin'" \
        --priority "$1" --data hub >/dev/null
}
# slot WHICH SEQUENCE: what runs, by the kernel's command line and by what is on its disk.
slot() {
    on "grep -q 'fleetwave.slot=$1' /proc/cmdline && grep -qx 'this is $2' /etc/firmware" ||
        fail "not slot $1 with $2: $(on 'cat /proc/cmdline /etc/firmware')"
    say "slot $1 with fw-$2 runs"
}
slots() {
    say 'the images of a device with two slots'
    eval "$(block '# On the machine with the hub.')" 2>hub.log
    hub=$!
    system root <<-'END'
		PARTLABEL=boot /boot/grub ext4 defaults 0 2
		PARTLABEL=data /var/lib/fleetwave-agent ext4 defaults 0 2
		tmpfs /tmp tmpfs defaults 0 0
		tmpfs /var/lib/systemd tmpfs defaults 0 0
		tmpfs /var/log tmpfs defaults 0 0
		tmpfs /var/tmp tmpfs defaults 0 0
	END
    cp "$package" root/root/agent.deb
    unshare --mount -- sh -euc 'mount -t proc proc root/proc; chroot root dpkg -i /root/agent.deb' >dpkg.log 2>&1 ||
        fail "$(cat dpkg.log)"
    rm root/root/agent.deb
    mkdir -p root/boot/grub root/var/lib/fleetwave-agent boot data
    (umask 077 && printf '%s' "$device" >data/connection-string)
    cp ca.pem root/etc/fleetwave-agent/ca.pem
    install -D -m 644 root/usr/share/fleetwave-agent/drop-ins/slot.conf \
        root/etc/systemd/system/fleetwave-agent.service.d/slot.conf
    printf 'this is 1\n' >root/etc/firmware
    printf '#!/bin/sh\n' | install -m 755 /dev/stdin root/usr/local/bin/firmware-check
    cat >root/etc/fleetwave-agent/config.toml <<-END
		state = "/var/lib/fleetwave-agent"
		[hub]
		connection_string_file = "/var/lib/fleetwave-agent/connection-string"
		ca = "/etc/fleetwave-agent/ca.pem"
		[download]
		ca = "/etc/fleetwave-agent/ca.pem"
		[trust]
		threshold = 1
		keys = { k1 = "$(cat release.pub)" }
		[firmware]
		installer = "slot"
		installed = { id = "fw-1", seq = 1 }
		slots = { a = "/dev/disk/by-partlabel/root-a", b = "/dev/disk/by-partlabel/root-b" }
		after_write = { run = ["hold", "after_write"], timeout_seconds = 3600 }
		reboot = { run = ["hold", "reboot", "systemctl", "reboot"], timeout_seconds = 3600 }
		[firmware.hooks]
		before_install = { run = ["hold", "before_install"], timeout_seconds = 3600 }
		after_commit = { run = ["hold", "after_commit"], timeout_seconds = 3600 }
		[firmware.boot]
		loader = "grub"
		[firmware.probation]
		system = "running"
		checks = [{ run = ["hold", "check"], timeout_seconds = 3600 }, ["/usr/local/bin/firmware-check"]]
		deadline_seconds = 90
		[watchdog]
		timeout_seconds = 30
		[limits]
		splay_seconds = 0
		retry_seconds = 1
		reconnect_seconds = 1
	END
    chmod 644 root/etc/fleetwave-agent/config.toml
    chmod 755 root/etc/fleetwave-agent
    filled root fw-1.img $FILLED
    rm -rf root
    # As the documentation has it, and what this machine needs.
    { printf 'serial\nterminal_output serial\n'; block '# grub.cfg'; } |
        sed 's/ ro / ro console=ttyS0 quiet mitigations=off no_timer_check /' >boot/grub.cfg
    grep -q slot-b boot/grub.cfg
    grub-editenv boot/grubenv create
    grub-editenv boot/grubenv set saved_entry=slot-a
    disk fw-1.img boot data
    firmware 2
    firmware 3
    printf '#!/bin/sh\necho "it does not work" >&2\nexit 1\n' >broken
    # The first process ends, and the kernel panics.
    firmware 4 'rm /usr/lib/systemd/systemd' 'write broken /usr/lib/systemd/systemd' \
        'sif /usr/lib/systemd/systemd mode 0100755'
    firmware 5 'rm /usr/local/bin/firmware-check' 'write broken /usr/local/bin/firmware-check' \
        'sif /usr/local/bin/firmware-check mode 0100755'
    power_on
    slot a 1
    settled firmware fw-1

    hold reboot check after_commit
    flash 2
    within 60 'nothing is written' \
        on 'dd if=/dev/disk/by-partlabel/root-b bs=1M skip=60 count=1 iflag=direct status=none | tr -d "\0" | grep -q .'
    plug
    power_on
    slot a 1
    say 'right after a power cut in the middle of the download'
    held reboot
    plug
    power_on
    slot b 2
    say 'right after a power cut between arming the trial and the reboot: it is the trial'
    held check
    plug
    power_on
    slot a 1
    say 'right after a power cut on trial'
    held reboot
    go_on reboot
    up
    slot b 2
    held check
    go_on check
    held after_commit
    plug
    power_on
    slot b 2
    say 'right after a power cut at the commit'
    go_on after_commit
    settled firmware fw-2

    hold reboot check
    flash 3
    held reboot
    pass reboot
    up
    slot a 3
    held check
    on 'kill -STOP $(systemctl show --property MainPID --value fleetwave-agent)'
    up
    slot b 2
    say 'the watchdog has reset the machine, of which the agent hung'
    held reboot
    go_on check reboot
    up
    slot a 3
    settled firmware fw-3
    flash 4
    within 300 'the panic is not reported' gave_up firmware fw-4
    (($(grep -c 'Kernel panic' "$work/console") >= 1)) || fail 'it did not panic'
    settled firmware fw-3
    say 'a kernel that panics is left'
    flash 5
    within 200 'the failure is not reported' gave_up firmware fw-5
    settled firmware fw-3
    say 'firmware that is not healthy is left'
    plug
    kill "$hub"
}

# --- Which -----------------------------------------------------------------------------------------------------------------

for walk in "$@"; do
    mkdir "$walk"
    cd "$walk"
    "$walk"
    cd "$work"
done
say 'done'
