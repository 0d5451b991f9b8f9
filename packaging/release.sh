#!/usr/bin/env bash
# Checks the release build in target/dist and puts beside it what is published with it: SBOM, licences, checksums.
#
#   packaging/release.sh        after packaging/build.sh; `make release` does both
#
# It fails if the binary is larger than 25 MB, if `walden --version` takes longer than 5 ms, if it needs a newer glibc than Debian 11
# has, or if cargo-deny finds something. WALDEN_OFFLINE=1 leaves out what needs the network, and says what: the advisories, and
# programs that are not installed; and it lets the binary need the glibc of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=target/dist
binary=$dist/walden
offline() { [ "${WALDEN_OFFLINE:-}" = 1 ]; }

size=$(stat -c %s "$binary")
echo "size: $size bytes"
[ "$size" -le 25000000 ] || { echo "the binary is larger than 25 MB" >&2; exit 1; }

# Of 51 starts, in microseconds. Other work on the machine makes a start slower, never faster: the fastest one is judged.
read -r fastest median < <(python3 - "$binary" <<'PYTHON'
import statistics, subprocess, sys, time
def once():
    begin = time.perf_counter()
    subprocess.run([sys.argv[1], "--version"], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - begin) * 1e6
times = [once() for _ in range(51)]
print(round(min(times)), round(statistics.median(times)))
PYTHON
)
echo "start-up: $median microseconds, the median of 51; the fastest $fastest"
[ "$fastest" -le 5000 ] || { echo "walden --version takes longer than 5 ms" >&2; exit 1; }

glibc=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
echo "needs: $glibc; $(objdump -p "$binary" | awk '$1 == "NEEDED" { printf "%s ", $2 }')"
if [ "$(printf '%s\nGLIBC_2.31\n' "$glibc" | sort -V | tail -n 1)" != GLIBC_2.31 ]; then
    echo "the binary needs a newer glibc than Debian 11 has" >&2
    offline || exit 1
fi

# Known vulnerabilities come from a database on GitHub, which cargo-deny fetches by git.
if deny=$(packaging/tools.sh cargo-deny); then
    "$deny" --locked check --hide-inclusion-graph bans licenses sources
    if offline; then
        echo "advisories: NOT CHECKED (WALDEN_OFFLINE=1)"
    else
        "$deny" --locked check --hide-inclusion-graph advisories
    fi
else
    offline
    echo "dependencies: NOT CHECKED (WALDEN_OFFLINE=1)"
fi

packaging/sbom.py >"$dist/walden.cdx.json"
if python=$(packaging/tools.sh cyclonedx); then
    "$python" packaging/sbom.py --check "$dist/walden.cdx.json"
    echo "SBOM: $(grep -c '"bom-ref"' "$dist/walden.cdx.json") components, valid"
else
    offline
    echo "SBOM: NOT CHECKED (WALDEN_OFFLINE=1)"
fi
packaging/sbom.py --licences >"$dist/LICENCES.txt"
(cd "$dist" && sha256sum walden walden.cdx.json LICENCES.txt >SHA256SUMS && sha256sum --check SHA256SUMS && cat SHA256SUMS)
