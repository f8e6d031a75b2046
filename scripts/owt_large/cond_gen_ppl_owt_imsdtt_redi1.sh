#!/usr/bin/env bash
# IM-SDTT-ReDi1: five continuations of each of 256 prefixes, their generative perplexity (gpt2-large) and entropy
# -> results/owt_large/cond_samples/<steps>-IMSDTT_ReDi1-gpt2.json, then eval_mauve_owt.sh. steps may be a list like 8,32,128.
#
#   bash scripts/owt_large/cond_gen_ppl_owt_imsdtt_redi1.sh [steps] [ckpt] [results] [noise_dim] [key=value ...]
#   defaults: 1024 outputs/owt_large/imsdtt_noisedim2048_redi1.ckpt results/owt_large 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt_large/imsdtt_noisedim2048_redi1.ckpt results=results/owt_large \
    noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
cond_gen_ppl IMSDTT_ReDi1 algo=imdm "${infinite[@]}"
