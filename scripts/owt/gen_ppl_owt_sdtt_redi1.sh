#!/usr/bin/env bash
# SDTT-ReDi1 on OpenWebText: texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt/samples/<steps>-SDTT_ReDi1-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt/gen_ppl_owt_sdtt_redi1.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/owt/sdtt_redi1.ckpt results/owt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/sdtt_redi1.ckpt results=results/owt -- "$@"
gen_ppl SDTT_ReDi1 algo=imdm "${classical[@]}"
