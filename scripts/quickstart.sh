#!/usr/bin/env bash
# The whole method on the English text that ships with Python, on a laptop's CPU, without a download:
# an autoregressive judge (AR), a masked diffusion model (MDLM), its distillation into few steps with infinite
# masks (IM-SDTT, then IM-ReDi), the classical twins of both (SDTT, ReDi); tables and a figure.
# A second run goes on where the first stopped.
#
#   bash scripts/quickstart.sh [--full] [--help] [key=value ...]     overrides go to every command
#
# --full: longer trainings and more pairs, about an hour, and an infinite-mask model from scratch (IMDM).
# QUICKSTART_DIR (default outputs/quickstart, with --full outputs/quickstart_full) is where everything is written.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,10p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/setup_env.sh"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" scripts/quickstart.py "$@"
