#!/usr/bin/env bash
# Measures Keyframe beside fio on a raw file, qemu-nbd, nbdkit, qcow2 and XFS reflink, in one run; writes bench/results.md.
# --quick takes at most three minutes, the default twelve, --full an hour. Needs the release build that `./x bench` makes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# mkfs.xfs lives outside an ordinary user's PATH on Debian.
export PATH=$PATH:/usr/sbin:/sbin

exec "${CARGO_TARGET_DIR:-target}/release/keyframe-bench" "$@"
