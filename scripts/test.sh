#!/usr/bin/env bash
# The tests, in .venv (made on the first call). Further arguments go to pytest: scripts/test.sh -k sampler
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
exec "$PYTHON" -m pytest "$@"
