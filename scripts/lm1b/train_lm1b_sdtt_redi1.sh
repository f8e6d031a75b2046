#!/usr/bin/env bash
# SDTT-ReDi1 on LM1B, the classical twin of train_lm1b_imsdtt_uniform_redi1.sh
# -> outputs/lm1b/sdtt_redi1.ckpt. First: datagen_lm1b_sdtt.sh
#
#   bash scripts/lm1b/train_lm1b_sdtt_redi1.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/lm1b/sdtt.ckpt reflow_data/lm1b/sdtt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/sdtt.ckpt folder=reflow_data/lm1b/sdtt -- "$@"
rectify sdtt_redi1 50001 algo=im-redi "${classical[@]}" sampling.steps=1,2,4,8,32,128
