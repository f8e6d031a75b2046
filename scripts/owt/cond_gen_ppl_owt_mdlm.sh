#!/usr/bin/env bash
# MDLM: five continuations of each of 256 prefixes, their generative perplexity (gpt2-large) and entropy
# -> results/owt/cond_samples/<steps>-MDLM-gpt2.json, then eval_mauve_owt.sh. steps may be a list like 8,32,128.
# One mask has no noise: noise_dim stands here as in the commands of the other models.
#
#   bash scripts/owt/cond_gen_ppl_owt_mdlm.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt/mdlm.ckpt results/owt 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/mdlm.ckpt results=results/owt noise_dim=2048 -- "$@"
cond_gen_ppl MDLM algo=imdm "${classical[@]}" model.noise_dim="$noise_dim"
