#!/usr/bin/env bash
# Makes what the package holds besides files of the source: manual pages, completions, a changelog; below target/package.
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
