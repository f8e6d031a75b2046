#!/usr/bin/env bash
# IMDM on OpenWebText: texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt/samples/<steps>-IMDM-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt/gen_ppl_owt_imdm.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt/imdm.ckpt results/owt 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/imdm.ckpt results=results/owt noise_dim=768 -- "$@"
infinite_masks 1.0 "$noise_dim"
gen_ppl IMDM algo=imdm "${infinite[@]}"
