#!/usr/bin/env bash
# Checks a release build and puts what is published into target/dist: the binary, its SBOM, the licences, checksums.
#
#   packaging/release.sh        after `cargo build --release --locked`; `make release` does both
#
# It fails if the binary is larger than 25 MB, if `walden --version` takes longer than 5 ms, if it needs a newer glibc than Debian
# 12 has, or if cargo-deny finds something.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=target/release/walden
dist=target/dist
rm -rf "$dist"
mkdir -p "$dist"

size=$(stat -c %s "$binary")
echo "size: $size bytes"
[ "$size" -le 25000000 ] || { echo "the binary is larger than 25 MB" >&2; exit 1; }

# The median of 51 starts, in microseconds.
start_up=$(python3 - "$binary" <<'PYTHON'
import statistics, subprocess, sys, time
def once():
    begin = time.perf_counter()
    subprocess.run([sys.argv[1], "--version"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
print(round(statistics.median(once() for _ in range(51)) * 1e6))
PYTHON
)
echo "start-up: $start_up microseconds, the median of 51"
[ "$start_up" -le 5000 ] || { echo "walden --version takes longer than 5 ms" >&2; exit 1; }

glibc=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
echo "needs: $glibc; $(objdump -p "$binary" | awk '$1 == "NEEDED" { printf "%s ", $2 }')"
newest=$(printf '%s\nGLIBC_2.36\n' "$glibc" | sort -V | tail -n 1)
[ "$newest" = GLIBC_2.36 ] || { echo "the binary needs a newer glibc than Debian 12 has" >&2; exit 1; }

deny=$(packaging/tools.sh cargo-deny)
"$deny" --locked check --hide-inclusion-graph bans licenses sources
# Known vulnerabilities come from a database on GitHub. WALDEN_OFFLINE=1 releases without a look at it, and says so.
if [ "${WALDEN_OFFLINE:-}" = 1 ]; then
    echo "advisories: NOT CHECKED (WALDEN_OFFLINE=1)"
else
    "$deny" --locked check --hide-inclusion-graph advisories
fi

cp "$binary" "$dist/walden"
packaging/sbom.py >"$dist/walden.cdx.json"
packaging/sbom.py --licences >"$dist/LICENCES.txt"
(cd "$dist" && sha256sum walden walden.cdx.json LICENCES.txt >SHA256SUMS && cat SHA256SUMS)
