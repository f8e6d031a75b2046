#!/usr/bin/env bash
# Perplexity (a bound) of MDLM, trained on OpenWebText, on eight other data sets
# -> results/owt/ppl/MDLM-<data>-gpt2.json, a table in MDLM-zero_shot-gpt2.md
# A set that cannot be had stops nothing and is told at the end; zero_shot.datasets=ptb,lambada takes some.
#
#   bash scripts/owt/zero_shot_mdlm.sh [ckpt] [key=value ...]
#   defaults: outputs/owt/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/mdlm.ckpt -- "$@"
zero_shot MDLM algo=imdm "${classical[@]}"
