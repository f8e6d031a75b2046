#!/usr/bin/env bash
# MAUVE of what cond_gen_ppl_owt_*.sh wrote against 256 human texts (features of gpt2-large)
# -> results/owt/cond_samples/<steps>-<name>-mauve.json
# name: MDLM, SDTT_ReDi1, IMSDTT_ReDi1. Here key=value are flags of eval_mauve.py, like sample_num=128.
#
#   bash scripts/owt/eval_mauve_owt.sh [steps] [name] [results] [key=value ...]
#   defaults: 1024 IMSDTT_ReDi1 results/owt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments steps=1024 name=IMSDTT_ReDi1 results=results/owt -- "$@"
mauve "$results/cond_samples/$steps-$name-gpt2.json"
