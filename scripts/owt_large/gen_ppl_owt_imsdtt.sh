#!/usr/bin/env bash
# IM-SDTT on OpenWebText (860M parameters): texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt_large/samples/<steps>-IMSDTT-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt_large/gen_ppl_owt_imsdtt.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt_large/imsdtt_noisedim2048.ckpt results/owt_large 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt_large/imsdtt_noisedim2048.ckpt results=results/owt_large noise_dim=2048 \
    -- "$@"
infinite_masks 1.0 "$noise_dim"
gen_ppl IMSDTT algo=imdm "${infinite[@]}"
