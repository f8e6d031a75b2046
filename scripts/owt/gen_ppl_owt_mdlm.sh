#!/usr/bin/env bash
# MDLM on OpenWebText: texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt/samples/<steps>-MDLM-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
# One mask has no noise: noise_dim stands here as in the commands of the other models.
#
#   bash scripts/owt/gen_ppl_owt_mdlm.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt/mdlm.ckpt results/owt 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/mdlm.ckpt results=results/owt noise_dim=2048 -- "$@"
gen_ppl MDLM algo=imdm "${classical[@]}" model.noise_dim="$noise_dim"
