#!/usr/bin/env bash
# Texts of a baseline (ar, sedd, d3pm, duo_base, duo, duo_dcd, duo_rectified):
# generative perplexity (gpt2-large) and entropy -> results/owt/samples/<steps>-<name>-gpt2.json
# steps may be a list like 1,2,4,8; ar makes a call a token, whatever it says.
#
#   bash scripts/owt/gen_ppl_owt_baseline.sh [algo] [steps] [ckpt] [results] [key=value ...]
#   defaults: ar 1024 outputs/owt/ALGO.ckpt results/owt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments algo=ar steps=1024 ckpt=outputs/owt/ALGO.ckpt results=results/owt -- "$@"
baseline "$algo"
gen_ppl "$name" "${model[@]}"
