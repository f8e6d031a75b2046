#!/usr/bin/env bash
# SDTT on LM1B, the classical twin of train_lm1b_imsdtt_uniform.sh -> outputs/lm1b/sdtt.ckpt
#
#   bash scripts/lm1b/train_lm1b_sdtt.sh [ckpt] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt -- "$@"
sdtt sdtt 32 "${classical[@]}" training.load_ema=True sampling.steps=1,2,4,8,32,128
