#!/usr/bin/env bash
# ReDi on LM1B, the classical twin of train_lm1b_imredi1.sh -> outputs/lm1b/redi1.ckpt
# First: datagen_lm1b_mdlm.sh
#
#   bash scripts/lm1b/train_lm1b_redi1.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt reflow_data/lm1b/mdlm
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt folder=reflow_data/lm1b/mdlm -- "$@"
rectify redi1 60000 algo=im-redi "${classical[@]}" sampling.steps=1,2,4,8,32,128
