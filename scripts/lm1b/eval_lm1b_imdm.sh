#!/usr/bin/env bash
# Perplexity (a bound) of IMDM on the test set of LM1B -> results/lm1b/ppl/IMDM-LM1B-gpt2.json
#
#   bash scripts/lm1b/eval_lm1b_imdm.sh [ckpt] [key=value ...]
#   defaults: outputs/lm1b/imdm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/imdm.ckpt -- "$@"
ppl IMDM 64 algo=imdm "${masked[@]}"
