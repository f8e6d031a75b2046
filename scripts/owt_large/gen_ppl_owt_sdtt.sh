#!/usr/bin/env bash
# SDTT on OpenWebText (860M parameters): texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt_large/samples/<steps>-SDTT-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt_large/gen_ppl_owt_sdtt.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/owt_large/sdtt.ckpt results/owt_large
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt_large/sdtt.ckpt results=results/owt_large -- "$@"
gen_ppl SDTT algo=imdm "${classical[@]}"
