#!/usr/bin/env bash
# Makes the Debian that tools/machine-test.sh boots, and prints the directory that it is in:
#
#     root.tar    a Debian 12 with systemd, polkit, a kernel and its initrd, and a shell on a port to the host
#     boot.img    GRUB for the start of a disk, and core.img for a partition of its own
#
# It is made once, in a minute or two, and kept in ~/.cache/fleetwave-machine: another recipe is another directory.
# Takes root, debootstrap, and a mirror (FLEETWAVE_MIRROR, or Debian's own).
set -euo pipefail

recipe=$(sha256sum "$0" | cut -c 1-16)
kept=${XDG_CACHE_HOME:-$HOME/.cache}/fleetwave-machine
made=$kept/$recipe
if [[ -e $made/root.tar ]]; then
    printf '%s\n' "$made"
    exit
fi
PATH=$PATH:/usr/sbin:/sbin
command -v debootstrap >/dev/null || {
    printf '%s: no debootstrap. On Debian: apt-get install debootstrap\n' "$0" >&2
    exit 1
}
((EUID == 0)) || {
    printf '%s: debootstrap has to be root\n' "$0" >&2
    exit 1
}

mkdir -p "$kept"
work=$(mktemp -d -p "$kept")
root=$work/root
trap 'rm -rf "$work"' EXIT
quietly() { "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; return 1; }; }
# In a namespace, so that what it mounts goes with it.
inside() {
    quietly unshare --mount --pid --fork -- sh -euc '
        mount -t proc proc "$1/proc"; root=$1; shift; exec chroot "$root" "$@"' - "$root" "$@"
}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

mirror=${FLEETWAVE_MIRROR:-http://deb.debian.org/debian}
quietly debootstrap --variant=minbase bookworm "$root" "$mirror"
# Nothing is started in there.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
inside apt-get install -y --no-install-recommends adduser ca-certificates dbus dosfstools e2fsprogs grub-common \
    grub-pc-bin initramfs-tools iproute2 kmod mtools polkitd procps systemd-sysv udev

# The kernel of every Debian, with those of its modules that this machine has a use for: it comes to a tenth.
inside sh -euc '
    cd /root
    apt-get download "$(apt-cache depends linux-image-amd64 | sed -n "s/.*Depends: //p")"
    dpkg-deb --extract linux-image-*.deb kernel
    cp -a kernel/boot/* /boot
    mkdir -p /lib/modules
    cp -a kernel/lib/modules/* /lib/modules
    rm -r kernel linux-image-*.deb'
version=$(basename "$root"/lib/modules/*)
cat >"$work/modules" <<-END
	virtio_pci
	virtio_blk
	virtio_net
	virtio_rng
	virtio_console
	autofs4
	ext4
	i6300esb
	loop
	vfat
	nls_ascii
	nls_cp437
	nls_iso8859-1
	softdog
END
inside depmod "$version"
# shellcheck disable=SC2046 # names of modules
inside modprobe --show-depends --ignore-install --set-version "$version" --all $(<"$work/modules")
sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/log" | sort -u >"$work/used"
find "$root/lib/modules/$version" -name '*.ko' | sed "s|^$root||" | sort | comm -23 - "$work/used" |
    sed "s|^|$root|" | xargs rm
find "$root/lib/modules/$version" -type d -empty -delete
inside depmod "$version"

cp "$work/modules" "$root/etc/initramfs-tools/modules"
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' "$root/etc/initramfs-tools/initramfs.conf"
inside update-initramfs -c -k "$version"
mv "$root/boot/vmlinuz-$version" "$root/boot/vmlinuz"
mv "$root/boot/initrd.img-$version" "$root/boot/initrd.img"
rm -f "$root"/boot/{config,System.map}-*

# GRUB as `grub-install` would write it: it finds its configuration on the first partition.
inside grub-mkimage --format=i386-pc --output=/core.img --prefix='(hd0,gpt1)/' \
    biosdisk part_gpt ext2 linux normal configfile loadenv test echo reboot minicmd serial terminal
mv "$root/core.img" "$work/core.img"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$work/boot.img"
rm -rf "$root/usr/lib/grub" "$root/usr/sbin/policy-rc.d"

printf 'machine\n' >"$root/etc/hostname"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
# 10.0.2.2 is the loopback of the host.
printf '127.0.0.1 localhost machine\n10.0.2.2 hub.test\n' >"$root/etc/hosts"
cat >"$root/etc/systemd/system/net.service" <<-'END'
	[Unit]
	Description=Network
	DefaultDependencies=no
	Wants=network.target
	Before=network.target
	[Service]
	Type=oneshot
	ExecStart=sh -c 'i=$(ls -d /sys/class/net/e*) && i=$${i##*/} && ip link set $$i up && ip address add 10.0.2.15/24 dev $$i && ip route add default via 10.0.2.2'
	[Install]
	WantedBy=multi-user.target
END
# What the host writes is run; what it says goes back.
cat >"$root/etc/systemd/system/shell.service" <<-'END'
	[Unit]
	Description=Shell for the host
	After=basic.target
	[Service]
	Environment=HOME=/root
	WorkingDirectory=/root
	ExecStart=bash -c 'p=/dev/virtio-ports/shell; until [ -e $p ]; do sleep 0.2; done; exec <>$p >&0 2>&1; printf "\001ready\n"; exec bash'
	Restart=always
	[Install]
	WantedBy=multi-user.target
END
inside systemctl enable net shell
# What costs time, and does nothing here.
inside systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service \
    systemd-update-utmp.service systemd-update-utmp-runlevel.service
rm -rf "$root"/usr/share/{doc,info,locale,man,grub}/* "$root"/usr/lib/udev/hwdb* "$root"/usr/lib/x86_64-linux-gnu/gconv \
    "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*

tar --create --file "$work/root.tar" --numeric-owner --directory "$root" .
rm -rf "$root" "$work/log" "$work/modules" "$work/used"
chmod 755 "$work"
rm -rf "$made"
mv "$work" "$made"
trap - EXIT
printf '%s\n' "$made"
