#!/usr/bin/env bash
# Exit code 0 if the Ray node in this container is alive: its raylet, and on the head the cluster's state (GCS) too.
# A worker whose head is away for a while is alive. Needs no token: Ray leaves this one page open, and it says no more.
#
#     docker/healthcheck.sh [port of the node's dashboard agent: 52365]
set -euo pipefail
exec wget --quiet --no-proxy --tries=1 --timeout=8 --output-document=- "http://127.0.0.1:${1:-52365}/api/healthz"
