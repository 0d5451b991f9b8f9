#!/usr/bin/env bash
# Makes the Debian package of the release build in target/dist, in target/debian.
#
#   packaging/deb.sh        after packaging/build.sh; `make deb` does both
set -euo pipefail
cd "$(dirname "$0")/.."
cargo_deb=$(packaging/tools.sh cargo-deb)
packaging/stage.sh target/dist/walden
glibc=$(objdump -T target/dist/walden | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
if [ "$(printf '%s\nGLIBC_2.31\n' "$glibc" | sort -V | tail -n 1)" = GLIBC_2.31 ]; then
    "$cargo_deb" --no-build --no-strip
else
    # Built without zig, which packaging/build.sh has told: the package asks for what this machine has.
    "$cargo_deb" --no-build --no-strip --variant=this-glibc
fi
