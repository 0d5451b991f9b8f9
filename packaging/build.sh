#!/usr/bin/env bash
# Builds the release binary and leaves it in target/dist.
#
#   packaging/build.sh
#
# It is linked by zig against the glibc of Debian 11, so that it runs there and on everything newer, whatever this machine has. What that
# needs is fetched into target/tools: cargo-zigbuild and ziglang, from PyPI. WALDEN_OFFLINE=1 fetches nothing: without them cargo
# builds against the glibc of this machine, and the script says so.
set -euo pipefail
cd "$(dirname "$0")/.."
floor=2.31
dist=target/dist
built=${CARGO_TARGET_DIR:-target}

if zigbuild=$(packaging/tools.sh cargo-zigbuild); then
    target=$(uname -m)-unknown-linux-gnu
    echo "build: linked by zig against glibc $floor" >&2
    PATH=$(dirname "$zigbuild"):$PATH cargo zigbuild --release --locked --target "$target.$floor"
    binary=$built/$target/release/walden
elif [ "${WALDEN_OFFLINE:-}" = 1 ]; then
    cargo build --release --locked
    binary=$built/release/walden
    echo "build: NOT PORTABLE: linked without zig, against the glibc of this machine ($(getconf GNU_LIBC_VERSION))" >&2
else
    echo "build: zig is not to be had; WALDEN_OFFLINE=1 builds without it, for machines with the glibc of this one" >&2
    exit 1
fi
# What `make release` has put beside it belongs to that binary alone.
if ! cmp -s "$binary" "$dist/walden"; then
    rm -rf "$dist"
    mkdir -p "$dist"
    install -m 755 "$binary" "$dist/walden"
fi
