#!/usr/bin/env bash
# Texts of a baseline (ar, sedd, d3pm, duo_base, duo, duo_dcd, duo_rectified):
# generative perplexity (gpt2-large) and entropy -> results/lm1b/samples/<steps>-<name>-gpt2.json
# steps may be a list like 1,2,4,8; ar makes a call a token, whatever it says.
#
#   bash scripts/lm1b/gen_ppl_lm1b_baseline.sh [algo] [steps] [ckpt] [results] [key=value ...]
#   defaults: ar 1024 outputs/lm1b/ALGO.ckpt results/lm1b
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments algo=ar steps=1024 ckpt=outputs/lm1b/ALGO.ckpt results=results/lm1b -- "$@"
baseline "$algo"
gen_ppl "$name" "${model[@]}"
