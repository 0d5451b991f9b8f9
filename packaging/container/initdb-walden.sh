#!/bin/bash
# Run by the official image's entrypoint after initdb, as postgres, while its temporary server runs. The server that follows has
# the settings that `init --apply` makes. Nothing is done without WALDEN_REPOSITORY, and nothing on a volume that has data.
set -euo pipefail

if [ -n "${WALDEN_REPOSITORY:-}" ]; then
    options=()
    # Words such as primary.endpoint=http://s3:7070 primary.path_style=true
    for option in ${WALDEN_REPOSITORY_OPTIONS:-}; do
        options+=(--repository-option "$option")
    done
    walden init --cluster "${WALDEN_CLUSTER:-main}" --data-dir "$PGDATA" --state-dir /var/lib/walden \
        --connection "host=/var/run/postgresql user=$POSTGRES_USER dbname=postgres" \
        --repository "$WALDEN_REPOSITORY" "${options[@]}" --apply
fi
