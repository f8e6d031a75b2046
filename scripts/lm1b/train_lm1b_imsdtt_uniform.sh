#!/usr/bin/env bash
# IM-SDTT on LM1B: MDLM distilled from 1024 steps to 8 in seven rounds, with uniform mask noise
# -> outputs/lm1b/imsdtt_uniform.ckpt
#
#   bash scripts/lm1b/train_lm1b_imsdtt_uniform.sh [ckpt] [noise_scale] [noise_dim] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt 1.0 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt noise_scale=1.0 noise_dim=768 -- "$@"
infinite_masks "$noise_scale" "$noise_dim"
sdtt imsdtt_uniform 32 "${infinite[@]}" training.load_ema=True sampling.steps=1,2,4,8,32,128
