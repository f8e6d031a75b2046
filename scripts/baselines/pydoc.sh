#!/usr/bin/env bash
# All algorithms on the English text that ships with Python, on a laptop's CPU, without a download: what the
# quickstart trains (AR, MDLM, SDTT, IM-SDTT, ReDi, IM-ReDi; taken from it where it has run), and IMDM, SEDD,
# D3PM, Duo without and with its curriculum, Duo's distillation (DCD) and its rectification. One table, one figure.
# A second run goes on where the first stopped.
#
#   bash scripts/baselines/pydoc.sh [--full] [--help] [key=value ...]     overrides go to every command
#
# --full: longer trainings, about two hours. QUICKSTART_DIR (default outputs/quickstart, with --full
# outputs/quickstart_full) is where everything is written.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,10p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/../setup_env.sh"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" scripts/baselines/compare.py "$@"
