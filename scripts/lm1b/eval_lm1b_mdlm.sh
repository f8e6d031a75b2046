#!/usr/bin/env bash
# Perplexity (a bound) of MDLM on the test set of LM1B -> results/lm1b/ppl/MDLM-LM1B-gpt2.json
#
#   bash scripts/lm1b/eval_lm1b_mdlm.sh [ckpt] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt -- "$@"
ppl MDLM 64 algo=imdm "${classical[@]}"
