#!/usr/bin/env bash
# IM-SDTT-ReDi1 on OpenWebText: texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt/samples/<steps>-IMSDTT_ReDi1-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt/gen_ppl_owt_imsdtt_redi1.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt/imsdtt_noisedim2048_redi1.ckpt results/owt 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/imsdtt_noisedim2048_redi1.ckpt results=results/owt noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
gen_ppl IMSDTT_ReDi1 algo=imdm "${infinite[@]}"
