#!/usr/bin/env bash
# Lives with the package in a fresh Debian 12 that has booted systemd: an older version is installed, set up and scheduled; then it is
# upgraded, the services run under their limits beside a real server, and it is removed, installed again and purged.
#
#   tests/package.sh [DEB]      as root; DEB is the package, by default what `make deb` left in target/debian
#
# Needs debootstrap, systemd-nspawn and a Debian mirror. The system is a container without network: nothing is changed outside a temporary
# directory and the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/debian.sh
need_root package
need_program systemd-nspawn systemd-container
deb=${1:-$(ls -t target/debian/walden_*_amd64.deb | head -n 1)}

work=$(mktemp -d /var/tmp/walden-package-XXXXXX)
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT
debian 12 "$root"
inside "$root" 'apt-get update -q && apt-get install -q -y --no-install-recommends systemd systemd-sysv dbus postgresql' >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log" >&2; exit 1; }
# The container has no network of its own to ask.
rm -f "$root/etc/resolv.conf"

# The older version is this one with another number, and with another example of a configuration.
cp "$deb" "$root/root/new.deb"
dpkg-deb --raw-extract "$deb" "$work/old"
sed -i 's/^Version: .*/Version: 0.0.9-1/' "$work/old/DEBIAN/control"
echo '# as it was in 0.0.9' >>"$work/old/usr/share/walden/walden.toml.example"
dpkg-deb --build --root-owner-group "$work/old" "$root/root/old.deb" >"$work/log"

install -m 755 tests/package-inside.sh "$root/root/inside.sh"
cat >"$root/etc/systemd/system/walden-test.service" <<'UNIT'
[Unit]
After=postgresql.service
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/root/inside.sh >/root/log 2>&1 && touch /root/passed'
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
UNIT
inside "$root" 'systemctl enable -q walden-test.service'
timeout --foreground 300 systemd-nspawn --quiet --directory="$root" --boot --machine="walden-package-$$" --register=no --keep-unit \
    --private-network >"$work/boot" 2>&1 </dev/null || true
if [ ! -e "$root/root/passed" ]; then
    tail -n 20 "$work/boot" >&2
    tail -n 80 "$root/root/log" >&2 || true
    echo "package: FAILED" >&2
    exit 1
fi
grep '^package:' "$root/root/log"
