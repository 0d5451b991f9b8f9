#!/usr/bin/env bash
# Follows docs/quickstart.md word for word in a fresh Debian 12, beside a PostgreSQL 15 that it installs itself, and checks that the table is
# back. Then removes, reinstalls and purges the package.
#
#   tests/quickstart.sh [DEB]      as root; DEB is the package, by default what `make deb` left in target/debian
#
# Needs debootstrap and a Debian mirror. Nothing is changed outside a temporary directory and the cache, where the fresh system is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    echo "quickstart: skipped: only root may chroot" >&2
    [ "${CI:-}" != true ]
    exit
fi
deb=${1:-$(ls -t target/debian/walden_*_amd64.deb | head -n 1)}
page=docs/quickstart.md
cache=${WALDEN_TEST_CACHE:-/var/cache/walden-tests}/debian-12
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

if [ ! -e "$cache/done" ]; then
    command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap
    rm -rf "$cache"
    mkdir -p "$cache"
    debootstrap --variant=minbase --include=sudo,ca-certificates bookworm "$cache/root" "$mirror"
    touch "$cache/done"
fi

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
cp -a "$cache/root" "$root"
mount -t proc proc "$root/proc" && mounts+=("$root/proc")
mkdir -p "$root/dev/shm"
mount -t tmpfs tmpfs "$root/dev/shm" && mounts+=("$root/dev/shm")
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -a /etc/hosts "$root/etc/hosts"
# The machine's own sources and proxies are how it reaches a mirror.
cp -a /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
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

# The package itself: manual pages, completions, owners; removal keeps what is the operator's.
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive bash -euc "$1"; }
inside 'test "$(stat -c %U:%a /var/lib/walden)" = postgres:750 && test "$(stat -c %U:%a /etc/walden)" = postgres:750'
inside 'test -e /usr/share/man/man1/walden-recover.1.gz || grep -qs path-exclude /etc/dpkg/dpkg.cfg.d/*'
inside 'test -e /usr/share/bash-completion/completions/walden && test -e /lib/systemd/system/walden-backup@.timer'
inside 'echo "# kept" >>/etc/walden/walden.toml.example; dpkg -i /home/guest/walden_*.deb; grep -q "# kept" /etc/walden/walden.toml.example'
inside 'apt-get remove -y walden; test ! -e /usr/bin/walden; test -e /etc/walden/walden.toml && test -d /var/lib/walden'
inside 'dpkg -i /home/guest/walden_*.deb; walden --version; test -e /etc/walden/identity.txt'
inside 'apt-get purge -y walden; test ! -e /var/lib/walden; test ! -e /etc/walden/walden.toml.example; test -e /etc/walden/identity.txt'
echo "quickstart: the table is back after $((end - begin)) s; installed, upgraded, removed and purged"
