#!/usr/bin/env bash
# MDLM on LM1B: texts, their generative perplexity (gpt2-large) and entropy
# -> results/lm1b/samples/<steps>-MDLM-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
# One mask has no noise: noise_scale and noise_dim stand here as in the commands of the other models.
#
#   bash scripts/lm1b/gen_ppl_lm1b_mdlm.sh [steps] [ckpt] [results] [noise_scale] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/lm1b/mdlm.ckpt results/lm1b 1.0 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/lm1b/mdlm.ckpt results=results/lm1b noise_scale=1.0 noise_dim=768 -- "$@"
gen_ppl MDLM algo=imdm "${classical[@]}" algo.noise_scale="$noise_scale" model.noise_dim="$noise_dim"
