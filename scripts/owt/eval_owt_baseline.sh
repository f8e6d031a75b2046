#!/usr/bin/env bash
# Perplexity of a baseline (ar, sedd, d3pm, duo_base, duo, duo_dcd, duo_rectified)
# on the last 100,000 documents of OpenWebText -> results/owt/ppl/<name>-openwebtext-split-gpt2.json
#
#   bash scripts/owt/eval_owt_baseline.sh [algo] [ckpt] [key=value ...]
#   defaults: ar outputs/owt/ALGO.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments algo=ar ckpt=outputs/owt/ALGO.ckpt -- "$@"
baseline "$algo"
ppl "$name" 16 "${model[@]}"
