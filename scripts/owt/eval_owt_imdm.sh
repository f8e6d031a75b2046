#!/usr/bin/env bash
# Perplexity (a bound) of IMDM on the last 100,000 documents of OpenWebText
# -> results/owt/ppl/IMDM-openwebtext-split-gpt2.json
#
#   bash scripts/owt/eval_owt_imdm.sh [ckpt] [noise_dim] [key=value ...]
#   defaults: outputs/owt/imdm.ckpt 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/imdm.ckpt noise_dim=768 -- "$@"
infinite_masks 1.0 "$noise_dim"
ppl IMDM 16 algo=imdm "${infinite[@]}"
