#!/usr/bin/env bash
# Tries the package in the oldest system that it is meant for: a fresh Debian 11 (glibc 2.31), which takes its dependencies from there. The whole
# story of `walden demo` runs in it, on a server that tests/install.sh has fetched: archiving into directory repositories, a base backup, a recovery.
#
#   tests/oldest.sh [DEB]      as root; DEB is the package, by default what `make deb` left in target/debian
#
# Needs debootstrap and a Debian mirror. Nothing is changed outside a temporary directory and the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/debian.sh
need_root oldest
deb=${1:-$(ls -t target/debian/walden_*_amd64.deb | head -n 1)}

work=$(mktemp -d /var/tmp/walden-oldest-XXXXXX)
root=$work/root
cleanup() {
    umount "$root/proc" 2>/dev/null || true
    umount "$root/dev/shm" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
debian 11 "$root"
mount -t proc proc "$root/proc"
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm"
cp "$deb" "$root/root/walden.deb"
cp -a "$cache/postgresql/17" "$root/opt/postgresql"
said() {
    inside "$root" "$1" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; echo "oldest: FAILED: $1" >&2; exit 1; }
}

said 'apt-get update -q && apt-get install -q -y --no-install-recommends /root/walden.deb'
said 'ldd --version | grep -F 2.31'
said 'walden --version && walden demo --help'
said 'walden demo --bin-dir /opt/postgresql/bin'
echo "oldest: Debian $(cat "$root/etc/debian_version"), glibc 2.31: installed, and walden demo came to its end"
