#!/usr/bin/env bash
# IM-SDTT on LM1B: texts, their generative perplexity (gpt2-large) and entropy
# -> results/lm1b/samples/<steps>-IMSDTT_uniform-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/lm1b/gen_ppl_lm1b_imsdtt_uniform.sh [steps] [ckpt] [results] [noise_scale] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/lm1b/imsdtt_uniform.ckpt results/lm1b 1.0 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/lm1b/imsdtt_uniform.ckpt results=results/lm1b noise_scale=1.0 noise_dim=768 \
    -- "$@"
infinite_masks "$noise_scale" "$noise_dim"
gen_ppl IMSDTT_uniform algo=imdm "${infinite[@]}"
