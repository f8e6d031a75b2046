#!/usr/bin/env bash
# Style, in .venv (made on the first call): ruff's checks and its format.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
"$PYTHON" -m ruff check .
exec "$PYTHON" -m ruff format --check .
