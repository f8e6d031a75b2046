#!/usr/bin/env bash
# SDTT-ReDi1: five continuations of each of 256 prefixes, their generative perplexity (gpt2-large) and entropy
# -> results/owt_large/cond_samples/<steps>-SDTT_ReDi1-gpt2.json, then eval_mauve_owt.sh. steps may be a list like 8,32,128.
#
#   bash scripts/owt_large/cond_gen_ppl_owt_sdtt_redi1.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/owt_large/sdtt_redi1.ckpt results/owt_large
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt_large/sdtt_redi1.ckpt results=results/owt_large -- "$@"
cond_gen_ppl SDTT_ReDi1 algo=imdm "${classical[@]}"
