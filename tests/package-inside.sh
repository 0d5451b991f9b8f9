#!/usr/bin/env bash
# What tests/package.sh does in its container: as root, with systemd as the first process and a PostgreSQL 15 that runs.
set -euxo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
# No terminal and no answers: a question ends the script.
exec </dev/null

as_server() { runuser -u postgres -- "$@"; }
is() { systemctl "is-$1" --quiet "walden-$2@walden.timer"; }
refused() { if "$@"; then false; fi; }

# An older version, set up as the quick start does, with a repository where the units may not write; two timers run, one is only enabled.
dpkg -i /root/old.deb
walden --version
test "$(stat -c %U:%a /var/lib/walden)" = postgres:750
test "$(stat -c %U:%a /etc/walden)" = postgres:750
for file in bash-completion/completions/walden zsh/vendor-completions/_walden fish/vendor_completions.d/walden.fish walden/walden.toml.example; do
    test -s "/usr/share/$file"
done
test -e /usr/share/man/man1/walden-recover.1.gz || grep -qs path-exclude /etc/dpkg/dpkg.cfg.d/*
grep 0.0.9 /etc/walden/walden.toml.example
install -d -o postgres -g postgres -m 750 /backup
as_server walden init --cluster main --data-dir /var/lib/postgresql/15/main --state-dir /var/lib/walden \
    --connection 'host=/var/run/postgresql user=postgres' --repository primary=file:///backup/walden --apply
# initdb found no /dev/shm where it ran; this is Debian's default.
pg_conftool 15 main set dynamic_shared_memory_type posix
systemctl restart postgresql@15-main
printf '\n[retention]\nkeep_last = 3\n' >>/etc/walden/walden.toml
cp /etc/walden/walden.toml /root/before.toml
systemctl enable --now walden-backup@walden.timer walden-expire@walden.timer
systemctl enable walden-sync@walden.timer

# The upgrade: nothing is asked, what is the operator's stays, what is scheduled stays.
dpkg -i /root/new.deb
cmp /etc/walden/walden.toml /root/before.toml
refused grep 0.0.9 /etc/walden/walden.toml.example
is active backup
is active expire
refused is active sync
for timer in backup expire sync; do is enabled "$timer"; done
echo "package: upgraded, with its configuration and its timers"

# What the server has in shared memory has to be there still when the services have run, which are the same user's.
memory() { find /dev/shm -user postgres | sort; }
before=$(memory)
test -n "$before"

# A service that fails calls the operator. Then the drop-in of packaging/README.md.
install -m 755 /dev/stdin /etc/walden/on-failure <<'CALL'
#!/bin/sh
echo "called for $1"
CALL
refused systemctl start walden-backup@walden.service
journalctl -u walden-backup@walden.service --no-pager | grep -i 'read-only file system'
until journalctl -u 'walden-notify@*' --no-pager | grep 'called for walden-backup@walden.service'; do sleep 0.1; done
install -d /etc/systemd/system/walden-.service.d
printf '[Service]\nReadWritePaths=/backup\n' >/etc/systemd/system/walden-.service.d/repository.conf
systemctl daemon-reload

# Each service under its limits, beside a server that goes on undisturbed.
as_server psql -c "CREATE TABLE precious AS SELECT id FROM generate_series(1, 100000) id" -c "SELECT pg_switch_wal()"
for service in backup metrics verify sync expire; do
    systemctl start "walden-$service@walden.service" || { journalctl -u 'walden-*' --no-pager; false; }
done
journalctl -u 'walden-*' --no-pager
test "$(memory)" = "$before"
as_server walden list --output json | grep '"id"'
grep '^walden_' /run/walden-metrics/walden.prom
test "$(stat -c %U:%a /run/walden-metrics/walden.prom)" = postgres:644
as_server walden status
echo "package: base backup, metrics, verification, copying and retention ran under their limits"

# Removed, it leaves what is the operator's, and nothing is scheduled any more.
apt-get remove -y walden
test ! -e /usr/bin/walden
for timer in backup expire sync; do
    refused is active "$timer"
    test ! -e "/etc/systemd/system/timers.target.wants/walden-$timer@walden.timer"
done
cmp /etc/walden/walden.toml /root/before.toml
test -e /var/lib/walden/main/index.sqlite
dpkg -i /root/new.deb
as_server walden list --output json | grep '"id"'

# Purged, it leaves the configuration, the identity and the repository.
apt-get purge -y walden
test ! -e /var/lib/walden
test ! -e /etc/walden/walden.toml.example
test -e /etc/walden/identity.txt
test -e /etc/walden/walden.toml
test -n "$(find /backup/walden -name cluster.json)"
# A repository in the state directory is not state.
dpkg -i /root/new.deb
cp -a /backup/walden /var/lib/walden/repository
apt-get purge -y walden
test -n "$(find /var/lib/walden/repository -name cluster.json)"
echo "package: removed, installed again and purged; configuration, identity and repositories are still there"
