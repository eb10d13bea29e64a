#!/usr/bin/env bash
# Install what VexFS needs to be built, mounted and tested, and this machine lacks.
#
# usage: scripts/setup.sh [--fuzz | --posix]
#
#   --fuzz     also the C++ compiler that scripts/fuzz.sh needs
#   --posix    also the programs that scripts/posix.sh runs
#
# Packages come from apt-get, run as root or through sudo; what is installed is printed. Nothing happens when
# everything is there. Rust is never installed. Exits 1, and says what to do, when something stays missing.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# What is looked for, and the Debian or Ubuntu package that has it.
needed=(fusermount3:fuse3 getfattr:attr rsync:rsync git:git cc:gcc)
case ${1-} in
    '') ;;
    --fuzz) needed+=(c++:g++) ;;
    --posix) needed+=(fio:fio stress-ng:stress-ng dbench:dbench sqlite3:sqlite3 python3:python3) ;;
    *) fail "usage: scripts/setup.sh [--fuzz | --posix]" ;;
esac

# Sets `packages` to those whose program is not there.
look() {
    packages=()
    local pair
    for pair in "${needed[@]}"; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    # A compiler alone has no C library to link with.
    [[ " ${packages[*]-} " != *" gcc "* ]] || packages+=(libc6-dev)
}

as_root=()
if [[ $EUID -ne 0 ]]; then
    as_root=(sudo)
    # Without a terminal nobody could type a password.
    [[ -t 0 ]] || as_root=(sudo -n)
fi

may_be_root() { [[ $EUID -eq 0 ]] || command -v sudo >/dev/null; }

look
if [[ ${#packages[@]} -gt 0 ]]; then
    hint="install by hand: ${packages[*]} (the names in Debian and Ubuntu)"
    command -v apt-get >/dev/null || fail "there is no apt-get here" "$hint"
    may_be_root || fail "packages are missing, and this is neither root nor is there sudo" "$hint"
    say "installing ${packages[*]}"
    install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get install -qq -y --no-install-recommends "${packages[@]}")
    # Lists that are missing or too old for what the mirrors have now are fetched once.
    "${install[@]}" </dev/null >/dev/null 2>&1 ||
        { "${as_root[@]}" apt-get update -qq && "${install[@]}" </dev/null >/dev/null; } ||
        fail "apt-get could not install them" "$hint"
    hash -r
    look
    [[ ${#packages[@]} -eq 0 ]] || fail "still missing after the installation: ${packages[*]}"
fi

if ! command -v cargo >/dev/null; then
    version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    fail "Rust is not installed: get $version or newer from https://rustup.rs, open a new shell," "and run this again"
fi

if [[ ! -e /dev/fuse ]]; then
    # The module may only not have been asked for yet.
    ! may_be_root || "${as_root[@]}" modprobe fuse 2>/dev/null || true
    [[ -e /dev/fuse ]] ||
        fail "there is no /dev/fuse, so nothing can be mounted: the kernel needs FUSE (modprobe fuse);" \
            "a container needs --device /dev/fuse --cap-add SYS_ADMIN"
fi
say "everything needed is here"
