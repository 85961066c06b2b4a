#!/usr/bin/env bash
# Measures Keyframe beside fio on a raw file, qemu-nbd, nbdkit, qcow2, XFS reflink and libvirt, in one run; writes
# bench/results.md. --quick takes at most five minutes, the default twenty-five, --full more than an hour; `--only vm` measures
# machines alone. Needs the release build that `./x bench` makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# mkfs.xfs and libvirtd live outside an ordinary user's PATH on Debian.
export PATH=$PATH:/usr/sbin:/sbin

# Only the comparison needs libvirt, so only it brings it; it never listens where the machine's own would.
libvirt=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients)
if ! { command -v libvirtd && command -v virsh; } >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        printf 'bench: installing %s\n' "${libvirt[*]}"
        # From where QEMU came, see scripts/setup.sh.
        suite=()
        ! grep -qs 'VERSION_CODENAME=bookworm' /etc/os-release || suite=(-t bookworm-backports)
        DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
            install --no-install-recommends "${suite[@]}" "${libvirt[@]}" >/dev/null
    else
        printf 'bench: no libvirt to compare with; to have it: apt-get install %s\n' "${libvirt[*]}" >&2
    fi
fi

exec "${CARGO_TARGET_DIR:-target}/release/keyframe-bench" "$@"
