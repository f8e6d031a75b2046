#!/usr/bin/env bash
# Perplexity (a bound) of MDLM on the last 100,000 documents of OpenWebText
# -> results/owt/ppl/MDLM-openwebtext-split-gpt2.json
#
#   bash scripts/owt/eval_owt_mdlm.sh [ckpt] [key=value ...]
#   defaults: outputs/owt/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/mdlm.ckpt -- "$@"
ppl MDLM 16 algo=imdm "${classical[@]}"
