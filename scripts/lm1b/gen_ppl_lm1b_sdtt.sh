#!/usr/bin/env bash
# SDTT on LM1B: texts, their generative perplexity (gpt2-large) and entropy
# -> results/lm1b/samples/<steps>-SDTT-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/lm1b/gen_ppl_lm1b_sdtt.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/lm1b/sdtt.ckpt results/lm1b
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/lm1b/sdtt.ckpt results=results/lm1b -- "$@"
gen_ppl SDTT algo=imdm "${classical[@]}"
