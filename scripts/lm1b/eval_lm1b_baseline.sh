#!/usr/bin/env bash
# Perplexity of a baseline (ar, sedd, d3pm, duo_base, duo, duo_dcd, duo_rectified)
# on the test set of LM1B -> results/lm1b/ppl/<name>-LM1B-gpt2.json
#
#   bash scripts/lm1b/eval_lm1b_baseline.sh [algo] [ckpt] [key=value ...]
#   defaults: ar outputs/lm1b/ALGO.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments algo=ar ckpt=outputs/lm1b/ALGO.ckpt -- "$@"
baseline "$algo"
ppl "$name" 64 "${model[@]}"
