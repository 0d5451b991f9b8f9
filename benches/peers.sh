#!/usr/bin/env bash
# Measures archiving and fetching beside other tools, in one run on one machine: `make bench`.
#
# Real WAL is made by pgbench. Then each tool is driven as PostgreSQL's archiver drives it: one call for each .ready file,
# in order, through sh, in the data directory. What is printed are figures and their ratios to Walden's in the same run.
#
#   benches/peers.sh [--segments N] [--only PART,...]     parts: wal (makes it, no more), push, get, s3, large, backup
#
# The WAL is kept in target/bench, and the benches of cargo take it from there.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/install.sh --postgres-only
missing=()
for program in pgbackrest age lz4; do command -v "$program" >/dev/null || missing+=("$program"); done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}" >&2
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    $sudo apt-get install -y -q "${missing[@]}" >&2 || { echo "could not install ${missing[*]}" >&2; exit 1; }
fi

cargo build --release
limit=$(cargo bench --no-run --bench limit 2>&1 | sed -n 's/.*(\(.*limit-[0-9a-f]*\)).*/\1/p')
work=$(mktemp -d /tmp/walden-bench.XXXXXX)
trap 'rm -rf "$work"' EXIT
target=${CARGO_TARGET_DIR:-target}
install -m 755 "$target/release/walden" "$work/walden"
install -m 755 "$limit" "$work/limit"
install -m 755 benches/peers.py benches/backup.py "$work/"
kept=$target/bench
mkdir -p "$kept"
kept=$(cd "$kept" && pwd)
chmod 755 "$work"
cache=${WALDEN_TEST_CACHE:-/var/cache/walden-tests}

# PostgreSQL does not run as root, and pgBackRest should not.
as_user=()
if [ "$(id -u)" = 0 ]; then
    mkdir "$work/run" && chown postgres: "$work/run" "$kept"
    as_user=(setpriv --reuid=postgres --regid=postgres --init-groups)
else
    mkdir "$work/run"
fi
# The one in the path may lie where that user cannot execute it.
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
"${as_user[@]}" "$python" "$work/peers.py" --walden "$work/walden" --work "$work/run" \
    --rclone "$cache/bin/rclone" --limit "$work/limit" --keep-wal "$kept" "$@"
case " $* " in
*" --only "*backup* | *" --only="*backup*) ;;
*" --only"*) exit 0 ;;
esac
"${as_user[@]}" "$python" "$work/backup.py" --walden "$work/walden" --work "$work/run"
