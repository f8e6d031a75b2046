#!/usr/bin/env bash
# SDTT on OpenWebText: texts, their generative perplexity (gpt2-large) and entropy
# -> results/owt/samples/<steps>-SDTT-gpt2.json
# steps may be a list like 1,2,4,8; sampling.duplicate=256 adds the total correlation.
#
#   bash scripts/owt/gen_ppl_owt_sdtt.sh [steps] [ckpt] [results] [key=value ...]
#   defaults: 1024 outputs/owt/sdtt.ckpt results/owt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 ckpt=outputs/owt/sdtt.ckpt results=results/owt -- "$@"
gen_ppl SDTT algo=imdm "${classical[@]}"
