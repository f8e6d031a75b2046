#!/usr/bin/env bash
# SDTT-ReDi1 on LM1B: texts, their generative perplexity (gpt2-large) and entropy
# -> results/lm1b/samples/<steps>-SDTT_ReDi1-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/lm1b/gen_ppl_lm1b_sdtt_redi1.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/lm1b/sdtt_redi1.ckpt results/lm1b
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/lm1b/sdtt_redi1.ckpt results=results/lm1b -- "$@"
gen_ppl SDTT_ReDi1 algo=imdm "${classical[@]}"
