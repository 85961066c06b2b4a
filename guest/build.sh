#!/usr/bin/env bash
# guest/build.sh [OUT]: a small real guest, made from Debian 12 packages without root and without a mount.
#
# Leaves in OUT (default .keyframe/guest): vmlinuz, initrd.gz, root.img (256 MiB ext4), data.img (64 MiB ext4).
# Both images keep their last MiB free of the file system: the stamp area, see stamp.c. Two builds from the same
# packages are equal byte for byte. Nothing is built when OUT already holds what this folder describes.
set -euo pipefail
export LC_ALL=C TZ=UTC PATH=$PATH:/usr/sbin:/sbin SOURCE_DATE_EPOCH=1700000000
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(realpath -m "${1:-$here/../.keyframe/guest}")
root_mib=256 data_mib=64

# The guest agent and the libraries it links, libcap2 for the libudev1 of backports; the kernel package is found below.
packages=(busybox-static qemu-guest-agent libc6 libglib2.0-0 libudev1 libcap2 libpcre2-8-0 liburing2 libnuma1 libgcc-s1)
# In the order in which they depend on each other.
modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console
    failover net_failover virtio_net evdev button)

say() { printf 'guest: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

mkdir -p "$out"
exec 9>"$out/lock"
flock 9
key=$(cat "$here"/* | sha256sum | cut -c 1-64)
[ "$(cat "$out/key" 2>/dev/null)" != "$key" ] || exit 0
rm -f "$out/key"
began=$SECONDS
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

fetch_packages() {
    if ! apt-cache show qemu-guest-agent >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] || die "apt knows no packages; run 'apt-get update' as root"
        apt-get -qq -o DPkg::Lock::Timeout=300 update
    fi
    local kernel
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
    say "packages ${packages[*]} $kernel"
    mkdir -p "$out/packages" "$work/debs"
    # apt checks signatures; what an earlier build left is offered to it so that it need not come again.
    ln "$out"/packages/*.deb "$work/debs/" 2>/dev/null || true
    (cd "$work/debs" && apt-get -q=2 -o Acquire::Retries=3 -o APT::Sandbox::User=root download "${packages[@]}" "$kernel" >/dev/null)
    ln -f "$work"/debs/*.deb "$out/packages/"
    kernel_deb=$(ls "$work/debs/${kernel}"_*.deb)
}
# The newest of each package, should an older one still lie beside it.
deb() { ls -v "$work/debs/$1"_*.deb | tail -n 1; }
unpack() { dpkg-deb --fsys-tarfile "$1" | tar -x "${@:2}"; }

clamp_times() { find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +; }

build_initrd() {
    local tree=$work/initrd boot=$work/kernel number=10 module file
    mkdir -p "$tree"/{bin,dev,proc,sys,new,modules} "$boot"
    unpack "$kernel_deb" -C "$boot" --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/drivers/*virtio*' \
        './lib/modules/*/kernel/net/core/failover.ko' './lib/modules/*/net_failover.ko' \
        './lib/modules/*/kernel/drivers/input/evdev.ko' './lib/modules/*/kernel/drivers/acpi/button.ko'
    cp "$boot"/boot/vmlinuz-* "$out/vmlinuz"
    unpack "$(deb busybox-static)" -C "$tree" ./bin/busybox
    for module in "${modules[@]}"; do
        file=$(find "$boot" -name "$module.ko")
        [ -n "$file" ] || die "the kernel package has no module $module"
        cp "$file" "$tree/modules/$number-$module.ko"
        number=$((number + 1))
    done
    install -m 755 "$here/init.initramfs" "$tree/init"
    clamp_times "$tree"
    (cd "$tree" && find . -print0 | sort -z | cpio --null -o -H newc --reproducible -R 0:0 --quiet) |
        gzip -9n >"$out/initrd.gz"
}

build_root_tree() {
    local tree=$1 package applet d
    mkdir -p "$tree"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc/qemu,dev,proc,sys,run,tmp,data,root,var/lib}
    for d in bin sbin lib lib64; do ln -s "usr/$d" "$tree/$d"; done
    ln -s /run "$tree/var/run"
    for package in "${packages[@]}"; do
        unpack "$(deb "$package")" -C "$tree" --keep-directory-symlink --no-same-owner --exclude='./usr/share/*' \
            --exclude='./etc/init.d*' --exclude='./lib/udev*' --exclude='./lib/systemd*' --exclude='*/gconv/*' --exclude='*/audit/*'
    done
    "$tree/bin/busybox" --list | while read -r applet; do
        [ -e "$tree/usr/bin/$applet" ] || ln -s busybox "$tree/usr/bin/$applet"
    done
    # guest-set-time and guest-shutdown of the agent call these by path.
    ln -s ../bin/busybox "$tree/usr/sbin/hwclock"
    printf '#!/bin/sh\nsync\ncase $1 in -r) reboot -f ;; *) poweroff -f ;; esac\n' >"$tree/usr/sbin/shutdown"
    chmod 755 "$tree/usr/sbin/shutdown"
    echo 'root::0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    install -m 755 "$here/init" "$tree/usr/sbin/init"
    local tool
    for tool in stamp pages; do gcc -O2 -Wall -Werror -static -s -o "$tree/usr/bin/$tool" "$here/$tool.c"; done
}

# ext4 from a folder, with every identifier and time fixed; one MiB at the end stays outside.
build_image() {
    local tree=$1 image=$2 mib=$3 label=$4 uuid=$5 path time
    clamp_times "$tree"
    rm -f "$image"
    truncate -s "${mib}M" "$image"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -F -t ext4 -b 4096 -m 0 -N 4096 -J size=8 -L "$label" -U "$uuid" \
        -E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,nodiscard" -O ^orphan_file -d "$tree" "$image" "$((mib - 1))M"
    # mke2fs copies owner, change time and fractions of seconds from the folder.
    (cd "$tree" && find . -printf '/%P\n') | sort | while read -r path; do
        for time in atime ctime mtime; do
            printf 'sif "%s" %s @%s\nsif "%s" %s_extra 0\n' "$path" "$time" "$SOURCE_DATE_EPOCH" "$path" "$time"
        done
        printf 'sif "%s" uid 0\nsif "%s" gid 0\n' "$path" "$path"
    done >"$work/debugfs.in"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH debugfs -w -f "$work/debugfs.in" "$image" >"$work/debugfs.out" 2>&1 ||
        die "debugfs: $(tail -n 3 "$work/debugfs.out")"
    e2fsck -fn "$image" >/dev/null 2>&1 || die "the file system of $image is not clean"
    # Blocks of zeros that mke2fs wrote become holes, so that importing the image costs what it holds.
    cp --sparse=always "$image" "$work/sparse"
    mv "$work/sparse" "$image"
}

fetch_packages
build_initrd
build_root_tree "$work/root"
build_image "$work/root" "$out/root.img" "$root_mib" root 6b657966-7261-6d65-0000-00000000000a
mkdir -p "$work/data"
build_image "$work/data" "$out/data.img" "$data_mib" data 6b657966-7261-6d65-0000-00000000000b
(cd "$work/debs" && sha256sum -- *.deb) >"$out/packages.sha256"
echo "$key" >"$out/key"
say "built in $((SECONDS - began)) s: $(cd "$out" && du -h vmlinuz initrd.gz root.img data.img | awk '{ printf "%s %s  ", $2, $1 }')"
