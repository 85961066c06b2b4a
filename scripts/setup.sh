#!/usr/bin/env bash
# Installs what Debian 12 lacks for building, testing and running Keyframe, and says what it installs.
# Looks for the thing itself (a command, a header), not for the package, so a local build of QEMU counts.
# Without root and without password-less sudo it changes nothing, prints the command to run, and fails.
set -euo pipefail
export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin

# Debian 12 itself carries QEMU 7.2; snapshots with memory need a later one, which its backports have.
qemu_needed=9

# thing:package -- a thing with a slash is a file, otherwise a command.
wanted=(
    gcc:gcc
    /usr/include/stdlib.h:libc6-dev
    curl:curl
    /etc/ssl/certs/ca-certificates.crt:ca-certificates
    cpio:cpio
    mke2fs:e2fsprogs
    mkfs.xfs:xfsprogs
    nbdcopy:libnbd-bin
    /usr/lib/python3/dist-packages/nbd.py:python3-libnbd
    nbdkit:nbdkit
    fio:fio
    /usr/lib/postgresql/15/bin/postgres:postgresql
    /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf
    ip:iproute2
    openssl:openssl
)

say() { printf 'setup: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

present() {
    case $1 in
    */*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

qemu_is_recent() {
    present qemu-system-x86_64 && present qemu-img || return 1
    local version
    version=$(qemu-system-x86_64 --version)
    [[ $version =~ version\ ([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge "$qemu_needed" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        # A bare environment, but the one variable that keeps apt from asking.
        sudo -n env DEBIAN_FRONTEND="${DEBIAN_FRONTEND:-}" "$@"
    fi
}
can_be_root() { [ "$(id -u)" = 0 ] || { present sudo && sudo -n true 2>/dev/null; }; }

backports=bookworm-backports
backports_known() { grep -qsr "$backports" /etc/apt/sources.list /etc/apt/sources.list.d --include='*.list' --include='*.sources'; }
backports_source="deb http://deb.debian.org/debian $backports main"
backports_file=/etc/apt/sources.list.d/$backports.list

install_packages() {
    local packages=("$@") suite=() release=
    [ ! -r /etc/os-release ] || release=$(. /etc/os-release && echo "${ID:-}:${VERSION_CODENAME:-}")
    if $need_qemu; then
        packages+=(qemu-system-x86 qemu-utils)
        [ "$release" != debian:bookworm ] || suite=(-t "$backports")
    fi
    local apt=(apt-get -y -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    local install=("${apt[@]}" install --no-install-recommends "${suite[@]}" "${packages[@]}")
    if ! present apt-get || ! can_be_root; then
        say "missing: ${packages[*]}"
        say "not root and no password-less sudo; run this as root, then again ./x setup:"
        if [ ${#suite[@]} -gt 0 ] && ! backports_known; then
            printf '    echo "%s" > %s\n' "$backports_source" "$backports_file"
        fi
        printf '    apt-get update && apt-get install --no-install-recommends %s\n' "${suite[*]} ${packages[*]}"
        exit 1
    fi
    if [ ${#suite[@]} -gt 0 ] && ! backports_known; then
        say "adding $backports_file for QEMU $qemu_needed or later"
        echo "$backports_source" | as_root tee "$backports_file" >/dev/null
    fi
    say "installing: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    as_root "${apt[@]}" update
    as_root "${install[@]}" >/dev/null
}

# Debian 12 packages no rustup and too old a compiler, so Rust comes from its own distribution, into $HOME.
install_rust() {
    local triple base init
    triple=$(uname -m)-unknown-linux-gnu
    base=https://static.rust-lang.org/rustup/dist/$triple
    say "installing rustup into ${CARGO_HOME:-$HOME/.cargo} from $base"
    init=$(mktemp -d)
    trap 'rm -rf "$init"' RETURN
    if ! (cd "$init" && curl -sSf --retry 3 -O "$base/rustup-init" -O "$base/rustup-init.sha256"); then
        die "cannot reach static.rust-lang.org; install Rust $(toolchain) by other means (https://rustup.rs) so that cargo is in PATH"
    fi
    # The sum is published with a file name behind it or without, depending on the mirror.
    echo "$(cut -c 1-64 "$init/rustup-init.sha256")  $init/rustup-init" | sha256sum --quiet --check
    chmod +x "$init/rustup-init"
    "$init/rustup-init" -y -q --no-modify-path --profile minimal --default-toolchain none
}
toolchain() { sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
for pair in "${wanted[@]}"; do
    present "${pair%%:*}" || missing+=("${pair##*:}")
done
need_qemu=false
qemu_is_recent || need_qemu=true
if [ ${#missing[@]} -gt 0 ] || $need_qemu; then
    install_packages "${missing[@]}"
    qemu_is_recent || die "QEMU $qemu_needed or later is needed, found: $(qemu-system-x86_64 --version 2>&1 | head -n 1)"
fi

present cargo || install_rust
if present rustup && ! rustup run "$(toolchain)" rustc --version >/dev/null 2>&1; then
    say "installing the Rust toolchain $(toolchain)"
    rustup toolchain install "$(toolchain)" --profile minimal -c rustfmt -c clippy --no-self-update
fi
cargo --version >/dev/null || die "cargo does not run; Rust $(toolchain) is needed, see https://rustup.rs"
