#!/usr/bin/env bash
# IM-SDTT-ReDi1 on LM1B: IM-SDTT trained on its own pairs, with their mask noise
# -> outputs/lm1b/imsdtt_uniform_redi1.ckpt. First: datagen_lm1b_imsdtt_uniform.sh
#
#   bash scripts/lm1b/train_lm1b_imsdtt_uniform_redi1.sh [ckpt] [folder] [noise_dim] [noise_scale] [key=value ...]
#   defaults: outputs/lm1b/imsdtt_uniform.ckpt reflow_data/lm1b/imsdtt_uniform 768 1.0
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/imsdtt_uniform.ckpt folder=reflow_data/lm1b/imsdtt_uniform noise_dim=768 \
    noise_scale=1.0 -- "$@"
infinite_masks "$noise_scale" "$noise_dim"
rectify imsdtt_uniform_redi1 50001 algo=im-redi "${infinite[@]}" sampling.steps=1,2,4,8,32,128
