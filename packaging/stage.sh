#!/usr/bin/env bash
# Makes what the package holds besides files of the source: manual pages, completions, licences; below target/package.
#
#   packaging/stage.sh WALDEN     WALDEN is the binary to ask for them
set -euo pipefail
cd "$(dirname "$0")/.."
walden=${1:?the walden binary}
stage=target/package
rm -rf "$stage"
mkdir -p "$stage/man" "$stage/completions"
"$walden" man "$stage/man"
gzip -9n "$stage"/man/*.1
for shell in bash zsh fish; do "$walden" completions "$shell" >"$stage/completions/$shell"; done
packaging/sbom.py --licences | gzip -9n >"$stage/LICENCES.txt.gz"
gzip -9nc CHANGELOG.md >"$stage/changelog.gz"
# Debian's own changelog has one entry, of the last commit's time.
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
manifest() { sed -n "s/^$1 = \"\(.*\)\"$/\1/p" Cargo.toml | head -n 1; }
cat >"$stage/changelog" <<CHANGELOG
walden ($(manifest version)-1) stable; urgency=medium

  * What is new stands in changelog.gz.

 -- $(manifest maintainer)  $(date --utc --rfc-email --date="@$time")
CHANGELOG
