#!/usr/bin/env bash
# Follows docs/quickstart.md word for word in a fresh Debian 12, beside a PostgreSQL 15 that it installs itself, and checks that the table is
# back.
#
#   tests/quickstart.sh [DEB]      as root; DEB is the package, by default what `make deb` left in target/debian
#
# Needs debootstrap and a Debian mirror. Nothing is changed outside a temporary directory and the cache, where the fresh system is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/debian.sh
need_root quickstart
deb=${1:-$(ls -t target/debian/walden_*_amd64.deb | head -n 1)}
page=docs/quickstart.md

work=$(mktemp -d /var/tmp/walden-quickstart-XXXXXX)
root=$work/root
mounts=()
cleanup() {
    chroot "$root" pg_ctlcluster 15 main stop -m immediate >/dev/null 2>&1 || true
    # A copy that is still running holds the directory.
    for file in "$root"/var/lib/postgresql/15/*/postmaster.pid; do
        if [ -e "$file" ]; then kill -QUIT "$(head -n 1 "$file")" 2>/dev/null || true; fi
    done
    for ((at = ${#mounts[@]} - 1; at >= 0; at--)); do umount -l "${mounts[at]}" || true; done
    mountpoint -q "$root/proc" || rm -rf --one-file-system "$work"
}
trap cleanup EXIT
debian 12 "$root"
mount -t proc proc "$root/proc" && mounts+=("$root/proc")
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm" && mounts+=("$root/dev/shm")
chroot "$root" useradd --create-home guest
echo 'guest ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/guest"
echo 'Defaults env_keep += "http_proxy https_proxy DEBIAN_FRONTEND LC_ALL"' >>"$root/etc/sudoers.d/guest"
install -m 644 "$deb" "$root/home/guest/"

# What the page says, without the blocks that are marked.
{
    echo 'set -euxo pipefail'
    awk '/^```sh$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$page"
} >"$root/home/guest/quickstart.sh"

as_guest() {
    chroot "$root" su guest -s /bin/bash -c "cd; export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; $1"
}
begin=$(date +%s)
as_guest 'bash quickstart.sh' >"$work/log" 2>&1 || { tail -n 60 "$work/log" >&2; echo "quickstart: FAILED" >&2; exit 1; }
end=$(date +%s)
expect() { grep -qF -- "$1" "$work/log" || { cat "$work/log" >&2; echo "quickstart: not seen: $1" >&2; exit 1; }; }
expect "10001 | after the backup"

echo "quickstart: the table is back after $((end - begin)) s"
